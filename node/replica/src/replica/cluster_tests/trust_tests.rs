//! Nodes that must not be trusted: their data directory is an old one, or their clock is wrong.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::replica::form::FormError;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let (path, target) = (file.as_ref().unwrap().path(), to.join(file.unwrap().file_name()));
        if path.is_dir() { copy(&path, &target) } else { std::fs::copy(&path, &target).map(|_| ()).unwrap() }
    }
}

/// Puts the sibling `own` aside as `aside` and `other` in its place.
fn swap(own: &Path, other: &str, aside: &str) {
    std::fs::rename(own, own.with_file_name(aside)).unwrap();
    std::fs::rename(own.with_file_name(other), own).unwrap();
}

/// What a node hears from the others when it says hello.
async fn refusal(node: &Replica) -> String {
    match node.form(None).await {
        Err(FormError::Unreachable { detail, .. }) => detail,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_the_data_directory_is_refused_and_the_original_is_not() {
    let mut cluster = Cluster::formed().await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    cluster.check_equal(0).await;
    let (own, old) = (cluster.folder.join(NAMES[2]), cluster.folder.join("old"));
    cluster.stop(2).await;
    copy(&own, &old);
    // The original is started again, and the old one counts the same.
    cluster.open(2).await;
    commit_at(cluster.node(2), 1).await;
    cluster.check_equal(1).await;
    cluster.stop(2).await;
    swap(&own, "old", "new");
    cluster.open(2).await;
    let why = refusal(cluster.node(2)).await;
    assert!(why.contains("is a copy") && why.contains("remove it and join a new node"), "{why}");
    cluster.stop(2).await;

    // One that was taken while the start lasted follows it; but what it said since is gone.
    swap(&own, "new", "old");
    cluster.open(2).await;
    cluster.check_equal(1).await;
    let heard = async |cluster: &Cluster| {
        let (id, least) = (cluster.node(2).node_id, cluster.node(2).greeter.log.synced());
        for at in [0, 1] {
            let registry = &cluster.node(at).greeter.registry;
            eventually("the mark", async || registry.synced(id).filter(|synced| *synced >= least)).await;
        }
    };
    commit_at(cluster.node(2), 2).await;
    heard(&cluster).await;
    copy(&own, &cluster.folder.join("live"));
    for number in 3..10 {
        commit_at(cluster.node(2), number).await;
    }
    heard(&cluster).await;
    cluster.stop(2).await;
    swap(&own, "live", "newest");
    cluster.open(2).await;
    let why = refusal(cluster.node(2)).await;
    assert!(why.contains("its data directory was rolled back"), "{why}");
    cluster.stop(2).await;
    swap(&own, "newest", "live");
    cluster.open(2).await;
    cluster.check_equal(9).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_the_others_contradict_stamps_nothing() {
    let cluster = Cluster::formed().await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    let (leader, follower) = cluster.leader_and_follower(SHARD).await;
    // It has heard from both others before.
    for at in 0..NAMES.len() {
        let heard = async || (cluster.node(at).greeter.clock.heard() == 2).then_some(());
        eventually("the others' clocks", heard).await;
    }
    cluster.ahead_ms[leader].store(3_600_000, Ordering::SeqCst);
    let soon = Instant::now() + Duration::from_millis(500);
    let command = commit_of("early", "obs/early").encode(slot());
    let outcome = cluster.node(leader).propose(SHARD, command.clone(), soon).await;
    assert!(matches!(outcome, Err(ReplicaError::NoLeader)), "{:?}", outcome.err());
    assert!(cluster.node(leader).clock_error().unwrap().contains("ahead of most other nodes'"));
    assert_eq!(cluster.node(follower).clock_error(), None, "one against one and itself");
    cluster.ahead_ms[leader].store(0, Ordering::SeqCst);
    assert_eq!(cluster.node(leader).clock_error(), None);
    let outcome = cluster.node(follower).propose(SHARD, command, deadline()).await.unwrap();
    assert!(matches!(outcome.result, Some(Answer::Committed(ref committed)) if committed.seq == 1));
    cluster.end().await;
}
