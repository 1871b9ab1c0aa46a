//! A group's rows for a replica whose state lacks them: what its log no longer has, before the group starts; or all, after it
//! was vacant ([`super::vacancy`]). It takes no part in the group meanwhile.
//!
//! ```text
//! asks    ask ask …      one for each message that it is ready for
//! gives   begin  part part part …  end
//! ```
//! Only a leader gives, and only after a majority has confirmed that it leads: so what is given covers all that was ever
//! applied anywhere, here too.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::StreamExt;
use futures::stream::BoxStream;
use pb::call_error::Kind as ErrorKind;
use pb::snapshot_request::Request;
use tokio::sync::mpsc;

use super::codec;
use super::group::{Confirmed, Group, GroupError};
use super::parts::{self, Kept, PROGRESS_MAX, Parts, TakeError, WINDOW};
use super::transfer::Outgoing;
use super::types::LogId;
use crate::peer::Lane;
use crate::peer::client::{CallFailure, PeerClient};
use crate::peer::frame::Kind;
use crate::store::incoming::{Incoming, Received};
use crate::{NodeId, ShardId};

/// For the first message: a leader sends to few at a time.
const BEGIN_MAX: Duration = Duration::from_secs(300);
/// For a leader to apply what it has confirmed.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);

/// Why a peer gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Call(#[from] CallFailure),
    #[error("what it gives is not taken: {0}")]
    Take(#[from] TakeError),
    #[error("what it gives ends before this node's log begins")]
    TooOld,
    #[error("by what it gives this node is no member")]
    NoMember,
}

/// A group's rows as its leader gave them, and under which vote it led.
pub struct Fetched {
    pub received: Received,
    pub vote: Option<pb::Vote>,
}

/// Takes a group's rows from a peer that leads it, for one of its members: at least up to `begins_after`, where the own log
/// begins.
pub async fn fetch(
    client: &PeerClient,
    member: NodeId,
    shard: ShardId,
    incoming: &Incoming,
    begins_after: Option<LogId>,
) -> Result<Fetched, FetchError> {
    let (sender, mut given) = client.open_stream(Lane::Bulk, Kind::FetchSnapshot, shard)?;
    for _ in 0..WINDOW {
        sender.send(Bytes::new()).await?;
    }
    let Request::Begin(begin) = parts::decode(given.next(BEGIN_MAX).await?)? else {
        return Err(TakeError::Refused("it does not begin at its beginning").into());
    };
    let (meta, vote) = (begin.meta.unwrap_or_default(), begin.vote);
    if meta.last_log_id.as_ref().map(codec::log_id_from_pb) < begins_after {
        return Err(FetchError::TooOld);
    }
    let membership = meta.last_membership.as_ref().and_then(|stored| stored.membership.as_ref());
    if !membership.is_some_and(|membership| membership.members.iter().any(|known| known.id == member)) {
        return Err(FetchError::NoMember);
    }
    let mut kept = Kept::begin(shard, &meta, incoming).map_err(TakeError::Keep)?;
    loop {
        sender.send(Bytes::new()).await?;
        if kept.take(&parts::decode(given.next(PROGRESS_MAX).await?)?)? {
            return Ok(Fetched { received: kept.finish().map_err(TakeError::Keep)?, vote });
        }
    }
}

/// Gives a group's rows to a peer, if it is a member.
pub fn give(
    group: Arc<Group>,
    to: NodeId,
    outgoing: Arc<Outgoing>,
    asks: BoxStream<'static, Bytes>,
) -> BoxStream<'static, Result<Bytes, pb::CallError>> {
    let (messages, given) = mpsc::channel(WINDOW);
    tokio::spawn(async move {
        if let Err(error) = give_all(&group, to, &outgoing, asks, &messages).await {
            // Whoever asks tries all.
            if !matches!(error, GiveError::Group(GroupError::NotLeader { .. })) {
                tracing::info!(shard = group.shard, %error, "the shard's rows were not given to a replica that lacks them");
            }
            let unavailable = pb::CallError { kind: ErrorKind::Unavailable as i32, leader: 0 };
            let _asker_gone = messages.send(Err(unavailable)).await;
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(given).boxed()
}

/// Why this node gave nothing.
#[derive(Debug, thiserror::Error)]
enum GiveError {
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error("they cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("the asker has gone, or is too slow")]
    Gone,
}

async fn give_all(
    group: &Group,
    to: NodeId,
    outgoing: &Outgoing,
    mut asks: BoxStream<'static, Bytes>,
    messages: &mpsc::Sender<Result<Bytes, pb::CallError>>,
) -> Result<(), GiveError> {
    // Who does not lead says so at once, and not when its turn comes. That may be long: what counts is who leads then.
    if !group.leads() {
        return Err(GroupError::NotLeader { leader: None }.into());
    }
    let _place = outgoing.place().await?;
    let confirmed = group.read_index_here(Confirmed::Now).await?;
    group.await_applied(confirmed, CATCH_UP_MAX).await?;
    let _held = outgoing.held_logs.hold(group.shard);
    let is_member = group.may_have_member(to);
    let mut parts = Parts::new(Some(codec::vote_to_pb(&group.vote())), &group.snapshot().await?)?;
    let mut given_bytes = 0;
    while let Some(message) = parts.next().await? {
        outgoing.pace(message.len()).await;
        given_bytes += message.len();
        tokio::time::timeout(PROGRESS_MAX, asks.next()).await.ok().flatten().ok_or(GiveError::Gone)?;
        messages.send(Ok(message)).await.map_err(|_| GiveError::Gone)?;
        // By the beginning it sees that it is none; rows are for members.
        if !is_member {
            return Ok(());
        }
    }
    tracing::info!(
        shard = group.shard,
        bytes = given_bytes,
        "the shard's rows were given to a replica that lacks them"
    );
    Ok(())
}
