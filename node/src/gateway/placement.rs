//! Shards on a part of the nodes: planned, and recorded in the directory, with who asked for it; members and replicas follow
//! ([`charthold_replica::directory::placement`]).
//!
//! Once an operator has said how many replicas a shard is to have, those of a node that is gone get others in their place by
//! themselves: at once if it is no member any more; if it is silent, after the time that the configuration says. The node
//! that leads the directory sees to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use charthold_proto::internal as pb;
use charthold_proto::v1::{
    PlaceShardsRequest, PlaceShardsResponse, PlanShardsRequest, PlanShardsResponse, PlannedShard, RequestContext,
    ShardPlacement,
};
use charthold_replica::directory::placement::{self, Node, Placement, State};
use charthold_replica::directory::plan;
use charthold_replica::replica::observe::NodeView;
use charthold_replica::shard::command::Command;
use charthold_replica::{DIRECTORY, NodeId, SHARD_COUNT, Slots, format};
use tokio::time::Instant;

use super::audit::BY_ITSELF;
use super::error::GatewayError;
use super::nodes::{Audited, Recorded};
use super::status::node_id;
use super::validate::Violations;
use super::{Gateway, formats};

/// Of fewer replicas none may be lost.
const REPLICAS_MIN: usize = 3;
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const REPAIR_MAX: Duration = Duration::from_secs(10);
/// In the ledger, of a repair.
const WHY: &str = "a node with replicas is gone";

impl Gateway {
    /// Not recorded: it changes nothing.
    pub(super) async fn plan_shards(
        &self,
        request: PlanShardsRequest,
        deadline: Instant,
    ) -> Result<PlanShardsResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.into_result()?;
        let cluster = self.cluster_row(deadline).await?;
        formats::check(&cluster, format::PLACES_SHARDS)?;
        let mut nodes = nodes_of(&self.replica.survey().await);
        leave(&mut nodes, &request)?;
        let now = placement::now(&cluster);
        let then = placement::best(&nodes, &now, request.replicas);
        let planned = |(shard, then): (&u32, &Option<Vec<NodeId>>)| PlannedShard {
            shard: *shard,
            now_node_ids: ids(&nodes, placement::of(&cluster, *shard)),
            then_node_ids: ids(&nodes, then.as_deref()),
        };
        Ok(PlanShardsResponse {
            answer: self.answer(DIRECTORY, self.replica.seq(DIRECTORY)),
            shards: then.iter().map(planned).collect(),
        })
    }

    pub(super) async fn place_shards(
        &self,
        operator: &str,
        request: PlaceShardsRequest,
        deadline: Instant,
    ) -> Result<PlaceShardsResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.into_result()?;
        let cluster = self.cluster_row(deadline).await?;
        formats::check(&cluster, format::PLACES_SHARDS)?;
        let views = self.replica.survey().await;
        let placements = wanted(&request, &cluster, &nodes_of(&views))?;
        check_held(&cluster, &views)?;
        let replicas = request.replicas;
        let done = self.record_placements(operator, request, placements, deadline).await?;
        tracing::info!(replicas, "an operator had shards placed");
        Ok(PlaceShardsResponse { answer: self.answer(DIRECTORY, done.seq) })
    }

    async fn record_placements(
        &self,
        operator: &str,
        request: PlaceShardsRequest,
        placements: Vec<pb::ShardPlacement>,
        deadline: Instant,
    ) -> Result<pb::Done, GatewayError> {
        let (replicas, subject) = (request.replicas, self.said_of(&placements));
        let audited = Audited {
            method: "PlaceShards",
            operator,
            context: request.context,
            request_id: &request.request_id,
            said: PlaceShardsRequest { placements: request.placements, replicas, ..Default::default() },
            subject: &subject,
        };
        let command = |Recorded { request_id, audit_event, fingerprint }: Recorded| {
            Command::PlaceShards(pb::PlaceShards { request_id, placements, replicas, audit_event, fingerprint })
        };
        self.record_change(audited, command, deadline).await
    }

    /// `1: a1 b1 c1; 2: every node`
    fn said_of(&self, placements: &[pb::ShardPlacement]) -> String {
        let members = self.replica.members();
        let name = |id: &NodeId| {
            let member = members.iter().find(|(other, _)| other == id);
            member.map_or_else(|| node_id(*id), |(_, member)| member.name.clone())
        };
        let names = |nodes: &[NodeId]| match nodes {
            [] => "every node".to_owned(),
            nodes => nodes.iter().map(name).collect::<Vec<_>>().join(" "),
        };
        let shards = placements.iter().map(|placed| format!("{}: {}", placed.shard, names(&placed.nodes)));
        shards.collect::<Vec<_>>().join("; ")
    }
}

/// Nodes that are to have nothing are as those that do not answer.
fn leave(nodes: &mut [Node], request: &PlanShardsRequest) -> Result<(), GatewayError> {
    let mut violations = Violations::default();
    check_replicas(&mut violations, request.replicas, nodes.len());
    let known = request.leave_nodes.iter().all(|name| nodes.iter().any(|node| node.name == *name));
    violations.check(known, "leave_nodes", "must be names of this cluster's nodes");
    let some = request.leave_nodes.is_empty() || request.replicas > 0;
    violations.check(some, "leave_nodes", "means nothing where each shard is on every node");
    violations.into_result()?;
    nodes.iter_mut().filter(|node| request.leave_nodes.contains(&node.name)).for_each(|node| node.state = State::Away);
    Ok(())
}

/// What a request asks for, if it can be.
fn wanted(
    request: &PlaceShardsRequest,
    cluster: &pb::ClusterRow,
    nodes: &[Node],
) -> Result<Vec<pb::ShardPlacement>, GatewayError> {
    let mut violations = Violations::default();
    check_replicas(&mut violations, request.replicas, nodes.len());
    let few = request.placements.len() <= usize::from(SHARD_COUNT);
    violations.check(few, "placements", "are more than there can be shards");
    violations.into_result()?;
    let (mut violations, mut wanted) = (Violations::default(), Vec::new());
    for (number, asked) in request.placements.iter().enumerate() {
        let field = |name: &str| format!("placements[{number}].{name}");
        violations.check(plan::has(&cluster.shards, asked.shard), field("shard"), "is none that holds anything");
        let before = request.placements[..number].iter().any(|other| other.shard == asked.shard);
        violations.check(!before, field("shard"), "is named twice");
        let named = nodes.iter().filter(|node| asked.node_ids.contains(&node_id(node.id))).collect::<Vec<_>>();
        let known = named.len() == asked.node_ids.len();
        violations.check(known, field("node_ids"), "must be nodes of this cluster, each once");
        let keyless_are_few = named.is_empty() || placement::keyless_are_few(named.iter().copied());
        violations.check(keyless_are_few, field("node_ids"), "must be nodes with keys for more than half");
        let enough = named.is_empty() || named.len() >= REPLICAS_MIN;
        violations.check(enough, field("node_ids"), format_args!("must be {REPLICAS_MIN} at least"));
        wanted.push(pb::ShardPlacement { shard: asked.shard, nodes: named.iter().map(|node| node.id).collect() });
    }
    violations.into_result()?;
    Ok(wanted)
}

fn check_replicas(violations: &mut Violations, replicas: u32, nodes: usize) {
    // Of an even number no more may be lost than of one less.
    let odd = replicas == 0 || replicas as usize >= REPLICAS_MIN && !replicas.is_multiple_of(2);
    violations.check(odd, "replicas", format_args!("must be 0, or an odd number from {REPLICAS_MIN} on"));
    violations.check(replicas as usize <= nodes, "replicas", format_args!("are more than the cluster's {nodes} nodes"));
}

/// Refuses while shards are split: what one gives and another one takes has to be on the same nodes.
pub(super) fn check_held(cluster: &pb::ClusterRow, nodes: &[NodeView]) -> Result<(), GatewayError> {
    let held = |range: &&pb::ShardRange| leaders_views(nodes, range.shard).any(|view| holds(view, range));
    match cluster.shards.iter().find(|range| !held(range)) {
        None => Ok(()),
        Some(range) => Err(GatewayError::CannotChange(format!(
            "shard {} has no leader that answers and holds what it is to hold: it is being split, or too few of its nodes \
             are up; charthold shard list shows when that is over, then try again",
            range.shard
        ))),
    }
}

/// Refuses to remove a node that a shard, wherever it is, needs for a majority now.
pub(super) fn check_removal(cluster: &pb::ClusterRow, nodes: &[NodeView], id: NodeId) -> Result<(), GatewayError> {
    let answers = |voter: &&NodeId| nodes.iter().any(|node| node.id == **voter && node.status.is_ok());
    let decides = |view: &pb::GroupStatus| {
        let left = view.voters.iter().filter(|voter| **voter != id).collect::<Vec<_>>();
        2 * left.iter().filter(|voter| answers(voter)).count() > left.len()
    };
    let goes_on = |shard: u32| leaders_views(nodes, shard).any(decides);
    match cluster.placements.iter().find(|placed| !goes_on(placed.shard)) {
        None => Ok(()),
        Some(placed) => Err(GatewayError::CannotChange(format!(
            "of shard {} too few nodes would be left that answer, or it has no leader: start its nodes, or place it on \
             others first (charthold shard apply)",
            placed.shard
        ))),
    }
}

/// What those who say that they lead a shard say of it.
fn leaders_views(nodes: &[NodeView], shard: u32) -> impl Iterator<Item = &pb::GroupStatus> {
    let views = nodes.iter().filter_map(|node| Some((node.id, node.status.as_ref().ok()?)));
    let views = views.flat_map(|(id, status)| status.groups.iter().map(move |view| (id, view)));
    views.filter(move |(id, view)| view.shard == shard && view.leader == *id).map(|(_, view)| view)
}

fn holds(view: &pb::GroupStatus, range: &pb::ShardRange) -> bool {
    view.slots.as_ref().and_then(Slots::from_pb) == plan::slots_of(range)
}

/// The members, in order of their names.
fn nodes_of(views: &[NodeView]) -> Vec<Node> {
    let node = |view: &NodeView| Node {
        id: view.id,
        name: view.member.name.clone(),
        site: view.member.site.clone(),
        keyed: view.member.keyed,
        state: if view.status.is_ok() { State::Well } else { State::Away },
    };
    let mut nodes = views.iter().map(node).collect::<Vec<_>>();
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    nodes
}

/// Of those that a shard is on, in order of the nodes' names; who is no member any more comes last.
fn ids(nodes: &[Node], on: Option<&[NodeId]>) -> Vec<String> {
    let members = nodes.iter().map(|node| node.id).filter(|id| on.is_none_or(|on| on.contains(id)));
    let gone = on.into_iter().flatten().copied().filter(|id| nodes.iter().all(|node| node.id != *id));
    members.chain(gone).map(node_id).collect()
}

/// Looks for ever whether a node with replicas is gone. One that is silent is for so many seconds only away; 0: for ever.
pub async fn watch(gateway: Arc<Gateway>, replace_after_s: u32) {
    let after = (replace_after_s > 0).then(|| Duration::from_secs(replace_after_s.into()));
    let mut silent = Silent { after, since: BTreeMap::new() };
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        if let Err(error) = gateway.replace_who_is_gone(&mut silent).await {
            tracing::warn!(%error, "replicas of a node that is gone were not placed elsewhere: it will be tried again");
        }
    }
}

/// Nodes that do not answer, and since when.
struct Silent {
    after: Option<Duration>,
    since: BTreeMap<NodeId, Instant>,
}

impl Silent {
    /// Who was away at every look for so long is gone.
    fn look(&mut self, nodes: &mut [Node], now: Instant) {
        self.since.retain(|id, _| nodes.iter().any(|node| node.id == *id && node.state != State::Well));
        for node in nodes.iter_mut().filter(|node| node.state != State::Well) {
            let since = *self.since.entry(node.id).or_insert(now);
            if self.after.is_some_and(|after| now.duration_since(since) >= after) {
                node.state = State::Gone;
            }
        }
    }
}

impl Gateway {
    async fn replace_who_is_gone(&self, silent: &mut Silent) -> Result<(), GatewayError> {
        let leads = self.replica.leader(DIRECTORY).is_some_and(|(id, _)| id == self.replica.node_id);
        let cluster = self.replica.directory().cluster()?;
        let Some(cluster) = cluster.filter(|cluster| leads && cluster.replicas > 0) else {
            silent.since.clear();
            return Ok(());
        };
        let views = self.replica.survey().await;
        let mut nodes = nodes_of(&views);
        silent.look(&mut nodes, Instant::now());
        let mut repaired = placement::repair(&nodes, &placement::now(&cluster));
        keep_with_givers(&cluster, &views, &mut repaired);
        if repaired.is_empty() {
            return Ok(());
        }
        tracing::info!(shards = repaired.len(), "a node with replicas is gone: others get them");
        let placements = repaired.into_iter().map(|(shard, on)| (shard, on.unwrap_or_default())).collect::<Vec<_>>();
        let said = |(shard, on): &(u32, Vec<NodeId>)| ShardPlacement {
            shard: *shard,
            node_ids: on.iter().map(|id| node_id(*id)).collect(),
        };
        let context = RequestContext { actor: BY_ITSELF.to_owned(), reason: WHY.to_owned(), ..Default::default() };
        let request = PlaceShardsRequest {
            context: Some(context),
            request_id: uuid::Uuid::now_v7().to_string(),
            placements: placements.iter().map(said).collect(),
            replicas: cluster.replicas,
        };
        let placements = placements.into_iter().map(|(shard, nodes)| pb::ShardPlacement { shard, nodes }).collect();
        self.record_placements(BY_ITSELF, request, placements, Instant::now() + REPAIR_MAX).await.map(drop)
    }
}

/// A shard that is yet to be given what it is to hold is where its giver is: else it would not be given. (A giver has the
/// lower number, so it has its place by then.)
fn keep_with_givers(cluster: &pb::ClusterRow, nodes: &[NodeView], repaired: &mut Placement) {
    let now = placement::now(cluster);
    for range in cluster.shards.iter().filter(|range| range.parent != 0) {
        let mut views = leaders_views(nodes, range.shard).peekable();
        let holds_nothing = views.peek().is_some() && views.all(|view| view.slots.is_none());
        let giver = repaired.get(&range.parent).or(now.get(&range.parent)).cloned();
        match giver.filter(|_| holds_nothing) {
            Some(giver) if now.get(&range.shard) == Some(&giver) => _ = repaired.remove(&range.shard),
            Some(giver) => _ = repaired.insert(range.shard, giver),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use charthold_replica::shard::types::Member;

    use super::*;

    fn node(id: NodeId, name: &str, keyed: bool) -> Node {
        Node { id, name: name.to_owned(), site: name[..1].to_owned(), keyed, state: State::Well }
    }

    fn nodes() -> Vec<Node> {
        vec![node(1, "a1", true), node(2, "b1", true), node(3, "c1", false), node(4, "d1", false)]
    }

    fn cluster() -> pb::ClusterRow {
        pb::ClusterRow { shards: plan::begin(2), ..Default::default() }
    }

    fn asked(replicas: u32, placements: &[(u32, &[NodeId])]) -> Result<Vec<Vec<NodeId>>, String> {
        let placed = |(shard, on): &(u32, &[NodeId])| ShardPlacement {
            shard: *shard,
            node_ids: on.iter().map(|id| node_id(*id)).collect(),
        };
        let placements = placements.iter().map(placed).collect();
        let request = PlaceShardsRequest { placements, replicas, ..Default::default() };
        match wanted(&request, &cluster(), &nodes()) {
            Ok(wanted) => Ok(wanted.into_iter().map(|placed| placed.nodes).collect()),
            Err(GatewayError::Invalid(violations)) => Err(violations[0].field.clone()),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(asked(3, &[(1, &[3, 2, 1]), (2, &[])]), Ok(vec![vec![1, 2, 3], vec![]]));
        assert_eq!(asked(0, &[]), Ok(vec![]));
        for (replicas, placements, field) in [
            (1, &[][..], "replicas"),
            (4, &[], "replicas"),
            (5, &[], "replicas"),
            (3, &[(3, &[1, 2, 3][..])], "placements[0].shard"),
            (3, &[(1, &[1, 2, 3]), (1, &[1, 2, 3])], "placements[1].shard"),
            (3, &[(1, &[1, 2, 5])], "placements[0].node_ids"),
            (3, &[(1, &[1, 2, 2])], "placements[0].node_ids"),
            (3, &[(1, &[1, 3, 4])], "placements[0].node_ids"),
            (3, &[(2, &[][..]); 9], "placements"),
        ] {
            assert_eq!(asked(replicas, placements), Err(field.to_owned()));
        }
    }

    #[test]
    fn nodes_can_be_left_out_of_a_plan() {
        let left = |replicas: u32, names: &[&str]| {
            let leave_nodes = names.iter().map(|name| (*name).to_owned()).collect();
            let mut nodes = nodes();
            let request = PlanShardsRequest { replicas, leave_nodes, ..Default::default() };
            let well = |nodes: &[Node]| nodes.iter().filter(|node| node.state == State::Well).count();
            leave(&mut nodes, &request).is_ok().then(|| well(&nodes))
        };
        assert_eq!([left(3, &[]), left(3, &["b1"]), left(0, &[])], [Some(4), Some(3), Some(4)]);
        assert_eq!([left(3, &["x1"]), left(0, &["b1"]), left(2, &[])], [None; 3]);
    }

    /// Nodes 1 and 2: which shards they lead, and which plan these follow.
    fn views(led: [(&[u32], &[pb::ShardRange]); 2]) -> Vec<NodeView> {
        let view = |(id, (led, held)): (NodeId, (&[u32], &[pb::ShardRange]))| {
            let group = |range: &pb::ShardRange| pb::GroupStatus {
                shard: range.shard,
                leader: if led.contains(&range.shard) { id } else { 0 },
                slots: plan::slots_of(range).map(Slots::to_pb),
                ..Default::default()
            };
            let status = pb::NodeStatus { groups: held.iter().map(group).collect(), ..Default::default() };
            let member = Member {
                name: format!("a{id}"),
                site: "a".to_owned(),
                peer_address: String::new(),
                client_address: String::new(),
                keyed: true,
                code: None,
            };
            NodeView { id, member, status: Ok(status) }
        };
        (1..).zip(led).map(view).collect()
    }

    #[test]
    fn nothing_is_placed_while_a_shard_is_split() {
        let (one, two) = (plan::begin(1), plan::split(&plan::begin(1), 1).unwrap());
        let cluster = pb::ClusterRow { shards: two.clone(), ..Default::default() };
        for (led, held) in [
            ([(&[1][..], &two[..]), (&[2][..], &two[..])], true),
            // Nobody leads the second; a follower may be behind.
            ([(&[1], &two), (&[], &one)], false),
            ([(&[1], &one), (&[2], &two)], false),
            // One that was deposed does not know it yet.
            ([(&[1], &one), (&[1, 2], &two)], true),
        ] {
            let views = views(led);
            assert_eq!(check_held(&cluster, &views).is_ok(), held);
        }
    }

    #[test]
    fn a_shard_is_where_its_giver_is_until_it_holds_something() {
        let (one, two) = (plan::begin(1), plan::split(&plan::begin(1), 1).unwrap());
        let mut cluster = pb::ClusterRow { shards: two.clone(), ..Default::default() };
        cluster.placements.push(pb::ShardPlacement { shard: 1, nodes: vec![1, 2, 3] });
        cluster.placements.push(pb::ShardPlacement { shard: 2, nodes: vec![1, 2, 3] });
        let moved = || Placement::from([(1, Some(vec![1, 2, 4])), (2, Some(vec![1, 2, 5]))]);
        let kept = |led: [(&[u32], &[pb::ShardRange]); 2]| {
            let mut repaired = moved();
            keep_with_givers(&cluster, &views(led), &mut repaired);
            repaired
        };
        assert_eq!(kept([(&[1, 2], &two), (&[], &two)]), moved(), "it holds its part");
        let spare = pb::ShardRange { shard: 2, first_slot: 1, last_slot: 0, parent: 1 };
        let not_yet = [one[0], spare];
        assert_eq!(kept([(&[1, 2], &not_yet), (&[], &two)])[&2], Some(vec![1, 2, 4]));
        assert_eq!(kept([(&[1], &one), (&[], &one)]), moved(), "nobody says what it holds");
        let mut alone = Placement::from([(2, Some(vec![1, 2, 5]))]);
        keep_with_givers(&cluster, &views([(&[1, 2], &not_yet), (&[], &two)]), &mut alone);
        assert_eq!(alone, Placement::new(), "its giver stays");
    }

    #[test]
    fn a_node_that_a_shard_needs_stays() {
        let mut cluster = cluster();
        cluster.placements.push(pb::ShardPlacement { shard: 2, nodes: vec![1, 2, 3] });
        let removal = |voters: &[NodeId], led: &[u32], id: NodeId| {
            let mut views = views([(led, &cluster.shards), (&[], &cluster.shards)]);
            let status = views[0].status.as_mut().unwrap();
            status.groups.iter_mut().for_each(|group| group.voters = voters.to_vec());
            check_removal(&cluster, &views, id).is_ok()
        };
        assert!(removal(&[1, 2, 3], &[2], 3), "it does not answer anyway");
        assert!(!removal(&[1, 2, 3], &[2], 2), "3 does not answer");
        assert!(removal(&[1, 2], &[2], 3) && !removal(&[1, 2, 3], &[], 3), "without a leader nothing is known");
        assert!(!removal(&[1], &[2], 1), "the last one");
    }

    #[test]
    fn who_is_silent_for_long_is_gone() {
        let begin = Instant::now();
        let mut silent = Silent { after: Some(Duration::from_secs(60)), since: BTreeMap::new() };
        let mut look = |seconds: u64, state: State| {
            let mut nodes = nodes();
            nodes[1].state = state;
            silent.look(&mut nodes, begin + Duration::from_secs(seconds));
            nodes[1].state
        };
        assert_eq!(look(0, State::Away), State::Away);
        assert_eq!(look(59, State::Away), State::Away);
        assert_eq!(look(60, State::Away), State::Gone);
        assert_eq!(look(61, State::Well), State::Well);
        assert_eq!(look(62, State::Away), State::Away, "it begins anew");
        let mut never = Silent { after: None, since: BTreeMap::from([(2, begin)]) };
        let mut nodes = nodes();
        nodes[1].state = State::Away;
        never.look(&mut nodes, begin + Duration::from_secs(1_000_000));
        assert_eq!(nodes[1].state, State::Away);
    }
}
