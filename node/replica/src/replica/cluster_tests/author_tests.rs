//! A node without keys that leads, and brings what nobody with keys wrote.

use super::*;
use prost::Message;

use crate::metrics::METRICS;
use crate::peer::Lane;
use crate::peer::frame::Kind;
use crate::shard::codec;
use crate::shard::entry::EntryCode;
use crate::shard::group::{Group, GroupError};
use crate::shard::members::Change;
use crate::shard::types::{Entry, EntryPayload, LogId};

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

/// A cluster with a commit, and then one without keys that leads and does something; it ends in vain, with an alarm, and the
/// nodes with keys go on.
async fn check_refused<T>(act: impl AsyncFn(&Cluster, &Group) -> Result<T, GroupError>) {
    let cluster = Cluster::formed_of(SIZE, &["c"]).await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    commit_at(cluster.node(0), 1).await;
    cluster.check_equal(1).await;
    let told = METRICS.forged.get();
    let outcome = as_leader(&cluster, async |group| act(&cluster, group).await).await;
    assert!(matches!(outcome, Err(GroupError::Unknown)), "{:?}", outcome.map(|_| ()));
    eventually("the alarm", async || (METRICS.forged.get() > told).then_some(())).await;

    assert_eq!(commit_at(cluster.node(0), 2).await, 2);
    cluster.check_equal(2).await;
    let (leader, _) = cluster.leader_and_follower(SHARD).await;
    assert_ne!(leader, KEYLESS);
    assert_eq!(cluster.node(0).group(SHARD).members().len(), SIZE);
    cluster.end().await;
}

const SOON: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn what_a_keyless_leader_makes_up_is_not_taken() {
    let made_up = commit_of("r2", "obs/made-up").encode(slot());
    check_refused(async |_, group| group.propose_here(&made_up, SOON).await).await;
}

/// It orders nothing, not even what others wrote.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_keyless_leader_orders_is_not_taken() {
    let genuine = |cluster: &Cluster| {
        let author = cluster.node(0);
        author.authors.sign(author.group(SHARD), &commit_of("r2", "obs/other").encode(slot())).unwrap()
    };
    check_refused(async |cluster, group| group.propose_here(&genuine(cluster), SOON).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_keyless_leader_takes_in_is_not_taken() {
    let stranger = Box::new(Member { keyed: false, ..member("stranger") });
    let change = async |_: &Cluster, group: &Group| {
        let change = group.change(Change::AddLearner(77, stranger.clone()));
        tokio::time::timeout(SOON, change).await.unwrap_or(Err(GroupError::Unknown))
    };
    check_refused(change).await;
}

/// Somebody without keys says to a node with keys that it leads since a later term, and has this. A follower that has not
/// heard of an election believes it.
async fn check_claim_refused(claim: impl Fn(LogId, Entry, NodeId) -> (LogId, Entry)) {
    let cluster = Cluster::formed_of(SIZE, &["c"]).await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    commit_at(cluster.node(0), 1).await;
    cluster.check_equal(1).await;
    let (victim, claiming) = (cluster.node(1), cluster.node(KEYLESS));
    let group = victim.group(SHARD);
    let index = group.applied_index().unwrap();
    let (before, last) = (group.entry(index - 1).unwrap().log_id, group.entry(index).unwrap());
    let (prev, entry) = claim(before, last.clone(), claiming.node_id);
    let request = pb::AppendRequest {
        vote: Some(pb::Vote { term: last.log_id.leader_id.term + 100, node: claiming.node_id, committed: true }),
        prev_log_id: Some(codec::log_id_to_pb(&prev)),
        entries: vec![codec::encode_entry(&entry)],
        ..Default::default()
    };
    let told = METRICS.forged.get();
    let client = claiming.peers.client(victim.node_id, &victim.member.peer_address);
    client.connected().await;
    let (sender, _answers) = client.open_stream(Lane::Bulk, Kind::Append, SHARD).unwrap();
    sender.send(request.encode_to_vec().into()).await.unwrap();
    eventually("the alarm", async || (METRICS.forged.get() > told).then_some(())).await;
    assert!(group.entry(index) == Some(last), "what was applied is still there");
    assert!(group.entry(index + 1).is_none_or(|next| next.payload != entry.payload));
    assert_eq!(commit_at(cluster.node(0), 2).await, 2);
    cluster.check_equal(2).await;
    cluster.end().await;
}

/// The command is genuine, and so was its order: at another place.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_keyless_leader_moves_is_not_taken() {
    check_claim_refused(|_, last, _| {
        let next = pb::LogId { index: last.log_id.index + 1, ..codec::log_id_to_pb(&last.log_id) };
        (last.log_id, Entry::of(codec::log_id_from_pb(&next), last.payload, last.code))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_keyless_leader_takes_back_stays() {
    check_claim_refused(|before, last, claiming| {
        let (term, index) = (last.log_id.leader_id.term + 100, last.log_id.index);
        let log_id = codec::log_id_from_pb(&pb::LogId { term, leader: claiming, index });
        (before, Entry::of(log_id, EntryPayload::Blank, EntryCode::Absent))
    })
    .await;
}

/// Gateways do not ask it either: until it has handed over, no leader is known to them.
#[tokio::test(flavor = "multi_thread")]
async fn a_keyless_leader_is_not_asked() {
    let cluster = Cluster::formed_of(SIZE, &["c"]).await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    let led = as_leader(&cluster, async |group| {
        eventually("it leads", async || group.leads().then_some(())).await;
        let known = cluster.node(0).group(SHARD);
        match known.leader() {
            Some((leader, _)) if leader == group.node => Ok(known.keyed_leader().is_err()),
            _ => Err(GroupError::NotLeader { leader: None }),
        }
    });
    assert!(led.await.unwrap());
    commit_at(cluster.node(0), 1).await;
    cluster.check_equal(1).await;
    cluster.end().await;
}
