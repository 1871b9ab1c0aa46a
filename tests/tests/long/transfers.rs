//! How long writes stand still when an operator has a node give away all that it leads: three sites, 1 ms from each other.

use std::time::{Duration, Instant};

use charthold_tests::harness::{Cluster, Options, RAFT_AS_SHIPPED, Wan};

use super::waits::{WRITERS, Waiting};

/// Of shards, the directory among them.
const TRANSFERS: usize = 100;
const ROUND_TRIP: Duration = Duration::from_millis(1);
/// What a drain is watched for.
const WATCHED: Duration = Duration::from_secs(3);
const STALL_MAX: Duration = Duration::from_millis(500);

pub async fn run() {
    let round_trip = Wan::is_possible().then_some(ROUND_TRIP);
    println!("round trip between sites: {round_trip:?}");
    let options = Options { config: RAFT_AS_SHIPPED.to_owned(), round_trip, ..Options::default() };
    let cluster = Cluster::start_with(options).await;
    let waiting = Waiting::start(&cluster);
    let (mut drains, mut transfers) = (Vec::new(), 0);
    while transfers < TRANSFERS {
        let leader = cluster.leader_of_most().await;
        let name = cluster.name(leader);
        let status = cluster.status_of_all().await.unwrap();
        let id = &status.nodes.iter().find(|node| node.name == name).unwrap().id;
        let leads = |shard: &&charthold_client::ShardStatus| shard.leader_node_id.as_ref() == Some(id);
        // A spare shard's transfer is nobody's stall.
        transfers +=
            status.shards.iter().filter(leads).filter(|shard| shard.slots.is_some() || shard.shard == 0).count();
        drains.push(Instant::now());
        cluster.operator_cli(&["node", "drain", &name]).await.ok();
        tokio::time::sleep(WATCHED).await;
        cluster.operator_cli(&["node", "drain", &name, "--undo"]).await.ok();
    }
    let waits = waiting.stop().await;
    let stalls = waits.longest_after(&drains, WATCHED);
    let most = stalls.len() - 1;
    println!(
        "{transfers} transfers in {} drains, the longest wait of {WRITERS} writers: p50 {:?}, p90 {:?}, max {:?}; {} commits",
        drains.len(),
        stalls[most / 2],
        stalls[most * 9 / 10],
        stalls[most],
        waits.commits()
    );
    assert!(stalls[most] <= STALL_MAX);
}
