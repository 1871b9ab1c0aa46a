//! What a group's log must be, kept in the simplest way; and what its state must be: its committed entries, replayed.

use std::collections::BTreeMap;

use openraft::entry::RaftEntry;

use super::super::apply;
use super::super::machine::to_apply;
use super::super::types::{Entry, LogId, Vote};
use crate::store::state::StateEngine;
use crate::store::state::memory::MemoryState;
use crate::testing::applier;

/// A group's log as its readers see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogModel {
    pub entries: BTreeMap<u64, Entry>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
}

impl LogModel {
    /// Where the next entry goes.
    pub fn next_index(&self) -> u64 {
        let after_purged = self.purged.map_or(1, |purged| purged.index + 1);
        self.entries.last_key_value().map_or(after_purged, |(last, _)| last + 1)
    }

    pub fn last_log_id(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id()).or(self.purged)
    }

    pub fn truncate(&mut self, from: u64) {
        self.entries.split_off(&from);
    }

    pub fn purge(&mut self, upto: LogId) {
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.purged = Some(upto);
    }

    /// Whether this log has, or had, an entry.
    pub fn holds(&self, log_id: &LogId) -> bool {
        self.purged.is_some_and(|purged| purged >= *log_id)
            || self.entries.get(&log_id.index).is_some_and(|entry| entry.log_id() == *log_id)
    }

    /// Whether a crash may leave this of `before`: all of it, but for how much is committed, which is a hint.
    pub fn is_left_of(&self, before: &Self) -> bool {
        self.committed <= before.committed && Self { committed: before.committed, ..self.clone() } == *before
    }

    /// What [`super::super::repair`] must make of this log, given what the state has applied.
    pub fn repaired(mut self, applied: Option<LogId>) -> Self {
        if let Some(applied) = applied.filter(|applied| !self.holds(applied)) {
            self.entries.clear();
            (self.purged, self.committed) = (Some(applied), Some(applied));
        }
        self
    }

    /// Entries without a hole from the purged one on, and nothing committed that is not there.
    pub fn check_is_whole(&self) {
        let first = self.purged.map_or(1, |purged| purged.index + 1);
        assert!(self.entries.keys().copied().eq(first..self.next_index()), "a hole");
        assert!(self.committed <= self.last_log_id(), "openraft refuses a log that ends before what is committed");
    }
}

/// The state that committed entries lead to.
pub fn replay(into: &MemoryState, shard: crate::ShardId, entries: &[Entry]) {
    let mut applier = applier(shard, into);
    let entries = entries.iter().cloned().map(to_apply).collect::<Vec<apply::Entry>>();
    if !entries.is_empty() {
        let (ops, _) = applier.apply(into, entries).unwrap();
        into.write(&ops).unwrap();
    }
}
