//! Peers' requests, served by the groups.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use openraft::raft::{AppendEntriesRequest, TransferLeaderError, TransferLeaderRequest};
use parking_lot::Mutex;
use pb::call_error::Kind as ErrorKind;
use prost::Message;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::authors::Authors;
use super::codec::{self, Malformed};
use super::durability::Durability;
use super::fetch;
use super::group::{Confirmed, Group, GroupError};
use super::members;
use super::network;
use super::read_rows;
use super::transfer::{self, Outgoing};
use super::types::{LogId, TypeConfig, Vote};
use crate::peer::frame::Kind;
use crate::peer::leadership::Leadership;
use crate::peer::server::{Caller, Handler};
use crate::store::incoming::Incoming;
use crate::store::state::flusher::StateStore;
use crate::trace::{self, Context};
use crate::{NodeId, ShardId, Slots};

/// Tells a node's status.
pub type Describe = Arc<dyn Fn() -> pb::NodeStatus + Send + Sync>;

/// Where rows come from and go to.
pub struct RowStores {
    pub state: StateStore,
    pub incoming: Incoming,
    pub outgoing: Arc<Outgoing>,
}

/// Serves the groups of a node to its peers.
pub struct Inbound {
    groups: Vec<Arc<Group>>,
    stores: RowStores,
    leadership: Arc<Leadership>,
    authors: Arc<Authors>,
    /// By group: one snapshot at a time.
    snapshots: Vec<Arc<Semaphore>>,
    elects_from: Instant,
    describe: Describe,
}

type Answer = Result<Bytes, pb::CallError>;

/// For a leader to apply what it has confirmed: who asks gives up then.
const APPLIED_WITHIN: Duration = Duration::from_secs(2);

impl Inbound {
    pub fn new(
        groups: Vec<Arc<Group>>,
        stores: RowStores,
        leadership: Arc<Leadership>,
        authors: Arc<Authors>,
        elects_from: Instant,
        describe: Describe,
    ) -> Self {
        let snapshots = groups.iter().map(|_| Arc::new(Semaphore::new(1))).collect();
        Self { groups, stores, leadership, authors, snapshots, elects_from, describe }
    }

    /// Whoever is a node of the cluster may speak to all of its groups. Not only to those that know it as a member: a replica
    /// that was away while members changed knows none of those that came, and one of them may lead.
    fn group(&self, shard: ShardId) -> Result<&Arc<Group>, pb::CallError> {
        self.groups.get(usize::from(shard)).ok_or(error(ErrorKind::Malformed))
    }

    async fn serve(&self, from: Caller, kind: Kind, shard: ShardId, payload: Bytes) -> Answer {
        let group = self.group(shard)?;
        match kind {
            Kind::Vote | Kind::PreVote => self.vote(group, from.id, kind, payload).await,
            Kind::TransferLeader => self.transfer_leader(group, from.id, payload).await,
            Kind::ReadIndex => read_index(group, from, payload).await,
            Kind::ReadRows => {
                keyed(from)?;
                read_rows::answer(group, &self.stores.state, payload).map_err(error)
            }
            Kind::Forward => {
                keyed(from)?;
                self.forward(group, payload).await
            }
            Kind::Echo => Ok(Bytes::new()),
            Kind::GiveWay => keyed(from).and_then(|()| self.give_way(payload)),
            Kind::ChangeMember => {
                keyed(from)?;
                self.change_member(payload).await
            }
            Kind::NodeStatus => Ok((self.describe)().encode_to_vec().into()),
            _ => Err(error(ErrorKind::Malformed)),
        }
    }

    fn give_way(&self, payload: Bytes) -> Answer {
        let request = pb::GiveWayRequest::decode(payload).map_err(|_| error(ErrorKind::Malformed))?;
        self.leadership.tell(request.give_way);
        Ok(Bytes::new())
    }

    async fn change_member(&self, payload: Bytes) -> Answer {
        let request = pb::ChangeMemberRequest::decode(payload).map_err(|_| error(ErrorKind::Malformed))?;
        let changed = members::change_member(&self.groups, &self.leadership, request).await;
        Ok(changed.map_err(|failure| call_error(&failure))?.encode_to_vec().into())
    }

    async fn forward(&self, group: &Group, payload: Bytes) -> Answer {
        let request = pb::ForwardRequest::decode(payload).map_err(|_| error(ErrorKind::Malformed))?;
        if !self.authors.has_keys() {
            return Err(call_error(&GroupError::NotLeader { leader: None }));
        }
        self.authors.check_command(group.shard, &request.command).map_err(|_| error(ErrorKind::Malformed))?;
        let limit = Duration::from_millis(u64::from(request.timeout_ms));
        let proposed = group.propose_here(&request.command, limit);
        let outcome = trace::within(Context::from_bytes(&request.trace), proposed).await;
        let (outcome, durability) = outcome.map_err(|failure| call_error(&failure))?;
        let both_keyed = durability == Durability::BothKeyed;
        Ok(pb::ForwardResponse { outcome: Some(outcome), both_keyed }.encode_to_vec().into())
    }

    /// The restart rule: see [`super::config::Timing::restart_silence`].
    fn may_elect(&self) -> Result<(), pb::CallError> {
        match Instant::now() > self.elects_from {
            true => Ok(()),
            false => Err(error(ErrorKind::TooEarly)),
        }
    }

    async fn vote(&self, group: &Group, from: NodeId, kind: Kind, payload: Bytes) -> Answer {
        self.may_elect()?;
        let request = network::vote_request_from_pb(payload).map_err(malformed)?;
        own(&request.vote, from)?;
        let raft = group.raft();
        let answered = match kind {
            Kind::PreVote => raft.pre_vote(request).await,
            _ => raft.vote(request).await,
        };
        let answer = answered.map_err(|_| error(ErrorKind::Unavailable))?;
        let answer = pb::VoteResponse {
            vote: Some(codec::vote_to_pb(&answer.vote)),
            granted: answer.vote_granted,
            last_log_id: answer.last_log_id.as_ref().map(codec::log_id_to_pb),
        };
        Ok(answer.encode_to_vec().into())
    }

    async fn transfer_leader(&self, group: &Group, from: NodeId, payload: Bytes) -> Answer {
        use pb::transfer_leader_response as response;
        self.may_elect()?;
        let request = pb::TransferLeaderRequest::decode(payload).map_err(|_| error(ErrorKind::Malformed))?;
        let from_leader = codec::vote_from_pb(request.from_leader).map_err(malformed)?;
        own(&from_leader, from)?;
        let last_log_id = request.last_log_id.as_ref().map(codec::log_id_from_pb);
        let request = TransferLeaderRequest::new(from_leader, request.to_node, last_log_id);
        let answered = group.raft().handle_transfer_leader(request).await;
        let result = match answered.map_err(|_| error(ErrorKind::Unavailable))? {
            Ok(()) => response::Result::Accepted(response::Accepted {}),
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                let (expected, actual) = (Some(codec::vote_to_pb(&expected)), Some(codec::vote_to_pb(&actual)));
                response::Result::VoteChanged(response::VoteChanged { expected, actual })
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                let log_id = |log_id: Option<LogId>| log_id.as_ref().map(codec::log_id_to_pb);
                let (expected, actual) = (log_id(expected), log_id(actual));
                response::Result::LogNotFlushed(response::LogNotFlushed { expected, actual })
            }
        };
        Ok(pb::TransferLeaderResponse { result: Some(result) }.encode_to_vec().into())
    }
}

/// A node speaks for itself: nobody campaigns, leads or hands over in another's name.
fn own(vote: &Vote, from: NodeId) -> Result<(), pb::CallError> {
    match vote.leader_id.node_id == from {
        true => Ok(()),
        false => Err(error(ErrorKind::Malformed)),
    }
}

/// What openraft takes for granted, and what would stop a replica: entries follow one another, and none is of a later leader
/// than the one that brings it.
fn is_in_order(request: &AppendEntriesRequest<TypeConfig>) -> bool {
    let leader = request.vote.leader_id;
    let mut last = request.prev_log_id;
    let entries = request.entries.iter().all(|entry| {
        let before = last.replace(entry.log_id);
        let follows = before.is_none_or(|before| before.leader_id <= entry.log_id.leader_id);
        follows && entry.log_id.index == before.map_or(0, |before| before.index.saturating_add(1))
    });
    let not_later = |log_id: Option<LogId>| log_id.is_none_or(|log_id| log_id.leader_id <= leader);
    request.vote.committed && entries && not_later(last) && not_later(request.leader_commit)
}

/// Where this replica's log ended when it voted for who asks now, if it still has that entry: then both have the same up to
/// there (see [`super::log_ends`]).
fn shared(replica: &Group, end: LogId) -> Option<LogId> {
    replica.entry(end.index).map(|entry| entry.log_id).filter(|own| *own == end)
}

/// Who holds no key authors nothing: a keyless node has no clients to forward for.
fn keyed(from: Caller) -> Result<(), pb::CallError> {
    if from.keyed { Ok(()) } else { Err(error(ErrorKind::Malformed)) }
}

async fn read_index(group: &Group, from: Caller, payload: Bytes) -> Answer {
    let request = pb::ReadIndexRequest::decode(payload).map_err(|_| error(ErrorKind::Malformed))?;
    let confirmed = if request.lease { Confirmed::ByLease } else { Confirmed::Now };
    let log_id = group.read_index_here(confirmed).await.map_err(|failure| call_error(&failure))?;
    let mut answer = pb::ReadIndexResponse { log_id: Some(codec::log_id_to_pb(&log_id)), ..Default::default() };
    if request.applied {
        group.await_applied(log_id, APPLIED_WITHIN).await.map_err(|failure| call_error(&failure))?;
        answer.member = group.may_have_member(from.id);
        // A gateway wants to know, and who has no keys has none.
        if from.keyed {
            let progress = group.progress.read().clone();
            (answer.seq, answer.slots) = (progress.seq, progress.slots.map(Slots::to_pb));
            answer.origins = progress.origins;
        }
    }
    Ok(answer.encode_to_vec().into())
}

fn error(kind: ErrorKind) -> pb::CallError {
    pb::CallError { kind: kind as i32, leader: 0 }
}

fn malformed(_: Malformed) -> pb::CallError {
    error(ErrorKind::Malformed)
}

fn call_error(failure: &GroupError) -> pb::CallError {
    match failure {
        GroupError::NotLeader { leader } => {
            pb::CallError { kind: ErrorKind::NotLeader as i32, leader: leader.unwrap_or(0) }
        }
        GroupError::NoQuorum => error(ErrorKind::Unavailable),
        // A proposal may have been accepted before the group stopped.
        GroupError::Unknown | GroupError::Stopped(_) => error(ErrorKind::Unknown),
        GroupError::Malformed => error(ErrorKind::Malformed),
        GroupError::Overloaded => error(ErrorKind::Overloaded),
        GroupError::DiskFull => error(ErrorKind::DiskFull),
    }
}

impl Handler for Inbound {
    fn call(self: Arc<Self>, from: Caller, kind: Kind, shard: ShardId, payload: Bytes) -> BoxFuture<'static, Answer> {
        async move { self.serve(from, kind, shard, payload).await }.boxed()
    }

    fn stream(
        self: Arc<Self>,
        from: Caller,
        kind: Kind,
        shard: ShardId,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Answer> {
        let group = match self.group(shard) {
            Ok(group) => group,
            Err(refusal) => return futures::stream::iter([Err(refusal)]).boxed(),
        };
        if kind == Kind::FetchSnapshot {
            return fetch::give(Arc::clone(group), from.id, Arc::clone(&self.stores.outgoing), requests);
        }
        let takes_snapshots = || group.takes_part() && group.takes_entries();
        if kind == Kind::Snapshot && !(takes_snapshots() && self.authors.take_snapshot(shard, from)) {
            return futures::stream::iter([Err(error(ErrorKind::Unavailable))]).boxed();
        }
        if kind == Kind::Snapshot {
            let places = Arc::clone(&self.snapshots[usize::from(shard)]);
            return transfer::receive(Arc::clone(group), self.stores.incoming.clone(), places, from.id, requests);
        }
        // Bytes that do not decode, or not to the sender's own, end the stream: the sender's deadline notices. So do
        // entries on a full disk, or for a replica without rows, and what a node without keys may not bring: an answer would have
        // it sent again at once.
        let (replica, authors) = (Arc::clone(group), Arc::clone(&self.authors));
        // One a request that waits for its answer.
        let log_ends = Arc::new(Mutex::new(VecDeque::new()));
        let told = Arc::clone(&log_ends);
        let requests = requests.map(move |bytes| {
            let (request, log_end) = network::append_request_from_pb(shard, bytes).ok()?;
            own(&request.vote, from.id).ok().filter(|()| is_in_order(&request))?;
            let has_room = request.entries.is_empty() || replica.takes_entries();
            // An older leader is to hear of the newer vote, also from a replica that takes nothing.
            let takes_part = replica.takes_part() || request.vote < replica.vote();
            if !(takes_part && has_room && authors.take(&replica, from, &request)) {
                return None;
            }
            replica.note_leader(&request.vote);
            replica.note_arrival();
            told.lock().push_back(log_end);
            Some(request)
        });
        let requests = requests.take_while(|request| std::future::ready(request.is_some()));
        let requests = requests.filter_map(std::future::ready);
        let (answers, replica) = (group.raft().stream_append(requests), Arc::clone(group));
        answers
            .map(move |answer| match (answer, log_ends.lock().pop_front().flatten()) {
                (Ok(Ok(matched)), Some(end)) => {
                    Ok(network::append_response_to_pb(Ok(matched.max(shared(&replica, end)))))
                }
                (Ok(result), _) => Ok(network::append_response_to_pb(result)),
                (Err(_), _) => Err(error(ErrorKind::Unavailable)),
            })
            .boxed()
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;
    use openraft::entry::RaftEntry;

    use crate::shard::types::{Entry, EntryPayload, LeaderId};

    #[test]
    fn entries_follow_one_another_and_are_of_no_later_leader() {
        let log_id = |term, index| LogId::new(LeaderId::new(term, 1), index);
        let request = |prev: Option<LogId>, entries: &[LogId], commit: Option<LogId>| AppendEntriesRequest {
            vote: Vote { leader_id: LeaderId::new(5, 1), committed: true },
            prev_log_id: prev,
            entries: entries.iter().map(|log_id| Entry::new(*log_id, EntryPayload::Blank)).collect(),
            leader_commit: commit,
        };
        let prev = Some(log_id(3, 7));
        assert!(is_in_order(&request(None, &[], None)));
        assert!(is_in_order(&request(None, &[log_id(1, 0), log_id(2, 1)], None)));
        assert!(is_in_order(&request(prev, &[log_id(3, 8), log_id(5, 9)], Some(log_id(5, 9)))));
        assert!(!is_in_order(&request(None, &[log_id(1, 1)], None)), "it begins at 0");
        assert!(!is_in_order(&request(prev, &[log_id(3, 9)], None)), "a hole");
        assert!(!is_in_order(&request(prev, &[log_id(3, 8), log_id(3, 8)], None)));
        assert!(!is_in_order(&request(prev, &[log_id(2, 8)], None)), "back to an earlier leader");
        assert!(!is_in_order(&request(prev, &[log_id(6, 8)], None)), "of a later leader");
        assert!(!is_in_order(&request(Some(log_id(6, 7)), &[], None)));
        assert!(!is_in_order(&request(prev, &[], Some(log_id(6, 7)))));
        let campaigning = Vote { leader_id: LeaderId::new(5, 1), committed: false };
        assert!(!is_in_order(&AppendEntriesRequest { vote: campaigning, ..request(prev, &[], None) }));
    }

    #[test]
    fn nobody_speaks_in_anothers_name() {
        for committed in [false, true] {
            let vote = Vote { leader_id: LeaderId::new(3, 1), committed };
            assert!(own(&vote, 1).is_ok());
            assert!(own(&vote, 2).is_err_and(|refusal| refusal.kind() == ErrorKind::Malformed));
        }
    }
}
