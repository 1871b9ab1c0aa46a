//! Proposals: to the leader, here or one hop away, until it answers or the deadline passes.

use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::call_error::Kind as ErrorKind;
use prost::Message;
use tokio::time::Instant;

use super::Replica;
use crate::peer::Lane;
use crate::peer::client::CallFailure;
use crate::peer::frame::Kind;
use crate::shard::durability::Durability;
use crate::shard::group::GroupError;
use crate::store::disk::DiskLevel;
use crate::trace;
use crate::{ShardId, Slot};

/// While there is no leader, ask again after this.
const LEADER_POLL: Duration = Duration::from_millis(50);
/// A forwarded call is given up after this, and sent again to whoever leads then: the leader may have died with it.
const FORWARD_MAX: Duration = Duration::from_secs(5);

/// Why the replica has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReplicaError {
    /// Nothing was done.
    #[error("no leader is known for the shard")]
    NoLeader,
    /// Nothing was done.
    #[error("a majority of the shard's replicas does not answer")]
    NoQuorum,
    /// It may have been done, or may be done yet.
    #[error("the outcome is not known")]
    Unknown,
    #[error("malformed command")]
    Malformed,
    /// Nothing was done.
    #[error("the leader has too much under way")]
    Overloaded,
    /// Nothing was done.
    #[error("the disks have no room for a write")]
    DiskFull,
    #[error("this node's replica has stopped: {0}")]
    Stopped(String),
}

/// What became of a command.
pub struct Proposed {
    /// Which executed it.
    pub shard: ShardId,
    pub outcome: pb::Outcome,
    /// Where it is on disk by now.
    pub durability: Durability,
}

impl Replica {
    /// Proposes a command to a shard, and answers what apply said.
    ///
    /// Tries again whenever a try may have been lost, or came too late: every command carries a request id (or is
    /// idempotent), so that apply executes it once.
    pub async fn propose(
        &self,
        shard: ShardId,
        command: Bytes,
        deadline: Instant,
    ) -> Result<pb::Outcome, ReplicaError> {
        self.propose_to(|| Some(shard), command, deadline).await.map(|proposed| proposed.outcome)
    }

    /// The same to whichever shard holds a slot. One that holds it no more refuses, and the next one is asked: what is
    /// recorded of a request goes with its slot, so that it is executed once.
    pub async fn propose_at(&self, slot: Slot, command: Bytes, deadline: Instant) -> Result<Proposed, ReplicaError> {
        self.propose_to(|| self.shard_of(slot), command, deadline).await
    }

    async fn propose_to(
        &self,
        place: impl Fn() -> Option<ShardId>,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Proposed, ReplicaError> {
        let mut maybe_done = false;
        loop {
            let (left, shard) = (deadline.saturating_duration_since(Instant::now()), place());
            if left.is_zero() || shard.is_some_and(|shard| self.serves_in_vain(shard)) {
                return Err(if maybe_done { ReplicaError::Unknown } else { ReplicaError::NoLeader });
            }
            let Some(shard) = shard else {
                tokio::time::sleep(LEADER_POLL.min(left)).await;
                continue;
            };
            match self.try_propose(shard, &command, left).await {
                Ok((outcome, _)) if was_not_executed(&outcome) => {}
                Ok((outcome, durability)) => return Ok(Proposed { shard, outcome, durability }),
                Err(GroupError::Malformed) if !maybe_done => return Err(ReplicaError::Malformed),
                Err(GroupError::Overloaded) if !maybe_done => return Err(ReplicaError::Overloaded),
                Err(GroupError::DiskFull) if !maybe_done => return Err(ReplicaError::DiskFull),
                Err(GroupError::Unknown | GroupError::Malformed | GroupError::Stopped(_)) => maybe_done = true,
                Err(GroupError::NotLeader { .. } | GroupError::NoQuorum) => {}
                // Of a try before, the outcome is still not known.
                Err(GroupError::Overloaded | GroupError::DiskFull) => {}
            }
            tokio::time::sleep(LEADER_POLL.min(left)).await;
        }
    }

    /// Whether callers are better off at another node: this one would lead, but for its disk that does not answer, or
    /// does not reach who leads. Others may, and it cannot hear of a new leader.
    pub(super) fn serves_in_vain(&self, shard: ShardId) -> bool {
        match self.leader(shard) {
            Some((leader, _)) if leader == self.node_id => self.disk().0 == DiskLevel::Stalled,
            Some((leader, member)) => {
                self.peers.client(leader, &member.peer_address).down_for() > self.timing.unreached_max()
            }
            None => false,
        }
    }

    async fn try_propose(
        &self,
        shard: ShardId,
        command: &Bytes,
        left: Duration,
    ) -> Result<(pb::Outcome, Durability), GroupError> {
        let group = self.group(shard);
        let (leader, member) = self.whereabouts.keyed_leader(shard)?;
        let command = self.authors.sign(group, command)?;
        if leader == self.node_id {
            return group.propose_here(&command, left).await;
        }
        let limit = left.min(FORWARD_MAX);
        let mut span = trace::span("forward", trace::Kind::Client);
        let trace = span.as_ref().map(|span| span.context().to_bytes()).unwrap_or_default();
        let request = pb::ForwardRequest { command, timeout_ms: limit.as_millis() as u32, trace };
        let client = self.peers.client(leader, &member.peer_address);
        let payload = request.encode_to_vec().into();
        let answer = client.call(Lane::Bulk, Kind::Forward, shard, payload, limit).await;
        if let (Some(span), Err(_)) = (&mut span, &answer) {
            span.fail();
        }
        let answer = answer.map_err(group_error)?;
        let answer = pb::ForwardResponse::decode(answer).map_err(|_| GroupError::Unknown)?;
        let durability = if answer.both_keyed { Durability::BothKeyed } else { Durability::Quorum };
        Ok((answer.outcome.ok_or(GroupError::Unknown)?, durability))
    }
}

/// It came too late, or to a shard that holds the slot no more.
fn was_not_executed(outcome: &pb::Outcome) -> bool {
    use pb::outcome::Result as Answer;
    use pb::refused::Reason;
    let Some(Answer::Refused(refused)) = &outcome.result else { return false };
    matches!(refused.reason(), Reason::Late | Reason::WrongShard)
}

pub(super) fn group_error(failure: CallFailure) -> GroupError {
    match failure {
        CallFailure::NotConnected => GroupError::NotLeader { leader: None },
        CallFailure::Broken | CallFailure::TimedOut => GroupError::Unknown,
        CallFailure::Remote(error) => match error.kind() {
            ErrorKind::NotLeader => GroupError::NotLeader { leader: (error.leader != 0).then_some(error.leader) },
            ErrorKind::Unavailable | ErrorKind::TooEarly => GroupError::NoQuorum,
            ErrorKind::Malformed => GroupError::Malformed,
            ErrorKind::Overloaded => GroupError::Overloaded,
            ErrorKind::DiskFull => GroupError::DiskFull,
            ErrorKind::Unknown | ErrorKind::Unspecified => GroupError::Unknown,
        },
    }
}
