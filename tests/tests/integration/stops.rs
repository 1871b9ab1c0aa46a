//! A node that is told to stop ends well, with or without the others, under load.

use std::time::Duration;

use charthold_client::{Chart, Client, Put, RecordId};
use charthold_tests::harness::Cluster;

const ROUNDS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_stop_cleanly_and_in_any_company() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..ROUNDS {
        let load = tokio::spawn(write(cluster.client()));
        for place in 0..cluster.size() {
            let node = (round + place) % cluster.size();
            let status = cluster.stop(node);
            assert!(status.success(), "round {round}: node {node}: {status}\n{}", cluster.last_words());
        }
        load.abort();
        cluster.restart_all();
        cluster.wait_ready().await;
    }
    cluster.wait_roots_equal().await;
}

/// Until it is aborted: most of it fails, for want of a quorum.
async fn write(client: Client) {
    let (client, chart) = (client.with_deadline(Duration::from_secs(1)), Chart::patient("p1"));
    for number in 0_u64.. {
        let _ = client.put(&chart, &RecordId::new("Note", (number % 7).to_string()), Put::fhir("{}")).await;
    }
}
