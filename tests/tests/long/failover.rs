//! How long writes stand still when the node that leads most shards is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use charthold_client::{Chart, Client, Error, Mutation, Put, RecordId, new_request_id};
use charthold_tests::harness::{Cluster, Options};

const KILLS: usize = 20;
/// Between kills: the killed node is back, and caught up.
const PAUSE: Duration = Duration::from_secs(10);
/// Charts of every shard, so that whoever dies, some writer notices.
const WRITERS: usize = 16;
/// What a writer may have to wait for its answer while the node that leads most dies. The lease of the old leader
/// (1.5 s), then an election (up to 1.5 s), then what the client waits between tries.
const OUTAGE_MAX: Duration = Duration::from_secs(10);

pub async fn run() {
    // As an operator gets it: the harness's own timing is quicker.
    let raft = "[raft]\nheartbeat_ms = 250\nelection_min_ms = 1000\nelection_max_ms = 1500\n";
    let mut cluster = Cluster::start_with(Options { config: raft.to_owned(), ..Options::default() }).await;
    let done = Arc::new(AtomicBool::new(false));
    let writers = (0..WRITERS).map(|number| tokio::spawn(write(cluster.client(), number, Arc::clone(&done))));
    let writers = writers.collect::<Vec<_>>();
    let mut kills = Vec::new();
    for _ in 0..KILLS {
        let leader = cluster.leader_of_most().await;
        kills.push(Instant::now());
        cluster.kill(leader);
        tokio::time::sleep(PAUSE / 2).await;
        cluster.restart(leader);
        cluster.wait_ready().await;
        tokio::time::sleep(PAUSE / 2).await;
    }
    done.store(true, SeqCst);
    let mut waits = Vec::new();
    for writer in writers {
        waits.extend(writer.await.unwrap());
    }
    let worst_after = |kill: &Instant| {
        let hit = waits.iter().filter(|(begun, took)| *begun + *took > *kill && *begun < *kill + PAUSE / 2);
        hit.map(|(_, took)| *took).max().unwrap_or_default()
    };
    let mut outages = kills.iter().map(worst_after).collect::<Vec<_>>();
    outages.sort();
    println!(
        "failover over {KILLS} kills, the longest wait of {WRITERS} writers: median {:?}, worst {:?}; {} commits",
        outages[KILLS / 2],
        outages[KILLS - 1],
        waits.len()
    );
    assert!(outages[KILLS - 1] < OUTAGE_MAX);
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
