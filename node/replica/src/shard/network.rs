//! openraft's network over the peers' connections: pipelined appends, votes, leader transfer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use openraft::base::BoxFuture;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory};
use prost::Message;
use tokio::time::Instant;

use super::codec::{self, Malformed};
use super::log_ends::LogEnds;
use super::snapshot::{GroupSnapshot, Snapshot};
use super::traced::{self, TOLD_MAX};
use super::transfer::{self, Outgoing, SendError};
use super::types::{LogId, Member, TypeConfig, Vote};
use crate::peer::client::{CallFailure, PeerClient, StreamReceiver, StreamSender};
use crate::peer::frame::Kind;
use crate::peer::{Lane, STREAM_WINDOW};
use crate::replica::peers::Peers;
use crate::store::log::group::GroupLog;
use crate::trace::Context;
use crate::{NodeId, ShardId};

/// An append that waits longer for its answer gives its stream up. Generous: a follower's fsync may be slow.
const APPEND_PROGRESS: Duration = Duration::from_secs(5);
/// How long a request waits that brings nothing but how far the log is committed: most often entries come meanwhile, and bring that
/// as well. All that waits for it is a follower's apply. Under load, half of all messages were such ones.
const COMMIT_ALONE_AFTER: Duration = Duration::from_millis(2);
/// Between two tries to send a snapshot, if the peer is there; if not, the longest.
const SNAPSHOT_AGAIN: Duration = Duration::from_secs(1);

/// Makes a group's connections to its peers.
pub struct GroupNetwork {
    shard: ShardId,
    peers: Arc<Peers>,
    outgoing: Arc<Outgoing>,
    log_ends: Arc<LogEnds>,
}

impl GroupNetwork {
    /// `log`: the group's, to read.
    pub fn new(log: GroupLog, peers: Arc<Peers>, outgoing: Arc<Outgoing>) -> Self {
        Self { shard: log.shard(), peers, outgoing, log_ends: Arc::new(LogEnds::new(log)) }
    }

    fn connect(&self, target: NodeId, node: &Member, lane: Lane) -> GroupPeer {
        let client = self.peers.client(target, &node.peer_address);
        let (outgoing, log_ends) = (Arc::clone(&self.outgoing), Arc::clone(&self.log_ends));
        GroupPeer { shard: self.shard, target, lane, client, outgoing, log_ends, heartbeats: None }
    }
}

impl RaftNetworkFactory<TypeConfig> for GroupNetwork {
    type Network = GroupPeer;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> GroupPeer {
        self.connect(target, node, Lane::Bulk)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> GroupPeer {
        self.connect(target, node, Lane::Control)
    }
}

/// One group's way to one peer.
pub struct GroupPeer {
    shard: ShardId,
    target: NodeId,
    /// Of appends; all else is control.
    lane: Lane,
    client: Arc<PeerClient>,
    outgoing: Arc<Outgoing>,
    log_ends: Arc<LogEnds>,
    /// Of the heartbeats so far, for the next one.
    heartbeats: Option<(StreamSender, StreamReceiver)>,
}

impl GroupPeer {
    async fn call(&self, kind: Kind, request: impl Message, limit: Duration) -> Result<Bytes, RPCError<TypeConfig>> {
        let payload = request.encode_to_vec().into();
        self.client.call(Lane::Control, kind, self.shard, payload, limit).await.map_err(rpc_error)
    }
}

fn rpc_error(failure: CallFailure) -> RPCError<TypeConfig> {
    match failure {
        // Openraft backs off before it tries again.
        CallFailure::NotConnected => Unreachable::new(&failure).into(),
        CallFailure::Broken | CallFailure::TimedOut | CallFailure::Remote(_) => NetworkError::new(&failure).into(),
    }
}

fn malformed(error: Malformed) -> RPCError<TypeConfig> {
    NetworkError::new(&error).into()
}

fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, RPCError<TypeConfig>> {
    M::decode(bytes).map_err(|_| malformed(Malformed("answer")))
}

impl NetBackoff<TypeConfig> for GroupPeer {
    fn backoff(&self) -> Option<Backoff> {
        // The peer's keeper reconnects at its own pace; asking whether it has is cheap.
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}

impl NetVote<TypeConfig> for GroupPeer {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(Kind::Vote, rpc, option).await
    }

    /// Implemented: openraft's default would grant.
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(Kind::PreVote, rpc, option).await
    }
}

impl GroupPeer {
    async fn ask_vote(
        &self,
        kind: Kind,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = self.call(kind, vote_request_to_pb(&rpc), option.soft_ttl()).await?;
        let answer = decode::<pb::VoteResponse>(answer)?;
        let vote = codec::vote_from_pb(answer.vote).map_err(malformed)?;
        let last_log_id = answer.last_log_id.as_ref().map(codec::log_id_from_pb);
        if let (Kind::Vote, true, Some(end)) = (kind, answer.granted, last_log_id) {
            self.log_ends.note(self.target, &rpc.vote, end);
        }
        Ok(VoteResponse::new(vote, last_log_id, answer.granted))
    }
}

fn vote_request_to_pb(rpc: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
    pb::VoteRequest {
        vote: Some(codec::vote_to_pb(&rpc.vote)),
        last_log_id: rpc.last_log_id.as_ref().map(codec::log_id_to_pb),
        leadership_transfer: rpc.leadership_transfer,
    }
}

pub(super) fn vote_request_from_pb(bytes: Bytes) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let request = pb::VoteRequest::decode(bytes).map_err(|_| Malformed("vote request"))?;
    let last_log_id = request.last_log_id.as_ref().map(codec::log_id_from_pb);
    let mut rpc = VoteRequest::new(codec::vote_from_pb(request.vote)?, last_log_id);
    // Without it a voter would refuse the successor that its leader itself has chosen.
    rpc.leadership_transfer = request.leadership_transfer;
    Ok(rpc)
}

impl NetTransferLeader<TypeConfig> for GroupPeer {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        use pb::transfer_leader_response::Result as Answer;
        let request = pb::TransferLeaderRequest {
            from_leader: Some(codec::vote_to_pb(req.from_leader())),
            to_node: *req.to_node_id(),
            last_log_id: req.last_log_id().map(codec::log_id_to_pb),
        };
        let answer = self.call(Kind::TransferLeader, request, option.soft_ttl()).await?;
        let answer = decode::<pb::TransferLeaderResponse>(answer)?;
        let log_id = |log_id: Option<pb::LogId>| log_id.as_ref().map(codec::log_id_from_pb);
        match answer.result.ok_or(malformed(Malformed("answer")))? {
            Answer::Accepted(_) => Ok(Ok(())),
            Answer::VoteChanged(changed) => Ok(Err(TransferLeaderError::VoteChanged {
                expected: codec::vote_from_pb(changed.expected).map_err(malformed)?,
                actual: codec::vote_from_pb(changed.actual).map_err(malformed)?,
            })),
            Answer::LogNotFlushed(lacking) => Ok(Err(TransferLeaderError::LogNotFlushed {
                expected: log_id(lacking.expected),
                actual: log_id(lacking.actual),
            })),
        }
    }
}

impl NetSnapshot<TypeConfig> for GroupPeer {
    type SnapshotData = GroupSnapshot;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            sent = self.send_snapshot(&vote, snapshot) => sent.map_err(|error| Unreachable::new(&error).into()),
            closed = cancel => Err(closed.into()),
        }
    }
}

impl GroupPeer {
    /// One try. For the next one all rows are pinned anew: so one that was in vain takes its time.
    async fn send_snapshot(&self, vote: &Vote, snapshot: Snapshot) -> Result<SnapshotResponse<TypeConfig>, SendError> {
        let sent = transfer::send(&self.client, self.shard, &self.outgoing, vote, snapshot).await;
        match &sent {
            Ok(_) => {}
            Err(SendError::Call(CallFailure::NotConnected)) => {
                let _in_vain = tokio::time::timeout(SNAPSHOT_AGAIN, self.client.connected()).await;
            }
            Err(error) => {
                tracing::warn!(shard = self.shard, %error, "a snapshot was not sent: trying again");
                tokio::time::sleep(SNAPSHOT_AGAIN).await;
            }
        }
        sent
    }
}

type AppendAnswer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

impl NetStreamAppend<TypeConfig> for GroupPeer {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendAnswer>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let limit = option.soft_ttl();
        let answers = match self.lane {
            Lane::Control => stream::unfold(Some((self, input)), move |state| async move {
                let (peer, mut input) = state?;
                let answer = peer.beat(&input.next().await?, limit).await;
                let goes_on = matches!(answer, Ok(Ok(_)));
                Some((answer, goes_on.then_some((peer, input))))
            })
            .boxed(),
            Lane::Bulk => stream::once(open(&*self, input)).flatten().boxed(),
        };
        Box::pin(std::future::ready(Ok(answers)))
    }
}

impl GroupPeer {
    /// All heartbeats go by one stream, as long as they are answered: to open and to end one for each would cost both ends
    /// more than the heartbeat itself. What was not answered in time takes its stream along, so that an answer to it is none
    /// to another.
    async fn beat(&mut self, request: &AppendEntriesRequest<TypeConfig>, limit: Duration) -> AppendAnswer {
        let (sender, mut receiver) = match self.heartbeats.take().filter(|(sender, _)| sender.is_open()) {
            Some(kept) => kept,
            None => self.client.open_stream(self.lane, Kind::Append, self.shard).map_err(rpc_error)?,
        };
        sender.send(append_request_to_pb(self.shard, request, None)).await.map_err(rpc_error)?;
        let answer = receiver.next(limit).await.map_err(rpc_error).and_then(append_response_from_pb);
        if let Ok(Ok(_)) = answer {
            self.heartbeats = Some((sender, receiver));
        }
        answer
    }
}

/// Opens a stream once there is something to send. Not before: openraft waits out its backoff inside of its input, so
/// that an error from a peer that is down, given before any request was taken, is tried again at once and without end.
async fn open<'s, S>(peer: &'s GroupPeer, mut input: S) -> BoxStream<'s, AppendAnswer>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
{
    let Some(first) = input.next().await else { return stream::empty().boxed() };
    let shard = peer.shard;
    let log_end = peer.log_ends.of(peer.target, &first.vote);
    match peer.client.open_stream(peer.lane, Kind::Append, shard) {
        Ok((sender, receiver)) => {
            let input = Some(stream::iter([first]).chain(input));
            let (commit_alone, in_flight, failed) = (None, 0, false);
            let pipeline = Pipeline { shard, log_end, input, commit_alone, sender, receiver, in_flight, failed };
            stream::unfold(pipeline, Pipeline::next).boxed()
        }
        Err(failure) => stream::once(std::future::ready(Err(rpc_error(failure)))).boxed(),
    }
}

/// Requests go out while answers come in, up to a window. One task: dropped as a whole, it takes nothing more off its
/// input, which belongs to openraft's next attempt then.
struct Pipeline<S> {
    shard: ShardId,
    /// Of the follower, if that is known: told with what goes no further.
    log_end: Option<LogId>,
    input: Option<S>,
    /// A request without entries that waits for one that has some; until when.
    commit_alone: Option<(Instant, AppendEntriesRequest<TypeConfig>)>,
    sender: StreamSender,
    receiver: StreamReceiver,
    in_flight: usize,
    failed: bool,
}

impl<S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin> Pipeline<S> {
    async fn next(mut self) -> Option<(AppendAnswer, Self)> {
        if self.failed {
            return None;
        }
        loop {
            let may_send = self.in_flight < STREAM_WINDOW;
            let input = self.input.as_mut().filter(|_| may_send);
            let alone_at = self.commit_alone.as_ref().map(|(at, _)| *at).filter(|_| may_send);
            let request = tokio::select! {
                biased;
                answer = self.receiver.next(APPEND_PROGRESS), if self.in_flight > 0 => {
                    self.in_flight -= 1;
                    let answer = answer.map_err(rpc_error).and_then(append_response_from_pb);
                    self.failed = !matches!(answer, Ok(Ok(_)));
                    return Some((answer, self));
                }
                Some(request) = next_of(input) => match request {
                    Some(request) if request.entries.is_empty() => {
                        let at = self.commit_alone.take().map_or_else(|| Instant::now() + COMMIT_ALONE_AFTER, |(at, _)| at);
                        self.commit_alone = Some((at, request));
                        continue;
                    }
                    Some(request) => request,
                    None => {
                        self.input = None;
                        continue;
                    }
                },
                Some(()) = until(alone_at) => match self.commit_alone.take() {
                    Some((_, request)) => request,
                    None => continue,
                },
                else => return None,
            };
            // What it says of the commit is said by this one.
            self.commit_alone = None;
            if let Err(failure) = self.send(&request).await {
                self.failed = true;
                return Some((Err(rpc_error(failure)), self));
            }
        }
    }

    async fn send(&mut self, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), CallFailure> {
        let searches = |end: &LogId| request.entries.last().is_some_and(|last| last.log_id < *end);
        let message = append_request_to_pb(self.shard, request, self.log_end.filter(searches));
        self.sender.send(message).await?;
        self.in_flight += 1;
        Ok(())
    }
}

/// Nothing, when there is nothing to wait for.
async fn until(at: Option<Instant>) -> Option<()> {
    tokio::time::sleep_until(at?).await;
    Some(())
}

/// Nothing, when there is no input to wait on.
async fn next_of<S: Stream + Unpin>(input: Option<&mut S>) -> Option<Option<S::Item>> {
    match input {
        Some(input) => Some(input.next().await),
        None => None,
    }
}

fn append_request_to_pb(shard: ShardId, request: &AppendEntriesRequest<TypeConfig>, log_end: Option<LogId>) -> Bytes {
    let traced = match (request.entries.first(), request.entries.last()) {
        (Some(first), Some(last)) => traced::among(shard, first.log_id.index..last.log_id.index + 1),
        _ => Vec::new(),
    };
    let told = |(index, context): (u64, Context)| pb::TracedEntry { index, trace: context.to_bytes() };
    let request = pb::AppendRequest {
        vote: Some(codec::vote_to_pb(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(codec::log_id_to_pb),
        entries: request.entries.iter().map(codec::encode_entry).collect(),
        leader_commit: request.leader_commit.as_ref().map(codec::log_id_to_pb),
        traced: traced.into_iter().map(told).collect(),
        log_end: log_end.as_ref().map(codec::log_id_to_pb),
    };
    request.encode_to_vec().into()
}

/// A request, and where this node's log ended when it voted for who brings it, if that is told.
pub(super) fn append_request_from_pb(
    shard: ShardId,
    bytes: Bytes,
) -> Result<(AppendEntriesRequest<TypeConfig>, Option<LogId>), Malformed> {
    let request = pb::AppendRequest::decode(bytes).map_err(|_| Malformed("append request"))?;
    for told in request.traced.iter().take(TOLD_MAX) {
        if let Some(context) = Context::from_bytes(&told.trace) {
            traced::remember(shard, told.index, context);
        }
    }
    let log_end = request.log_end.as_ref().map(codec::log_id_from_pb);
    let request = AppendEntriesRequest {
        vote: codec::vote_from_pb(request.vote)?,
        prev_log_id: request.prev_log_id.as_ref().map(codec::log_id_from_pb),
        entries: request.entries.into_iter().map(codec::decode_entry).collect::<Result<_, _>>()?,
        leader_commit: request.leader_commit.as_ref().map(codec::log_id_from_pb),
    };
    Ok((request, log_end))
}

pub(super) fn append_response_to_pb(result: StreamAppendResult<TypeConfig>) -> Bytes {
    use pb::append_response::Result as Answer;
    let answer = match result {
        Ok(matched) => Answer::Matched(pb::Matched { log_id: matched.as_ref().map(codec::log_id_to_pb) }),
        Err(StreamAppendError::Conflict(log_id)) => Answer::Conflict(codec::log_id_to_pb(&log_id)),
        Err(StreamAppendError::HigherVote(vote)) => Answer::HigherVote(codec::vote_to_pb(&vote)),
    };
    pb::AppendResponse { result: Some(answer) }.encode_to_vec().into()
}

fn append_response_from_pb(bytes: Bytes) -> AppendAnswer {
    use pb::append_response::Result as Answer;
    let answer = decode::<pb::AppendResponse>(bytes)?;
    Ok(match answer.result.ok_or(malformed(Malformed("answer")))? {
        Answer::Matched(matched) => Ok(matched.log_id.as_ref().map(codec::log_id_from_pb)),
        Answer::Conflict(log_id) => Err(StreamAppendError::Conflict(codec::log_id_from_pb(&log_id))),
        Answer::HigherVote(vote) => {
            Err(StreamAppendError::HigherVote(codec::vote_from_pb(Some(vote)).map_err(malformed)?))
        }
    })
}
