//! Random operations and crashes on a node's store, against a simple model.
//!
//! Nothing acknowledged is lost; what a crash leaves of all logs is what they were at one point; a log has no hole; the
//! state is its committed entries, replayed; a log that the state is ahead of is repaired at the next start.

#![allow(clippy::unwrap_used)]

mod model;
mod node;

use proptest::prelude::*;

use self::node::Node;
use crate::shard::apply::partitions::{Step, step, with_keys};
use crate::testing::disk::{Disk, MemoryDisk, RocksDisk};

/// Two, so that one's rows would show up at the other.
const GROUPS: usize = 2;

fn shard_of_group(at: usize) -> crate::ShardId {
    at as u16 + 1
}

#[derive(Clone, Debug)]
enum Op {
    Append { group: usize, steps: Vec<Step> },
    Truncate { group: usize, back: u64 },
    Vote { group: usize },
    Commit { group: usize, back: u64 },
    Apply { group: usize, count: u64 },
    Purge { group: usize, back: u64 },
    HoldSyncs,
    Settle,
    Flush,
    FlushAheadOfLog,
    BeginFlush,
    Crash { kept: u8 },
}

fn op() -> impl Strategy<Value = Op> {
    let group = || 0..GROUPS;
    prop_oneof![
        6 => (group(), prop::collection::vec(step(), 1..6)).prop_map(|(group, steps)| Op::Append { group, steps }),
        2 => (group(), 1..5_u64).prop_map(|(group, back)| Op::Truncate { group, back }),
        1 => group().prop_map(|group| Op::Vote { group }),
        4 => (group(), 0..4_u64).prop_map(|(group, back)| Op::Commit { group, back }),
        4 => (group(), 1..8_u64).prop_map(|(group, count)| Op::Apply { group, count }),
        1 => (group(), 0..4_u64).prop_map(|(group, back)| Op::Purge { group, back }),
        3 => Just(Op::HoldSyncs),
        1 => Just(Op::Settle),
        1 => Just(Op::Flush),
        2 => Just(Op::FlushAheadOfLog),
        1 => Just(Op::BeginFlush),
        2 => any::<u8>().prop_map(|kept| Op::Crash { kept }),
    ]
}

fn check<D: Disk>(ops: &[Op]) -> Node<D> {
    let mut node = Node::<D>::empty();
    for group in 0..GROUPS {
        node.run(&Op::Append { group, steps: with_keys(Vec::new()) });
    }
    ops.iter().for_each(|op| node.run(op));
    node.run(&Op::Crash { kept: 0 });
    node.run(&Op::Settle);
    node
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_twins_survive_crashes(ops in prop::collection::vec(op(), 1..60)) {
        check::<MemoryDisk>(&ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn rocksdb_survives_crashes(ops in prop::collection::vec(op(), 1..40)) {
        check::<RocksDisk>(&ops);
    }
}

/// Entries are applied and flushed whose log, here, is never synced.
fn state_ahead_of_log<D: Disk>() {
    let lines = ["commit r1: put t/p", "commit r2: put t/q", "blank"];
    let steps = lines.map(|line| Step::new(3_600_000, 0, line)).to_vec();
    let mut ops = vec![Op::Settle, Op::HoldSyncs, Op::Append { group: 0, steps: steps.clone() }];
    ops.extend([Op::Commit { group: 0, back: 0 }, Op::Apply { group: 0, count: 9 }, Op::FlushAheadOfLog]);
    ops.push(Op::Crash { kept: 0 });
    // It goes on from there.
    ops.extend([Op::Append { group: 0, steps }, Op::Commit { group: 0, back: 0 }, Op::Apply { group: 0, count: 9 }]);
    assert_eq!(check::<D>(&ops).repairs, 1);
}

#[test]
fn a_state_ahead_of_its_log_is_repaired() {
    state_ahead_of_log::<MemoryDisk>();
    state_ahead_of_log::<RocksDisk>();
}

/// The state stands on an entry of a new leader; the log still has the old leader's in its place.
fn state_on_another_branch<D: Disk>() {
    let append = |line: &str| Op::Append { group: 0, steps: vec![Step::new(3_600_000, 0, line); 3] };
    let mut ops = vec![append("commit r1: put t/p"), Op::Settle, Op::Commit { group: 0, back: 3 }];
    ops.extend([Op::HoldSyncs, Op::Truncate { group: 0, back: 3 }, append("commit r2: put t/q")]);
    ops.extend([Op::Commit { group: 0, back: 1 }, Op::Apply { group: 0, count: 9 }, Op::FlushAheadOfLog]);
    ops.push(Op::Crash { kept: 0 });
    assert_eq!(check::<D>(&ops).repairs, 1);
}

#[test]
fn a_state_on_another_branch_than_its_log_is_repaired() {
    state_on_another_branch::<MemoryDisk>();
    state_on_another_branch::<RocksDisk>();
}
