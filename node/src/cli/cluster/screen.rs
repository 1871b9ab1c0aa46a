//! A report for people: nodes, shards, and what is wrong, on one screen.

use std::collections::BTreeSet;
use std::time::Duration;

use charthold_client::{FollowerLag, Node, NodeStatus, SlotRange};

use super::findings::Finding;
use super::report::{Agreement, Report, free_percent};
use crate::cli::output;

/// Of a root: enough to compare by eye.
const ROOT_PREFIX_BYTES: usize = 4;
const NONE: &str = "-";

pub fn report(report: &Report, findings: &[Finding]) -> String {
    let state = if report.status.initialized { "initialized" } else { "not initialized" };
    let asked = report.name(&report.status.node_id);
    let head = format!("cluster {}, {state}, as node {asked} sees it{}", report.status.cluster, upgrade(report));
    format!("{head}\n\n{}\n\n{}\n\n{}", nodes(report), shards(report), wrong(findings))
}

/// Of interest only where the nodes know more than the cluster uses: an upgrade may be over.
fn upgrade(report: &Report) -> String {
    let used = report.status.format;
    match report.format_known_by_all().filter(|known| report.status.initialized && *known > used) {
        Some(known) => format!(
            "\nit uses format {used}, all nodes know {known}: charthold cluster raise-format, once no older version is to be \
             put back"
        ),
        None => String::new(),
    }
}

pub fn nodes(report: &Report) -> String {
    output::table(
        &["NODE", "SITE", "STATE", "LEADS", "UP", "DISK FREE", "MEMORY", "CLOCK", "CERTIFICATE", "VERSION", "CLIENTS"],
        &[3, 4, 5, 6, 7, 8],
        report.nodes().iter().map(|node| node_row(report, node)),
    )
}

pub fn shards(report: &Report) -> String {
    output::table(
        &["SHARD", "SLOTS", "LEADER", "TERM", "SEQ", "VOTERS", "BEHIND", "ROOT"],
        &[3, 4],
        report.shards().into_iter().map(|shard| shard_row(report, shard)),
    )
}

/// A site's nodes, how many of them answer, and what they lead.
pub fn sites(report: &Report) -> String {
    let sites = report.nodes().iter().map(|node| node.site.as_str()).collect::<BTreeSet<_>>();
    let row = |site: &str| {
        let nodes = report.nodes().iter().filter(|node| node.site == site).collect::<Vec<_>>();
        let up = nodes.iter().filter(|node| report.node(&node.id).is_ok()).count();
        let leads = nodes.iter().map(|node| report.leads(&node.id)).sum::<usize>();
        let keys = if nodes.iter().any(|node| node.keyed) { "keyed" } else { "keyless" };
        let names = nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
        vec![site.to_owned(), keys.to_owned(), format!("{up} of {}", nodes.len()), leads.to_string(), names]
    };
    output::table(&["SITE", "KEYS", "UP", "LEADS", "NODES"], &[3], sites.into_iter().map(row))
}

fn wrong(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is wrong".to_owned();
    }
    let lines = findings.iter().map(|finding| format!("  {}\n    {}", finding.what, finding.advice));
    format!("what is wrong:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

fn node_row(report: &Report, node: &Node) -> Vec<String> {
    let kind = if node.keyed { "" } else { " (keyless)" };
    let mut row = vec![node.name.clone(), node.site.clone()];
    match report.node(&node.id) {
        Err(_) => row.extend(["unreachable", NONE, NONE, NONE, NONE, NONE, NONE, NONE].map(str::to_owned)),
        Ok(status) => row.extend([
            format!("{}{kind}", state(status)),
            report.leads(&node.id).to_string(),
            duration(status.uptime),
            free(status),
            format!("{} MiB", status.resident_bytes >> 20),
            status.clock_offset_ms.map_or_else(|| NONE.to_owned(), |offset_ms| format!("{:+} ms", -offset_ms)),
            days(report, status),
            status.version.clone(),
        ]),
    }
    row.push(if node.keyed { node.client_endpoint.clone() } else { NONE.to_owned() });
    row
}

fn state(status: &NodeStatus) -> &'static str {
    match (&status.not_ready, status.drained) {
        (Some(_), _) => "not ready",
        (None, true) => "drained",
        (None, false) => "ready",
    }
}

fn free(status: &NodeStatus) -> String {
    let percent = free_percent(status);
    percent.map_or_else(|| NONE.to_owned(), |percent| format!("{} GiB {percent} %", status.disk_free_bytes >> 30))
}

/// Until the first of a node's certificates ends.
fn days(report: &Report, status: &NodeStatus) -> String {
    let first = status.certificates.iter().filter_map(|certificate| report.days_left(certificate)).min();
    first.map_or_else(|| NONE.to_owned(), |days| format!("{days} d"))
}

fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3_600, seconds / 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, _) => format!("{hours} h"),
        (days, _, _) => format!("{days} d"),
    }
}

fn shard_row(report: &Report, shard: u32) -> Vec<String> {
    let label = if shard == 0 { "directory".to_owned() } else { shard.to_string() };
    let leader = report.leader(shard);
    // Without a leader that answers: the replica that is the furthest.
    let furthest = || report.replicas(shard).into_iter().max_by_key(|(_, view)| view.applied_index);
    let Some((_, view)) = leader.or_else(furthest) else { return vec![label] };
    let leader = leader.map_or("none", |(id, _)| report.name(id)).to_owned();
    let lag = |lag: &FollowerLag| format!("{} {}", report.name(&lag.node_id), lag.entries_behind);
    let mut behind: Vec<String> = view.followers.iter().map(lag).collect();
    behind.sort();
    let behind = behind.join(", ");
    let root = match report.agreement(shard) {
        Agreement::Equal { seq, sha256 } => {
            format!("{} at {seq}", hex::encode(sha256.get(..ROOT_PREFIX_BYTES).unwrap_or(&sha256)))
        }
        Agreement::Differs { seq } => format!("DIFFERS at {seq}"),
        Agreement::Unknown => NONE.to_owned(),
    };
    let behind = if behind.is_empty() { NONE.to_owned() } else { behind };
    let mut voters: Vec<&str> = view.voter_node_ids.iter().map(|id| report.name(id)).collect();
    voters.sort_unstable();
    let voters = voters.join(" ");
    vec![label, held(shard, view.slots), leader, view.term.to_string(), view.seq.to_string(), voters, behind, root]
}

/// What a shard holds.
pub fn held(shard: u32, slots: Option<SlotRange>) -> String {
    match slots {
        Some(SlotRange { first, last }) => format!("{first}-{last}"),
        None if shard == 0 => NONE.to_owned(),
        None => "spare".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{findings, report};
    use super::*;

    fn lines(report: &Report) -> Vec<String> {
        let text = super::report(report, &findings::of(report));
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn a_cluster_that_is_well_on_one_screen() {
        let lines = lines(&report::tests::well());
        assert_eq!(lines[0], "cluster test, initialized, as node a1 sees it");
        assert_eq!(lines[3], "a1 a ready 0 1 d 60 GiB 60 % 500 MiB -3 ms 90 d 0.1.0 a1:7400");
        assert_eq!(lines[4], "b1 b ready 1 1 d 60 GiB 60 % 500 MiB -3 ms 90 d 0.1.0 b1:7400");
        assert_eq!(lines[8], "1 0-65535 b1 3 9 a1 b1 c1 a1 0, c1 0 01010101 at 8");
        assert_eq!(lines.last().map(String::as_str), Some("nothing is wrong"));
    }

    #[test]
    fn what_is_wrong_comes_last() {
        let mut report = report::tests::well();
        report.status.node_status[2].unreachable = Some("not connected".to_owned());
        let lines = lines(&report);
        assert_eq!(lines[5], "c1 c unreachable - - - - - - - c1:7400");
        assert_eq!(lines[10], "what is wrong:");
        assert!(lines[11].starts_with("node c1 cannot be reached"), "{lines:?}");
    }

    #[test]
    fn times_have_one_unit() {
        let of = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!([of(59), of(60), of(3_599), of(3_600), of(90_000)], ["59 s", "1 min", "59 min", "1 h", "1 d"]);
    }
}
