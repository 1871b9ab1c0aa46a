//! Any partition of the same entries into batches gives the same state and the same answers, on either engine, and
//! over restarts between batches.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use charthold_proto::internal as pb;
use proptest::prelude::*;
use proptest::sample::select;

use super::scripts::parse::{Defaults, payload};
use super::{Applier, Entry, Payload};
use crate::store::state::memory::MemoryState;
use crate::store::state::rocks::RocksState;
use crate::store::state::{MemoryLimits, StateEngine, Table};
use crate::store::table::after_prefix;
use crate::store::table::request::AGE_MS_MAX;
use crate::testing::{self, applier, slots_of};

const SHARD: crate::ShardId = 1;
const HOUR_MS: u64 = 3_600_000;

/// A line of a script, see [`super::scripts`]: a failing case reads as one.
#[derive(Clone, Debug)]
pub struct Step {
    at: u64,
    slot: crate::Slot,
    line: String,
}

impl Step {
    pub fn new(at: u64, slot: crate::Slot, line: impl Into<String>) -> Self {
        Self { at, slot, line: line.into() }
    }

    /// With the slot moved to the same place of another shard.
    pub fn payload_for(&self, shard: crate::ShardId) -> Payload {
        let slot = slots_of(shard).unwrap().first + self.slot;
        payload(&self.line, &Defaults { at: self.at, slot })
    }

    fn entry(&self, shard: crate::ShardId, index: u64) -> Entry {
        Entry { log_id: pb::LogId { term: 1, leader: 1, index }, payload: self.payload_for(shard) }
    }
}

/// Few charts, records and request ids, so that entries meet.
fn commit() -> impl Strategy<Value = String> {
    let op = select(vec!["put", "put", "delete", "check"]);
    let record = select(vec!["t/p", "t/q", "u/p"]);
    let condition = select(vec!["", "", "", " absent", " =1", " =2", " =3"]);
    let mutation = (op, record, condition).prop_map(|(op, record, condition)| format!("{op} {record}{condition}"));
    let mutations = prop::collection::vec(mutation, 1..4).prop_map(|mutations| mutations.join(", "));
    let (chart, key) = (select(vec!["a", "b"]), select(vec!["k1", "k1", "k1", "k2"]));
    (0..20_u8, 0..3_u64, chart, key, mutations).prop_map(|(request, hour, chart, key, mutations)| {
        format!("commit r{request} made={} chart={chart} key={key}: {mutations}", hour * HOUR_MS)
    })
}

/// Few uploads, so that parts come in order now and then, and commits find them whole.
fn document() -> impl Strategy<Value = String> {
    let (upload, chart) = (select(vec!["u", "v"]), select(vec!["a", "b"]));
    (upload, chart, 0..3_u32, 0..20_u8, 0..6_u8).prop_map(|(upload, chart, part, request, kind)| match kind {
        0 => format!("drop {upload} chart={chart} idle={}", HOUR_MS * u64::from(part)),
        1 => format!("commit d{request} made={HOUR_MS} chart={chart} key=k1: put t/p of:{upload}:{}", part + 1),
        2 => format!("part {upload} {part} last chart={chart}"),
        _ => format!("part {upload} {part} chart={chart}"),
    })
}

/// Slots at both ends of the shard, one outside; log times that jump, also backwards.
pub fn step() -> impl Strategy<Value = Step> {
    let line = prop_oneof![
        20 => commit(),
        3 => select(vec!["index m t/p", "index m t/p chart=b", "index n t/p", "unindex m t/p seen=3600000"])
            .prop_map(str::to_owned),
        8 => document(),
        2 => select(vec!["key k1 chart=a", "key k2 chart=b", "blank", "members 1 2", "members 3"])
            .prop_map(str::to_owned),
    ];
    let slot = select(vec![0_u16, 0, 8_191, 8_192]);
    (0..3_u64, 0..2_000_u64, slot, line).prop_map(|(hour, ms, slot, line)| Step::new(hour * HOUR_MS + ms, slot, line))
}

/// Both charts have keys, so that most commits are executed.
pub fn with_keys(steps: Vec<Step>) -> Vec<Step> {
    let keys = ["a", "b"].map(|chart| Step::new(HOUR_MS, 0, format!("key k1 chart={chart}")));
    keys.into_iter().chain(steps).collect()
}

/// Applies in batches of the given sizes, over and over; where told, the applier restarts before a batch.
pub fn run(
    shard: crate::ShardId,
    engine: &dyn StateEngine,
    steps: &[Step],
    batches: &[(usize, bool)],
) -> Vec<pb::Outcome> {
    run_and(shard, engine, steps, batches, |_| ())
}

/// The same; after each batch something may happen to the engine.
fn run_and(
    shard: crate::ShardId,
    engine: &dyn StateEngine,
    steps: &[Step],
    batches: &[(usize, bool)],
    after_batch: impl Fn(&Applier),
) -> Vec<pb::Outcome> {
    let mut applier = applier(shard, engine);
    let (mut index, mut answers, mut batches) = (0, Vec::new(), batches.iter().cycle());
    while index < steps.len() {
        let (size, restart) = batches.next().unwrap();
        if *restart {
            applier = testing::applier(shard, engine);
        }
        let end = (index + size).min(steps.len());
        let entries = (index..end).map(|at| steps[at].entry(shard, at as u64 + 1)).collect();
        let (ops, outcomes) = applier.apply(engine, entries).unwrap();
        engine.write(&ops).unwrap();
        answers.extend(outcomes);
        after_batch(&applier);
        index = end;
    }
    answers
}

/// All rows of an engine, in order.
pub fn dump(engine: &dyn StateEngine) -> Vec<(Table, Vec<u8>, Bytes)> {
    let rows = |table: Table| {
        let rows = engine.scan(table, &[], &after_prefix(&[]), usize::MAX, usize::MAX).unwrap();
        rows.into_iter().map(move |(key, value)| (table, key, value))
    };
    Table::ALL.into_iter().flat_map(rows).collect()
}

fn batches() -> impl Strategy<Value = Vec<(usize, bool)>> {
    prop::collection::vec((1..20_usize, any::<bool>()), 1..10)
}

proptest! {
    #[test]
    fn any_partition_gives_the_same(steps in prop::collection::vec(step(), 1..80), batches in batches()) {
        let steps = with_keys(steps);
        let (one_by_one, partitioned) = (MemoryState::default(), MemoryState::default());
        let expected = run(SHARD, &one_by_one, &steps, &[(1, false)]);
        let found = run(SHARD, &partitioned, &steps, &batches);
        prop_assert!(expected == found, "answers differ");
        prop_assert!(dump(&one_by_one) == dump(&partitioned), "states differ");
    }
}

proptest! {
    /// A row that is dead answers nobody: whether and when it goes changes no answer, nor any other row.
    #[test]
    fn dead_requests_may_go_at_any_time(
        steps in prop::collection::vec(step(), 1..80),
        batches in batches(),
        goes in prop::collection::vec(any::<bool>(), 1..10),
    ) {
        let steps = with_keys(steps);
        let (kept, dropped) = (MemoryState::default(), MemoryState::default());
        [&kept, &dropped].iter().for_each(|engine| engine.slots().set(SHARD, slots_of(SHARD)));
        let expire = |engine: &MemoryState, applier: &Applier| {
            engine.expire_requests(SHARD, applier.progress.log_time_ms.saturating_sub(AGE_MS_MAX));
        };
        let expected = run(SHARD, &kept, &steps, &batches);
        let found = run_and(SHARD, &dropped, &steps, &batches, |applier| {
            let index = applier.progress.log_id.map_or(0, |log_id| log_id.index) as usize;
            if goes[index % goes.len()] {
                expire(&dropped, applier);
            }
        });
        prop_assert!(expected == found, "answers differ");
        let applier = applier(SHARD, &kept);
        expire(&kept, &applier);
        expire(&dropped, &applier);
        prop_assert!(dump(&kept) == dump(&dropped), "states differ");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn either_engine_gives_the_same(steps in prop::collection::vec(step(), 1..80), batches in batches()) {
        let steps = with_keys(steps);
        let folder = tempfile::tempdir().unwrap();
        let (memory, rocks) = (MemoryState::default(), RocksState::open(folder.path(), MemoryLimits::default()).unwrap());
        let expected = run(SHARD, &memory, &steps, &batches);
        let found = run(SHARD, &rocks, &steps, &batches);
        prop_assert!(expected == found, "answers differ");
        prop_assert!(dump(&memory) == dump(&rocks), "states differ");
        // And on disk: after a flush and a restart.
        rocks.begin_flush().unwrap();
        rocks.finish_flush().unwrap();
        drop(rocks);
        prop_assert!(dump(&memory) == dump(&RocksState::open(folder.path(), MemoryLimits::default()).unwrap()), "states differ after a restart");
    }
}
