//! What a follower answers to who leads it.

use prost::Message;

use super::*;
use crate::peer::Lane;
use crate::peer::frame::Kind;
use crate::shard::codec;
use crate::shard::entry::Entry;

/// A new leader asks for an entry in the middle, and says where the follower's log ended when it voted.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_shares_what_it_had_when_it_voted() {
    let cluster = Cluster::formed().await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    for number in 1..=4 {
        commit_at(cluster.node(0), number).await;
    }
    cluster.check_equal(4).await;
    let (leader, follower) = cluster.leader_and_follower(SHARD).await;
    let (leader, follower) = (cluster.node(leader), cluster.node(follower));
    let group = follower.group(SHARD);
    let last = group.applied_index().unwrap();
    let entry = |index| group.entry(index).unwrap();
    let client = leader.peers.client(follower.node_id, &follower.member.peer_address);
    let ask = async |log_end: Option<pb::LogId>| {
        let (prev, asked): (Entry, Entry) = (entry(last - 3), entry(last - 2));
        let request = pb::AppendRequest {
            vote: Some(pb::Vote { term: group.status().term, node: leader.node_id, committed: true }),
            prev_log_id: Some(codec::log_id_to_pb(&prev.log_id)),
            entries: vec![codec::encode_entry(&asked)],
            log_end,
            ..Default::default()
        };
        let (sender, mut answers) = client.open_stream(Lane::Bulk, Kind::Append, SHARD).unwrap();
        sender.send(request.encode_to_vec().into()).await.unwrap();
        let answer = pb::AppendResponse::decode(answers.next(WAIT_MAX).await.unwrap()).unwrap();
        match answer.result {
            Some(pb::append_response::Result::Matched(matched)) => matched.log_id.unwrap().index,
            _ => panic!("the logs match"),
        }
    };
    let end = codec::log_id_to_pb(&entry(last).log_id);
    assert_eq!(ask(None).await, last - 2);
    assert_eq!(ask(Some(end)).await, last);
    assert_eq!(ask(Some(pb::LogId { term: end.term + 1, ..end })).await, last - 2, "an entry that it has not");
    assert_eq!(ask(Some(pb::LogId { index: last + 9, ..end })).await, last - 2);
    assert_eq!(ask(Some(codec::log_id_to_pb(&entry(last - 3).log_id))).await, last - 2, "it shares more than that");
    cluster.end().await;
}
