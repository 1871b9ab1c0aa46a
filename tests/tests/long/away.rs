//! A node that lacks 100,000 commits comes back by snapshots, while writes go on.

use std::time::Instant;

use charthold_tests::away::away_for;
use charthold_tests::harness::{Cluster, Options, RAFT_AS_SHIPPED};

const COMMITS: u64 = 100_000;

pub async fn run() {
    let config = format!("{RAFT_AS_SHIPPED}snapshot_after_entries = 2000\nkeep_entries = 1000\n");
    let mut cluster = Cluster::start_with(Options { config, ..Options::default() }).await;
    let began = Instant::now();
    away_for(&mut cluster, COMMITS).await;
    println!("away: {COMMITS} commits without a node, its return and all checks took {:?}", began.elapsed());
}
