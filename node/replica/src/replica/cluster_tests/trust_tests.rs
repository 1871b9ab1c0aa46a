//! Nodes that must not be trusted: their data directory is an old one, or their clock is wrong.

use std::path::Path;

use super::*;
use crate::replica::form::FormError;
use crate::shard::group::GroupError;
use crate::store::log::LogEngine;
use crate::store::log::rocks::RocksLog;
use crate::store::state::MemoryLimits;
use crate::store::state::rocks::RocksState;

/// What goes while it is made is not in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let (path, target) = (file.as_ref().unwrap().path(), to.join(file.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else if let Err(error) = std::fs::copy(&path, &target) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
    }
}

/// Like an image of a disk that is in use; tells what its log had written. An image is of one moment and a copy is not: one
/// that lacks a file which a compaction replaced meanwhile does not open, and is made again.
async fn image(from: &Path, to: &Path) -> u64 {
    eventually("an image of one moment", async || {
        let _none_yet = std::fs::remove_dir_all(to);
        copy(from, to);
        RocksState::open(&to.join("state"), MemoryLimits::default()).ok()?;
        Some(RocksLog::open(&to.join("log")).ok()?.write_number())
    })
    .await
}

/// Stops the node, and waits until its files are closed.
async fn stop(cluster: &mut Cluster, at: usize) {
    cluster.stop(at).await;
    let own = cluster.folder.join(NAMES[at]);
    let closed = async || {
        Some((
            RocksLog::open(&own.join("log")).ok()?,
            RocksState::open(&own.join("state"), MemoryLimits::default()).ok()?,
        ))
    };
    drop(eventually("its files", closed).await);
}

/// Puts `own` aside, and its sibling `other` in its place.
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
    stop(&mut cluster, 2).await;
    copy(&own, &old);
    // The original is started again, and the old one counts the same.
    cluster.open(2).await;
    commit_at(cluster.node(2), 1).await;
    cluster.check_equal(1).await;
    stop(&mut cluster, 2).await;
    swap(&own, "old", "new");
    cluster.open(2).await;
    let why = refusal(cluster.node(2)).await;
    assert!(why.contains("is a copy") && why.contains("remove it and join a new node"), "{why}");
    stop(&mut cluster, 2).await;

    // One that was taken while the start lasted follows it; but what it said since is gone.
    swap(&own, "new", "old");
    cluster.open(2).await;
    cluster.check_equal(1).await;
    let live = cluster.folder.join("live");
    let copied = image(&own, &live).await;
    for number in 2..10 {
        commit_at(cluster.node(2), number).await;
    }
    cluster.check_equal(9).await;
    let id = cluster.node(2).node_id;
    for at in [0, 1] {
        let registry = &cluster.node(at).greeter.registry;
        eventually("its mark", async || registry.synced(id).filter(|synced| *synced > copied)).await;
    }
    stop(&mut cluster, 2).await;
    swap(&own, "live", "newest");
    cluster.open(2).await;
    let why = refusal(cluster.node(2)).await;
    assert!(why.contains("its data directory was rolled back"), "{why}");
    stop(&mut cluster, 2).await;
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
    for at in 0..SIZE {
        let heard = async || (cluster.node(at).greeter.clock.heard() == 2).then_some(());
        eventually("the others' clocks", heard).await;
    }
    cluster.ahead_ms[leader].store(3_600_000, Ordering::SeqCst);
    let command = commit_of("early", "obs/early").encode(slot());
    let outcome = cluster.node(leader).group(SHARD).propose_here(&command, WAIT_MAX).await;
    assert!(matches!(outcome, Err(GroupError::NotLeader { leader: None })), "{:?}", outcome.err());
    assert!(cluster.node(leader).clock_error().unwrap().contains("ahead of most other nodes'"));
    assert_eq!(cluster.node(follower).clock_error(), None, "one against one and itself");
    cluster.ahead_ms[leader].store(0, Ordering::SeqCst);
    eventually("a right clock", async || cluster.node(leader).clock_error().is_none().then_some(())).await;
    let outcome = cluster.node(follower).propose(SHARD, command, deadline()).await.unwrap();
    assert!(matches!(outcome.result, Some(Answer::Committed(ref committed)) if committed.seq == 1));
    cluster.end().await;
}
