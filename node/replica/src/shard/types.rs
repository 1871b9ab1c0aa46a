//! openraft's types for our groups.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use charthold_proto::internal as pb;
use tokio::sync::OwnedSemaphorePermit;

use super::authors::Code;
use crate::NodeId;
use crate::trace::Context;

openraft::declare_raft_types!(
    /// Small integers and our own node, command, answer, entry and runtime types; all else is openraft's default.
    pub TypeConfig:
        D = Proposal,
        R = Answer,
        NodeId = NodeId,
        Node = Member,
        Entry = super::entry::Entry,
        AsyncRuntime = super::runtime::Runtime,
);

pub type Raft = openraft::Raft<TypeConfig, super::machine::GroupMachine>;
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type CommittedLeaderId = openraft::alias::CommittedLeaderIdOf<TypeConfig>;
pub use super::entry::Entry;
pub type EntryPayload = openraft::alias::EntryPayloadOf<TypeConfig>;
pub type Membership = openraft::Membership<NodeId, Member>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;

/// An encoded command, see [`super::command`]. Its bytes are sealed, and still not for the eyes of a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes, pub OnItsWay);

/// What goes with a proposal to this node's log, and is not stored.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct OnItsWay {
    /// That it belongs to.
    pub trace: Option<Context>,
    /// The next ones wait for it, see [`super::proposer`].
    pub turn: Option<Turn>,
}

/// Given back when all that hold it are gone: in the log, or refused.
#[derive(Clone)]
pub struct Turn(Arc<OwnedSemaphorePermit>);

impl Turn {
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(permit))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Turn {}

impl From<Bytes> for Proposal {
    fn from(command: Bytes) -> Self {
        Self(command, OnItsWay::default())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What apply answered.
#[derive(Clone, PartialEq, Default)]
pub struct Answer(pub pb::Outcome);

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer(..)")
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Who a node is, as the membership tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub site: String,
    pub peer_address: String,
    pub client_address: String,
    pub keyed: bool,
    /// Of the node with keys that made it a member, see [`super::authors`].
    pub code: Option<Box<Code>>,
}
