//! Power cuts while a snapshot is installed: after every write, with and without a flush that fell between. What comes
//! back is the snapshot, whole, and nothing of another shard has changed.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use charthold_proto::internal as pb;
use prost::Message;

use super::apply::Applier;
use super::apply::partitions::{Step, dump, run, with_keys};
use super::install::{install, redo};
use super::snapshot::{Checker, PinnedRows, RunningHash, meta_to_pb, ranges};
use crate::store::EngineError;
use crate::store::incoming::{Incoming, Received};
use crate::store::log::writer::LogWriter;
use crate::store::state::flusher::StateStore;
use crate::store::state::memory::MemoryState;
use crate::store::state::{FirstRows, MemoryLimits, StateEngine, StateOp, StateRows, StateView, Table};
use crate::store::table::{applied, handover};
use crate::testing::disk::{Disk, MemoryDisk, RocksDisk};
use crate::testing::slots_of;
use crate::{ShardId, SlotMap, Slots};

const SHARD: ShardId = 1;
const BYSTANDER: ShardId = 2;

type Rows = Vec<(Table, Vec<u8>, Bytes)>;

/// An engine whose power goes at the write after so many: it and what comes later is not there any more.
struct PowerCut {
    engine: Arc<dyn StateEngine>,
    writes_left: AtomicUsize,
    flush_before: bool,
    is_off: AtomicBool,
}

impl PowerCut {
    fn is_off(&self) -> bool {
        self.is_off.load(Ordering::SeqCst)
    }
}

impl StateEngine for PowerCut {
    fn with_view(&self, read: &mut dyn FnMut(&dyn StateView)) {
        self.engine.with_view(read);
    }

    fn expire_requests(&self, shard: ShardId, made_before_ms: u64) {
        self.engine.expire_requests(shard, made_before_ms);
    }

    fn slots(&self) -> &SlotMap {
        self.engine.slots()
    }

    fn damage(&self) -> Option<&str> {
        self.engine.damage()
    }

    fn note_damage(&self, detail: &str) {
        self.engine.note_damage(detail);
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.engine.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<StateRows, EngineError> {
        self.engine.scan(table, from, to, rows_max, bytes_max)
    }

    fn first_rows(&self, table: Table) -> Result<Box<dyn FirstRows + '_>, EngineError> {
        self.engine.first_rows(table)
    }

    fn write(&self, ops: &[StateOp]) -> Result<(), EngineError> {
        if self.writes_left.load(Ordering::SeqCst) > 0 {
            self.writes_left.fetch_sub(1, Ordering::SeqCst);
            return self.engine.write(ops);
        }
        if self.flush_before && !self.is_off() {
            self.engine.begin_flush()?;
            self.engine.finish_flush()?;
        }
        self.is_off.store(true, Ordering::SeqCst);
        Err(EngineError::new("state", "no power"))
    }

    fn begin_flush(&self) -> Result<(), EngineError> {
        if self.is_off() { Ok(()) } else { self.engine.begin_flush() }
    }

    fn finish_flush(&self) -> Result<(), EngineError> {
        if self.is_off() { Ok(()) } else { self.engine.finish_flush() }
    }
}

fn steps(of: &str, count: usize) -> Vec<Step> {
    let change = |number: usize| match number % 7 {
        // A tombstone is a row like any other.
        6 => format!("delete t/{of}0"),
        record => format!("put t/{of}{record}"),
    };
    let line = |number: usize| format!("commit {of}{number} made=3600000 key=k1 chart=a: {}", change(number));
    with_keys((0..count).map(|number| Step::new(3_600_000 + number as u64, 0, line(number))).collect())
}

fn rows_of(engine: &dyn StateEngine, shard: ShardId) -> Rows {
    let inside = |(table, key, _): &(Table, Vec<u8>, Bytes)| {
        ranges(shard, slots_of(shard)).iter().any(|(of, from, to)| of == table && from <= key && key < to)
    };
    dump(engine).into_iter().filter(inside).collect()
}

fn store(engine: Arc<dyn StateEngine>, disk: &impl Disk) -> StateStore {
    StateStore::start(engine, LogWriter::start(disk.log(), None).unwrap(), MemoryLimits::default()).unwrap()
}

/// A snapshot of the source's shard, received and checked as from a peer.
fn receive(source: Arc<dyn StateEngine>, incoming: &Incoming) -> Received {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let disk = MemoryDisk::empty();
    let progress = Applier::restore(SHARD, source.as_ref()).unwrap().progress;
    let state = store(source, &disk);
    let received = runtime.block_on(async {
        let mut rows = PinnedRows::pin(SHARD, &state, &progress).await.unwrap();
        let mut part = incoming.receive(SHARD, &rows.meta.encode_to_vec()).unwrap();
        let (mut hash, mut checker) = (RunningHash::default(), Checker::new(SHARD, &rows.meta));
        while let Some(chunk) = rows.next().await {
            let chunk = Bytes::from(chunk.unwrap().encode_to_vec());
            hash.add(&chunk);
            checker.part(&pb::SnapshotPart { chunk: chunk.clone(), running_sha256: hash.to_bytes() }).unwrap();
            part.push(&chunk).unwrap();
        }
        checker.end(&pb::SnapshotEnd { running_sha256: hash.to_bytes() }).unwrap();
        part.finish().unwrap()
    });
    state.stop();
    received
}

/// Answers whether the install was done before the power went.
fn cut_after<D: Disk>(writes: usize, flush_before: bool) -> bool {
    let (disk, folder) = (D::empty(), tempfile::tempdir().unwrap());
    run(SHARD, disk.state().as_ref(), &steps("old", 9), &[(4, false)]);
    run(BYSTANDER, disk.state().as_ref(), &steps("other", 9), &[(4, false)]);
    disk.state().begin_flush().unwrap();
    disk.state().finish_flush().unwrap();
    let bystander = rows_of(disk.state().as_ref(), BYSTANDER);

    let source = Arc::new(MemoryState::default());
    run(SHARD, source.as_ref(), &steps("new", 40), &[(7, false)]);
    let expected = rows_of(source.as_ref(), SHARD);
    let incoming = Incoming::open(folder.path()).unwrap();
    let received = receive(source, &incoming);

    let (engine, writes_left) = (disk.state(), AtomicUsize::new(writes));
    let engine = PowerCut { engine, writes_left, flush_before, is_off: AtomicBool::new(false) };
    let state = store(Arc::new(engine), &disk);
    let installed = install(SHARD, &state, received);
    state.stop();

    let disk = disk.after_crash(0);
    let incoming = Incoming::open(folder.path()).unwrap();
    assert_eq!(incoming.pending(SHARD).unwrap().is_none(), installed.is_ok());
    let state = store(disk.state(), &disk);
    redo(SHARD, &state, &incoming).unwrap();
    assert!(incoming.pending(SHARD).unwrap().is_none());
    state.stop();
    let disk = disk.after_crash(0);
    assert!(rows_of(disk.state().as_ref(), SHARD) == expected, "cut after {writes} writes, flush {flush_before}");
    assert!(rows_of(disk.state().as_ref(), BYSTANDER) == bystander, "another shard's rows have changed");
    installed.is_ok()
}

fn every_cut<D: Disk>() {
    for flush_before in [false, true] {
        let done = (0..100).find(|writes| cut_after::<D>(*writes, flush_before));
        assert!(done.is_some_and(|writes| writes > 3), "the install took {done:?} writes");
    }
}

#[test]
fn the_twin_survives_a_cut_at_every_write() {
    every_cut::<MemoryDisk>();
}

#[test]
fn rocksdb_survives_a_cut_at_every_write() {
    every_cut::<RocksDisk>();
}

#[test]
fn a_view_does_not_move_while_it_is_read() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let disk = RocksDisk::empty();
    run(SHARD, disk.state().as_ref(), &steps("old", 9), &[(4, false)]);
    let expected = rows_of(disk.state().as_ref(), SHARD);
    let state = store(disk.state(), &disk);
    let progress = Applier::restore(SHARD, disk.state().as_ref()).unwrap().progress;
    let mut rows = runtime.block_on(PinnedRows::pin(SHARD, &state, &progress)).unwrap();
    let deletes =
        ranges(SHARD, slots_of(SHARD)).into_iter().map(|(table, from, to)| StateOp::DeleteRange { table, from, to });
    state.write(&deletes.collect::<Vec<_>>()).unwrap();
    state.flush().unwrap();
    assert!(rows_of(disk.state().as_ref(), SHARD).is_empty());
    let mut found = Rows::new();
    while let Some(chunk) = runtime.block_on(rows.next()) {
        let chunk = chunk.unwrap();
        let table = Table::named(&chunk.table).unwrap();
        found.extend(chunk.rows.into_iter().map(|row| (table, row.key.to_vec(), row.value)));
    }
    assert!(found == expected);
    state.stop();
}

/// Its giver gave by its log here, and then the taker came past where it takes them by a snapshot.
#[test]
fn what_a_snapshot_brings_is_between_two_shards_no_longer() {
    let (giver, disk, folder) = (9, MemoryDisk::empty(), tempfile::tempdir().unwrap());
    let source = Arc::new(MemoryState::default());
    run(SHARD, source.as_ref(), &steps("r", 5), &[(4, false)]);
    let key = applied::encode(SHARD);
    let mut row = applied::Row::decode(source.get(Table::Applied, &key).unwrap().unwrap()).unwrap();
    row.origins = vec![pb::Origin { shard: giver.into(), seq: 2, log_index: 7, taker_log_index: 1 }];
    source.write(&[StateOp::Put { table: Table::Applied, key, value: row.encode_to_vec().into() }]).unwrap();
    let incoming = Incoming::open(folder.path()).unwrap();
    let received = receive(source, &incoming);

    let state = store(disk.state(), &disk);
    let between = [(giver, SHARD), (SHARD, 8), (giver, BYSTANDER)];
    let put = |(giver, taker)| {
        let key = handover::Key { giver, taker }.encode();
        StateOp::Put { table: Table::Handover, key, value: Bytes::new() }
    };
    state.write(&between.map(put)).unwrap();
    install(SHARD, &state, received).unwrap();
    let left = dump(disk.state().as_ref()).into_iter().filter(|(table, _, _)| *table == Table::Handover);
    let left = left.map(|(_, key, _)| key).collect::<Vec<_>>();
    assert_eq!(left, [handover::Key { giver, taker: BYSTANDER }.encode()], "only what others have between them");
    state.stop();
}

/// A part for each row, so that a test can leave one out.
fn parts(shard: ShardId) -> (pb::SnapshotMeta, Vec<pb::SnapshotChunk>) {
    let source = MemoryState::default();
    run(shard, &source, &steps("r", 5), &[(4, false)]);
    let meta = meta_to_pb(&Applier::restore(shard, &source).unwrap().progress);
    let chunk = |(table, key, value): (Table, Vec<u8>, Bytes)| pb::SnapshotChunk {
        table: table.name().to_owned(),
        rows: vec![pb::SnapshotRow { key: key.into(), value }],
    };
    let chunks = rows_of(&source, shard).into_iter().map(chunk).collect();
    (meta, chunks)
}

/// Hashed as its sender would: what the checker finds is not the hash.
fn check(shard: ShardId, meta: &pb::SnapshotMeta, chunks: &[pb::SnapshotChunk]) -> Result<(), &'static str> {
    let (mut checker, mut hash) = (Checker::new(shard, meta), RunningHash::default());
    for chunk in chunks {
        let chunk = Bytes::from(chunk.encode_to_vec());
        hash.add(&chunk);
        checker.part(&pb::SnapshotPart { chunk, running_sha256: hash.to_bytes() })?;
    }
    checker.end(&pb::SnapshotEnd { running_sha256: hash.to_bytes() })
}

#[test]
fn what_is_no_snapshot_of_the_group_is_refused() {
    let (meta, chunks) = parts(SHARD);
    assert_eq!(check(SHARD, &meta, &chunks), Ok(()));
    assert!(check(BYSTANDER, &meta, &chunks).is_err(), "another group's rows");
    let earlier = pb::LogId { index: 1, ..meta.last_log_id.unwrap() };
    let earlier = pb::SnapshotMeta { last_log_id: Some(earlier), ..meta.clone() };
    assert!(check(SHARD, &earlier, &chunks).is_err(), "another position");
    let held = slots_of(SHARD).unwrap();
    let more = Slots { last: held.last + 1, ..held }.to_pb();
    let more = pb::SnapshotMeta { slots: Some(more), ..meta.clone() };
    assert!(check(SHARD, &more, &chunks).is_err(), "other slots than its rows are of");
    let others = pb::SnapshotMeta { origins: vec![pb::Origin::default()], ..meta.clone() };
    assert!(check(SHARD, &others, &chunks).is_err(), "from elsewhere");
    let swapped = |a: usize, b: usize| {
        let mut swapped = chunks.clone();
        swapped.swap(a, b);
        swapped
    };
    assert!(check(SHARD, &meta, &swapped(0, 1)).is_err(), "rows out of order");
    assert!(check(SHARD, &meta, &swapped(0, chunks.len() - 1)).is_err(), "tables out of order");
    let doubled = [&chunks[..1], &chunks].concat();
    assert!(check(SHARD, &meta, &doubled).is_err(), "a row twice");
    let without_applied = chunks.iter().filter(|chunk| chunk.table != "applied").cloned().collect::<Vec<_>>();
    assert!(check(SHARD, &meta, &without_applied).is_err(), "no applied row");
}

#[test]
fn a_part_that_is_cut_out_moved_or_changed_on_the_way_is_refused() {
    let (meta, chunks) = parts(SHARD);
    let mut hash = RunningHash::default();
    let part = |chunk: &pb::SnapshotChunk| {
        let chunk = Bytes::from(chunk.encode_to_vec());
        hash.add(&chunk);
        pb::SnapshotPart { chunk, running_sha256: hash.to_bytes() }
    };
    let sent = chunks.iter().map(part).collect::<Vec<_>>();
    let end = pb::SnapshotEnd { running_sha256: hash.to_bytes() };
    let check = |parts: &[pb::SnapshotPart]| {
        let mut checker = Checker::new(SHARD, &meta);
        parts.iter().try_for_each(|part| checker.part(part))?;
        checker.end(&end)
    };
    assert_eq!(check(&sent), Ok(()));
    for at in 0..sent.len() {
        let without = sent.iter().enumerate().filter(|(of, _)| *of != at).map(|(_, part)| part.clone());
        assert!(check(&without.collect::<Vec<_>>()).is_err(), "without part {at}");
        let mut changed = sent.clone();
        let mut bytes = changed[at].chunk.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        changed[at].chunk = bytes.into();
        assert!(check(&changed).is_err(), "part {at} changed");
    }
    assert!(check(&sent[..sent.len() - 1]).is_err(), "cut at its end");
}
