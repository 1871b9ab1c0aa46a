//! This node's disk, and its peers' as they tell: whether a write may be taken, and who should rather lead.
//!
//! A write is refused *before* the log is in danger anywhere that it must be: on the leader itself, or on so many
//! followers that the others are no majority.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use charthold_proto::internal as pb;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::NodeId;
use crate::store::disk::{Disk, DiskLevel};

/// What was heard longer ago says nothing.
const HEARD_MAX: Duration = Duration::from_secs(10);

pub struct ClusterDisks {
    own: Arc<Disk>,
    /// What each peer told, and when.
    heard: Mutex<BTreeMap<NodeId, (DiskLevel, Instant)>>,
}

impl ClusterDisks {
    pub fn new(own: Arc<Disk>) -> Self {
        Self { own, heard: Mutex::default() }
    }

    pub fn own(&self) -> DiskLevel {
        self.own.level()
    }

    pub fn note_damage(&self) {
        self.own.note_damage();
    }

    /// What is left on this node's disk.
    pub fn own_room_bytes(&self) -> u64 {
        self.own.room_bytes()
    }

    /// Takes what a peer tells of its disk.
    pub fn hear(&self, node: NodeId, level: DiskLevel) {
        let mut heard = self.heard.lock();
        heard.retain(|_, (_, at)| at.elapsed() < HEARD_MAX);
        heard.insert(node, (level, Instant::now()));
    }

    /// Whether a peer said lately that its disk is good.
    pub fn is_good(&self, node: NodeId) -> bool {
        let heard = self.heard.lock();
        heard.get(&node).is_some_and(|(level, at)| *level == DiskLevel::Good && at.elapsed() < HEARD_MAX)
    }

    /// Whether a node whose state is damaged may go out of service until it is made anew: it has room for another one, and all
    /// others are well, or wait for this one. The one with the smallest id goes first, so that no two go.
    pub fn may_go(&self, node: NodeId, members: &[NodeId]) -> bool {
        let heard = self.heard.lock();
        let lets_go = |id: &NodeId| match heard.get(id) {
            Some((DiskLevel::Good | DiskLevel::Low, at)) => at.elapsed() < HEARD_MAX,
            Some((DiskLevel::Damaged, at)) => at.elapsed() < HEARD_MAX && *id > node,
            _ => false,
        };
        self.own.has_room() && members.iter().filter(|id| **id != node).all(lets_go)
    }

    /// Whether a leader may take a write: its own disk has room, and so have those of a majority. A peer that is not
    /// heard of is not counted on, but only once another one is short of room: else there may just be no quorum, which
    /// is another answer.
    pub fn may_write(&self, members: impl FnOnce() -> Vec<NodeId>) -> bool {
        let full = |level: DiskLevel| matches!(level, DiskLevel::Low | DiskLevel::Critical);
        if full(self.own()) {
            return false;
        }
        let lately = |at: &Instant| at.elapsed() < HEARD_MAX;
        let heard = self.heard.lock();
        if !heard.values().any(|(level, at)| full(*level) && lately(at)) {
            return true;
        }
        let members = members();
        let level_of = |id: &NodeId| heard.get(id).filter(|(_, at)| lately(at)).map(|(level, _)| *level);
        let any_full = members.iter().filter_map(level_of).any(full);
        // Of the others; this node is the one that is added.
        let good = 1 + members.iter().filter_map(level_of).filter(|level| !full(*level)).count();
        !any_full || good > members.len() / 2
    }
}

pub(super) fn level_to_pb(level: DiskLevel) -> pb::mark::Disk {
    match level {
        DiskLevel::Good => pb::mark::Disk::Good,
        DiskLevel::Low => pb::mark::Disk::Low,
        DiskLevel::Critical => pb::mark::Disk::Critical,
        DiskLevel::Stalled => pb::mark::Disk::Stalled,
        DiskLevel::Damaged => pb::mark::Disk::Damaged,
        DiskLevel::Refilling => pb::mark::Disk::Refilling,
    }
}

pub(super) fn level_from_pb(level: pb::mark::Disk) -> DiskLevel {
    match level {
        pb::mark::Disk::Good => DiskLevel::Good,
        pb::mark::Disk::Low => DiskLevel::Low,
        pb::mark::Disk::Critical => DiskLevel::Critical,
        pb::mark::Disk::Stalled => DiskLevel::Stalled,
        pb::mark::Disk::Damaged => DiskLevel::Damaged,
        pb::mark::Disk::Refilling => DiskLevel::Refilling,
    }
}

#[cfg(test)]
mod tests {
    use DiskLevel::{Critical, Damaged, Good, Low, Refilling, Stalled};

    use super::*;

    /// Whether node 0 may write with these disks of its own and of nodes 1, 2, …; nothing: not heard of.
    fn may_write(own: DiskLevel, others: &[Option<DiskLevel>]) -> bool {
        let disk = Arc::new(Disk::default());
        disk.set(own);
        let disks = ClusterDisks::new(disk);
        for (at, level) in others.iter().enumerate() {
            level.iter().for_each(|level| disks.hear(at as NodeId + 1, *level));
        }
        disks.may_write(|| (0..=others.len() as NodeId).collect())
    }

    #[test]
    fn a_majority_with_room_and_the_leader_among_it_is_needed() {
        for (own, others, wanted) in [
            (Good, &[][..], true),
            (Low, &[], false),
            (Critical, &[], false),
            (Good, &[Some(Good), Some(Good)], true),
            (Low, &[Some(Good), Some(Good)], false),
            (Good, &[Some(Low), Some(Good)], true),
            (Good, &[Some(Low), Some(Critical)], false),
            // Whether there is a quorum at all is not a question of disks.
            (Good, &[None, None], true),
            (Good, &[Some(Good), None], true),
            // With that one gone, the full one would have to take it.
            (Good, &[Some(Low), None], false),
            // It answers or it does not: there is room.
            (Good, &[Some(Stalled), Some(Good)], true),
            (Stalled, &[Some(Good), Some(Good)], true),
            (Damaged, &[Some(Refilling), Some(Good)], true),
            (Good, &[Some(Critical), Some(Critical), Some(Good), Some(Good)], true),
            (Good, &[Some(Critical), Some(Critical), Some(Critical), Some(Good)], false),
        ] {
            assert_eq!(may_write(own, others), wanted, "{own:?}, {others:?}");
        }
    }

    #[test]
    fn of_those_whose_state_is_damaged_one_goes_at_a_time() {
        for (others, wanted) in [
            ([(1, Some(Good)), (3, Some(Low))], true),
            ([(1, Some(Good)), (3, None)], false),
            ([(1, Some(Damaged)), (3, Some(Good))], false),
            ([(1, Some(Good)), (3, Some(Damaged))], true),
            ([(1, Some(Good)), (3, Some(Refilling))], false),
            ([(1, Some(Stalled)), (3, Some(Good))], false),
        ] {
            let disks = ClusterDisks::new(Arc::new(Disk::default()));
            let heard = others.iter().filter_map(|(node, level)| Some((*node, (*level)?)));
            heard.for_each(|(node, level)| disks.hear(node, level));
            assert_eq!(disks.may_go(2, &[1, 2, 3]), wanted, "{others:?}");
        }
    }

    #[test]
    fn only_a_disk_that_says_so_is_good() {
        let disks = ClusterDisks::new(Arc::new(Disk::default()));
        disks.hear(1, Good);
        disks.hear(2, Low);
        assert_eq!([1, 2, 3].map(|node| disks.is_good(node)), [true, false, false]);
    }
}
