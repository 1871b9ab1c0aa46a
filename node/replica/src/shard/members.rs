//! A group's membership: what it is, what it may become, and one change of it at a time.
//!
//! Keyless voters are a minority in every group, so that keyed nodes alone always decide; a change that goes over two
//! sets of voters goes over two such sets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use charthold_proto::internal as pb;
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};

use super::codec;
use super::group::{Group, GroupError};
use super::types::{Member, TypeConfig};
use crate::peer::leadership::Leadership;
use crate::{DIRECTORY, NodeId};

/// Nodes of a cluster: every one votes in the directory, and in every shard that is not placed otherwise.
pub const MEMBERS_MAX: usize = 7;

/// What a change gets to be committed. It may be yet, later.
const CHANGE_MAX: Duration = Duration::from_secs(10);

/// Who is in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Composition {
    /// A change has been begun, and needs the consent of two sets of voters until it is completed.
    pub changing: bool,
    pub voters: BTreeSet<NodeId>,
    /// All, voters or not.
    pub members: BTreeMap<NodeId, Member>,
}

impl Composition {
    /// Those that get all entries and have no vote.
    pub fn learners(&self) -> impl Iterator<Item = NodeId> {
        self.members.keys().copied().filter(|id| !self.voters.contains(id))
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Completes what another leader began.
    Complete,
    AddLearner(NodeId, Box<Member>),
    /// Gives a learner its vote.
    Promote(NodeId),
    /// Takes a voter or learner out.
    Remove(NodeId),
}

impl Group {
    pub fn composition(&self) -> Composition {
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        Composition {
            changing: membership.get_joint_config().len() > 1,
            voters: membership.voter_ids().collect(),
            members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
        }
    }

    /// On the leader: makes one change, and waits until it is committed.
    pub async fn change(&self, change: Change) -> Result<(), GroupError> {
        let is_voter = |id: &NodeId| self.composition().voters.contains(id);
        let one = |id: NodeId| BTreeSet::from([id]);
        let changes = match change {
            Change::Complete => ChangeMembers::AddVoterIds(BTreeSet::new()),
            Change::AddLearner(id, member) => ChangeMembers::AddNodes(BTreeMap::from([(id, *member)])),
            Change::Promote(id) => ChangeMembers::AddVoterIds(one(id)),
            Change::Remove(id) if is_voter(&id) => ChangeMembers::RemoveVoters(one(id)),
            Change::Remove(id) => ChangeMembers::RemoveNodes(one(id)),
        };
        // Who is no voter any more is no learner either.
        let changed = tokio::time::timeout(CHANGE_MAX, self.raft().change_membership(changes, false)).await;
        changed.map_err(|_| GroupError::Unknown)?.map(|_| ()).map_err(refusal)
    }
}

fn refusal(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> GroupError {
    match error {
        RaftError::Fatal(fatal) => GroupError::Stopped(fatal.to_string()),
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            GroupError::NotLeader { leader: forward.leader_id }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => GroupError::Unknown,
        // Another change is under way.
        RaftError::APIError(ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)) => {
            GroupError::Overloaded
        }
    }
}

/// Whether voters may be these: those without keys never decide, not even who leads.
pub(crate) fn keyless_are_few<'a>(members: impl Iterator<Item = &'a Member>) -> bool {
    let (total, keyless) = members.fold((0, 0), |(total, keyless), it| (total + 1, keyless + usize::from(!it.keyed)));
    2 * keyless < total
}

/// Whether voters may be these: with those that are up, they decide at once. (Else what began the change would wait for
/// its end, and everybody for that.)
pub(crate) fn enough_are_up(voters: impl Iterator<Item = NodeId>, is_up: impl Fn(NodeId) -> bool) -> bool {
    let (total, up) = voters.fold((0, 0), |(total, up), id| (total + 1, up + usize::from(is_up(id))));
    2 * up > total
}

/// On the directory's leader: makes one node more or less a member of the directory. Fine to repeat.
pub(crate) async fn change_member(
    groups: &[Arc<Group>],
    leadership: &Leadership,
    request: pb::ChangeMemberRequest,
) -> Result<pb::ChangeMemberResponse, GroupError> {
    use pb::change_member_request::Change as Wanted;
    let directory = &groups[usize::from(DIRECTORY)];
    if !directory.leads() || !leadership.keyed {
        return Err(GroupError::NotLeader { leader: None });
    }
    let (composition, only_asked) = (directory.composition(), request.ask);
    let is_up = |id| id == directory.node || leadership.is_heard(id);
    let checked = match request.change.ok_or(GroupError::Malformed)? {
        Wanted::Add(member) => may_add(&composition, member.id, codec::member_from_pb(member)),
        // Each shard must decide without it at once, also one that has not given all members a vote yet. What is on other
        // nodes only, its own leader looks at.
        Wanted::Remove(id) => {
            let here = groups.iter().filter(|group| group.is_here());
            may_remove(&composition, here.map(|group| group.composition().voters), id, is_up)
        }
    };
    let change = match checked {
        Ok(_) if only_asked => return Ok(pb::ChangeMemberResponse::default()),
        Ok(Some(Change::Remove(id))) if id == directory.node => {
            // Whoever leads next is asked again.
            directory.hand_over_to(|node, _| leadership.willing_for(node).is_some()).await;
            return Err(GroupError::NotLeader { leader: None });
        }
        Ok(Some(change)) => change,
        Ok(None) => return Ok(pb::ChangeMemberResponse::default()),
        Err(refused) => return Ok(pb::ChangeMemberResponse { refused }),
    };
    directory.change(change).await?;
    Ok(pb::ChangeMemberResponse::default())
}

/// What is to be done; nothing if it is done.
fn may_add(composition: &Composition, id: NodeId, member: Member) -> Result<Option<Change>, String> {
    if composition.members.get(&id) == Some(&member) {
        return Ok(None);
    }
    if composition.members.contains_key(&id) {
        let what = "is a member already; its name, site and addresses stay: remove it, and add it as a new node";
        return Err(format!("node {} {what}", member.name));
    }
    if composition.members.values().any(|other| other.name == member.name) {
        return Err(format!("the cluster has a node {} already: remove that first", member.name));
    }
    if composition.members.len() >= MEMBERS_MAX {
        return Err(format!(
            "the cluster has {MEMBERS_MAX} nodes: more would make every write slower, remove one first"
        ));
    }
    match keyless_are_few(composition.members.values().chain([&member])) {
        true => Ok(Some(Change::AddLearner(id, Box::new(member)))),
        false => Err("nodes without keys must be fewer than those with keys: add one with keys first".to_owned()),
    }
}

fn may_remove(
    composition: &Composition,
    mut voters: impl Iterator<Item = BTreeSet<NodeId>>,
    id: NodeId,
    is_up: impl Fn(NodeId) -> bool,
) -> Result<Option<Change>, String> {
    if !composition.members.contains_key(&id) {
        return Ok(None);
    }
    let mut left = composition.members.iter().filter(|(other, _)| **other != id).map(|(_, member)| member).peekable();
    if left.peek().is_none() {
        return Err("it is the cluster's last node".to_owned());
    }
    if !voters.all(|voters| enough_are_up(voters.into_iter().filter(|other| *other != id), &is_up)) {
        return Err("too few of the nodes that would be left can be reached: start them first".to_owned());
    }
    match keyless_are_few(left) {
        true => Ok(Some(Change::Remove(id))),
        false => Err("nodes without keys must be fewer than those with keys: remove one without keys first".to_owned()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Capital letters have keys.
    pub(crate) fn nodes(names: &str) -> BTreeMap<NodeId, Member> {
        let node = |name: char| {
            let keyed = name.is_uppercase();
            (NodeId::from(u32::from(name)), Member { name: name.to_string(), keyed, ..Member::default() })
        };
        names.chars().map(node).collect()
    }

    pub(crate) fn composition(voters: &str, learners: &str) -> Composition {
        let members = nodes(&[voters, learners].concat());
        Composition { changing: false, voters: nodes(voters).into_keys().collect(), members }
    }

    #[test]
    fn a_change_that_would_endanger_the_cluster_is_refused() {
        let three = composition("ABC", "");
        let add = |to: &Composition, name: char| {
            let (id, member) = nodes(&name.to_string()).into_iter().next().expect("one node");
            may_add(to, id, member)
        };
        assert!(matches!(add(&three, 'D'), Ok(Some(Change::AddLearner(..)))));
        assert_eq!(add(&three, 'C'), Ok(None));
        assert!(may_add(&three, 7, nodes("C")[&NodeId::from(b'C')].clone()).is_err(), "a second node of one name");
        assert!(add(&composition("ABCDEFG", ""), 'H').is_err());
        assert!(add(&composition("ABk", ""), 'l').is_err());
        let is_up = |id| id != NodeId::from(b'D');
        let remove = |from: &Composition, name: u8| {
            may_remove(from, std::iter::once(from.voters.clone()), NodeId::from(name), is_up)
        };
        assert!(matches!(remove(&three, b'C'), Ok(Some(Change::Remove(_)))));
        assert_eq!(remove(&three, b'X'), Ok(None));
        assert!(remove(&composition("ABk", ""), b'B').is_err());
        assert!(remove(&composition("A", ""), b'A').is_err());
        // D is down.
        assert!(remove(&composition("ABD", ""), b'B').is_err());
        assert!(remove(&composition("ABD", ""), b'D').is_ok());
        assert!(remove(&composition("ABCD", ""), b'B').is_ok());
        // In one shard E has no vote yet.
        let shards = ["ABDE", "ABD"].map(|voters| composition(voters, "").voters);
        assert!(may_remove(&composition("ABDE", ""), shards.into_iter(), NodeId::from(b'B'), is_up).is_err());
        let (id, mut member) = nodes("A").pop_first().expect("one node");
        member.peer_address = "elsewhere:1".to_owned();
        assert!(may_add(&three, id, member).is_err_and(|why| why.contains("is a member already")));
    }
}
