//! A node without keys that leads, and brings what nobody with keys wrote.

use super::*;
use crate::metrics::METRICS;
use crate::shard::group::{Group, GroupError};
use crate::shard::members::Change;

const KEYLESS: usize = 2;

/// Does something on the node without keys while it leads. It hands over whatever it leads within a second: so it is asked
/// at once, and again.
async fn as_leader<T>(cluster: &Cluster, act: impl AsyncFn(&Group) -> Result<T, GroupError>) -> Result<T, GroupError> {
    let keyless = cluster.node(KEYLESS);
    let group = keyless.group(SHARD);
    loop {
        eventually("it leads", async || {
            let (leader, _) = cluster.leader_and_follower(SHARD).await;
            cluster.node(leader).group(SHARD).hand_over_to(|node, _| node == keyless.node_id).await;
            group.leads().then_some(())
        })
        .await;
        match act(group).await {
            Err(GroupError::NotLeader { .. }) => {}
            ended => return ended,
        }
    }
}

/// The nodes with keys lead again, and all have the same.
async fn check_goes_on(cluster: &Cluster, records: usize) {
    let number = records;
    let forged = METRICS.forged.get();
    assert_eq!(commit_at(cluster.node(0), number).await, number as u64);
    cluster.check_equal(records).await;
    eventually("one with keys leads", async || {
        let (leader, _) = cluster.node(0).leader(SHARD)?;
        (leader != cluster.node(KEYLESS).node_id).then_some(())
    })
    .await;
    assert_eq!(METRICS.forged.get(), forged, "what is brought again in the same term is told once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_keyless_leader_makes_up_is_not_taken() {
    let cluster = Cluster::formed_with_keyless(&["c"]).await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    commit_at(cluster.node(0), 1).await;
    cluster.check_equal(1).await;

    // It orders what others wrote. (It leads, and has nothing of its own.)
    let author = cluster.node(0);
    let signed = author.authors.sign(author.group(SHARD), &commit_of("r2", "obs/2").encode(slot())).unwrap();
    let outcome = as_leader(&cluster, async |group| group.propose_here(&signed, WAIT_MAX).await).await.unwrap().0;
    assert!(matches!(outcome.result, Some(Answer::Committed(ref committed)) if committed.seq == 2));
    check_goes_on(&cluster, 3).await;
    assert_eq!(METRICS.forged.get(), 0);

    let soon = Duration::from_secs(2);
    let mut altered = signed.to_vec();
    *altered.last_mut().unwrap() ^= 1;
    let forgeries = [commit_of("forged", "obs/forged").encode(slot()), altered.into()];
    for (number, forged) in forgeries.into_iter().enumerate() {
        let outcome = as_leader(&cluster, async |group| group.propose_here(&forged, soon).await).await;
        assert!(matches!(outcome, Err(GroupError::Unknown)), "{:?}", outcome.map(|_| ()));
        eventually("the alarm", async || (METRICS.forged.get() > number as u64).then_some(())).await;
        check_goes_on(&cluster, 4 + number).await;
    }

    // Nor whom it takes in: nobody with keys made that one a member.
    let stranger = Box::new(Member { keyed: false, ..member("stranger") });
    let before = METRICS.forged.get();
    let change = async |group: &Group| {
        let change = group.change(Change::AddLearner(77, stranger.clone()));
        tokio::time::timeout(soon, change).await.unwrap_or(Err(GroupError::Unknown))
    };
    let outcome = as_leader(&cluster, change).await;
    assert!(matches!(outcome, Err(GroupError::Unknown)), "{outcome:?}");
    eventually("the alarm", async || (METRICS.forged.get() > before).then_some(())).await;
    check_goes_on(&cluster, 6).await;
    assert!(cluster.node(0).group(SHARD).member(77).is_none());
    cluster.end().await;
}
