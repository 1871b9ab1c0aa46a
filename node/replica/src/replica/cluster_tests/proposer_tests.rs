//! Proposals that come together.

use std::collections::BTreeSet;

use futures::future::join_all;

use super::*;

const COUNT: usize = 300;

/// Some of the callers go away before they are answered: neither they nor what they proposed holds up or mixes up the others.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_each_gets_its_own_answer() {
    let cluster = Cluster::formed().await;
    let (leader, follower) = cluster.leader_and_follower(SHARD).await;
    propose(cluster.node(leader), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    // Every second record has a first version, so that answers differ.
    join_all((0..COUNT).step_by(2).map(|number| commit_at(cluster.node(leader), number))).await;
    let again = async |number: usize| {
        let node = cluster.node(if number.is_multiple_of(3) { follower } else { leader });
        let answer = propose(node, commit_of(&format!("again{number}"), &format!("obs/{number}"))).await;
        let Answer::Committed(committed) = answer else { panic!("not committed") };
        assert_eq!(committed.versions, [if number.is_multiple_of(2) { 2 } else { 1 }], "of {number}");
        committed.seq
    };
    let gone = async |number: usize| {
        let command = commit_of(&format!("gone{number}"), &format!("gone/{number}")).encode(slot());
        let proposed = cluster.node(leader).propose(SHARD, command, deadline());
        let _given_up = tokio::time::timeout(Duration::from_micros(10 * number as u64), proposed).await;
    };
    let (seqs, _) = tokio::join!(join_all((0..COUNT).map(again)), join_all((0..COUNT).map(gone)));
    assert_eq!(seqs.iter().collect::<BTreeSet<_>>().len(), COUNT, "a place in the order for each");
    cluster.end().await;
}
