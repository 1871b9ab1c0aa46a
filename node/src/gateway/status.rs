//! How the cluster is: this node's view of every shard and, when asked, what every node says of itself.

use charthold_proto::internal as pb;
use charthold_proto::v1::{
    Certificate, FollowerLag, NodeInfo, NodeStatus, Root, RowsCheck, ShardPlacement, ShardStatus, StatusRequest,
    StatusResponse,
};
use charthold_replica::replica::observe::NodeView;
use charthold_replica::shard::types::Member;
use charthold_replica::{DIRECTORY, NodeId, Slots, format};

use super::Gateway;
use super::error::GatewayError;
use super::shards::slot_range;

impl Gateway {
    pub(super) async fn status(&self, request: StatusRequest) -> Result<StatusResponse, GatewayError> {
        let views = if request.all_nodes { self.replica.survey().await } else { Vec::new() };
        let own = self.replica.observer().describe();
        let cluster = self.replica.directory().cluster()?;
        let (initialized, format) = (cluster.is_some(), cluster.as_ref().map_or(0, format::of));
        let (replicas, placements) = cluster.map_or((0, Vec::new()), |row| (row.replicas, row.placements));
        Ok(StatusResponse {
            answer: self.answer(DIRECTORY, self.replica.seq(DIRECTORY)),
            cluster: self.replica.cluster.clone(),
            node_id: node_id(self.replica.node_id),
            version: own.version,
            initialized,
            nodes: self.nodes(),
            shards: own.groups.into_iter().map(shard_status).collect(),
            node_status: views.into_iter().map(node_status).collect(),
            format,
            placements: placements.into_iter().map(shard_placement).collect(),
            replicas,
        })
    }

    pub(super) fn nodes(&self) -> Vec<NodeInfo> {
        let members = self.replica.members();
        match members.is_empty() {
            true => vec![node_info(&(self.replica.node_id, self.replica.member.clone()))],
            false => members.iter().map(node_info).collect(),
        }
    }
}

pub(super) fn node_id(id: NodeId) -> String {
    format!("{id:016x}")
}

pub(super) fn node_info((id, member): &(NodeId, Member)) -> NodeInfo {
    NodeInfo {
        id: node_id(*id),
        name: member.name.clone(),
        site: member.site.clone(),
        client_endpoint: member.client_address.clone(),
        peer_endpoint: member.peer_address.clone(),
        keyed: member.keyed,
    }
}

fn node_status(view: NodeView) -> NodeStatus {
    let id = node_id(view.id);
    let status = match view.status {
        Ok(status) => status,
        Err(unreachable) => return NodeStatus { node_id: id, unreachable, ..Default::default() },
    };
    let certificate = |expiry: pb::CertificateExpiry| Certificate {
        port: expiry.port,
        expires_at: Some(prost_types::Timestamp { seconds: expiry.expires_at as i64, nanos: 0 }),
    };
    NodeStatus {
        node_id: id,
        unreachable: String::new(),
        version: status.version,
        uptime_ms: status.uptime_ms,
        disk_total_bytes: status.disk_total_bytes,
        disk_free_bytes: status.disk_free_bytes,
        resident_bytes: status.resident_bytes,
        clock_offset_ms: status.clock_offset_ms,
        connected_node_ids: status.connected.into_iter().map(node_id).collect(),
        certificates: status.certificates.into_iter().map(certificate).collect(),
        not_ready: status.not_ready,
        shards: status.groups.into_iter().map(shard_status).collect(),
        drained: status.gives_way,
        format_max: format::named(status.format_max),
    }
}

fn shard_placement(placed: pb::ShardPlacement) -> ShardPlacement {
    ShardPlacement { shard: placed.shard, node_ids: placed.nodes.into_iter().map(node_id).collect() }
}

fn shard_status(group: pb::GroupStatus) -> ShardStatus {
    let root = |root: pb::SeqRoot| Root { seq: root.seq, sha256: root.sha256 };
    let lag = |lag: pb::Lag| FollowerLag { node_id: node_id(lag.node), entries_behind: lag.entries_behind };
    ShardStatus {
        shard: group.shard,
        leader_node_id: if group.leader == 0 { String::new() } else { node_id(group.leader) },
        term: group.term,
        log_index: group.log_index,
        committed_index: group.committed_index,
        applied_index: group.applied_index,
        purged_index: group.purged_index,
        flushed_index: group.flushed_index,
        seq: group.seq,
        recent_roots: group.recent_roots.into_iter().map(root).collect(),
        followers: group.followers.into_iter().map(lag).collect(),
        stopped: group.stopped,
        degraded: group.degraded,
        voter_node_ids: group.voters.into_iter().map(node_id).collect(),
        learner_node_ids: group.learners.into_iter().map(node_id).collect(),
        slots: group.slots.as_ref().and_then(Slots::from_pb).map(slot_range),
        rows_check: group.rows_check.map(rows_check),
        vacant: group.vacant,
    }
}

fn rows_check(check: pb::RowsCheck) -> RowsCheck {
    RowsCheck {
        check_id: uuid::Uuid::from_slice(&check.check_id).unwrap_or_default().to_string(),
        seq: check.seq,
        rows: check.rows,
        bytes: check.bytes,
        sha256: check.sha256,
        failed: check.failed,
        log_index: check.log_index,
    }
}
