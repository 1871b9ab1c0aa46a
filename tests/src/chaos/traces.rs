//! What the nodes leave behind: log lines that faults do not explain, and texts that must not be anywhere.

use std::path::PathBuf;

use super::sweep::Violation;
use crate::canary::{self, Scan, Texts};
use crate::harness::Cluster;

/// In every value: what is looked for. Nothing else says it.
pub const CANARY: &str = "Zwieback-Canary-4f1d";

/// What a node may warn of while others die, hang, are cut off or removed, its disk is filled, or its clock is set.
const EXPECTED: [&str; 16] = [
    "not ready: this node does not serve until that is mended",
    "cannot reach peer, trying on",
    "cannot hand over leadership",
    "the successor did not take over in time",
    "a snapshot was not sent: trying again",
    "error=the sender has gone, or is too slow",
    "the state is ahead of the log: dropping the log, the leader sends what follows",
    "some calls did not end in time and were cut",
    "of most other nodes': set it right",
    "the disk is full, hangs, or is damaged: handing over leadership",
    "the disk is nearly full: writes are refused; make room",
    "the disk is full: this replica stands still; make room",
    "is no member of this cluster",
    "this node was removed from the cluster",
    // Who has not heard of a removal yet calls the address, at which the next node listens by now.
    "error=\"refused: you expect node ",
    "a peer is too far for the heartbeat",
];

/// Stops all nodes, so that their files hold still.
pub fn check(cluster: &mut Cluster) -> Vec<Violation> {
    let mut violations = Vec::new();
    let started = (0..cluster.size()).filter(|node| cluster.is_started(*node)).collect::<Vec<_>>();
    for node in started {
        let status = tokio::task::block_in_place(|| cluster.stop(node));
        if !status.success() {
            violations.push(violation("a node did not stop cleanly", format!("{node}: {status}")));
        }
    }
    for log in cluster.logs() {
        let text = std::fs::read_to_string(&log).expect("a node's log");
        let unexpected =
            text.lines().filter(|line| is_alarm(line) && !EXPECTED.iter().any(|known| line.contains(known)));
        violations
            .extend(unexpected.map(|line| violation("a node complains of what no fault explains", line.to_owned())));
    }
    let mut texts = Texts::default();
    texts.secret(CANARY);
    let scan = Scan::new(&texts);
    let files = cluster
        .data_dirs()
        .iter()
        .flat_map(|folder| canary::files_below(folder))
        .chain(cluster.logs())
        .collect::<Vec<_>>();
    let (found, bytes) = scan.files(&files);
    assert!(bytes > 0, "nothing was searched");
    violations.extend(found.into_iter().map(|found| violation("clear text of a record lies in a file", found)));
    violations
}

/// How many the nodes installed, by their logs.
pub fn snapshots(cluster: &Cluster) -> usize {
    let installed =
        |log: PathBuf| std::fs::read_to_string(log).expect("a node's log").matches("a snapshot was installed").count();
    cluster.logs().into_iter().map(installed).sum()
}

fn is_alarm(line: &str) -> bool {
    line.contains(" WARN ") || line.contains(" ERROR ") || line.contains("panicked")
}

fn violation(what: &'static str, detail: String) -> Violation {
    Violation { what, key: "-".to_owned(), detail }
}
