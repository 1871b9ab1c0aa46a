//! What a status page shows of a group.

use charthold_proto::internal as pb;
use openraft::async_runtime::WatchReceiver;

use super::apply::merkle::Hash;
use super::group::Group;
use super::members::Composition;
use crate::{NodeId, ShardId, Slots};

/// A group, as one of its replicas sees it.
pub struct GroupStatus {
    pub shard: ShardId,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    /// What is purged of the log, and what a flush has made durable of the state.
    pub purged_index: u64,
    pub flushed_index: u64,
    pub seq: u64,
    pub recent_roots: Vec<(u64, Hash)>,
    pub composition: Composition,
    /// On the leader: how many entries each follower lacks.
    pub followers: Vec<(NodeId, u64)>,
    pub stopped: Option<String>,
    /// On the leader: it goes on without a site that it should wait for.
    pub degraded: bool,
    pub slots: Option<Slots>,
    pub rows_check: Option<pb::RowsCheck>,
    /// Where it has them from, the nearest first.
    pub origins: Vec<pb::Origin>,
    /// The shard is on other nodes.
    pub vacant: bool,
}

impl Group {
    pub fn status(&self) -> GroupStatus {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched().clone();
        let progress = self.progress.read().clone();
        GroupStatus {
            shard: self.shard,
            leader: metrics.current_leader,
            term: metrics.current_term,
            log_index: metrics.last_log_index.unwrap_or(0),
            committed_index: metrics.local_committed.map_or(0, |log_id| log_id.index),
            applied_index: metrics.last_applied.map_or(0, |log_id| log_id.index),
            purged_index: metrics.purged.map_or(0, |log_id| log_id.index),
            flushed_index: metrics.snapshot.map_or(0, |log_id| log_id.index),
            seq: progress.seq,
            composition: self.composition(),
            recent_roots: progress.recent_roots(),
            followers: self.followers(),
            degraded: self.keyed_sites.is_degraded(),
            slots: progress.slots,
            rows_check: self.rows_checks.newest(),
            origins: progress.origins,
            vacant: progress.vacant,
            stopped: metrics.running_state.err().map(|fatal| fatal.to_string()),
        }
    }
}
