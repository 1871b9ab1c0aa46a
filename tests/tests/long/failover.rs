//! How long writes stand still when the site that leads most shards dies: three sites, 60 ms from each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use charthold_client::{Chart, Client, Error, Mutation, Put, RecordId, new_request_id};
use charthold_tests::harness::{Cluster, Options, RAFT_AS_SHIPPED, Wan};

const KILLS: usize = 200;
const ROUND_TRIP: Duration = Duration::from_millis(60);
/// How long a site is dead: longer than writes stand still.
const DEAD: Duration = Duration::from_secs(6);
/// After it is back and serves.
const PAUSE: Duration = Duration::from_secs(2);
/// Charts of every shard, so that whoever dies, some writer notices.
const WRITERS: usize = 16;
/// What a writer may have to wait for its answer, in 99 of 100 cases: the lease of the old leader (1.25 s), then an
/// election (up to 1.25 s), then what the client waits between tries.
const OUTAGE_P99_MAX: Duration = Duration::from_secs(4);

pub async fn run() {
    let round_trip = Wan::is_possible().then_some(ROUND_TRIP);
    println!("round trip between sites: {round_trip:?}");
    let options = Options { config: RAFT_AS_SHIPPED.to_owned(), round_trip, ..Options::default() };
    let mut cluster = Cluster::start_with(options).await;
    let done = Arc::new(AtomicBool::new(false));
    let writers = (0..WRITERS).map(|number| tokio::spawn(write(cluster.client(), number, Arc::clone(&done))));
    let writers = writers.collect::<Vec<_>>();
    let mut kills = Vec::new();
    for _ in 0..KILLS {
        let leader = cluster.leader_of_most().await;
        kills.push(Instant::now());
        cluster.kill(leader);
        tokio::time::sleep(DEAD).await;
        cluster.restart(leader);
        cluster.wait_ready().await;
        tokio::time::sleep(PAUSE).await;
    }
    done.store(true, SeqCst);
    let mut waits = Vec::new();
    for writer in writers {
        waits.extend(writer.await.unwrap());
    }
    let worst_after = |kill: &Instant| {
        let hit = waits.iter().filter(|(begun, took)| *begun + *took > *kill && *begun < *kill + DEAD);
        hit.map(|(_, took)| *took).max().unwrap_or_default()
    };
    let mut outages = kills.iter().map(worst_after).collect::<Vec<_>>();
    outages.sort();
    let p99 = outages[KILLS * 99 / 100];
    println!(
        "failover over {KILLS} kills, the longest wait of {WRITERS} writers: p50 {:?}, p99 {p99:?}, max {:?}; {} commits",
        outages[KILLS / 2],
        outages[KILLS - 1],
        waits.len()
    );
    assert!(p99 <= OUTAGE_P99_MAX);
}

/// Writes one record over and over; when each commit began and how long it took until its answer.
async fn write(client: Client, number: usize, done: Arc<AtomicBool>) -> Vec<(Instant, Duration)> {
    let chart = Chart::patient(format!("writer-{number}"));
    let record = RecordId::new("Counter", "n");
    let mut waits = Vec::new();
    while !done.load(SeqCst) {
        let (begun, request_id) = (Instant::now(), new_request_id());
        let mutations = vec![Mutation::put(record.clone(), Put::fhir(format!("{{\"n\":{}}}", waits.len())))];
        let committed = loop {
            match client.commit_with_id(request_id, &chart, mutations.clone()).await {
                Ok(committed) => break committed,
                Err(Error::OutcomeUnknown { .. } | Error::Unavailable { .. } | Error::Overloaded { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(committed.versions, [waits.len() as u64 + 1], "a commit was lost, or happened twice");
        waits.push((begun, begun.elapsed()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    waits
}
