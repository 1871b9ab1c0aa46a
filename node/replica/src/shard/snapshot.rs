//! A group's state as a whole: where its rows are, a view of them that does not move, and one that was received.
//!
//! Openraft asks for snapshots for two reasons. To *announce* one allows the log to be purged up to it: what is
//! announced is a position only, the last one that a flush has made durable, so that no entry is purged that a crash
//! would need. To *send* one: that is a view pinned when the transfer begins, further on than what was announced, so
//! that the receiver has less to catch up with.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use openraft::RaftSnapshotBuilder;
use parking_lot::Mutex;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::apply::Progress;
use super::codec;
use super::types::TypeConfig;
use crate::planted::{self, Bug};
use crate::platform::blocking;
use crate::store::EngineError;
use crate::store::incoming::Received;
use crate::store::state::expiry::Pin;
use crate::store::state::flusher::StateStore;
use crate::store::state::{Scope, StateView, Table};
use crate::store::table::{after_prefix, version};
use crate::{DIRECTORY, ShardId, Slots};

pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, GroupSnapshot>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// What one chunk takes from the engine. One row may exceed it.
const CHUNK_ROWS: usize = 1_024;
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that were read and not taken yet.
const CHUNKS_READ_MAX: usize = 2;

/// What openraft hands on between its state machine and its network.
#[derive(Clone)]
pub enum GroupSnapshot {
    /// A position without rows.
    Announced,
    /// Rows to be sent.
    Pinned(Arc<Mutex<Option<PinnedRows>>>),
    /// Rows to be installed.
    Received(Arc<Mutex<Option<Received>>>),
}

impl GroupSnapshot {
    pub fn pinned(rows: PinnedRows) -> Self {
        Self::Pinned(Arc::new(Mutex::new(Some(rows))))
    }

    pub fn received(received: Received) -> Self {
        Self::Received(Arc::new(Mutex::new(Some(received))))
    }

    /// The rows, once.
    pub fn take_pinned(&self) -> io::Result<PinnedRows> {
        let taken = if let Self::Pinned(rows) = self { rows.lock().take() } else { None };
        taken.ok_or_else(|| io::Error::other("a snapshot without rows, or one that was sent before"))
    }
}

impl std::fmt::Debug for GroupSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Announced => "GroupSnapshot(announced)",
            Self::Pinned(_) => "GroupSnapshot(pinned)",
            Self::Received(_) => "GroupSnapshot(received)",
        })
    }
}

/// Rows of a table: from inclusive, to exclusive.
pub type RowRange = (Table, Vec<u8>, Vec<u8>);

/// Where the rows are of a group that holds these slots. Nothing of another group is in there.
pub fn ranges(shard: ShardId, slots: Option<Slots>) -> Vec<RowRange> {
    let range = |table: Table| match table.scope() {
        Scope::Slot => {
            slots.map(|Slots { first, last }| (table, first.to_be_bytes().to_vec(), after_prefix(&last.to_be_bytes())))
        }
        Scope::Shard => Some((table, shard.to_be_bytes().to_vec(), after_prefix(&shard.to_be_bytes()))),
        Scope::Directory => (shard == DIRECTORY).then(|| (table, Vec::new(), after_prefix(&[]))),
        Scope::Node => None,
    };
    Table::ALL.into_iter().filter_map(range).collect()
}

/// What a snapshot of this progress is called.
pub fn meta_of(log_id: Option<&pb::LogId>, membership: Option<pb::StoredMembership>) -> io::Result<SnapshotMeta> {
    Ok(SnapshotMeta {
        last_log_id: log_id.map(codec::log_id_from_pb),
        last_membership: codec::stored_membership_from_pb(membership)?,
    })
}

/// The same for its receiver, and what it holds.
pub(super) fn meta_to_pb(progress: &Progress) -> pb::SnapshotMeta {
    pb::SnapshotMeta {
        last_log_id: progress.log_id,
        last_membership: Some(progress.membership.clone().unwrap_or_default()),
        slots: progress.slots.map(Slots::to_pb),
        origins: progress.origins.clone(),
    }
}

type Chunk = Result<pb::SnapshotChunk, EngineError>;

/// A group's rows of one moment, read by a thread of their own as they are taken. Dropping it lets go of the view.
pub struct PinnedRows {
    pub meta: pb::SnapshotMeta,
    chunks: BoxStream<'static, Chunk>,
}

impl PinnedRows {
    /// Pins the group's rows. To be called while none of its entries is applied; they are pinned on return.
    pub async fn pin(shard: ShardId, state: &StateStore, progress: &Progress) -> io::Result<Self> {
        let held = state.pin(progress.log_time_ms);
        let (meta, ranges) = (meta_to_pb(progress), ranges(shard, progress.slots));
        let engine = state.shared_engine();
        if !state.has_threads() {
            let mut chunks = Vec::new();
            engine.with_view(&mut |view| {
                read_all(&ranges, view, &mut |chunk| {
                    chunks.push(chunk);
                    true
                });
            });
            return Ok(Self { meta, chunks: stream::iter(chunks).boxed() });
        }
        let (sender, chunks) = mpsc::channel(CHUNKS_READ_MAX);
        let (pinned, is_pinned) = oneshot::channel();
        let read = move || {
            let mut pinned = Some(pinned);
            engine.with_view(&mut |view| {
                let _waiter_gone = pinned.take().map(|pinned| pinned.send(()));
                read_all(&ranges, view, &mut |chunk| sender.blocking_send(chunk).is_ok());
            });
            // The view has gone by now: only then may rows that it holds.
            drop::<Pin>(held);
        };
        std::thread::Builder::new().name("snapshot".to_owned()).spawn(read)?;
        is_pinned.await.map_err(|_| io::Error::other("the snapshot's thread has ended"))?;
        Ok(Self { meta, chunks: ReceiverStream::new(chunks).boxed() })
    }

    /// The next chunk; nothing after the last.
    pub async fn next(&mut self) -> Option<Chunk> {
        self.chunks.next().await
    }
}

/// Reads a group's rows until they are all taken, or nobody wants more (`send` says so).
fn read_all(ranges: &[RowRange], view: &dyn StateView, send: &mut dyn FnMut(Chunk) -> bool) {
    for (table, from, to) in ranges {
        let (table, mut from) = (*table, from.clone());
        loop {
            let mut rows = match view.scan(table, &from, to, CHUNK_ROWS, CHUNK_BYTES) {
                Ok(rows) => rows,
                Err(error) => {
                    let _receiver_gone = send(Err(error));
                    return;
                }
            };
            let Some((last, _)) = rows.last() else { break };
            from = [last.as_slice(), &[0]].concat();
            if table == Table::Version && planted::has(Bug::SnapshotWithoutLastRow) {
                rows.pop();
            }
            if table == Table::Version && planted::has(Bug::TombstoneLostInSnapshot) {
                rows.retain(|(_, row)| version::Row::decode(row.clone()).is_ok_and(|row| !row.tombstone));
            }
            let rows = rows.into_iter().map(|(key, value)| pb::SnapshotRow { key: key.into(), value });
            let chunk = pb::SnapshotChunk { table: table.name().to_owned(), rows: rows.collect() };
            if !send(Ok(chunk)) {
                return;
            }
        }
    }
}

/// SHA-256 over all that came before and this: `h(n) = SHA-256(h(n-1) | chunk)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunningHash([u8; 32]);

impl RunningHash {
    pub fn add(&mut self, chunk: &[u8]) {
        self.0 = Sha256::new().chain_update(self.0).chain_update(chunk).finalize().into();
    }

    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

/// Takes a snapshot's chunks as they come, and refuses what cannot be one: another group's rows, rows out of order, a
/// part that is missing, doubled or changed.
pub struct Checker {
    ranges: std::iter::Peekable<std::vec::IntoIter<RowRange>>,
    hash: RunningHash,
    meta: pb::SnapshotMeta,
    applied: Option<pb::AppliedRow>,
}

impl Checker {
    pub fn new(shard: ShardId, meta: &pb::SnapshotMeta) -> Self {
        let ranges = ranges(shard, meta.slots.as_ref().and_then(Slots::from_pb)).into_iter().peekable();
        Self { ranges, hash: RunningHash::default(), meta: meta.clone(), applied: None }
    }

    pub fn part(&mut self, part: &pb::SnapshotPart) -> Result<(), &'static str> {
        self.hash.add(&part.chunk);
        if self.hash.to_bytes() != part.running_sha256 {
            return Err("a chunk is missing, doubled or changed");
        }
        let chunk = pb::SnapshotChunk::decode(part.chunk.clone()).map_err(|_| "a chunk cannot be decoded")?;
        let table = Table::named(&chunk.table).ok_or("a table that this node does not know")?;
        // Tables come in order; one without rows is left out.
        while self.ranges.next_if(|(of, _, _)| *of != table).is_some() {}
        let (_, from, to) = self.ranges.peek_mut().ok_or("tables out of order, or another group's")?;
        for row in &chunk.rows {
            if row.key.as_ref() < from.as_slice() || row.key.as_ref() >= to.as_slice() {
                return Err("rows out of order, or another group's");
            }
            *from = [row.key.as_ref(), &[0]].concat();
            if table == Table::Applied {
                let row = pb::AppliedRow::decode(row.value.clone()).map_err(|_| "the applied row cannot be decoded")?;
                self.applied = Some(row);
            }
        }
        Ok(())
    }

    pub fn end(&self, end: &pb::SnapshotEnd) -> Result<(), &'static str> {
        let of_meta = |row: &pb::AppliedRow| {
            let of_slots = (&row.slots, &row.origins) == (&self.meta.slots, &self.meta.origins);
            row.log_id.is_some() && row.log_id == self.meta.last_log_id && of_slots
        };
        match end.running_sha256 == self.hash.to_bytes() && self.applied.as_ref().is_some_and(of_meta) {
            true => Ok(()),
            false => Err("it is not whole, or not of the position that it says"),
        }
    }
}

/// Answers what is asked for by name of a position.
pub enum SnapshotBuilder {
    /// Flushes, then tells where the group was: the log up to there is not needed any more.
    Announce { shard: ShardId, state: StateStore },
    /// Rows that are pinned already.
    Rows(Option<io::Result<Snapshot>>),
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = GroupSnapshot;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        match self {
            Self::Rows(snapshot) => {
                snapshot.take().unwrap_or_else(|| Err(io::Error::other("a snapshot is built once")))
            }
            Self::Announce { shard, state } => {
                let flushed = blocking(|| state.flush().map(|()| state.flushed(*shard)));
                let row = flushed.map_err(io::Error::other)?.unwrap_or_default();
                let meta = meta_of(row.log_id.as_ref(), row.membership)?;
                Ok(Snapshot { meta, snapshot: GroupSnapshot::Announced })
            }
        }
    }
}
