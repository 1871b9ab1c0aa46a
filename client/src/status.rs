//! How a cluster is, as its nodes tell it.

use std::time::{Duration, SystemTime};

use charthold_proto::v1;

use crate::admin::Node;
use crate::types::system_time;

/// What one node knows of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The cluster's name.
    pub cluster: String,
    /// The node that answered.
    pub node_id: String,
    /// Its software.
    pub version: String,
    /// Whether the cluster was formed.
    pub initialized: bool,
    /// What its nodes send each other and write; 0 before it was formed, and at a gateway that is too old to say.
    pub format: u32,
    /// How many replicas a shard is to have; 0: one on every node.
    pub replicas: u32,
    /// The shards that are to be on a part of the nodes, and the ids of these; all others are on every node.
    pub placements: Vec<(u32, Vec<String>)>,
    /// All nodes of the cluster.
    pub nodes: Vec<Node>,
    /// As this node sees them, see [`ShardStatus::vacant`].
    pub shards: Vec<ShardStatus>,
    /// What every node says of itself, after [`Admin::status_of_all`](crate::Admin::status_of_all).
    pub node_status: Vec<NodeStatus>,
}

impl ClusterStatus {
    pub(crate) fn from_proto(status: v1::StatusResponse) -> Self {
        Self {
            cluster: status.cluster,
            node_id: status.node_id,
            version: status.version,
            initialized: status.initialized,
            format: status.format,
            replicas: status.replicas,
            placements: status.placements.into_iter().map(|placed| (placed.shard, placed.node_ids)).collect(),
            nodes: status.nodes.into_iter().map(Node::from_proto).collect(),
            shards: status.shards.into_iter().map(ShardStatus::from_proto).collect(),
            node_status: status.node_status.into_iter().map(NodeStatus::from_proto).collect(),
        }
    }
}

/// A node, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Which node.
    pub node_id: String,
    /// Why it could not be asked, if it could not: then the rest is empty.
    pub unreachable: Option<String>,
    /// Its software.
    pub version: String,
    /// Since its start.
    pub uptime: Duration,
    /// The size of the file system that holds its data.
    pub disk_total_bytes: u64,
    /// What is free of it.
    pub disk_free_bytes: u64,
    /// Memory of the process.
    pub resident_bytes: u64,
    /// How far most other clocks are ahead of its own; None while it has heard none.
    pub clock_offset_ms: Option<i64>,
    /// Nodes to which it is connected.
    pub connected_node_ids: Vec<String>,
    /// Those that it shows.
    pub certificates: Vec<Certificate>,
    /// Why it does not serve, if it does not.
    pub not_ready: Option<String>,
    /// As it sees them, see [`ShardStatus::vacant`].
    pub shards: Vec<ShardStatus>,
    /// It leads nothing that another can lead, as an operator told it.
    pub drained: bool,
    /// The newest format that it knows; 0 at a gateway that is too old to say.
    pub format_max: u32,
}

/// A certificate that a node shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// "peer" or "service".
    pub port: String,
    /// When it ends.
    pub expires_at: Option<SystemTime>,
}

impl NodeStatus {
    fn from_proto(node: v1::NodeStatus) -> Self {
        let certificate = |certificate: v1::Certificate| Certificate {
            port: certificate.port,
            expires_at: system_time(certificate.expires_at),
        };
        Self {
            node_id: node.node_id,
            unreachable: some(node.unreachable),
            version: node.version,
            uptime: Duration::from_millis(node.uptime_ms),
            disk_total_bytes: node.disk_total_bytes,
            disk_free_bytes: node.disk_free_bytes,
            resident_bytes: node.resident_bytes,
            clock_offset_ms: node.clock_offset_ms,
            connected_node_ids: node.connected_node_ids,
            certificates: node.certificates.into_iter().map(certificate).collect(),
            not_ready: some(node.not_ready),
            shards: node.shards.into_iter().map(ShardStatus::from_proto).collect(),
            drained: node.drained,
            format_max: node.format_max,
        }
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// A shard as one of its replicas sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// 0 is the directory.
    pub shard: u32,
    /// None while it is not known.
    pub leader_node_id: Option<String>,
    /// Raft's.
    pub term: u64,
    /// The last position in this replica's log.
    pub log_index: u64,
    /// The last it knows to be committed.
    pub committed_index: u64,
    /// The last it has applied.
    pub applied_index: u64,
    /// Up to where it has purged its log.
    pub purged_index: u64,
    /// Up to where its state is known to be durable, so that the log could be purged.
    pub flushed_index: u64,
    /// How many outcomes it has recorded.
    pub seq: u64,
    /// Merkle roots over the recorded outcomes, the newest last: replicas that agree have equal roots at one seq.
    pub recent_roots: Vec<Root>,
    /// On the leader: how far behind each follower is.
    pub followers: Vec<FollowerLag>,
    /// Why this replica has stopped, if it has.
    pub stopped: Option<String>,
    /// Set on the leader while it answers commits that are not on disk at every site with keys, though it is configured to
    /// wait for that.
    pub degraded: bool,
    /// The replicas whose votes count.
    pub voter_node_ids: Vec<String>,
    /// Those that catch up.
    pub learner_node_ids: Vec<String>,
    /// What the shard holds of the charts; none: it is spare, or the directory.
    pub slots: Option<SlotRange>,
    /// The newest check of this replica's rows, if there was one since its node was started.
    pub rows_check: Option<RowsCheck>,
    /// This node has no replica of the shard, which is on others: what it says of it is old.
    pub vacant: bool,
}

/// A check of a replica's rows, after [`Admin::check_rows`](crate::Admin::check_rows).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsCheck {
    /// Which check.
    pub check_id: String,
    /// The place in the replica's log that it is of: results of one place can be compared.
    pub log_index: u64,
    /// How many outcomes the replica had recorded then.
    pub seq: u64,
    /// What was read so far.
    pub rows: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// SHA-256 over all rows, once they are read: equal on replicas that are well. Or why they could not be read.
    pub sha256: Option<Result<Vec<u8>, String>>,
}

impl RowsCheck {
    fn from_proto(check: v1::RowsCheck) -> Self {
        let read = (!check.sha256.is_empty()).then_some(Ok(check.sha256.into()));
        Self {
            check_id: check.check_id,
            log_index: check.log_index,
            seq: check.seq,
            rows: check.rows,
            bytes: check.bytes,
            sha256: some(check.failed).map(Err).or(read),
        }
    }
}

/// A part of the 65,536 slots that charts are dealt out to, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange {
    /// The lowest.
    pub first: u32,
    /// The highest.
    pub last: u32,
}

impl SlotRange {
    pub(crate) fn from_proto(slots: Option<v1::SlotRange>) -> Option<Self> {
        slots.map(|v1::SlotRange { first, last }| Self { first, last })
    }
}

/// A Merkle root over a shard's first `seq` outcomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// How many.
    pub seq: u64,
    /// 32 bytes.
    pub sha256: Vec<u8>,
}

/// How far behind its leader a follower is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowerLag {
    /// Which follower.
    pub node_id: String,
    /// Entries of the log that it has not acknowledged.
    pub entries_behind: u64,
}

impl ShardStatus {
    fn from_proto(shard: v1::ShardStatus) -> Self {
        Self {
            shard: shard.shard,
            leader_node_id: some(shard.leader_node_id),
            term: shard.term,
            log_index: shard.log_index,
            committed_index: shard.committed_index,
            applied_index: shard.applied_index,
            purged_index: shard.purged_index,
            flushed_index: shard.flushed_index,
            seq: shard.seq,
            recent_roots: shard
                .recent_roots
                .into_iter()
                .map(|root| Root { seq: root.seq, sha256: root.sha256.into() })
                .collect(),
            followers: shard
                .followers
                .into_iter()
                .map(|lag| FollowerLag { node_id: lag.node_id, entries_behind: lag.entries_behind })
                .collect(),
            stopped: some(shard.stopped),
            degraded: shard.degraded,
            voter_node_ids: shard.voter_node_ids,
            learner_node_ids: shard.learner_node_ids,
            slots: SlotRange::from_proto(shard.slots),
            rows_check: shard.rows_check.map(RowsCheck::from_proto),
            vacant: shard.vacant,
        }
    }
}
