//! A node's store under test, and the operations on it.

use std::sync::Arc;

use openraft::RaftLogReader;
use openraft::entry::RaftEntry;
use openraft::storage::RaftLogStorage;
use openraft::vote::RaftLeaderId;
use parking_lot::Mutex;

use super::super::apply::Applier;
use super::super::codec;
use super::super::entry::EntryCode;
use super::super::log::LogStorage;
use super::super::machine::to_apply;
use super::super::repair::repair;
use super::super::types::{Entry, EntryPayload, LeaderId, LogId, Vote};
use super::model::{LogModel, replay};
use super::{GROUPS, Op, shard_of_group};
use crate::shard::apply::Payload;
use crate::shard::apply::partitions::{Step, dump};
use crate::store::log::group::GroupLog;
use crate::store::log::writer::LogWriter;
use crate::store::state::memory::MemoryState;
use crate::testing::applier;
use crate::testing::disk::Disk;

/// One group, open.
struct Group {
    log: GroupLog,
    applier: Applier,
    model: LogModel,
    term: u64,
    /// What a majority has accepted, from index 1 on: it never changes, whatever this node loses.
    committed: Vec<Entry>,
    /// What of it a flush has made durable.
    flushed: u64,
}

impl Group {
    fn applied(&self) -> Option<LogId> {
        self.applier.progress.log_id.as_ref().map(codec::log_id_from_pb)
    }

    fn applied_index(&self) -> u64 {
        self.applied().map_or(0, |applied| applied.index)
    }
}

pub struct Node<D: Disk> {
    disk: D,
    writer: LogWriter,
    groups: Vec<Group>,
    runtime: tokio::runtime::Runtime,
    /// All logs after every operation since the last start, by the operation's number: a crash leaves one of them.
    history: Vec<(u64, Vec<LogModel>)>,
    operations: u64,
    /// Appends whose callback came, in order.
    acknowledged: Arc<Mutex<Vec<u64>>>,
    /// Those that were queued since the last start.
    queued: Vec<u64>,
    pub repairs: usize,
}

/// Dropping the writer waits for its thread, which must not wait for the gate: also when a check has failed.
impl<D: Disk> Drop for Node<D> {
    fn drop(&mut self) {
        self.disk.syncs().release();
    }
}

impl<D: Disk> Node<D> {
    pub fn empty() -> Self {
        let disk = D::empty();
        let writer = LogWriter::start(disk.log(), None).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let open = |at| Group {
            log: GroupLog::open(shard_of_group(at), disk.log(), writer.clone()).unwrap(),
            applier: applier(shard_of_group(at), disk.state().as_ref()),
            model: LogModel::default(),
            term: 1,
            committed: Vec::new(),
            flushed: 0,
        };
        let groups = (0..GROUPS).map(open).collect();
        let history = vec![(0, vec![LogModel::default(); GROUPS])];
        let (acknowledged, queued) = (Arc::default(), Vec::new());
        Self { disk, writer, groups, runtime, history, operations: 0, acknowledged, queued, repairs: 0 }
    }

    pub fn run(&mut self, op: &Op) {
        self.operations += 1;
        match op {
            Op::Append { group, steps } => self.append(*group, steps),
            Op::Truncate { group, back } => self.truncate(*group, *back),
            Op::Vote { group } => self.vote(*group),
            Op::Commit { group, back } => self.commit(*group, *back),
            Op::Apply { group, count } => self.apply(*group, *count),
            Op::Purge { group, back } => self.purge(*group, *back),
            Op::HoldSyncs => self.disk.syncs().hold(),
            Op::Settle => self.settle(),
            Op::Flush => {
                self.settle();
                self.flush();
            }
            Op::FlushAheadOfLog => self.flush(),
            Op::BeginFlush => self.disk.state().begin_flush().unwrap(),
            Op::Crash { kept } => self.crash(*kept),
        }
        self.history.push((self.operations, self.models()));
        self.check_logs();
        self.check_state();
    }

    fn models(&self) -> Vec<LogModel> {
        self.groups.iter().map(|group| group.model.clone()).collect()
    }

    /// What is committed and was lost comes again, from the leader; then new entries.
    fn append(&mut self, group: usize, steps: &[Step]) {
        let shard = shard_of_group(group);
        let of_group = &mut self.groups[group];
        let first = of_group.model.next_index();
        let entry = |(index, step): (u64, &Step)| match of_group.committed.get(index as usize - 1) {
            Some(committed) => committed.clone(),
            None => {
                let log_id = LogId::new(LeaderId::new(of_group.term, 1), index);
                Entry::of(log_id, payload(step, shard), EntryCode::Absent)
            }
        };
        let entries = (first..).zip(steps).map(entry).collect::<Vec<_>>();
        let (acknowledged, number) = (Arc::clone(&self.acknowledged), self.operations);
        let done = move || acknowledged.lock().push(number);
        let encoded = entries.iter().map(codec::encode_entry).collect();
        self.runtime.block_on(of_group.log.append(first, encoded, done)).unwrap();
        of_group.model.entries.extend((first..).zip(entries));
        self.queued.push(self.operations);
    }

    /// A new leader has other entries: never in place of a committed one.
    fn truncate(&mut self, group: usize, back: u64) {
        let group = &mut self.groups[group];
        let first_open = group.committed.len() as u64 + 1;
        let from = group.model.next_index().saturating_sub(back).max(first_open);
        if from < group.model.next_index() {
            self.runtime.block_on(group.log.truncate(from)).unwrap();
            group.model.truncate(from);
            group.term += 1;
        }
    }

    fn vote(&mut self, group: usize) {
        self.disk.syncs().release();
        let group = &mut self.groups[group];
        group.term += 1;
        let vote = Vote { leader_id: LeaderId::new(group.term, 1), committed: group.term.is_multiple_of(2) };
        self.runtime.block_on(group.log.save_vote(codec::encode_vote(&vote))).unwrap();
        group.model.vote = Some(vote);
        self.acknowledged.lock().push(self.operations);
        self.queued.push(self.operations);
    }

    /// A majority has accepted: perhaps before this node's disk has.
    fn commit(&mut self, group: usize, back: u64) {
        let group = &mut self.groups[group];
        let Some(last) = group.model.last_log_id() else { return };
        let upto = last.index.saturating_sub(back);
        let new = (group.committed.len() as u64 + 1..=upto).map(|index| group.model.entries[&index].clone());
        let new = new.collect::<Vec<_>>();
        group.committed.extend(new);
        let known = group.model.entries.get(&upto).map(|entry| entry.log_id());
        let Some(mark) = known.filter(|mark| group.model.committed < Some(*mark)) else { return };
        group.log.save_committed(codec::encode_log_id(&mark));
        group.model.committed = Some(mark);
    }

    fn apply(&mut self, group: usize, count: u64) {
        let group = &mut self.groups[group];
        let next = group.applied_index() + 1;
        let known = group.model.committed.map_or(0, |committed| committed.index);
        let end = known.min(next + count - 1) + 1;
        if next >= end {
            return;
        }
        let mut reader = LogStorage::new(group.log.clone(), true, None);
        let read = async { futures::TryStreamExt::try_collect::<Vec<_>>(reader.entries_stream(next..end).await).await };
        let entries = self.runtime.block_on(read).unwrap();
        assert_eq!(entries, group.committed[next as usize - 1..end as usize - 1], "committed entries never change");
        let state = self.disk.state();
        let entries = entries.into_iter().map(to_apply).collect();
        let (ops, _) = group.applier.apply(state.as_ref(), entries).unwrap();
        state.write(&ops).unwrap();
    }

    /// Never beyond what is durable in the state.
    fn purge(&mut self, group: usize, back: u64) {
        let group = &mut self.groups[group];
        let upto = group.flushed.saturating_sub(back);
        let Some(upto) = group.model.entries.get(&upto).map(|entry| entry.log_id()) else { return };
        self.runtime.block_on(group.log.purge(upto.index + 1, codec::encode_log_id(&upto))).unwrap();
        group.model.purge(upto);
    }

    /// Lets the log catch up: every callback has come then, each once and in order.
    fn settle(&mut self) {
        self.disk.syncs().release();
        self.writer.sync_blocking().unwrap();
        assert_eq!(*self.acknowledged.lock(), self.queued);
    }

    fn flush(&mut self) {
        self.disk.state().begin_flush().unwrap();
        self.disk.state().finish_flush().unwrap();
        self.groups.iter_mut().for_each(|group| group.flushed = group.applied_index());
    }

    /// The power goes, and comes back.
    fn crash(&mut self, kept: u8) {
        let newest_acknowledged = self.acknowledged.lock().last().copied().unwrap_or(0);
        let disk = self.disk.after_crash(kept);
        // The old disk's log thread comes to rest before its folder goes.
        self.disk.syncs().release();
        self.writer.sync_blocking().unwrap();
        self.writer = LogWriter::start(disk.log(), None).unwrap();
        self.disk = disk;
        for (at, group) in self.groups.iter_mut().enumerate() {
            group.log = GroupLog::open(shard_of_group(at), self.disk.log(), self.writer.clone()).unwrap();
            group.applier = applier(shard_of_group(at), self.disk.state().as_ref());
            group.model = self.runtime.block_on(read(&group.log));
            assert!(group.applied_index() >= group.flushed, "a flush was lost");
        }
        let found = self.models();
        let mut since = self.history.iter().filter(|(number, _)| *number >= newest_acknowledged);
        let left = |(found, log): (&LogModel, &LogModel)| found.is_left_of(log);
        assert!(
            since.any(|(_, logs)| found.iter().zip(logs).all(left)),
            "acknowledged at {newest_acknowledged}, then found {found:#?}"
        );
        (self.queued, self.acknowledged) = (Vec::new(), Arc::default());
        self.repair();
        self.history = vec![(self.operations, self.models())];
        self.resolve_conflicts();
    }

    fn repair(&mut self) {
        for (at, group) in self.groups.iter_mut().enumerate() {
            let applied = group.applied();
            let repairing = repair(shard_of_group(at), &group.log, &group.applier.progress);
            self.runtime.block_on(repairing).unwrap();
            let expected = group.model.clone().repaired(applied);
            self.repairs += usize::from(group.model != expected);
            let found = self.runtime.block_on(read(&group.log));
            assert_eq!(found, expected);
            group.model = found;
            assert!(group.model.purged.is_none_or(|purged| applied >= Some(purged)), "the state lacks what is purged");
        }
    }

    /// Entries that another leader replaced before the crash: the leader's next append finds the conflict.
    fn resolve_conflicts(&mut self) {
        for group in &mut self.groups {
            let differs = |committed: &&Entry| {
                let mine = group.model.entries.get(&committed.log_id.index);
                mine.is_some_and(|mine| mine != *committed)
            };
            if let Some(index) = group.committed.iter().find(differs).map(|entry| entry.log_id.index) {
                self.runtime.block_on(group.log.truncate(index)).unwrap();
                group.model.truncate(index);
            }
        }
    }

    fn check_logs(&mut self) {
        for group in &self.groups {
            let found = self.runtime.block_on(read(&group.log));
            assert_eq!(found, group.model);
            found.check_is_whole();
        }
    }

    fn check_state(&self) {
        let expected = MemoryState::default();
        for (at, group) in self.groups.iter().enumerate() {
            replay(&expected, shard_of_group(at), &group.committed[..group.applied_index() as usize]);
        }
        assert!(dump(self.disk.state().as_ref()) == dump(&expected), "the state is not its entries, replayed");
    }
}

fn payload(step: &Step, shard: crate::ShardId) -> EntryPayload {
    match step.payload_for(shard) {
        Payload::Command(bytes) => EntryPayload::Normal(bytes.into()),
        Payload::Blank | Payload::Membership(_) => EntryPayload::Blank,
    }
}

/// A log as openraft reads it, in one go and in pieces.
async fn read(log: &GroupLog) -> LogModel {
    let mut storage = LogStorage::new(log.clone(), true, None);
    let state = storage.get_log_state().await.unwrap();
    let first = state.last_purged_log_id.map_or(1, |purged| purged.index + 1);
    let entries = storage.try_get_log_entries(first..).await.unwrap();
    let streamed = storage.entries_stream(first..u64::MAX).await;
    assert_eq!(futures::TryStreamExt::try_collect::<Vec<_>>(streamed).await.unwrap(), entries);
    let model = LogModel {
        entries: entries.into_iter().map(|entry| (entry.index(), entry)).collect(),
        vote: storage.read_vote().await.unwrap(),
        committed: storage.read_committed().await.unwrap(),
        purged: state.last_purged_log_id,
    };
    assert_eq!(state.last_log_id, model.last_log_id());
    model
}
