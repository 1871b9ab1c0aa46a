//! Which nodes are members: an operator changes the directory's membership, all other groups follow it.
//!
//! The directory's members are the cluster's; a shard's are those that the directory has placed it on. Whoever leads a group
//! compares once a second, and takes the next step: who is no longer a node is left out; a node that the group is to have and
//! lacks becomes a learner; a learner that has caught up becomes a voter; and only then who has given its place to
//! others goes. Each step stands for itself: whoever leads next goes on where the last one stopped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use charthold_proto::internal as pb;
use prost::Message as _;
use tokio::time::Instant;

use super::Replica;
use super::form::FormError;
use super::propose::group_error;
use super::whereabouts::Whereabouts;
use crate::directory::{DirectoryView, placement};
use crate::peer::Lane;
use crate::peer::frame::Kind;
use crate::peer::leadership::Leadership;
use crate::shard::codec;
use crate::shard::group::{Group, GroupError};
use crate::shard::members::{Change, Composition, change_member, enough_are_up, keyless_are_few};
use crate::shard::types::Member;
use crate::{DIRECTORY, NodeId, ShardId};

const STEP_INTERVAL: Duration = Duration::from_secs(1);
/// Entries that a learner may lack when it gets its vote: from then on they may be waited for.
const BEHIND_MAX: u64 = 200;
/// For one try at one leader.
const TRY_MAX: Duration = Duration::from_secs(12);
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// What an operator wants.
#[derive(Clone, Debug)]
pub enum MemberChange {
    Add(NodeId, Member),
    Remove(NodeId),
}

/// Why the cluster's nodes were not changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChangeError {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Unreachable(#[from] FormError),
    /// It may have been done, or may be done yet. Safe to repeat.
    #[error("the directory's leader did not answer in time")]
    Unknown,
}

/// The cluster's nodes, and those of them that a group is to have.
struct Wanted {
    nodes: BTreeMap<NodeId, Member>,
    placed: BTreeMap<NodeId, Member>,
}

impl Wanted {
    fn of(shard: ShardId, nodes: BTreeMap<NodeId, Member>, cluster: Option<&pb::ClusterRow>) -> Self {
        let is_member = |id| nodes.contains_key(&id);
        let is_on = |id| cluster.is_none_or(|cluster| placement::is_on(cluster, shard.into(), id, is_member));
        let placed = nodes.iter().filter(|(id, _)| is_on(**id)).map(|(id, member)| (*id, member.clone()));
        Self { placed: placed.collect(), nodes }
    }

    /// All that the group is to have vote in it, or could at once.
    fn are_there(&self, group: &Composition, caught_up: impl Fn(NodeId) -> bool) -> bool {
        let is_there = |id: &NodeId| group.voters.contains(id) || group.members.contains_key(id) && caught_up(*id);
        self.placed.keys().all(is_there)
    }
}

/// What a group's leader does next, so that the group has the nodes that it is to have.
fn next_step(
    group: &Composition,
    wanted: &Wanted,
    own: NodeId,
    is_up: impl Fn(NodeId) -> bool,
    caught_up: impl Fn(NodeId) -> bool,
) -> Option<Change> {
    if group.changing {
        return Some(Change::Complete);
    }
    let voters_are_fine = |change: &Change| {
        let stays = |id: &&NodeId| !matches!(change, Change::Remove(gone) if gone == *id);
        let promoted = match change {
            Change::Promote(id) => Some(id),
            _ => None,
        };
        let voters = group.voters.iter().filter(stays).chain(promoted);
        let few = keyless_are_few(voters.clone().filter_map(|id| group.members.get(id)));
        few && (*change == Change::Complete || enough_are_up(voters.copied(), |id| id == own || is_up(id)))
    };
    // This node cannot leave what it leads: it hands over first, see [`leaves_itself`].
    let others = || group.members.keys().filter(|id| **id != own);
    let gone = others().filter(|id| !wanted.nodes.contains_key(id)).map(|id| Change::Remove(*id));
    let lacking = wanted.placed.iter().filter(|(id, _)| !group.members.contains_key(id));
    let lacking = lacking.map(|(id, member)| Change::AddLearner(*id, Box::new(member.clone())));
    let ready = group.learners().filter(|id| wanted.placed.contains_key(id) && caught_up(*id)).map(Change::Promote);
    let replaced = others().filter(|id| !wanted.placed.contains_key(id)).map(|id| Change::Remove(*id));
    let replaced = replaced.filter(|_| wanted.are_there(group, &caught_up));
    gone.chain(lacking).chain(ready).chain(replaced).find(voters_are_fine)
}

/// Whether a leader is not to be a member any more, and others are there to take its place.
fn leaves_itself(group: &Composition, wanted: &Wanted, own: NodeId, caught_up: impl Fn(NodeId) -> bool) -> bool {
    let leaves = group.members.contains_key(&own) && !wanted.placed.contains_key(&own);
    leaves && (!wanted.nodes.contains_key(&own) || wanted.are_there(group, caught_up))
}

/// Takes steps in whatever this node leads, for ever.
pub(super) async fn follow_directory(Whereabouts { groups, leadership, peers, state }: Whereabouts) {
    let directory = DirectoryView::new(state);
    loop {
        tokio::time::sleep(STEP_INTERVAL).await;
        let nodes = groups[usize::from(DIRECTORY)].composition().members;
        if nodes.is_empty() {
            continue;
        }
        peers.forget_all_but(|id| nodes.contains_key(&id));
        // What cannot be read now is read the next time: until then nobody moves.
        let Ok(cluster) = directory.cluster() else { continue };
        // What a node without keys would change, those with keys would refuse.
        let led = groups.iter().filter(|group| leadership.keyed && group.leads());
        let wanted = |group: &Group| Wanted::of(group.shard, nodes.clone(), cluster.as_ref());
        let step = |group| take_step(group, wanted(group), &leadership);
        futures::future::join_all(led.map(step)).await;
    }
}

async fn take_step(group: &Arc<Group>, wanted: Wanted, leadership: &Leadership) {
    let composition = group.composition();
    let is_up = |id| leadership.is_heard(id);
    // One that has nothing yet may be vacant: with a vote it would be waited for, and it waits for the leader.
    let behind = group.followers_since(group.members_at());
    let caught_up = |id| is_up(id) && behind.get(&id).is_some_and(|behind| *behind <= BEHIND_MAX);
    if leaves_itself(&composition, &wanted, group.node, caught_up) {
        let stays = |node| wanted.placed.contains_key(&node) && leadership.willing_for(node).is_some();
        return group.hand_over_to(|node, behind| behind <= BEHIND_MAX && stays(node)).await;
    }
    let Some(step) = next_step(&composition, &wanted, group.node, is_up, caught_up) else { return };
    let what = match &step {
        Change::Complete => "a change of the members that was begun is completed",
        Change::AddLearner(..) => "a node gets a replica, and catches up",
        Change::Promote(_) => "a replica has caught up, and votes from now on",
        Change::Remove(_) => "a replica is taken out",
    };
    match group.change(step).await {
        Ok(()) => tracing::info!(shard = group.shard, "{what}"),
        // The next look sees what became of it.
        Err(error) => tracing::debug!(shard = group.shard, %error, "a change of the members was not made"),
    }
}

impl Replica {
    /// Who listens for peers at an address, as the member that this node would make it.
    pub async fn find_candidate(&self, address: &str) -> Result<(NodeId, Member), ChangeError> {
        let hello = self.probe(address).await?;
        let member = hello.member.unwrap_or_default();
        let (id, member) = (member.id, codec::member_from_pb(member));
        if member.keyed && hello.key_check != self.greeter.key_check {
            return Err(ChangeError::Refused(format!("node {} holds another root key than this cluster", member.name)));
        }
        Ok((id, self.authors.vouch(id, member)))
    }

    /// Whether the directory's leader would make that change now.
    pub async fn may_change_member(&self, change: MemberChange, deadline: Instant) -> Result<(), ChangeError> {
        self.ask_or_change(change, true, deadline).await
    }

    /// Has the directory's leader make a node a member, or no member any more. Fine to repeat.
    pub async fn change_member(&self, change: MemberChange, deadline: Instant) -> Result<(), ChangeError> {
        self.ask_or_change(change, false, deadline).await
    }

    async fn ask_or_change(&self, change: MemberChange, ask: bool, deadline: Instant) -> Result<(), ChangeError> {
        use pb::change_member_request::Change as Wanted;
        let change = match change {
            MemberChange::Add(id, member) => Wanted::Add(codec::member_to_pb(id, &member)),
            MemberChange::Remove(id) => Wanted::Remove(id),
        };
        let request = pb::ChangeMemberRequest { change: Some(change), ask };
        loop {
            match self.ask_directory_leader(&request).await {
                Ok(answer) if answer.refused.is_empty() => return Ok(()),
                Ok(answer) => return Err(ChangeError::Refused(answer.refused)),
                Err(error) if Instant::now() + RETRY_AFTER >= deadline => {
                    tracing::debug!(%error, "the directory's members were not changed in time");
                    return Err(ChangeError::Unknown);
                }
                Err(_) => tokio::time::sleep(RETRY_AFTER).await,
            }
        }
    }

    async fn ask_directory_leader(
        &self,
        request: &pb::ChangeMemberRequest,
    ) -> Result<pb::ChangeMemberResponse, GroupError> {
        let directory = self.group(DIRECTORY);
        let (leader, member) = directory.keyed_leader()?;
        if leader == self.node_id {
            return change_member(&self.groups, &self.greeter.leadership, request.clone()).await;
        }
        let client = self.peers.client(leader, &member.peer_address);
        let payload = request.encode_to_vec().into();
        let answer = client.call(Lane::Control, Kind::ChangeMember, DIRECTORY, payload, TRY_MAX).await;
        pb::ChangeMemberResponse::decode(answer.map_err(group_error)?).map_err(|_| GroupError::Unknown)
    }

    /// Tells a member to give way, or that it may lead again.
    pub async fn tell_to_give_way(&self, node: NodeId, give_way: bool) -> Result<(), ChangeError> {
        if node == self.node_id {
            self.give_way(give_way);
            return Ok(());
        }
        let member = self.group(DIRECTORY).member(node);
        let member = member.ok_or_else(|| ChangeError::Refused("no such node".to_owned()))?;
        let client = self.peers.client(node, &member.peer_address);
        let payload = pb::GiveWayRequest { give_way }.encode_to_vec().into();
        let told = client.call(Lane::Control, Kind::GiveWay, DIRECTORY, payload, TRY_MAX).await;
        told.map(|_| ()).map_err(|failure| {
            FormError::Unreachable { address: member.peer_address, detail: failure.to_string() }.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::members::tests::{composition, nodes};

    fn wanted(placed: &str, others: &str) -> Wanted {
        Wanted { nodes: nodes(&[placed, others].concat()), placed: nodes(placed) }
    }

    /// The next step of a group that A leads, in one letter and the node's. D is down.
    fn step(voters: &str, learners: &str, wanted: &Wanted, caught_up: &str) -> String {
        let of = |id: NodeId| char::from(id as u8);
        let (is_up, caught_up) = (|id| of(id) != 'D', |id| caught_up.contains(of(id)));
        match next_step(&composition(voters, learners), wanted, NodeId::from(b'A'), is_up, caught_up) {
            None => "-".to_owned(),
            Some(Change::Complete) => "complete".to_owned(),
            Some(Change::AddLearner(id, _)) => format!("add {}", of(id)),
            Some(Change::Promote(id)) => format!("promote {}", of(id)),
            Some(Change::Remove(id)) => format!("remove {}", of(id)),
        }
    }

    #[test]
    fn a_group_gets_what_the_directory_has() {
        for (voters, learners, placed, caught_up, expected) in [
            ("ABC", "", "ABC", "", "-"),
            ("ABC", "", "ABCE", "", "add E"),
            ("ABC", "E", "ABCE", "", "-"),
            ("ABC", "E", "ABCE", "E", "promote E"),
            ("ABC", "DE", "ABCDE", "E", "promote E"),
            ("ABCDE", "", "ABC", "", "remove D"),
            // With one down, of two both would be needed.
            ("ABD", "", "AD", "", "-"),
            ("ABD", "", "AB", "", "remove D"),
            ("ABC", "D", "ABC", "D", "remove D"),
            // What is gone goes before what is new comes.
            ("ABC", "", "ABD", "", "remove C"),
            // It hands over, and its successor takes it out.
            ("ABC", "", "BC", "", "-"),
            // Keyless ones stay few.
            ("A", "k", "Ak", "k", "-"),
            ("AB", "k", "ABk", "k", "promote k"),
            ("ABk", "", "AB", "", "remove k"),
            ("ABCkl", "", "ABkl", "", "-"),
            ("ABCkl", "", "ABk", "", "remove l"),
            ("AB", "kC", "ABkC", "kC", "promote C"),
        ] {
            let found = step(voters, learners, &wanted(placed, ""), caught_up);
            assert_eq!(found, expected, "{voters} {learners} to {placed}");
        }
        let mut changing = composition("ABC", "");
        changing.changing = true;
        let wanted = wanted("AB", "");
        assert_eq!(next_step(&changing, &wanted, NodeId::from(b'A'), |_| true, |_| true), Some(Change::Complete));
    }

    #[test]
    fn a_shard_moves_before_its_old_place_is_given_up() {
        for (voters, learners, placed, others, caught_up, expected) in [
            ("ABC", "", "ABE", "C", "", "add E"),
            ("ABC", "E", "ABE", "C", "", "-"),
            ("ABC", "E", "ABE", "C", "E", "promote E"),
            ("ABCE", "", "ABE", "C", "", "remove C"),
            ("ABE", "", "ABE", "C", "", "-"),
            // Who is no node any more does not wait for others.
            ("ABC", "", "ABE", "", "", "remove C"),
            // Keyless ones stay few: the old one goes as soon as the new one could vote.
            ("ABk", "l", "ABl", "k", "", "-"),
            ("ABk", "l", "ABl", "k", "l", "remove k"),
            ("AB", "l", "ABl", "k", "l", "promote l"),
            // From everywhere to three.
            ("ABCEF", "", "ABC", "EF", "", "remove E"),
            ("ABCF", "", "ABC", "EF", "", "remove F"),
        ] {
            let found = step(voters, learners, &wanted(placed, others), caught_up);
            assert_eq!(found, expected, "{voters} {learners} to {placed} of {others}");
        }
        let leaves = |voters, placed, others| {
            leaves_itself(&composition(voters, ""), &wanted(placed, others), NodeId::from(b'A'), |_| false)
        };
        assert!(!leaves("ABC", "ABC", "") && leaves("ABC", "BC", ""));
        assert!(!leaves("ABC", "BCE", "A"), "E is not there yet");
        assert!(leaves("ABCE", "BCE", "A"));
    }
}
