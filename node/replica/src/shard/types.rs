//! openraft's types for our groups.

use std::fmt;

use bytes::Bytes;
use charthold_proto::internal as pb;

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
///
/// The trace that it belongs to goes with it to this node's log, and is not stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes, pub Option<Context>);

impl From<Bytes> for Proposal {
    fn from(command: Bytes) -> Self {
        Self(command, None)
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
