//! A report for programs: all of it.

use charthold_client::{Certificate, FollowerLag, Node, NodeStatus, Root, ShardStatus};
use serde_json::{Value, json};

use super::findings::Finding;
use super::report::{Agreement, Report};
use crate::cli::output;

pub fn report(report: &Report, findings: &[Finding]) -> Value {
    let nodes = report.nodes().iter().map(|info| {
        let mut value = node(info);
        match report.node(&info.id) {
            Ok(status) => add_status(&mut value, status, report.leads(&info.id)),
            Err(why) => {
                value["answered"] = false.into();
                value["error"] = why.into();
            }
        }
        value
    });
    let finding = |finding: &Finding| json!({ "what": finding.what, "advice": finding.advice });
    json!({
        "cluster": report.status.cluster,
        "initialized": report.status.initialized,
        "format": report.status.format,
        "format_known_by_all": report.format_known_by_all(),
        "replicas": report.status.replicas,
        "answered_by": report.status.node_id,
        "nodes": nodes.collect::<Vec<Value>>(),
        "wrong": findings.iter().map(finding).collect::<Vec<Value>>(),
    })
}

pub fn node(node: &Node) -> Value {
    json!({
        "id": node.id,
        "name": node.name,
        "site": node.site,
        "client_endpoint": node.client_endpoint,
        "peer_endpoint": node.peer_endpoint,
        "keyed": node.keyed,
    })
}

fn add_status(value: &mut Value, status: &NodeStatus, leads: usize) {
    let certificate = |certificate: &Certificate| json!({ "port": certificate.port, "expires_at": output::time(certificate.expires_at) });
    let more = json!({
        "answered": true,
        "version": status.version,
        "uptime_s": status.uptime.as_secs(),
        "leads": leads,
        "disk_total_bytes": status.disk_total_bytes,
        "disk_free_bytes": status.disk_free_bytes,
        "resident_bytes": status.resident_bytes,
        "clock_offset_ms": status.clock_offset_ms,
        "connected_node_ids": status.connected_node_ids,
        "certificates": status.certificates.iter().map(certificate).collect::<Vec<_>>(),
        "ready": status.not_ready.is_none(),
        "not_ready": status.not_ready,
        "drained": status.drained,
        "format_max": status.format_max,
        "shards": status.shards.iter().map(shard).collect::<Vec<_>>(),
    });
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}

/// Each shard as its leader sees it, or whoever is the furthest.
pub fn shards(report: &Report) -> Value {
    let view = |number: u32| {
        let furthest = || report.replicas(number).into_iter().max_by_key(|(_, view)| view.applied_index);
        let (_, view) = report.leader(number).or_else(furthest)?;
        let mut value = shard(view);
        value["agreement"] = match report.agreement(number) {
            Agreement::Equal { seq, .. } => json!({ "equal_at_seq": seq }),
            Agreement::Differs { seq } => json!({ "differs_at_seq": seq }),
            Agreement::Unknown => Value::Null,
        };
        Some(value)
    };
    report.shards().into_iter().filter_map(view).collect()
}

fn shard(shard: &ShardStatus) -> Value {
    let root = |root: &Root| json!({ "seq": root.seq, "sha256": hex::encode(&root.sha256) });
    let lag = |lag: &FollowerLag| json!({ "node_id": lag.node_id, "entries_behind": lag.entries_behind });
    json!({
        "shard": shard.shard,
        "leader_node_id": shard.leader_node_id,
        "term": shard.term,
        "log_index": shard.log_index,
        "committed_index": shard.committed_index,
        "applied_index": shard.applied_index,
        "purged_index": shard.purged_index,
        "flushed_index": shard.flushed_index,
        "seq": shard.seq,
        "recent_roots": shard.recent_roots.iter().map(root).collect::<Vec<_>>(),
        "followers": shard.followers.iter().map(lag).collect::<Vec<_>>(),
        "stopped": shard.stopped,
        "degraded": shard.degraded,
        "voter_node_ids": shard.voter_node_ids,
        "learner_node_ids": shard.learner_node_ids,
        "slots": shard.slots.map(|slots| json!({ "first": slots.first, "last": slots.last })),
        "vacant": shard.vacant,
    })
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::super::report::tests::well;

    #[test]
    fn the_report_is_whole() {
        let mut report = well();
        report.status.node_status[2].unreachable = Some("not connected".to_owned());
        let value = super::report(&report, &findings::of(&report));
        assert_eq!(value["nodes"][1]["shards"][0]["followers"][0]["entries_behind"], 0);
        assert_eq!(value["nodes"][1]["shards"][0]["recent_roots"][1]["sha256"], "02".repeat(32));
        assert_eq!(value["nodes"][1]["leads"], 1);
        assert_eq!(value["nodes"][2]["answered"], false);
        assert_eq!(value["nodes"][2]["error"], "not connected");
        assert_eq!(value["wrong"][0]["what"], "node c1 cannot be reached: not connected");
    }
}
