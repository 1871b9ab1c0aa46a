//! A node that follows a leader and does not reach it.

use super::*;

/// Others do: who keeps a caller waiting until his deadline keeps him from asking them.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_reach_the_leader_sends_callers_elsewhere() {
    let cluster = Cluster::formed().await;
    let (leader, follower) = cluster.leader_and_follower(SHARD).await;
    propose(cluster.node(leader), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    cluster.network.refuse(NAMES[follower], NAMES[leader]);
    let node = cluster.node(follower);
    let (begun, deadline) = (Instant::now(), Instant::now() + 10 * WAIT_MAX);
    let proposed = node.propose(SHARD, commit_of("r1", "obs/1").encode(slot()), deadline).await;
    // Unknown: the connection broke under it.
    assert!(matches!(proposed, Err(ReplicaError::NoLeader | ReplicaError::Unknown)), "{:?}", proposed.err());
    let passed = node.barrier(SHARD, deadline).await;
    assert!(matches!(passed, Err(ReplicaError::NoLeader)), "{:?}", passed.err());
    assert!(begun.elapsed() < WAIT_MAX, "nobody waits for the deadline");
    assert_eq!(commit_at(cluster.node(3 - leader - follower), 1).await, 1);
    cluster.network.reconnect(NAMES[follower]);
    eventually("its leader", async || cluster.node(follower).barrier(SHARD, super::deadline()).await.ok()).await;
    assert_eq!(commit_at(cluster.node(follower), 2).await, 2);
    cluster.end().await;
}
