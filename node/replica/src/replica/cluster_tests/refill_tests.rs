//! Nodes that lose their state and keep their log.

use super::*;
use crate::store::set_aside::{Mark, SetAside};

/// More than [`Retention`] keeps of a log here.
const COMMITS: usize = 200;

/// A cluster whose logs no longer begin at their beginning.
async fn with_purged_logs() -> Cluster {
    let cluster = Cluster::formed().await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    for number in 1..=COMMITS {
        commit_at(cluster.node(0), number).await;
    }
    eventually("all logs are purged", async || {
        let purged = |node: &Replica| node.status()[usize::from(SHARD)].purged_index > 0;
        cluster.running().all(purged).then_some(())
    })
    .await;
    cluster.check_equal(COMMITS).await;
    cluster
}

fn terms(node: &Replica) -> Vec<u64> {
    node.status().iter().map(|group| group.term).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_state_comes_back_from_the_peers_and_the_log() {
    let mut cluster = with_purged_logs().await;
    // Whoever calls a node tells it where the others are.
    for (lost, (at, join)) in [(2, true), (1, false)].into_iter().enumerate() {
        cluster.join = join;
        let (id, before) = (cluster.node(at).node_id, terms(cluster.node(at)));
        cluster.stop(at).await;
        let state = cluster.folder.join(NAMES[at]).join("state");
        eventually("its files go", async || std::fs::remove_dir_all(&state).ok()).await;
        // What the others have meanwhile is not in its log.
        commit_at(cluster.node(0), COMMITS + lost + 1).await;
        cluster.open(at).await;
        assert_eq!(cluster.node(at).node_id, id);
        assert!(terms(cluster.node(at)).iter().zip(before).all(|(now, then)| *now >= then), "votes stand");
        cluster.check_equal(COMMITS + lost + 1).await;
    }
    // It votes and counts as before: with another one away it is half of a majority.
    cluster.stop(2).await;
    commit_at(cluster.node(0), COMMITS + 3).await;
    cluster.check_equal(COMMITS + 3).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marked_state_is_set_aside_until_there_is_another() {
    let mut cluster = with_purged_logs().await;
    cluster.stop(2).await;
    let data = cluster.folder.join(NAMES[2]);
    let mark = Mark { detail: "a bad block".to_owned(), peers: Vec::new() };
    SetAside::at(&data).mark(&mark).unwrap();
    cluster.open(2).await;
    cluster.check_equal(COMMITS).await;
    let left = ["DAMAGED", "REFILLING", "state.damaged"].map(|name| data.join(name).exists());
    assert_eq!(left, [false; 3], "it is done");
    // It is no worse than the one before.
    cluster.stop(2).await;
    cluster.open(2).await;
    cluster.check_equal(COMMITS).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_its_state_waits_for_a_majority_of_the_others() {
    let mut cluster = with_purged_logs().await;
    for at in [1, 2] {
        cluster.stop(at).await;
    }
    let data = cluster.folder.join(NAMES[2]);
    SetAside::at(&data).mark(&Mark { detail: "a bad block".to_owned(), peers: Vec::new() }).unwrap();
    let opening = tokio::spawn(cluster.opening(2));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!opening.is_finished(), "one of three cannot know what is newest");
    let views = cluster.node(0).survey().await;
    let view = views.iter().find(|view| view.member.name == NAMES[2]).unwrap();
    assert!(view.status.as_ref().unwrap().not_ready.contains("its state is made anew: 0 of "), "who looks is told");
    assert!(data.join("REFILLING").exists() && data.join("state.damaged").exists(), "what there was is kept");
    cluster.open(1).await;
    cluster.nodes[2] = Some(opening.await.unwrap());
    cluster.check_equal(COMMITS).await;
    cluster.end().await;
}
