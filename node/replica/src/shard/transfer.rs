//! A group's snapshot from one node to another: paced, acknowledged part by part, checked, installed.
//!
//! ```text
//! sender    begin  part part part …  end
//! receiver         progress for each …   progress while it installs …   installed
//! ```
//! There is no deadline for the whole: a transfer goes on while parts are answered in time, and is given up otherwise.
//! Openraft then begins another one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::StreamExt;
use futures::stream::BoxStream;
use openraft::raft::SnapshotResponse;
use parking_lot::Mutex;
use pb::call_error::Kind as ErrorKind;
use pb::snapshot_answer::{Answer, Progress};
use pb::snapshot_request::Request;
use prost::Message;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::Instant;

use super::fetch::Fetched;
use super::group::Group;
use super::held::HeldLogs;
use super::parts::{Kept, PROGRESS_MAX, Parts, TakeError, WINDOW};
use super::snapshot::{GroupSnapshot, Snapshot, SnapshotMeta, meta_of};
use super::types::{TypeConfig, Vote};
use super::{codec, parts};
use crate::peer::Lane;
use crate::peer::client::{CallFailure, PeerClient, StreamReceiver};
use crate::peer::frame::Kind;
use crate::store::incoming::{Incoming, Received};
use crate::{NodeId, ShardId};

/// While it installs, the receiver says that it does.
const INSTALLING_EVERY: Duration = Duration::from_secs(1);
/// Snapshots that a node sends at a time; further ones wait.
const OUTGOING_MAX: usize = 2;

/// What all transfers of a node share: its share of the network.
pub struct Outgoing {
    places: Semaphore,
    /// Of checks of rows, which read as much and send nothing.
    check_turn: Semaphore,
    bytes_per_s: u64,
    /// When the next part may go.
    next: Mutex<Instant>,
    /// Of this node: what the receivers will need.
    pub held_logs: HeldLogs,
}

impl Outgoing {
    pub fn new(bytes_per_s: u64) -> Self {
        Self {
            places: Semaphore::new(OUTGOING_MAX),
            check_turn: Semaphore::new(1),
            bytes_per_s,
            next: Mutex::new(Instant::now()),
            held_logs: HeldLogs::default(),
        }
    }

    /// A place to send one; waits for it.
    pub(super) async fn place(&self) -> io::Result<SemaphorePermit<'_>> {
        self.places.acquire().await.map_err(|_| io::Error::other("the node is stopping"))
    }

    /// The turn to read a group's rows for a check; waits for it.
    pub(super) async fn check_turn(&self) -> io::Result<SemaphorePermit<'_>> {
        self.check_turn.acquire().await.map_err(|_| io::Error::other("the node is stopping"))
    }

    /// Waits for the turn of so many bytes.
    pub(super) async fn pace(&self, size_bytes: usize) {
        let takes = Duration::from_secs_f64(size_bytes as f64 / self.bytes_per_s as f64);
        let turn = {
            let mut next = self.next.lock();
            let turn = (*next).max(Instant::now());
            *next = turn + takes;
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

/// Why a snapshot did not get there.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Call(#[from] CallFailure),
    #[error("the snapshot cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("an answer that means nothing")]
    Answer,
}

/// Sends a snapshot; returns once the receiver has it installed, or has refused it under a higher vote.
pub async fn send(
    client: &PeerClient,
    shard: ShardId,
    outgoing: &Outgoing,
    vote: &Vote,
    snapshot: Snapshot,
) -> Result<SnapshotResponse<TypeConfig>, SendError> {
    if !client.is_up(Lane::Bulk) {
        return Err(CallFailure::NotConnected.into());
    }
    // From here on, also while others are sent: the rows are pinned already.
    let _held = outgoing.held_logs.hold(shard);
    let _place = outgoing.place().await?;
    let mut parts = Parts::new(Some(codec::vote_to_pb(vote)), &snapshot)?;
    let (sender, mut answers) = client.open_stream(Lane::Bulk, Kind::Snapshot, shard)?;
    let (mut in_flight, mut sent_bytes) = (0, 0);
    while let Some(message) = parts.next().await? {
        outgoing.pace(message.len()).await;
        if in_flight == WINDOW {
            progress(&mut answers).await?;
            in_flight -= 1;
        }
        sent_bytes += message.len();
        sender.send(message).await?;
        in_flight += 1;
    }
    loop {
        if let Answer::Installed(vote) = next_answer(&mut answers).await? {
            tracing::info!(shard, bytes = sent_bytes, "a snapshot was sent and installed");
            let vote = codec::vote_from_pb(Some(vote)).map_err(|_| SendError::Answer)?;
            return Ok(SnapshotResponse { vote });
        }
    }
}

async fn progress(answers: &mut StreamReceiver) -> Result<(), SendError> {
    match next_answer(answers).await? {
        Answer::Progress(_) => Ok(()),
        Answer::Installed(_) => Err(SendError::Answer),
    }
}

async fn next_answer(answers: &mut StreamReceiver) -> Result<Answer, SendError> {
    let answer = answers.next(PROGRESS_MAX).await?;
    let answer = pb::SnapshotAnswer::decode(answer).ok().and_then(|answer| answer.answer);
    answer.ok_or(SendError::Answer)
}

type Answers = mpsc::Sender<Result<Bytes, pb::CallError>>;

/// Receives a snapshot that a peer sends, and installs it. `places` bounds how many this group takes at once.
pub fn receive(
    group: Arc<Group>,
    incoming: Incoming,
    places: Arc<Semaphore>,
    from: NodeId,
    requests: BoxStream<'static, Bytes>,
) -> BoxStream<'static, Result<Bytes, pb::CallError>> {
    let (answers, answered) = mpsc::channel(WINDOW);
    tokio::spawn(async move {
        let failed = |kind: ErrorKind| Err(pb::CallError { kind: kind as i32, leader: 0 });
        let Ok(_place) = places.try_acquire_owned() else {
            let _sender_gone = answers.send(failed(ErrorKind::Unavailable)).await;
            return;
        };
        let receiver = Receiver { group: &group, incoming: &incoming, from, answers: &answers };
        match receiver.run(requests).await {
            Ok(vote) => {
                let _sender_gone = answers.send(Ok(encode(Answer::Installed(codec::vote_to_pb(&vote))))).await;
            }
            Err(error) => {
                tracing::warn!(shard = group.shard, peer = %format_args!("{from:016x}"), %error, "a snapshot was not taken");
                let _sender_gone = answers.send(failed(ErrorKind::Unavailable)).await;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(answered).boxed()
}

fn encode(answer: Answer) -> Bytes {
    pb::SnapshotAnswer { answer: Some(answer) }.encode_to_vec().into()
}

struct Receiver<'a> {
    group: &'a Group,
    incoming: &'a Incoming,
    from: NodeId,
    answers: &'a Answers,
}

impl Receiver<'_> {
    async fn run(&self, mut requests: BoxStream<'static, Bytes>) -> Result<Vote, TakeError> {
        let Request::Begin(begin) = next_request(&mut requests).await? else {
            return Err(TakeError::Refused("it does not begin at its beginning"));
        };
        let meta = begin.meta.unwrap_or_default();
        let vote = codec::vote_from_pb(begin.vote).map_err(|_| TakeError::Refused("it has no vote"))?;
        check(self.group, self.from, &vote, &meta)?;
        tracing::info!(shard = self.group.shard, peer = %format_args!("{:016x}", self.from), "receiving a snapshot");
        self.progress().await?;
        let received = self.take_parts(&meta, &mut requests).await?;
        let meta = meta_of(meta.last_log_id.as_ref(), meta.last_membership).map_err(TakeError::Keep)?;
        self.install(vote, meta, received).await
    }

    async fn take_parts(
        &self,
        meta: &pb::SnapshotMeta,
        requests: &mut BoxStream<'static, Bytes>,
    ) -> Result<Received, TakeError> {
        let mut kept = Kept::begin(self.group.shard, meta, self.incoming)?;
        while !kept.take(&next_request(requests).await?)? {
            self.progress().await?;
        }
        Ok(kept.finish()?)
    }

    async fn install(&self, vote: Vote, meta: SnapshotMeta, received: Received) -> Result<Vote, TakeError> {
        let snapshot = Snapshot { meta, snapshot: GroupSnapshot::received(received) };
        let installing = self.group.raft().install_full_snapshot(vote, snapshot);
        tokio::pin!(installing);
        loop {
            tokio::select! {
                installed = &mut installing => {
                    return installed.map(|answer| answer.vote).map_err(|_| TakeError::Stopped);
                }
                () = tokio::time::sleep(INSTALLING_EVERY) => self.progress().await?,
            }
        }
    }

    async fn progress(&self) -> Result<(), TakeError> {
        let progress = Ok(encode(Answer::Progress(Progress {})));
        self.answers.send(progress).await.map_err(|_| TakeError::Gone)
    }
}

/// What openraft would panic at: it takes for granted that peers follow the protocol.
fn check(group: &Group, from: NodeId, vote: &Vote, meta: &pb::SnapshotMeta) -> Result<(), TakeError> {
    let Some(last) = meta.last_log_id.as_ref().map(codec::log_id_from_pb) else {
        return Err(TakeError::Refused("it has no position"));
    };
    if vote.leader_id.node_id != from || !vote.committed {
        return Err(TakeError::Refused("its sender does not lead"));
    }
    if last.leader_id > vote.leader_id {
        return Err(TakeError::Refused("it is of a later term than its sender leads"));
    }
    let committed = group.known_committed();
    let contradicts = committed.is_some_and(|committed| last > committed && last.index <= committed.index);
    match contradicts {
        true => Err(TakeError::Refused("it contradicts what is committed here")),
        false => Ok(()),
    }
}

/// What openraft takes, of what was fetched from the leader.
pub(super) fn to_install(group: &Group, leader: NodeId, fetched: Fetched) -> Result<(Vote, Snapshot), TakeError> {
    let vote = codec::vote_from_pb(fetched.vote).map_err(|_| TakeError::Refused("it has no vote"))?;
    let head = pb::SnapshotMeta::decode(fetched.received.head());
    let head = head.map_err(|_| TakeError::Refused("its head cannot be decoded"))?;
    check(group, leader, &vote, &head)?;
    let meta = meta_of(head.last_log_id.as_ref(), head.last_membership).map_err(TakeError::Keep)?;
    Ok((vote, Snapshot { meta, snapshot: GroupSnapshot::received(fetched.received) }))
}

async fn next_request(requests: &mut BoxStream<'static, Bytes>) -> Result<Request, TakeError> {
    let bytes = tokio::time::timeout(PROGRESS_MAX, requests.next()).await.ok().flatten().ok_or(TakeError::Gone)?;
    parts::decode(bytes)
}
