//! Where a shard is, as this node knows: with a replica here, or on other nodes.
//!
//! A replica here knows who leads. Without one this node goes by what the others tell every second, and by the directory for
//! what a shard holds: both may be old, and whoever is asked then says so.

use std::sync::Arc;
use std::time::Duration;

use charthold_proto::internal as pb;
use prost::Message as _;

use super::peers::Peers;
use super::propose::group_error;
use crate::directory::{DirectoryView, plan};
use crate::peer::Lane;
use crate::peer::frame::Kind;
use crate::peer::leadership::Leadership;
use crate::shard::group::{Confirmed, Group, GroupError};
use crate::shard::types::Member;
use crate::store::state::flusher::StateStore;
use crate::{DIRECTORY, NodeId, ShardId, Slot};

/// What all parts of a node that look for a shard share.
#[derive(Clone)]
pub(super) struct Whereabouts {
    pub groups: Vec<Arc<Group>>,
    pub leadership: Arc<Leadership>,
    pub peers: Arc<Peers>,
    pub state: StateStore,
}

impl Whereabouts {
    pub fn new(groups: &[Arc<Group>], leadership: &Arc<Leadership>, peers: &Arc<Peers>, state: &StateStore) -> Self {
        let (leadership, peers) = (Arc::clone(leadership), Arc::clone(peers));
        Self { groups: groups.to_vec(), leadership, peers, state: state.clone() }
    }

    pub fn group(&self, shard: ShardId) -> &Arc<Group> {
        &self.groups[usize::from(shard)]
    }

    /// Whether this node's own replica is the one to ask.
    pub fn is_here(&self, shard: ShardId) -> bool {
        self.group(shard).is_here()
    }

    /// A shard's leader, as far as this node knows.
    pub fn leader(&self, shard: ShardId) -> Option<(NodeId, Member)> {
        if self.is_here(shard) {
            return self.group(shard).leader();
        }
        let leader = self.leadership.leader_of(shard)?;
        Some((leader, self.group(DIRECTORY).member(leader)?))
    }

    /// The one that gateways ask, as [`Group::keyed_leader`].
    pub fn keyed_leader(&self, shard: ShardId) -> Result<(NodeId, Member), GroupError> {
        self.leader(shard).filter(|(_, member)| member.keyed).ok_or(GroupError::NotLeader { leader: None })
    }

    /// The shard that holds a slot; none while it goes from one to another.
    pub fn shard_of(&self, slot: Slot) -> Option<ShardId> {
        let here = self.state.slots().shard_of(slot).filter(|shard| self.is_here(*shard));
        here.or_else(|| self.planned_for(slot))
    }

    /// By the directory's plan, if that shard is not here: one that is knows better.
    fn planned_for(&self, slot: Slot) -> Option<ShardId> {
        let cluster = DirectoryView::new(self.state.clone()).cluster().ok().flatten()?;
        let holds = |range: &&pb::ShardRange| plan::slots_of(range).is_some_and(|slots| slots.contains(slot));
        let shard = cluster.shards.iter().find(holds)?.shard.try_into().ok()?;
        (!self.is_here(shard)).then_some(shard)
    }

    /// Asks the leader of a shard that is not here where it is, and to be there with what it has applied.
    pub async fn ask_leader(
        &self,
        shard: ShardId,
        confirmed: Confirmed,
        limit: Duration,
    ) -> Result<(NodeId, pb::ReadIndexResponse), GroupError> {
        let (leader, member) = self.keyed_leader(shard)?;
        let client = self.peers.client(leader, &member.peer_address);
        let request = pb::ReadIndexRequest { lease: confirmed == Confirmed::ByLease, applied: true }.encode_to_vec();
        let answer = client.call(Lane::Control, Kind::ReadIndex, shard, request.into(), limit).await;
        let answer = pb::ReadIndexResponse::decode(answer.map_err(group_error)?).map_err(|_| GroupError::Unknown)?;
        Ok((leader, answer))
    }
}
