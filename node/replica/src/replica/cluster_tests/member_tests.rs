//! Members that change while a node is away.

use super::*;
use crate::DIRECTORY;
use crate::replica::members::MemberChange;
use crate::shard::status::GroupStatus;

/// Gives every group that this node leads to the one that is willing.
async fn let_lead(cluster: &Cluster, leader: usize) {
    let id = cluster.node(leader).node_id;
    for node in cluster.running().filter(|node| node.node_id != id) {
        node.give_way(true);
    }
    eventually("it leads everything", async || {
        futures::future::join_all(cluster.running().filter(|node| node.node_id != id).map(Replica::hand_over)).await;
        let led = |shard| cluster.node(leader).leader(shard).is_some_and(|(leads, _)| leads == id);
        crate::all_shards().all(led).then_some(())
    })
    .await;
}

/// What leads it when it is back is none of the nodes that it knows.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_follows_a_leader_that_came_meanwhile() {
    let mut cluster = Cluster::formed_of(5, &[]).await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    commit_at(cluster.node(0), 1).await;
    cluster.check_equal(1).await;
    let (replaced, away) = (3, 4);
    cluster.stop(away).await;

    let old = cluster.node(replaced).node_id;
    cluster.stop(replaced).await;
    let own = cluster.folder.join(NAMES[replaced]);
    eventually("its files go", async || std::fs::remove_dir_all(&own).ok()).await;
    cluster.node(0).change_member(MemberChange::Remove(old), deadline()).await.unwrap();
    cluster.open(replaced).await;
    let (new, member) = cluster.node(0).find_candidate(NAMES[replaced]).await.unwrap();
    cluster.node(0).change_member(MemberChange::Add(new, member), deadline()).await.unwrap();
    eventually("it votes everywhere", async || {
        let votes = |group: &GroupStatus| group.composition.voters.contains(&new);
        cluster.running().all(|node| node.status().iter().all(votes)).then_some(())
    })
    .await;
    let_lead(&cluster, replaced).await;
    for number in 2..10 {
        commit_at(cluster.node(replaced), number).await;
    }

    cluster.open(away).await;
    eventually("it knows who came", async || {
        let knows = |group: &GroupStatus| group.composition.members.contains_key(&new);
        cluster.node(away).status().iter().all(knows).then_some(())
    })
    .await;
    assert_eq!(cluster.node(away).leader(DIRECTORY).map(|(leader, _)| leader), Some(new));
    cluster.check_equal(9).await;
    cluster.end().await;
}
