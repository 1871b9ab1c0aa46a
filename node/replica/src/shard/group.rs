//! One group on this node: proposals, read barriers, status.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{Fatal, InitializeError, LinearizableReadError, RaftError};
use openraft::raft::linearizable_read::ReadLogId;
use openraft::{LinearizerOption, ReadPolicy};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::apply::Progress;
use super::authors::AuthorKey;
use super::command;
use super::config::{Retention, Timing, raft_config};
use super::durability::{Durability, KeyedSites};
use super::log::LogStorage;
use super::machine::GroupMachine;
use super::network::GroupNetwork;
use super::proposer::Proposer;
use super::repair::repair;
use super::rows_check::RowsChecks;
use super::snapshot::Snapshot;
use super::transfer::Outgoing;
use super::types::{Entry, LogId, Member, Raft, Vote};
use super::vacancy::Presence;
use crate::peer::clock::ClusterClock;
use crate::peer::disks::ClusterDisks;
use crate::planted::{self, Bug};
use crate::platform::blocking;
use crate::store::disk::DiskLevel;
use crate::store::incoming::Incoming;
use crate::store::log::group::GroupLog;
use crate::store::state::flusher::StateStore;
use crate::trace::{self, Kind, Span, Value};
use crate::{DIRECTORY, NodeId, ShardId};

/// What a successor gets to take over.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

/// In which a group's first leader brings its members.
const MEMBERS_WITHIN: Duration = Duration::from_secs(5);

/// Proposals that a group may have under way: fewer than openraft's queue holds, so that none waits in front of it.
const PROPOSALS_MAX: usize = 2_048;
/// What the proposals of all groups may hold together, in units of 1 KiB.
const PROPOSED_KIB_MAX: usize = 64 << 10;

/// Why a proposal or a barrier did not succeed here.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupError {
    /// Nothing was done.
    #[error("not the leader")]
    NotLeader { leader: Option<NodeId> },
    /// Nothing was done: no majority answers.
    #[error("no quorum")]
    NoQuorum,
    /// It may have been done, or may be done yet.
    #[error("outcome unknown")]
    Unknown,
    /// Nothing was done: no command of ours.
    #[error("malformed command")]
    Malformed,
    /// Nothing was done: too much is under way.
    #[error("overloaded")]
    Overloaded,
    /// Nothing was done: this node's disk, or those of too many others, have no room.
    #[error("disk full")]
    DiskFull,
    /// This replica has stopped.
    #[error("the replica has stopped: {0}")]
    Stopped(String),
}

/// How a leader knows that it still leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmed {
    /// By a majority's answer to a question that is younger than the read. No clock is trusted.
    Now,
    /// By one that is younger than [`Timing::lease_read_max`].
    ByLease,
}

/// What a leader asks before it takes a proposal, and what it orders it with; all groups of a node share it.
pub struct Conditions {
    pub clock: Arc<ClusterClock>,
    pub disks: Arc<ClusterDisks>,
    /// How long a commit waits for every site with keys, if it does.
    keyed_sites_within: Option<Duration>,
    /// Signs entries; nothing: the node has no keys.
    author_key: Option<Arc<dyn AuthorKey>>,
    room: Semaphore,
}

impl Conditions {
    pub fn new(
        clock: Arc<ClusterClock>,
        disks: Arc<ClusterDisks>,
        keyed_sites_within: Option<Duration>,
        author_key: Option<Arc<dyn AuthorKey>>,
    ) -> Arc<Self> {
        let room = Semaphore::new(PROPOSED_KIB_MAX);
        Arc::new(Self { clock, disks, keyed_sites_within, author_key, room })
    }
}

/// What a group keeps on disk.
pub struct GroupStores {
    pub log: GroupLog,
    pub state: StateStore,
    pub incoming: Incoming,
    pub outgoing: Arc<Outgoing>,
}

/// A running group.
pub struct Group {
    pub shard: ShardId,
    pub node: NodeId,
    raft: Raft,
    proposer: Proposer,
    log: LogStorage,
    pub(super) state: StateStore,
    conditions: Arc<Conditions>,
    pub(super) keyed_sites: Arc<KeyedSites>,
    proposals: Semaphore,
    lease_read_max: Duration,
    /// The newest log time given out: log time does not go back while this node leads.
    log_time_ms: Mutex<u64>,
    pub(super) progress: Arc<RwLock<Progress>>,
    pub(super) rows_checks: Arc<RowsChecks>,
    /// When a leader last brought something that was taken.
    heard_at: Mutex<Option<Instant>>,
    pub(super) presence: Presence,
}

impl Group {
    /// Opens the group's log and state, brings them in line, and starts it. It neither votes nor campaigns yet.
    pub async fn start(
        shard: ShardId,
        node: NodeId,
        timing: &Timing,
        retention: &Retention,
        stores: GroupStores,
        network: GroupNetwork,
        conditions: Arc<Conditions>,
    ) -> std::io::Result<Self> {
        let GroupStores { log, state, incoming, outgoing } = stores;
        let machine = blocking(|| GroupMachine::open(shard, state.clone(), incoming, outgoing))?;
        let (progress, rows_checks) = (machine.progress(), machine.rows_checks());
        let at_start = progress.read().clone();
        repair(shard, &log, &at_start).await?;
        let config = raft_config(shard, timing, retention).map_err(std::io::Error::other)?;
        let replays = shard == DIRECTORY || at_start.slots.is_some();
        let log = LogStorage::new(log, replays, conditions.author_key.clone());
        let raft = Raft::new(node, config, network, log.clone(), machine).await;
        let raft = raft.map_err(std::io::Error::other)?;
        // Once it answers, the metrics tell the stored members: nobody takes the group for one that is not formed yet.
        raft.is_initialized().await.map_err(std::io::Error::other)?;
        log_leaders(shard, node, &raft);
        let keyed_sites = KeyedSites::new(shard, conditions.keyed_sites_within);
        keyed_sites.follow(node, &raft);
        Ok(Self {
            shard,
            node,
            proposer: Proposer::start(raft.clone(), PROPOSALS_MAX),
            raft,
            log,
            state,
            conditions,
            keyed_sites,
            proposals: Semaphore::new(PROPOSALS_MAX),
            lease_read_max: timing.lease_read_max(),
            log_time_ms: Mutex::new(0),
            progress,
            rows_checks,
            heard_at: Mutex::default(),
            presence: Presence::default(),
        })
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.raft
    }

    pub(super) fn log(&self) -> &GroupLog {
        self.log.of_group()
    }

    /// What is in this replica's log at an index; nothing if that is purged, or was never there.
    pub(crate) fn entry(&self, index: u64) -> Option<Entry> {
        // What cannot be read here stops the group where it is needed.
        self.log.entry(index).ok().flatten()
    }

    /// Lets the group campaign: once the restart rule allows.
    pub fn allow_elections(&self) {
        self.raft.runtime_config().elect(!self.is_vacant());
    }

    /// Somebody brings something as leader: is it the one that this replica follows, or a newer one?
    pub(super) fn note_leader(&self, vote: &Vote) {
        let metrics = self.raft.server_metrics();
        if *vote >= metrics.borrow_watched().vote {
            *self.heard_at.lock() = Some(Instant::now());
        }
    }

    /// When a leader was last heard; none: not since the start.
    pub fn heard_at(&self) -> Option<Instant> {
        *self.heard_at.lock()
    }

    /// Campaigns, if a majority says that it would follow. Does nothing while the leader's lease holds here.
    pub async fn ask_for_votes(&self) {
        if let Err(error) = self.raft.trigger().elect(true).await {
            tracing::debug!(shard = self.shard, %error, "a group that has stopped does not campaign");
        }
    }

    /// From now on nobody campaigns here unless he is told to.
    #[cfg(test)]
    pub fn forbid_elections(&self) {
        self.raft.runtime_config().elect(false);
    }

    /// The leader and its address, as far as known.
    pub fn leader(&self) -> Option<(NodeId, Member)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        let member = metrics.membership_config.membership().get_node(&leader)?.clone();
        Some((leader, member))
    }

    /// Whether this node leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.raft.is_leader()
    }

    /// The time that this node would stamp; nothing while its clock is off.
    pub fn now_ms(&self) -> Option<u64> {
        self.conditions.clock.now_ms(self.member_count()).ok()
    }

    /// The group's members; empty before the cluster is formed.
    pub fn members(&self) -> Vec<(NodeId, Member)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().nodes().map(|(id, member)| (*id, member.clone())).collect()
    }

    /// The entry that made them members.
    pub fn members_at(&self) -> Option<LogId> {
        let metrics = self.raft.server_metrics();
        *metrics.borrow_watched().membership_config.log_id()
    }

    /// One of them.
    pub fn member(&self, id: NodeId) -> Option<Member> {
        let metrics = self.raft.server_metrics();
        metrics.borrow_watched().membership_config.membership().get_node(&id).cloned()
    }

    pub fn member_count(&self) -> usize {
        let metrics = self.raft.server_metrics();
        metrics.borrow_watched().membership_config.membership().nodes().count()
    }

    /// Forms the group. Fine if it was formed with the same members before.
    pub async fn initialize(&self, members: &[(NodeId, Member)]) -> Result<(), String> {
        let members = members.iter().cloned().collect::<std::collections::BTreeMap<_, _>>();
        match self.raft.initialize(members.clone()).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                // Another node formed it: one that has been asked for its vote may not know yet of whom.
                let waits = self.raft.wait(Some(MEMBERS_WITHIN));
                let knows = waits.metrics(|now| now.membership_config.membership().nodes().next().is_some(), "members");
                let _known = knows.await;
                let found = self.members().into_iter().collect::<std::collections::BTreeMap<_, _>>();
                match found == members {
                    true => Ok(()),
                    false => Err(format!("shard {} was formed with other nodes", self.shard)),
                }
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Proposes on the leader; answers what apply said, and where it is on disk by then.
    pub async fn propose_here(
        &self,
        command: &Bytes,
        limit: Duration,
    ) -> Result<(pb::Outcome, Durability), GroupError> {
        let Conditions { clock, disks, room, .. } = &*self.conditions;
        let Ok(now_ms) = clock.now_ms(self.member_count()) else {
            return Err(GroupError::NotLeader { leader: None });
        };
        if !disks.may_write(|| self.members().into_iter().map(|(id, _)| id).collect()) {
            return Err(GroupError::DiskFull);
        }
        let kib = (command.len() >> 10).clamp(1, PROPOSED_KIB_MAX) as u32;
        let (Ok(_turn), Ok(_room)) = (self.proposals.try_acquire(), room.try_acquire_many(kib)) else {
            return Err(GroupError::Overloaded);
        };
        let log_time_ms = {
            let mut newest = self.log_time_ms.lock();
            *newest = (*newest).max(now_ms);
            *newest
        };
        let stamped = command::stamp(command, log_time_ms).map_err(|_| GroupError::Malformed)?;
        let mut span = trace::span("leader", Kind::Server);
        let begun = Instant::now();
        let proposed = self.proposer.propose(stamped, span.as_ref().map(Span::context));
        let written = tokio::time::timeout(limit, proposed).await.unwrap_or(Err(GroupError::Unknown));
        if let Some(span) = &mut span {
            span.note("shard", Value::Number(self.shard.into()));
            match &written {
                Ok((log_id, _)) => span.note("log_index", Value::Number(log_id.index)),
                Err(_) => span.fail(),
            }
        }
        let (log_id, outcome) = written?;
        let durability = self.keyed_sites.confirm(&log_id, limit.saturating_sub(begun.elapsed())).await;
        Ok((outcome, durability))
    }

    /// On the leader: a position that covers every write answered before this call. A majority confirms that it leads,
    /// now or, by a lease, a little while ago.
    pub async fn read_index_here(&self, confirmed: Confirmed) -> Result<LogId, GroupError> {
        let by_lease = confirmed == Confirmed::ByLease;
        if (planted::has(Bug::ReadWithoutQuorum) || by_lease && planted::has(Bug::LeaseUnchecked))
            && let Some(applied) = &self.progress.read().log_id
        {
            return Ok(super::codec::log_id_from_pb(applied));
        }
        let option = match confirmed {
            Confirmed::Now => ReadPolicy::ReadIndex.into(),
            // Too old, it asks.
            Confirmed::ByLease => LinearizerOption::new(Some(self.lease_read_max), true),
        };
        match self.raft.get_read_linearizer(option).await {
            Ok(linearizer) => Ok(*linearizer.read_log_id().log_id()),
            Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal)),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(GroupError::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(GroupError::NoQuorum),
        }
    }

    /// Waits until this replica has applied a position.
    pub async fn await_applied(&self, log_id: LogId, limit: Duration) -> Result<(), GroupError> {
        let read = ReadLogId::from_log_id(log_id);
        let applied = self.progress.read().log_id.as_ref().map(super::codec::log_id_from_pb);
        let linearizer = openraft::raft::linearizable_read::Linearizer::new(self.node, read, applied);
        match linearizer.try_await_ready(&self.raft, Some(limit)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(GroupError::NoQuorum),
            Err(fatal) => Err(stopped(&fatal)),
        }
    }

    /// On the leader: how many entries each other replica lacks.
    pub fn followers(&self) -> Vec<(NodeId, u64)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let log_index = metrics.last_log_index.unwrap_or(0);
        let lag = |matched: &Option<LogId>| log_index.saturating_sub(matched.map_or(0, |log_id| log_id.index));
        let others = metrics.replication.iter().flatten().filter(|(id, _)| **id != self.node);
        others.map(|(id, matched)| (*id, lag(matched))).collect()
    }

    /// On the leader: the voter that lacks least, of those that are fit by their id and how many entries they lack.
    pub fn successor(&self, fit: impl Fn(NodeId, u64) -> bool) -> Option<NodeId> {
        let composition = self.composition();
        let voters = self.followers().into_iter().filter(|(id, _)| composition.voters.contains(id));
        let successor = voters.filter(|(id, behind)| fit(*id, *behind)).min_by_key(|(_, behind)| *behind);
        successor.map(|(id, _)| id)
    }

    /// Gives leadership to that one.
    ///
    /// Openraft does not take a transfer back (#1747): whether or not the successor follows, this node takes no write and
    /// sends no heartbeat until somebody else is elected, or it is stopped.
    pub async fn hand_over_to(&self, fit: impl Fn(NodeId, u64) -> bool) {
        if !self.raft.is_leader() {
            return;
        }
        let Some(successor) = self.successor(fit) else { return };
        if let Err(error) = self.raft.trigger().transfer_leader(successor).await {
            tracing::warn!(shard = self.shard, %error, "cannot hand over leadership: the others elect after this node has gone, which takes an election timeout");
            return;
        }
        let gone = self.raft.wait(Some(HAND_OVER_MAX));
        let gone = gone.metrics(|metrics| metrics.current_leader != Some(self.node), "handed over").await;
        if gone.is_err() {
            tracing::info!(shard = self.shard, "the successor did not take over in time: the others will elect");
        }
    }

    /// The group's rows as they are on this replica now.
    pub(super) async fn snapshot(&self) -> Result<Snapshot, GroupError> {
        match self.raft.get_snapshot().await {
            Ok(snapshot) => snapshot.ok_or_else(|| GroupError::Stopped("it has applied nothing".to_owned())),
            Err(error) => Err(GroupError::Stopped(error.to_string())),
        }
    }

    /// What this replica knows to be committed.
    pub(super) fn known_committed(&self) -> Option<LogId> {
        self.raft.metrics().borrow_watched().local_committed
    }

    /// Whether this replica can take a leader's entries: not on a full disk.
    pub(super) fn takes_entries(&self) -> bool {
        self.conditions.disks.own() != DiskLevel::Critical
    }

    /// The leader that gateways ask. One without keys orders nothing and is not believed: it hands over in a moment.
    pub fn keyed_leader(&self) -> Result<(NodeId, Member), GroupError> {
        self.leader().filter(|(_, member)| member.keyed).ok_or(GroupError::NotLeader { leader: None })
    }

    /// Recorded outcomes so far.
    pub fn seq(&self) -> u64 {
        self.progress.read().seq
    }

    /// How far this replica's log is applied.
    pub(crate) fn applied_index(&self) -> Option<u64> {
        self.progress.read().log_id.map(|log_id| log_id.index)
    }

    /// Where its shard has its slots from, the nearest first.
    pub(super) fn origins(&self) -> Vec<pb::Origin> {
        self.progress.read().origins.clone()
    }

    /// The log time that this replica has applied.
    pub fn applied_time_ms(&self) -> u64 {
        self.progress.read().log_time_ms
    }

    /// Why the group has stopped, if it has.
    pub fn stopped(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let running = metrics.borrow_watched().running_state.clone();
        running.err().map(|fatal| fatal.to_string())
    }

    /// Stops the group's tasks.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(shard = self.shard, %error, "a group did not stop cleanly: nothing is lost, its log is applied again at the next start");
        }
        self.rows_checks.stop();
    }
}

/// Says who leads, whenever that changes.
fn log_leaders(shard: ShardId, node: NodeId, raft: &Raft) {
    let mut metrics = raft.server_metrics();
    tokio::spawn(async move {
        let mut known = None;
        while metrics.changed().await.is_ok() {
            let (leader, term) = {
                let metrics = metrics.borrow_watched();
                (metrics.current_leader, metrics.vote.leader_id.term)
            };
            if leader == known {
                continue;
            }
            known = leader;
            match leader {
                Some(leader) if leader == node => tracing::info!(shard, term, "this node leads the shard"),
                Some(leader) => tracing::info!(shard, term, leader = %format_args!("{leader:016x}"), "leader changed"),
                None => tracing::info!(
                    shard,
                    term,
                    "no leader is known: an election is due; if it lasts, most nodes do not reach each other"
                ),
            }
        }
    });
}

fn stopped(fatal: &Fatal<super::types::TypeConfig>) -> GroupError {
    GroupError::Stopped(fatal.to_string())
}
