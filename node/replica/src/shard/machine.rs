//! openraft's state machine over apply and the state store.

use std::io;
use std::sync::Arc;

use charthold_proto::internal as pb;
use futures::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftStateMachine};
use parking_lot::RwLock;
use prost::Message;

use super::apply::{self, Applier, Progress};
use super::install;
use super::rows_check::RowsChecks;
use super::snapshot::{GroupSnapshot, PinnedRows, Snapshot, SnapshotBuilder, SnapshotMeta, meta_of};
use super::transfer::Outgoing;
use super::types::{Answer, Entry, EntryPayload, LogId, StoredMembership, TypeConfig};
use super::{codec, command, handover, quorum, traced, vacancy};
use crate::ShardId;
use crate::metrics::{METRICS, timed};
use crate::platform::blocking;
use crate::store::incoming::{Incoming, Received};
use crate::store::state::flusher::StateStore;
use crate::store::state::{StateOp, Table};
use crate::store::table;

/// Entries and bytes of one batch: bounds what a batch holds in memory, and how long its first answer waits.
const BATCH_ENTRIES_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 8 << 20;

/// A group's state, as openraft drives it.
pub struct GroupMachine {
    shard: ShardId,
    state: StateStore,
    applier: Applier,
    shared: Arc<RwLock<Progress>>,
    rows_checks: Arc<RowsChecks>,
    incoming: Incoming,
    outgoing: Arc<Outgoing>,
}

impl GroupMachine {
    /// Takes up where the state is; does again the install of a snapshot that was broken off.
    pub fn open(shard: ShardId, state: StateStore, incoming: Incoming, outgoing: Arc<Outgoing>) -> io::Result<Self> {
        install::redo(shard, &state, &incoming)?;
        let applier = Applier::restore(shard, state.engine()).map_err(io::Error::other)?;
        let shared = Arc::new(RwLock::new(applier.progress.clone()));
        Ok(Self { shard, state, applier, shared, rows_checks: Arc::default(), incoming, outgoing })
    }

    /// What others here see of the group from now on.
    fn publish(&self) {
        let (progress, map) = (self.applier.progress.clone(), self.state.slots());
        if map.of(self.shard) != progress.slots || map.is_vacant(self.shard) != progress.vacant {
            // Whoever reads a row at this moment cannot tell whose it is.
            let replacing = self.state.begin_replacing(self.shard);
            match progress.vacant {
                true => map.set_vacant(self.shard),
                false => map.set(self.shard, progress.slots),
            }
            replacing.done();
        }
        *self.shared.write() = progress;
    }

    /// How far the group is, for who looks from outside.
    pub fn progress(&self) -> Arc<RwLock<Progress>> {
        Arc::clone(&self.shared)
    }

    /// Likewise, the newest check of its rows.
    pub fn rows_checks(&self) -> Arc<RowsChecks> {
        Arc::clone(&self.rows_checks)
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
        self.publish();
        Ok(outcomes)
    }

    /// Lets go of the rows, see [`super::vacancy`].
    pub(super) fn vacate(&mut self) -> io::Result<()> {
        let before = self.applier.progress.clone();
        let after = Progress { slots: None, origins: Vec::new(), vacant: true, ..before.clone() };
        let ops = vacancy::ops(self.shard, &self.state, before.slots, &after.to_row())?;
        self.applier.progress = after;
        // Before they go: no reader takes for absent what was let go of.
        self.publish();
        blocking(|| self.state.write(&ops))?;
        Ok(())
    }

    /// An entry that it had taken before it let go of its rows: nothing of it matters here but where the log is.
    fn pass_over(&mut self, entry: apply::Entry) -> io::Result<()> {
        let progress = &mut self.applier.progress;
        progress.log_id = Some(entry.log_id);
        if let apply::Payload::Membership(membership) = entry.payload {
            let (log_id, membership) = (Some(entry.log_id), Some(membership));
            progress.membership = Some(pb::StoredMembership { log_id, membership });
        }
        let (key, value) = (table::applied::encode(self.shard), progress.to_row().encode_to_vec().into());
        blocking(|| self.state.write(&[StateOp::Put { table: Table::Applied, key, value }]))?;
        self.publish();
        Ok(())
    }

    fn meta(&self) -> io::Result<SnapshotMeta> {
        let progress = &self.applier.progress;
        meta_of(progress.log_id.as_ref(), progress.membership.clone())
    }

    /// The rows as they are now: no entry is applied while this runs.
    async fn pin(&self) -> io::Result<Snapshot> {
        let rows = PinnedRows::pin(self.shard, &self.state, &self.applier.progress).await?;
        Ok(Snapshot { meta: self.meta()?, snapshot: GroupSnapshot::pinned(rows) })
    }

    /// Begins to read the rows as they are after the entry that asks for it.
    async fn check_rows(&self, asked: pb::CheckRows) {
        let progress = &self.applier.progress;
        let log_index = progress.log_id.map_or(0, |log_id| log_id.index);
        let check = pb::RowsCheck { check_id: asked.check_id, seq: progress.seq, log_index, ..Default::default() };
        if !self.rows_checks.has_begun(&check.check_id) {
            let rows = PinnedRows::pin(self.shard, &self.state, progress).await;
            self.rows_checks.begin(self.shard, check, rows, Arc::clone(&self.outgoing));
        }
    }

    /// What is to be installed, as a file.
    async fn received(&self, snapshot: GroupSnapshot) -> io::Result<Received> {
        if let GroupSnapshot::Received(received) = &snapshot {
            return received.lock().take().ok_or_else(|| io::Error::other("a snapshot is installed once"));
        }
        let mut rows = snapshot.take_pinned()?;
        let mut part = self.incoming.receive(self.shard, &rows.meta.encode_to_vec())?;
        while let Some(chunk) = rows.next().await {
            part.push(&chunk?.encode_to_vec())?;
        }
        part.finish()
    }
}

fn is_done(outcome: &pb::Outcome) -> bool {
    matches!(outcome.result, Some(pb::outcome::Result::Done(_)))
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
            if self.applier.progress.vacant {
                self.pass_over(to_apply(first?.0))?;
                continue;
            }
            let (mut entries, mut responders, mut size_bytes, mut check) = (Vec::new(), Vec::new(), 0, None);
            let mut next = Some(first);
            while let Some(item) = next {
                let (entry, responder) = item?;
                size_bytes += size_bytes_of(&entry);
                let entry = to_apply(entry);
                check = entry.command().and_then(command::rows_check);
                if self.applier.progress.slots.is_none() {
                    handover::await_rows(self.shard, &self.state, &entry).await?;
                }
                entries.push(entry);
                responders.push(responder);
                // A check is of the rows as they are after it, and not after the next one.
                let full = check.is_some() || entries.len() == BATCH_ENTRIES_MAX || size_bytes >= BATCH_BYTES_MAX;
                // What is not there at once goes into the next batch.
                next = if full { None } else { stream.next().now_or_never().flatten() };
            }
            let outcomes = self.apply_batch(entries, responders.iter().any(Option::is_some))?;
            if let Some(check) = check.filter(|_| outcomes.last().is_some_and(is_done)) {
                self.check_rows(check).await;
            }
            // Answers leave only now: the batch is written.
            for (responder, outcome) in responders.into_iter().zip(outcomes) {
                if let Some(responder) = responder {
                    responder.send(Answer(outcome));
                }
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        match force {
            true => Some(self.get_snapshot_builder().await),
            // Openraft asks again when there are some more entries.
            false if self.outgoing.held_logs.is_held(self.shard) => None,
            false => Some(SnapshotBuilder::Announce { shard: self.shard, state: self.state.clone() }),
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder::Rows(Some(self.pin().await))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: GroupSnapshot) -> io::Result<()> {
        let received = self.received(snapshot).await?;
        let head = pb::SnapshotMeta::decode(received.head()).map_err(io::Error::other)?;
        handover::await_free(self.shard, &self.state, &head).await;
        blocking(|| install::install(self.shard, &self.state, received))?;
        self.applier = Applier::restore(self.shard, self.state.engine()).map_err(io::Error::other)?;
        if self.meta()?.last_log_id != meta.last_log_id {
            return Err(io::Error::other("a snapshot is of another position than it said"));
        }
        self.publish();
        tracing::info!(shard = self.shard, seq = self.applier.progress.seq, "a snapshot was installed");
        Ok(())
    }

    /// Pinned anew each time: what is sent is as new as it can be.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        match self.applier.progress.log_id {
            None => Ok(None),
            Some(_) => self.pin().await.map(Some),
        }
    }
}
