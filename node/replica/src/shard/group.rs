//! One group on this node: proposals, read barriers, status.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, InitializeError, LinearizableReadError, RaftError};
use openraft::raft::linearizable_read::ReadLogId;
use parking_lot::{Mutex, RwLock};

use super::apply::Progress;
use super::apply::merkle::Hash;
use super::command;
use super::config::{Timing, raft_config};
use super::log::LogStorage;
use super::machine::GroupMachine;
use super::network::GroupNetwork;
use super::repair::repair;
use super::types::{LogId, Member, Proposal, Raft};
use crate::peer::clock::ClusterClock;
use crate::replica::peers::Peers;
use crate::store::log::group::GroupLog;
use crate::store::state::flusher::StateStore;
use crate::{NodeId, ShardId};

/// What a successor gets to take over.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

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
    /// This replica has stopped.
    #[error("the replica has stopped: {0}")]
    Stopped(String),
}

/// What a status page shows of a group.
pub struct GroupStatus {
    pub shard: ShardId,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub seq: u64,
    pub recent_roots: Vec<(u64, Hash)>,
    /// On the leader: how many entries each follower lacks.
    pub followers: Vec<(NodeId, u64)>,
    pub stopped: Option<String>,
}

/// A running group.
pub struct Group {
    pub shard: ShardId,
    pub node: NodeId,
    raft: Raft,
    clock: Arc<ClusterClock>,
    /// The newest log time given out: log time does not go back while this node leads.
    log_time_ms: Mutex<u64>,
    progress: Arc<RwLock<Progress>>,
}

impl Group {
    /// Opens the group's log and state, brings them in line, and starts it. It neither votes nor campaigns yet.
    pub async fn start(
        shard: ShardId,
        node: NodeId,
        timing: &Timing,
        log: GroupLog,
        state: StateStore,
        peers: Arc<Peers>,
        clock: Arc<ClusterClock>,
    ) -> std::io::Result<Self> {
        let machine = GroupMachine::open(shard, state).map_err(std::io::Error::other)?;
        let progress = machine.progress();
        let at_start = progress.read().clone();
        repair(shard, &log, &at_start).await?;
        let config = raft_config(shard, timing).map_err(std::io::Error::other)?;
        let network = GroupNetwork::new(shard, peers);
        let raft = Raft::new(node, config, network, LogStorage::new(log), machine).await;
        let raft = raft.map_err(std::io::Error::other)?;
        // Once it answers, the metrics tell the stored members: nobody takes the group for one that is not formed yet.
        raft.is_initialized().await.map_err(std::io::Error::other)?;
        log_leaders(shard, node, &raft);
        Ok(Self { shard, node, raft, clock, log_time_ms: Mutex::new(0), progress })
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// Lets the group campaign: once the restart rule allows.
    pub fn allow_elections(&self) {
        self.raft.runtime_config().elect(true);
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
        self.clock.now_ms(self.member_count()).ok()
    }

    /// The group's members; empty before the cluster is formed.
    pub fn members(&self) -> Vec<(NodeId, Member)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().nodes().map(|(id, member)| (*id, member.clone())).collect()
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
                let found = self.members().into_iter().collect::<std::collections::BTreeMap<_, _>>();
                match found == members {
                    true => Ok(()),
                    false => Err(format!("shard {} was formed with other nodes", self.shard)),
                }
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Proposes on the leader; answers what apply said.
    pub async fn propose_here(&self, command: &Bytes, limit: Duration) -> Result<pb::Outcome, GroupError> {
        let Ok(now_ms) = self.clock.now_ms(self.member_count()) else {
            return Err(GroupError::NotLeader { leader: None });
        };
        let log_time_ms = {
            let mut newest = self.log_time_ms.lock();
            *newest = (*newest).max(now_ms);
            *newest
        };
        let stamped = command::stamp(command, log_time_ms).map_err(|_| GroupError::Malformed)?;
        let written = tokio::time::timeout(limit, self.raft.client_write(Proposal(stamped))).await;
        match written {
            Err(_) => Err(GroupError::Unknown),
            Ok(Ok(written)) => Ok(written.response().0.clone()),
            // It may have been replicated before this replica stopped: never "nothing was done".
            Ok(Err(RaftError::Fatal(_))) => Err(GroupError::Unknown),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(GroupError::NotLeader { leader: forward.leader_id })
            }
            Ok(Err(RaftError::APIError(_))) => Err(GroupError::Unknown),
        }
    }

    /// On the leader: a position that covers every write answered before this call, confirmed by a majority.
    pub async fn read_index_here(&self) -> Result<LogId, GroupError> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
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

    /// Gives leadership to the follower that lacks least, before this node stops. Not for a node that goes on: openraft
    /// does not take a transfer back (#1747).
    pub async fn hand_over(&self) {
        if !self.raft.is_leader() {
            return;
        }
        let followers = self.status().followers;
        let Some((successor, _)) = followers.into_iter().min_by_key(|(_, behind)| *behind) else { return };
        if let Err(error) = self.raft.trigger().transfer_leader(successor).await {
            tracing::warn!(shard = self.shard, %error, "cannot hand over leadership");
            return;
        }
        let gone = self.raft.wait(Some(HAND_OVER_MAX));
        let gone = gone.metrics(|metrics| metrics.current_leader != Some(self.node), "handed over").await;
        if gone.is_err() {
            tracing::info!(shard = self.shard, "the successor did not take over in time: the others will elect");
        }
    }

    /// Recorded outcomes so far.
    pub fn seq(&self) -> u64 {
        self.progress.read().seq
    }

    /// Why the group has stopped, if it has.
    pub fn stopped(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let running = metrics.borrow_watched().running_state.clone();
        running.err().map(|fatal| fatal.to_string())
    }

    pub fn status(&self) -> GroupStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched().clone();
        let progress = self.progress.read().clone();
        let log_index = metrics.last_log_index.unwrap_or(0);
        let lag = |matched: &Option<LogId>| log_index.saturating_sub(matched.map_or(0, |log_id| log_id.index));
        let followers = metrics.replication.iter().flatten().filter(|(id, _)| **id != self.node);
        GroupStatus {
            shard: self.shard,
            leader: metrics.current_leader,
            term: metrics.current_term,
            log_index,
            committed_index: metrics.local_committed.map_or(0, |log_id| log_id.index),
            applied_index: metrics.last_applied.map_or(0, |log_id| log_id.index),
            seq: progress.seq,
            recent_roots: progress.recent_roots(),
            followers: followers.map(|(id, matched)| (*id, lag(matched))).collect(),
            stopped: metrics.running_state.err().map(|fatal| fatal.to_string()),
        }
    }

    /// Stops the group's tasks.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(shard = self.shard, %error, "a group did not stop cleanly");
        }
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
                None => tracing::info!(shard, term, "no leader is known"),
            }
        }
    });
}

fn stopped(fatal: &Fatal<super::types::TypeConfig>) -> GroupError {
    GroupError::Stopped(fatal.to_string())
}
