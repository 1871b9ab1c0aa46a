//! Shards on part of the nodes: they move while they serve, and every node's gateway sees all of them.

use super::split_tests::{SLOTS, chart_at, of_one_shard, split};
use super::*;

/// Has a shard on these nodes; none: on all.
async fn place(cluster: &Cluster, request: &str, shard: ShardId, at: &[usize]) {
    let nodes = at.iter().map(|at| cluster.node(*at).node_id).collect();
    let place = pb::PlaceShards {
        request_id: Bytes::copy_from_slice(&request_id(request, Platform::system().now_ms())),
        placements: vec![pb::ShardPlacement { shard: shard.into(), nodes }],
        replicas: at.len() as u32,
        ..Default::default()
    };
    let command = Command::PlaceShards(place).encode(0);
    let done = cluster.running().next().unwrap().propose(DIRECTORY, command, deadline()).await.unwrap();
    assert!(matches!(done.result, Some(Answer::Done(_))));
}

/// Exactly these nodes have the shard: they vote, and the others have nothing of it.
async fn until_placed(cluster: &Cluster, shard: ShardId, at: &[usize]) {
    let wanted = at.iter().map(|at| cluster.node(*at).node_id).collect::<std::collections::BTreeSet<_>>();
    let is_done = async || {
        let statuses = cluster.running().map(|node| (node.node_id, node.status().swap_remove(usize::from(shard))));
        let statuses = statuses.collect::<Vec<_>>();
        let leads = |(id, status): &&(NodeId, crate::shard::status::GroupStatus)| status.leader == Some(*id);
        let leader = statuses.iter().filter(|(id, _)| wanted.contains(id)).find(leads)?;
        let vote = leader.1.composition.voters == wanted && leader.1.composition.members.len() == wanted.len();
        let as_placed = statuses.iter().all(|(id, status)| status.vacant != wanted.contains(id));
        (vote && as_placed && !leader.1.composition.changing).then_some(())
    };
    eventually("the shard is where it was placed", is_done).await;
}

/// Behind a barrier every node, with a replica or without, sees so many records.
async fn check_seen(cluster: &Cluster, records: usize) {
    for node in cluster.running() {
        let moment = eventually("a barrier", async || node.barrier_of(slot(), deadline()).await.ok()).await;
        let rows = node.rows(&moment);
        let page = rows.chart(&chart(), None, None, moment.seq, 1_000, usize::MAX).unwrap();
        assert_eq!((page.versions.len(), moment.seq), (records, records as u64));
        let stored = &page.versions[records / 2];
        assert!(rows.newest(&stored.record, moment.seq).unwrap().is_some_and(|newest| newest.row == stored.row));
        assert!(rows.version(&stored.record, 1).unwrap().is_some_and(|first| first.row == stored.row));
        assert!(rows.version(&stored.record, 2).unwrap().is_none());
        assert!(stored.rows.chart_key(&chart()).unwrap().is_some() && !rows.is_erased(&chart()).unwrap());
        assert!(node.rows_of(slot()).chart_key(&chart()).unwrap().is_some());
    }
}

/// Writes a record at each node in turn.
async fn write(cluster: &Cluster, from: usize, to: usize) {
    for number in from..=to {
        let node = cluster.running().nth(number % cluster.running().count()).unwrap();
        assert_eq!(commit_at(node, number).await, number as u64);
    }
}

async fn of_five() -> Cluster {
    let cluster = Cluster::formed_of(5, &[]).await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_moves_while_it_serves() {
    let mut cluster = of_five().await;
    write(&cluster, 1, 5).await;
    place(&cluster, "three", SHARD, &[0, 1, 2]).await;
    write(&cluster, 6, 10).await;
    until_placed(&cluster, SHARD, &[0, 1, 2]).await;
    check_seen(&cluster, 10).await;
    write(&cluster, 11, 20).await;
    check_seen(&cluster, 20).await;
    // Of those that have it, one stays.
    place(&cluster, "moved", SHARD, &[2, 3, 4]).await;
    write(&cluster, 21, 40).await;
    until_placed(&cluster, SHARD, &[2, 3, 4]).await;
    check_seen(&cluster, 40).await;
    // Who has nothing of it needs none of it to start.
    cluster.stop(0).await;
    cluster.open(0).await;
    eventually("it serves", async || cluster.node(0).barrier_of(slot(), deadline()).await.ok()).await;
    assert!(cluster.node(0).status()[usize::from(SHARD)].vacant);
    write(&cluster, 41, 45).await;
    check_seen(&cluster, 45).await;
    place(&cluster, "all", SHARD, &[]).await;
    until_placed(&cluster, SHARD, &[0, 1, 2, 3, 4]).await;
    write(&cluster, 46, 50).await;
    check_seen(&cluster, 50).await;
    cluster.check_equal(50).await;
    cluster.end().await;
}

/// As a disk that is damaged takes it: the log is there, the state is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_made_anew_lacks_what_is_elsewhere() {
    let mut cluster = of_five().await;
    write(&cluster, 1, 3).await;
    place(&cluster, "three", SHARD, &[0, 1, 2]).await;
    until_placed(&cluster, SHARD, &[0, 1, 2]).await;
    cluster.stop(4).await;
    let state = cluster.folder.join(NAMES[4]).join("state");
    eventually("its files go", async || std::fs::remove_dir_all(&state).ok()).await;
    cluster.open(4).await;
    write(&cluster, 4, 8).await;
    check_seen(&cluster, 8).await;
    until_placed(&cluster, SHARD, &[0, 1, 2]).await;
    assert!(!cluster.node(4).status()[usize::from(SHARD) - 1].vacant);
    cluster.end().await;
}

/// Writes the next version of each chart's record, each at another node, and reads all of them at every node.
async fn write_and_check(cluster: &Cluster, version: u64) {
    for (at, slot) in SLOTS.into_iter().enumerate() {
        let node = cluster.running().nth((at + version as usize) % cluster.running().count()).unwrap();
        split_tests::write(node, slot, version).await;
    }
    for (node, slot) in cluster.running().flat_map(|node| SLOTS.map(|slot| (node, slot))) {
        let moment = eventually("a barrier", async || node.barrier_of(slot, deadline()).await.ok()).await;
        let page = node.rows(&moment).chart(&chart_at(slot), None, None, moment.seq, 10, usize::MAX).unwrap();
        assert_eq!(page.versions.iter().map(|stored| stored.version).collect::<Vec<_>>(), [version]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_split_where_it_is_and_its_halves_part() {
    let mut cluster = of_one_shard(5).await;
    write_and_check(&cluster, 1).await;
    place(&cluster, "three", 1, &[0, 1, 2]).await;
    until_placed(&cluster, 1, &[0, 1, 2]).await;
    let before = cluster.node(4).barrier_of(SLOTS[3], deadline()).await.unwrap();
    split(&cluster, 1, 2).await;
    until_placed(&cluster, 2, &[0, 1, 2]).await;
    write_and_check(&cluster, 2).await;
    // A position from before is one of the shard that has the chart now, also where neither is.
    let now = cluster.node(4).barrier_of(SLOTS[3], deadline()).await.unwrap();
    assert_eq!((before.shard, now.shard), (1, 2));
    assert!(cluster.node(4).had(&now, 1, before.seq) && !cluster.node(4).had(&now, 3, 1));
    place(&cluster, "upper", 2, &[2, 3, 4]).await;
    until_placed(&cluster, 2, &[2, 3, 4]).await;
    write_and_check(&cluster, 3).await;
    place(&cluster, "lower", 1, &[0, 3, 4]).await;
    until_placed(&cluster, 1, &[0, 3, 4]).await;
    write_and_check(&cluster, 4).await;
    // Both, where neither has been for long, after a restart of all.
    for at in 0..5 {
        cluster.stop(at).await;
    }
    for at in 0..5 {
        cluster.open(at).await;
    }
    for (request, shard) in [("again", 1), ("again too", 2)] {
        eventually("a leader", async || cluster.node(0).barrier(DIRECTORY, deadline()).await.ok()).await;
        place(&cluster, request, shard, &[0, 1, 2]).await;
        until_placed(&cluster, shard, &[0, 1, 2]).await;
    }
    write_and_check(&cluster, 5).await;
    split(&cluster, 2, 3).await;
    write_and_check(&cluster, 6).await;
    cluster.end().await;
}
