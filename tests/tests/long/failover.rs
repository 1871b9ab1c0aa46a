//! How long writes stand still when the site that leads most shards dies: three sites, 60 ms from each other.

use std::time::{Duration, Instant};

use charthold_tests::harness::{Cluster, Options, RAFT_AS_SHIPPED, Wan};

use super::asked_for;
use super::waits::{WRITERS, Waiting};

const KILLS: usize = 200;
const ROUND_TRIP: Duration = Duration::from_millis(60);
/// How long a site is dead: as long as writes may stand still. A wait that goes on counts in full.
const DEAD: Duration = Duration::from_secs(4);
/// After it is back and serves.
const PAUSE: Duration = Duration::from_secs(2);
/// What a writer may have to wait for its answer, in 99 of 100 cases: the lease of the old leader (1.25 s), then a few round
/// trips; if the first voter lacks entries, a heartbeat more, and if nobody's turn succeeds, a timer of up to 1.25 s.
const OUTAGE_P99_MAX: Duration = Duration::from_secs(4);

pub async fn run() {
    let round_trip = Wan::is_possible().then_some(ROUND_TRIP);
    println!("round trip between sites: {round_trip:?}");
    let options = Options { config: RAFT_AS_SHIPPED.to_owned(), round_trip, ..Options::default() };
    let mut cluster = Cluster::start_with(options).await;
    let waiting = Waiting::start(&cluster);
    let (begun, mut kills) = (Instant::now(), Vec::new());
    // All of them, however long they take, unless less is asked for.
    while kills.len() < KILLS && asked_for().is_none_or(|limit| begun.elapsed() < limit) {
        let leader = cluster.leader_of_most().await;
        kills.push(Instant::now());
        cluster.kill(leader);
        tokio::time::sleep(DEAD).await;
        cluster.restart(leader);
        cluster.wait_ready().await;
        tokio::time::sleep(PAUSE).await;
    }
    let waits = waiting.stop().await;
    let outages = waits.longest_after(&kills, DEAD);
    let (p99, killed) = (outages[kills.len() * 99 / 100], kills.len());
    println!(
        "failover over {killed} kills, the longest wait of {WRITERS} writers: p50 {:?}, p99 {p99:?}, max {:?}; {} commits",
        outages[killed / 2],
        outages[killed - 1],
        waits.commits()
    );
    assert!(p99 <= OUTAGE_P99_MAX);
}
