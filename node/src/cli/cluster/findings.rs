//! What is wrong with a cluster, in plain sentences, each with what to do: the worst first.

use std::collections::BTreeSet;

use charthold_client::NodeStatus;

use super::report::{Agreement, Report, free_percent};

/// A follower that lacks more is worth a look.
const BEHIND_MAX: u64 = 1_000;
const DISK_FREE_PERCENT_MIN: u64 = 10;
/// A node ends when its clock is 2 s off.
const CLOCK_OFF_MS_MAX: u64 = 500;
const CERTIFICATE_DAYS_MIN: i64 = 21;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    pub advice: &'static str,
}

fn finding(what: String, advice: &'static str) -> Finding {
    Finding { what, advice }
}

/// All that is wrong.
pub fn of(report: &Report) -> Vec<Finding> {
    if !report.status.initialized {
        let what = "the cluster is not initialized".to_owned();
        return vec![finding(what, "start all nodes, then form it: charthold cluster init")];
    }
    let mut found = Vec::new();
    shards(report, &mut found);
    slots(report, &mut found);
    nodes(report, &mut found);
    versions(report, &mut found);
    found
}

fn shards(report: &Report, found: &mut Vec<Finding>) {
    for shard in report.shards() {
        let label = if shard == 0 { "the directory".to_owned() } else { format!("shard {shard}") };
        if let Agreement::Differs { seq } = report.agreement(shard) {
            let what = format!("{label}: replicas differ, they have other Merkle roots at seq {seq}");
            found.push(finding(what, "stop writing, keep every node's data, and find out which replica is right"));
        }
        for (id, view) in report.replicas(shard) {
            if let Some(why) = &view.stopped {
                let what = format!("{label}: the replica on node {} has stopped: {why}", report.name(id));
                found.push(finding(what, "restart the node; if it stops again, replace it by a new one"));
            }
        }
        match report.leader(shard) {
            None => found.push(finding(
                format!("{label} has no leader: its charts cannot be read or written"),
                "wait for an election, a few seconds; if it lasts, more than half of the nodes must run and reach each other",
            )),
            Some((_, view)) => {
                if view.degraded {
                    let what = format!("{label}: commits are answered before they are at every site with keys");
                    found.push(finding(what, "one of these sites does not keep up: start its nodes, look at the network"));
                }
                for lag in view.followers.iter().filter(|lag| lag.entries_behind > BEHIND_MAX) {
                    let node = report.name(&lag.node_id);
                    let what = format!("{label}: node {node} is {} entries behind", lag.entries_behind);
                    found.push(finding(what, "it catches up once it runs and is reached; if not, look at its disk"));
                }
            }
        }
    }
}

fn slots(report: &Report, found: &mut Vec<Finding>) {
    // That no node answers is told of below.
    let known = !report.shards().is_empty();
    if let Some(first) = report.nobodys_slots().filter(|_| known) {
        let what = format!("no shard holds slot {first}: its charts, and maybe others, cannot be read or written");
        found.push(finding(what, "a shard is being split: a moment; if it lasts, see that all shards have leaders"));
    }
}

fn nodes(report: &Report, found: &mut Vec<Finding>) {
    for node in report.nodes() {
        let name = &node.name;
        match report.node(&node.id) {
            Err(why) => found.push(finding(
                format!("node {name} cannot be reached: {why}"),
                "start it, or look at the end of its log and at the network between the sites",
            )),
            Ok(status) => of_node(report, name, status, found),
        }
    }
}

fn of_node(report: &Report, name: &str, status: &NodeStatus, found: &mut Vec<Finding>) {
    if let Some(why) = &status.not_ready {
        let what = format!("node {name} is not ready: {why}");
        found.push(finding(what, "clients are sent to the other nodes meanwhile; its log says more"));
    }
    if status.drained {
        let what = format!("node {name} is drained: it leads nothing");
        found.push(finding(what, "restart it, or let it lead again: charthold node drain --undo"));
    }
    let (votes, shards) = (report.votes(&status.node_id), report.placed(&status.node_id));
    if votes < shards && report.shards().iter().all(|shard| report.leader(*shard).is_some()) {
        let what = format!("node {name} votes in {votes} of {shards} shards");
        found.push(finding(
            what,
            "it is catching up, and votes in the others once it has; if that lasts, look at its log",
        ));
    }
    for other in report.nodes().iter().filter(|other| other.id != status.node_id) {
        // One that nobody reaches is told of already.
        if report.node(&other.id).is_ok() && !status.connected_node_ids.contains(&other.id) {
            let what = format!("node {name} is not connected to node {}", other.name);
            found.push(finding(what, "look at the network and the peer certificates between the two"));
        }
    }
    if let Some(percent) = free_percent(status).filter(|percent| *percent < DISK_FREE_PERCENT_MIN) {
        let what = format!("node {name}: {percent} % of its disk is free");
        found.push(finding(what, "make room or enlarge the disk before it is full: a full one takes no writes"));
    }
    if let Some(offset_ms) = status.clock_offset_ms.filter(|offset| offset.unsigned_abs() > CLOCK_OFF_MS_MAX) {
        let direction = if offset_ms > 0 { "behind" } else { "ahead" };
        let what = format!("node {name}: its clock is {} ms {direction}", offset_ms.unsigned_abs());
        found.push(finding(what, "mend its time synchronisation: at 2000 ms the node ends"));
    }
    for certificate in &status.certificates {
        let Some(days) = report.days_left(certificate).filter(|days| *days < CERTIFICATE_DAYS_MIN) else { continue };
        let what = match days {
            ..0 => format!("node {name}: its {} certificate has expired", certificate.port),
            _ => format!("node {name}: its {} certificate expires in {days} days", certificate.port),
        };
        found.push(finding(what, "give it a new one: charthold cert create-node"));
    }
}

fn versions(report: &Report, found: &mut Vec<Finding>) {
    let versions: BTreeSet<&str> = report.answered().map(|status| status.version.as_str()).collect();
    if versions.len() > 1 {
        let list = versions.into_iter().collect::<Vec<_>>().join(", ");
        found
            .push(finding(format!("the nodes run different versions: {list}"), "finish the upgrade, a node at a time"));
    }
}

#[cfg(test)]
mod tests {
    use charthold_client::{FollowerLag, SlotRange};

    use super::super::report::tests::{shard, well};
    use super::*;

    /// What is found once a cluster that is well is changed.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Report), expected: &[&str]) {
        let mut report = well();
        change(&mut report);
        let found: Vec<String> = of(&report).into_iter().map(|finding| finding.what).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn nothing_is_found_where_all_is_well() {
        check(|_| {}, &[]);
    }

    #[test]
    fn shards_that_are_ill() {
        check(
            |report| report.status.node_status.iter_mut().for_each(|node| node.shards[0].leader_node_id = None),
            &["shard 1 has no leader: its charts cannot be read or written"],
        );
        check(
            |report| {
                let lag = FollowerLag { node_id: "03".to_owned(), entries_behind: 1_001 };
                report.status.node_status[1].shards[0].followers = vec![lag];
            },
            &["shard 1: node c1 is 1001 entries behind"],
        );
        check(
            |report| report.status.node_status[2].shards = vec![shard("02", 3, &[(8, 9)])],
            &["shard 1: replicas differ, they have other Merkle roots at seq 8"],
        );
        check(
            |report| {
                let halved = Some(SlotRange { first: 0, last: 32_767 });
                report.status.node_status.iter_mut().for_each(|node| node.shards[0].slots = halved);
            },
            &["no shard holds slot 32768: its charts, and maybe others, cannot be read or written"],
        );
        check(
            |report| report.status.node_status[2].shards[0].stopped = Some("an unknown entry".to_owned()),
            &["shard 1: the replica on node c1 has stopped: an unknown entry"],
        );
    }

    #[test]
    fn a_node_is_to_vote_in_what_is_placed_on_it() {
        let without_c1 = |report: &mut Report| report.status.node_status[1].shards[0].voter_node_ids.truncate(2);
        check(without_c1, &["node c1 votes in 0 of 1 shards"]);
        check(
            |report| {
                without_c1(report);
                report.status.node_status[2].shards[0].vacant = true;
                report.status.placements = vec![(1, vec!["01".to_owned(), "02".to_owned()])];
            },
            &[],
        );
    }

    #[test]
    fn nodes_that_are_ill() {
        check(
            |report| report.status.node_status[2].unreachable = Some("not connected".to_owned()),
            &["node c1 cannot be reached: not connected"],
        );
        check(
            |report| report.status.node_status[0].connected_node_ids = vec!["02".to_owned()],
            &["node a1 is not connected to node c1"],
        );
        check(
            |report| {
                let node = &mut report.status.node_status[0];
                node.not_ready = Some("shard 3: no leader is known".to_owned());
                node.disk_free_bytes = node.disk_total_bytes / 11;
                node.clock_offset_ms = Some(-501);
                node.certificates[0].expires_at = Some(report.now - std::time::Duration::from_secs(5));
            },
            &[
                "node a1 is not ready: shard 3: no leader is known",
                "node a1: 9 % of its disk is free",
                "node a1: its clock is 501 ms ahead",
                "node a1: its peer certificate has expired",
            ],
        );
        check(
            |report| report.status.node_status[1].version = "0.2.0".to_owned(),
            &["the nodes run different versions: 0.1.0, 0.2.0"],
        );
        check(|report| report.status.initialized = false, &["the cluster is not initialized"]);
    }
}
