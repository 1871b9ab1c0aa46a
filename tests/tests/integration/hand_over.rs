//! A node that is told to stop gives away what it leads: nobody has to wait for an election.

use std::time::Duration;

use charthold_client::{Chart, Put, RecordId};
use charthold_tests::harness::{Cluster, Options};

/// An election would take longer than any call here waits.
const SLOW_ELECTIONS: &str = "[raft]\nheartbeat_ms = 250\nelection_min_ms = 12000\nelection_max_ms = 16000\n";
const DEADLINE: Duration = Duration::from_secs(8);
/// So many charts are in every shard, as good as surely.
const CHARTS: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_leader_costs_no_election() {
    let options = Options { config: SLOW_ELECTIONS.to_owned(), ..Options::default() };
    let mut cluster = Cluster::start_with(options).await;
    let leader = cluster.leader_of_most().await;
    assert!(cluster.stop(leader).success());
    let client = cluster.client().with_deadline(DEADLINE);
    let record = RecordId::new("Note", "n1");
    let puts = (0..CHARTS).map(|number| {
        let (client, record) = (client.clone(), record.clone());
        tokio::spawn(async move { client.put(&Chart::patient(format!("p{number}")), &record, Put::fhir("{}")).await })
    });
    for put in puts.collect::<Vec<_>>() {
        put.await.unwrap().unwrap();
    }
}
