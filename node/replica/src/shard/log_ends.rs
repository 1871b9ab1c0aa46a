//! Where followers' logs end, as they said when they voted: so that a new leader need not search for it.
//!
//! Openraft finds what a follower shares with a new leader by a binary search over all that the leader has not purged, a
//! round trip for each step; until it is found, nothing is committed. But a voter says where its log ends, and if the
//! leader has that very entry, both have the same before it (log matching: Ongaro, "Consensus", 3.5). So the leader tells it
//! along with the search's first question, and a follower that still has the entry answers that it shares all up to there.
//!
//! It is a hint. What is committed rests on entries of the leader's own term, and each of those the follower checks.
//! (Openraft asserts, with debug assertions, that no answer goes beyond its question; without them it takes it as it is meant.)

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::log::LogStorage;
use super::types::{LeaderId, LogId, Vote};
use crate::NodeId;
use crate::store::log::group::GroupLog;

/// What one group's voters said to this node.
pub struct LogEnds {
    log: LogStorage,
    told: Mutex<BTreeMap<NodeId, (LeaderId, LogId)>>,
}

impl LogEnds {
    pub fn new(log: GroupLog) -> Self {
        Self { log: LogStorage::new(log, false, None), told: Mutex::default() }
    }

    /// A voter's log ended there when it gave this node its vote.
    pub fn note(&self, voter: NodeId, vote: &Vote, end: LogId) {
        self.told.lock().insert(voter, (vote.leader_id, end));
    }

    /// Where a follower's log ended when it voted for this leader, if the leader has that entry.
    pub fn of(&self, follower: NodeId, leader: &Vote) -> Option<LogId> {
        let (voted_for, end) = self.told.lock().get(&follower).copied()?;
        // What cannot be read is searched for.
        let own = self.log.entry(end.index).ok().flatten()?;
        (voted_for == leader.leader_id && own.log_id == end).then_some(end)
    }
}
