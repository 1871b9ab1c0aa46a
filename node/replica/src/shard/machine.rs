//! openraft's state machine over apply and the state store.

use std::io;
use std::sync::Arc;

use charthold_proto::internal as pb;
use futures::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftStateMachine};
use parking_lot::RwLock;

use super::apply::{self, Applier, Progress};
use super::snapshot::{GroupSnapshot, Snapshot, SnapshotBuilder, SnapshotMeta};
use super::types::{Answer, Entry, EntryPayload, LogId, StoredMembership, TypeConfig};
use super::{codec, quorum, traced};
use crate::ShardId;
use crate::metrics::{METRICS, timed};
use crate::store::state::flusher::StateStore;

/// Entries and bytes of one batch: bounds what a batch holds in memory, and how long its first answer waits.
const BATCH_ENTRIES_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 8 << 20;

/// A group's state, as openraft drives it.
pub struct GroupMachine {
    shard: ShardId,
    state: StateStore,
    applier: Applier,
    shared: Arc<RwLock<Progress>>,
    snapshot: Option<Snapshot>,
}

impl GroupMachine {
    pub fn open(shard: ShardId, state: StateStore) -> Result<Self, apply::ApplyError> {
        let applier = Applier::restore(shard, state.engine())?;
        let shared = Arc::new(RwLock::new(applier.progress.clone()));
        Ok(Self { shard, state, applier, shared, snapshot: None })
    }

    /// How far the group is, for who looks from outside.
    pub fn progress(&self) -> Arc<RwLock<Progress>> {
        Arc::clone(&self.shared)
    }

    /// `leads`: somebody here waits for an outcome.
    fn apply_batch(&mut self, entries: Vec<apply::Entry>, leads: bool) -> io::Result<Vec<pb::Outcome>> {
        let index = |entry: Option<&apply::Entry>| entry.map_or(0, |entry| entry.log_id.index);
        let (first, last) = (index(entries.first()), index(entries.last()));
        quorum::applies(self.shard, last, leads);
        METRICS.apply_entries.observe(entries.len() as f64);
        let _timed = timed(&METRICS.apply);
        let _spans = traced::spans(self.shard, first..last + 1, "apply");
        // It reads from the disk, and may wait for a flush to fix its point: not on a thread that heartbeats need.
        let outcomes = blocking(|| {
            let (ops, outcomes) = self.applier.apply(self.state.engine(), entries).map_err(io::Error::other)?;
            self.state.write(&ops)?;
            io::Result::Ok(outcomes)
        })?;
        *self.shared.write() = self.applier.progress.clone();
        Ok(outcomes)
    }

    pub(super) fn meta(&self) -> io::Result<SnapshotMeta> {
        let progress = &self.applier.progress;
        Ok(SnapshotMeta {
            last_log_id: progress.log_id.as_ref().map(codec::log_id_from_pb),
            last_membership: codec::stored_membership_from_pb(progress.membership.clone())?,
        })
    }
}

/// Runs what may block, away from the other tasks where the runtime can move them.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn size_bytes_of(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

pub(super) fn to_apply(entry: Entry) -> apply::Entry {
    let payload = match entry.payload {
        EntryPayload::Blank => apply::Payload::Blank,
        EntryPayload::Normal(proposal) => apply::Payload::Command(proposal.0),
        EntryPayload::Membership(membership) => apply::Payload::Membership(codec::membership_to_pb(&membership)),
    };
    apply::Entry { log_id: codec::log_id_to_pb(&entry.log_id), payload }
}

impl RaftStateMachine<TypeConfig> for GroupMachine {
    type SnapshotData = GroupSnapshot;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let meta = self.meta()?;
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut stream = entries.fuse();
        while let Some(first) = stream.next().await {
            let (mut entries, mut responders, mut size_bytes) = (Vec::new(), Vec::new(), 0);
            let mut next = Some(first);
            while let Some(item) = next {
                let (entry, responder) = item?;
                size_bytes += size_bytes_of(&entry);
                entries.push(to_apply(entry));
                responders.push(responder);
                let full = entries.len() == BATCH_ENTRIES_MAX || size_bytes >= BATCH_BYTES_MAX;
                // What is not there at once goes into the next batch.
                next = if full { None } else { stream.next().now_or_never().flatten() };
            }
            let outcomes = self.apply_batch(entries, responders.iter().any(Option::is_some))?;
            // Answers leave only now: the batch is written.
            for (responder, outcome) in responders.into_iter().zip(outcomes) {
                if let Some(responder) = responder {
                    responder.send(Answer(outcome));
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let snapshot = GroupSnapshot::new(self.shard, self.state.clone());
        let snapshot = self.meta().map(|meta| Snapshot { meta, snapshot });
        self.snapshot = snapshot.as_ref().ok().cloned();
        SnapshotBuilder::new(snapshot)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: GroupSnapshot) -> io::Result<()> {
        snapshot.install(&self.state)?;
        self.applier = Applier::restore(self.shard, self.state.engine()).map_err(io::Error::other)?;
        *self.shared.write() = self.applier.progress.clone();
        self.snapshot = Some(Snapshot { meta: meta.clone(), snapshot });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshot.clone())
    }
}
