//! Append streams between two groups' networks, over the network in memory.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use openraft::RaftNetworkFactory;
use openraft::entry::RaftEntry;
use openraft::errors::RPCError;
use openraft::network::{NetStreamAppend, NetVote, RPCOption};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, VoteRequest};
use openraft::vote::RaftLeaderId;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Semaphore;

use super::codec;
use super::entry::EntryCode;
use super::network::{GroupNetwork, GroupPeer, append_request_from_pb, append_response_to_pb};
use super::transfer::Outgoing;
use super::types::{Entry, EntryPayload, LeaderId, LogId, Member, TypeConfig, Vote};
use crate::ShardId;
use crate::peer::STREAM_WINDOW;
use crate::peer::frame::Kind;
use crate::peer::server::{Caller, Handler};
use crate::replica::peers::Peers;
use crate::store::log::LogEngine;
use crate::store::log::group::GroupLog;
use crate::store::log::memory::MemoryLog;
use crate::store::log::writer::LogWriter;
use crate::testing::peers::{greeter, serve_b};
use crate::testing::transport::MemoryNetwork;
use crate::testing::{WAIT_MAX, eventually};

type Request = AppendEntriesRequest<TypeConfig>;

/// Where the logs of both end.
const LOG_END: u64 = 5;

fn log_id(index: u64) -> LogId {
    LogId::new(LeaderId::new(2, 1), index)
}

fn request(index: u64) -> Request {
    let entry = |payload| Entry::of(log_id(index), payload, EntryCode::Of([7; 16]));
    let proposal = EntryPayload::Normal(Bytes::from(vec![7; index as usize]).into());
    Request {
        vote: Vote { leader_id: LeaderId::new(2, 1), committed: true },
        prev_log_id: (index > 1).then(|| log_id(index - 1)),
        entries: vec![entry(proposal), entry(EntryPayload::Blank)],
        leader_commit: Some(log_id(index / 2)),
    }
}

/// A follower that answers when it is let, and finds a conflict at one index.
struct Follower {
    /// That were opened.
    streams: AtomicUsize,
    received: Mutex<Vec<Request>>,
    /// What each of them said of where this log ended.
    told: Mutex<Vec<Option<LogId>>>,
    may_answer: Semaphore,
    conflict_at: u64,
}

impl Follower {
    fn new(may_answer: usize, conflict_at: u64) -> Arc<Self> {
        let (streams, received, told) = Default::default();
        Arc::new(Self { streams, received, told, may_answer: Semaphore::new(may_answer), conflict_at })
    }
}

impl Handler for Follower {
    fn call(
        self: Arc<Self>,
        _from: Caller,
        kind: Kind,
        _shard: ShardId,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, pb::CallError>> {
        let granted = move || {
            let request = pb::VoteRequest::decode(payload).map_err(|_| pb::CallError::default())?;
            let last_log_id = Some(codec::log_id_to_pb(&log_id(LOG_END)));
            Ok(pb::VoteResponse { vote: request.vote, granted: true, last_log_id }.encode_to_vec().into())
        };
        let answer = if kind == Kind::Vote { granted() } else { Err(pb::CallError::default()) };
        std::future::ready(answer).boxed()
    }

    fn stream(
        self: Arc<Self>,
        _from: Caller,
        _kind: Kind,
        _shard: ShardId,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, pb::CallError>> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let receive = Arc::clone(&self);
        let received = requests.map(move |bytes| {
            let (request, log_end) = append_request_from_pb(1, bytes).unwrap();
            receive.told.lock().push(log_end);
            let (first, before) = (request.entries.first(), request.prev_log_id);
            let index = first.map(|entry| entry.log_id).or(before).unwrap().index;
            receive.received.lock().push(request);
            index
        });
        // Takes requests while earlier ones wait, as openraft does.
        let answer = move |index: u64| {
            let follower = Arc::clone(&self);
            async move {
                follower.may_answer.acquire().await.unwrap().forget();
                let conflict = index == follower.conflict_at;
                let answer =
                    if conflict { Err(StreamAppendError::Conflict(log_id(index))) } else { Ok(Some(log_id(index))) };
                Ok(append_response_to_pb(answer))
            }
        };
        received.map(answer).buffered(2 * STREAM_WINDOW).boxed()
    }
}

async fn network_to(follower: &Arc<Follower>) -> (MemoryNetwork, GroupPeer) {
    let (network, mut group, b) = group_to(follower).await;
    (network, group.new_client(2, &b).await)
}

async fn group_to(follower: &Arc<Follower>) -> (MemoryNetwork, GroupNetwork, Member) {
    let network = MemoryNetwork::default();
    serve_b(&network, Arc::clone(follower) as _);
    let peers = Arc::new(Peers::new(network.join("a")));
    peers.set_greeter(greeter(1, "a"));
    let b = Member { peer_address: "b".to_owned(), ..Member::default() };
    let client = peers.client(2, "b");
    eventually("connecting", async || client.is_connected().then_some(())).await;
    let engine: Arc<dyn LogEngine> = Arc::new(MemoryLog::default());
    let log = GroupLog::open(1, Arc::clone(&engine), LogWriter::start(engine, None).unwrap()).unwrap();
    let entries = (1..=LOG_END).map(|index| codec::encode_entry(&Entry::new(log_id(index), EntryPayload::Blank)));
    log.append(1, entries.collect(), || ()).await.unwrap();
    (network, GroupNetwork::new(log, peers, Arc::new(Outgoing::new(1 << 30))), b)
}

fn option() -> RPCOption {
    RPCOption::new(WAIT_MAX)
}

#[tokio::test]
async fn requests_are_pipelined_within_the_window_and_answered_in_order() {
    const REQUESTS: u64 = 100;
    let follower = Follower::new(0, u64::MAX);
    let (_network, mut peer) = network_to(&follower).await;
    let requests = futures::stream::iter((1..=REQUESTS).map(request));
    let mut answers = peer.stream_append(requests, option()).await.unwrap();
    let watch = async {
        let full = async || (follower.received.lock().len() == STREAM_WINDOW).then_some(());
        eventually("a full window", full).await;
        // Not one more, however long it waits.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(follower.received.lock().len(), STREAM_WINDOW);
        follower.may_answer.add_permits(REQUESTS as usize);
    };
    let (first, ()) = tokio::join!(answers.next(), watch);
    assert_eq!(first.unwrap().unwrap(), Ok(Some(log_id(1))));
    for index in 2..=REQUESTS {
        assert_eq!(answers.next().await.unwrap().unwrap(), Ok(Some(log_id(index))));
    }
    assert!(answers.next().await.is_none());
    let sent = (1..=REQUESTS).map(|index| format!("{:?}", request(index))).collect::<Vec<_>>();
    let received = follower.received.lock().iter().map(|request| format!("{request:?}")).collect::<Vec<_>>();
    assert_eq!(received, sent);
}

#[tokio::test]
async fn how_far_is_committed_goes_with_what_follows_or_soon_by_itself() {
    let follower = Follower::new(1_000, u64::MAX);
    let (_network, mut peer) = network_to(&follower).await;
    let commit = |index| Request { entries: Vec::new(), prev_log_id: Some(log_id(index)), ..request(2 * index) };
    let requests = futures::stream::iter([request(1), commit(1), request(2), commit(1), commit(2)]);
    let answers = peer.stream_append(requests, option()).await.unwrap();
    let answers = answers.map(|answer| answer.unwrap().unwrap().unwrap().index).collect::<Vec<_>>().await;
    assert_eq!(answers, [1, 2, 2]);
    let received = follower.received.lock().iter().map(|request| format!("{request:?}")).collect::<Vec<_>>();
    assert_eq!(received, [request(1), request(2), commit(2)].map(|request| format!("{request:?}")));
}

#[tokio::test]
async fn a_conflict_ends_the_stream_and_the_next_one_works() {
    let follower = Follower::new(1_000, 3);
    let (_network, mut peer) = network_to(&follower).await;
    for _again in 0..2 {
        let requests = futures::stream::iter((1..10).map(request));
        let answers = peer.stream_append(requests, option()).await.unwrap();
        let answers = answers.map(Result::unwrap).collect::<Vec<_>>().await;
        let conflict = Err(StreamAppendError::Conflict(log_id(3)));
        assert_eq!(answers, [Ok(Some(log_id(1))), Ok(Some(log_id(2))), conflict]);
    }
}

/// What goes no further says so, and only to who voted for this leader.
#[tokio::test]
async fn a_voter_is_told_where_its_log_ended() {
    let follower = Follower::new(1_000, u64::MAX);
    let (_network, mut peer) = network_to(&follower).await;
    let told = async |peer: &mut GroupPeer, requests: Vec<Request>| {
        follower.told.lock().clear();
        let answers = peer.stream_append(futures::stream::iter(requests), option()).await.unwrap();
        answers.for_each(|_| std::future::ready(())).await;
        follower.told.lock().clone()
    };
    assert_eq!(told(&mut peer, vec![request(1)]).await, [None], "nobody has voted");
    let vote = Vote { leader_id: LeaderId::new(2, 1), committed: false };
    assert!(peer.vote(VoteRequest::new(vote, None), option()).await.unwrap().vote_granted);
    let end = Some(log_id(LOG_END));
    let sent = vec![request(1), request(LOG_END - 1), request(LOG_END), request(LOG_END + 1)];
    assert_eq!(told(&mut peer, sent).await, [end, end, None, None]);
    let later = Vote { leader_id: LeaderId::new(3, 1), committed: true };
    assert_eq!(told(&mut peer, vec![Request { vote: later, ..request(1) }]).await, [None], "of another term");
}

#[tokio::test]
async fn a_cut_connection_fails_the_stream() {
    let follower = Follower::new(2, u64::MAX);
    let (network, mut peer) = network_to(&follower).await;
    let requests = futures::stream::iter((1..10).map(request));
    let mut answers = peer.stream_append(requests, option()).await.unwrap();
    for _answered in 0..2 {
        assert!(answers.next().await.unwrap().is_ok());
    }
    network.cut_off("b");
    assert!(answers.next().await.unwrap().is_err());
    assert!(answers.next().await.is_none());
    drop(answers);
    let lost = async || {
        let mut answers = peer.stream_append(futures::stream::iter([request(1)]), option()).await.unwrap();
        matches!(answers.next().await, Some(Err(RPCError::Unreachable(_)))).then_some(())
    };
    eventually("not connected", lost).await;

    // Openraft's backoff is inside of its input: an error before that has given something would be no pause at all.
    let mut answers = peer.stream_append(futures::stream::pending(), option()).await.unwrap();
    assert!(answers.next().now_or_never().is_none());
}

async fn beat(peer: &mut GroupPeer, index: u64) -> Option<Result<Option<LogId>, StreamAppendError<TypeConfig>>> {
    let heartbeat = Request { entries: Vec::new(), prev_log_id: Some(log_id(index)), ..request(index) };
    let mut answers = peer.stream_append(futures::stream::iter([heartbeat]), option()).await.unwrap();
    let answer = answers.next().await.unwrap();
    assert!(answers.next().await.is_none());
    answer.ok()
}

#[tokio::test]
async fn heartbeats_go_by_one_stream_while_they_are_answered() {
    let follower = Follower::new(0, 4);
    let (_network, mut group, b) = group_to(&follower).await;
    let mut peer = group.new_heartbeat_client(2, &b).await;
    let streams = || follower.streams.load(Ordering::Relaxed);
    follower.may_answer.add_permits(3);
    for index in 1..=3 {
        assert_eq!(beat(&mut peer, index).await, Some(Ok(Some(log_id(index)))));
    }
    assert_eq!(streams(), 1);

    let given_up = tokio::time::timeout(Duration::from_millis(20), beat(&mut peer, 5)).await;
    assert!(given_up.is_err(), "the follower does not answer");
    follower.may_answer.add_permits(100);
    assert_eq!(beat(&mut peer, 6).await, Some(Ok(Some(log_id(6)))), "the answer to 5 is none to 6");
    assert_eq!(streams(), 2);

    assert_eq!(beat(&mut peer, 4).await, Some(Err(StreamAppendError::Conflict(log_id(4)))));
    assert_eq!(beat(&mut peer, 7).await, Some(Ok(Some(log_id(7)))));
    assert_eq!(streams(), 3, "after a refusal none is kept");
}

#[tokio::test]
async fn heartbeats_go_on_by_a_new_connection() {
    let follower = Follower::new(1_000, u64::MAX);
    let (network, mut group, b) = group_to(&follower).await;
    let mut peer = group.new_heartbeat_client(2, &b).await;
    assert!(beat(&mut peer, 1).await.is_some());
    network.cut_off("b");
    eventually("a failure", async || beat(&mut peer, 2).await.is_none().then_some(())).await;
    network.reconnect("b");
    eventually("an answer", async || beat(&mut peer, 3).await.map(drop)).await;
}
