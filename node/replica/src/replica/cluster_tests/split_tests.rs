//! Shards that give half of their slots away.

use super::*;
use crate::Slot;

/// One chart in each quarter of the slots.
pub(super) const SLOTS: [Slot; 4] = [1_000, 20_000, 40_000, 60_000];

pub(super) fn chart_at(slot: Slot) -> ChartAddress {
    ChartAddress { slot, ..chart() }
}

async fn propose_at(node: &Replica, slot: Slot, command: Bytes) -> (ShardId, Answer) {
    let proposed = node.propose_at(slot, command, deadline()).await.unwrap();
    (proposed.shard, proposed.outcome.result.unwrap())
}

/// A version of the one record of the slot's chart: versions count its commits.
pub(super) async fn write(node: &Replica, slot: Slot, number: u64) -> (ShardId, pb::Committed) {
    match propose_at(node, slot, commit_of(&format!("{slot}-{number}"), "obs/counter").encode(slot)).await {
        (shard, Answer::Committed(committed)) => {
            assert_eq!(committed.versions, [number], "a commit was lost, or happened twice");
            (shard, committed)
        }
        _ => panic!("not committed"),
    }
}

/// A cluster of one shard with its charts' keys.
pub(super) async fn of_one_shard(nodes: usize) -> Cluster {
    let cluster = Cluster::formed_with(nodes, &[], 1).await;
    for slot in SLOTS {
        propose_at(cluster.node(0), slot, Command::EnsureChartKey(ensure_key("chart", "k1")).encode(slot)).await;
    }
    cluster
}

/// Returns when every running node that has a replica of the new shard has its half.
pub(super) async fn split(cluster: &Cluster, shard: ShardId, into: ShardId) {
    let split = pb::SplitShard {
        request_id: Bytes::copy_from_slice(&request_id(&format!("split {shard}"), Platform::system().now_ms())),
        shard: shard.into(),
        ..Default::default()
    };
    let (at, _) = cluster.leader_and_follower(DIRECTORY).await;
    let split = Command::SplitShard(split).encode(0);
    let done = cluster.node(at).propose(DIRECTORY, split, deadline()).await.unwrap();
    assert!(matches!(done.result, Some(Answer::Done(_))));
    let holds = |node: &Replica| {
        let status = &node.status()[usize::from(into)];
        status.slots.is_some() || status.vacant
    };
    eventually("the halves", async || cluster.running().all(holds).then_some(())).await;
}

/// Behind a barrier every node has so many versions of each chart's record, and the same roots.
async fn check(cluster: &Cluster, versions: [u64; 4]) {
    for (slot, expected) in SLOTS.into_iter().zip(versions) {
        let mut found = Vec::new();
        for node in cluster.running() {
            let moment = node.barrier_of(slot, deadline()).await.unwrap();
            let rows = node.rows(&moment).chart(&chart_at(slot), None, None, moment.seq, 10, usize::MAX).unwrap();
            let newest = rows.versions.first().map_or(0, |stored| stored.version);
            assert_eq!(newest, expected, "slot {slot}");
            let status = node.status().into_iter().find(|status| status.shard == moment.shard).unwrap();
            assert_eq!(status.stopped, None);
            found.push((moment.shard, moment.seq, status.slots, status.recent_roots.last().copied()));
        }
        assert!(found.iter().all(|of_node| *of_node == found[0]), "nodes differ");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_split_while_it_is_written_to() {
    let mut cluster = of_one_shard(SIZE).await;
    let first = commit_of("first", "obs/counter").encode(SLOTS[3]);
    let (_, Answer::Committed(before)) = propose_at(cluster.node(0), SLOTS[3], first.clone()).await else {
        panic!("not committed")
    };
    let writer = |at: usize, slot: Slot| {
        let node = Arc::clone(cluster.nodes[at].as_ref().unwrap());
        let first = if slot == SLOTS[3] { 2 } else { 1 };
        tokio::spawn(async move {
            let mut shards = Vec::new();
            for number in first..=120 {
                shards.push(write(&node, slot, number).await.0);
            }
            shards
        })
    };
    let writers = SLOTS.iter().zip([0, 1, 2, 0]).map(|(slot, at)| writer(at, *slot)).collect::<Vec<_>>();
    split(&cluster, 1, 2).await;
    split(&cluster, 2, 3).await;
    split(&cluster, 1, 4).await;
    for (slot, writer) in SLOTS.iter().zip(writers) {
        let shards = writer.await.unwrap();
        assert!(shards.is_sorted_by_key(|shard| [1, 4, 2, 3].iter().position(|of| of == shard)), "{slot}: {shards:?}");
    }
    check(&cluster, [120; 4]).await;
    let last = SLOTS.map(|slot| cluster.node(0).shard_of(slot));
    assert_eq!(last, [Some(1), Some(4), Some(2), Some(3)]);
    // What was asked before is not done again, whoever holds it now.
    let (shard, again) = propose_at(cluster.node(1), SLOTS[3], first).await;
    let Answer::Committed(again) = again else { panic!("not committed") };
    assert_eq!((shard, again.versions, again.seq), (3, before.versions, before.seq));
    // And a position from before is one of the shard that has the chart now.
    let now = cluster.node(1).barrier_of(SLOTS[3], deadline()).await.unwrap();
    assert!(cluster.node(1).had(&now, 1, before.seq), "of the first shard, through the second");
    assert!(!cluster.node(1).had(&now, 4, before.seq));
    for at in 0..SIZE {
        cluster.stop(at).await;
    }
    for at in 0..SIZE {
        cluster.open(at).await;
    }
    check(&cluster, [120; 4]).await;
    write(cluster.node(2), SLOTS[1], 121).await;
    check(&cluster, [120, 121, 120, 120]).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_has_what_went_to_another_shard() {
    away_over_a_split(150).await;
}

/// Its log has nothing but that it took them: by its length that would stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_has_what_went_to_a_shard_that_is_idle_since() {
    away_over_a_split(1).await;
}

/// With so many commits to the half that was given.
async fn away_over_a_split(commits_to_taker: u64) {
    const COMMITS: u64 = 150;
    let mut cluster = of_one_shard(SIZE).await;
    let away = cluster.leader_and_follower(1).await.1;
    let writer = (away + 1) % SIZE;
    write(cluster.node(writer), SLOTS[0], 1).await;
    write(cluster.node(writer), SLOTS[3], 1).await;
    check(&cluster, [1, 0, 0, 1]).await;
    let last_index = cluster.node(away).status()[1].log_index;
    cluster.stop(away).await;
    split(&cluster, 1, 2).await;
    for number in 2..=COMMITS {
        write(cluster.node(writer), SLOTS[0], number).await;
        if number <= commits_to_taker {
            write(cluster.node(writer), SLOTS[3], number).await;
        }
    }
    let purged = |node: &Replica| node.status()[1].purged_index > last_index && node.group(2).took_by_log().is_none();
    eventually("both halves' logs are purged", async || cluster.running().all(purged).then_some(())).await;
    cluster.open(away).await;
    check(&cluster, [COMMITS, 0, 0, commits_to_taker]).await;
    // Who lacks rows says that its state is damaged.
    assert_eq!(cluster.node(away).state.engine().damage(), None);
    // It has both, and votes in both.
    cluster.stop(writer).await;
    write(cluster.node(away), SLOTS[0], COMMITS + 1).await;
    write(cluster.node(away), SLOTS[3], commits_to_taker + 1).await;
    check(&cluster, [COMMITS + 1, 0, 0, commits_to_taker + 1]).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_state_comes_back_with_both_halves() {
    let mut cluster = of_one_shard(SIZE).await;
    write(cluster.node(0), SLOTS[0], 1).await;
    write(cluster.node(0), SLOTS[3], 1).await;
    // After a start what is durable may be purged: of the taker, what it was as a spare one.
    for at in 0..SIZE {
        cluster.stop(at).await;
        cluster.open(at).await;
    }
    split(&cluster, 1, 2).await;
    assert!(cluster.running().all(|node| node.group(2).took_by_log().is_some()));
    write(cluster.node(0), SLOTS[3], 2).await;
    for number in 2..=30 {
        write(cluster.node(0), SLOTS[0], number).await;
    }
    let purged = |node: &Replica| node.group(2).took_by_log().is_none();
    eventually("the taker's logs are purged", async || cluster.running().all(purged).then_some(())).await;
    // The giver's log, which is whole, would write rows that the taker has.
    assert!(cluster.running().all(|node| node.status()[1].purged_index == 0));
    cluster.stop(2).await;
    let state = cluster.folder.join(NAMES[2]).join("state");
    eventually("its files go", async || std::fs::remove_dir_all(&state).ok()).await;
    cluster.open(2).await;
    check(&cluster, [30, 0, 0, 2]).await;
    cluster.end().await;
}
