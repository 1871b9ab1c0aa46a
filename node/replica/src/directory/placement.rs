//! The placement: which nodes have a shard's replicas. Members follow it, see [`crate::replica::members`].
//!
//! A shard is placed on every node until somebody says otherwise. Who says so asks the planner first ([`best`]), whose rules
//! are, in this order: as many replicas as asked; a site has no more of them than it must; nodes without keys never decide;
//! every node has about as many as any other; what is there stays there.
//!
//! The planner is greedy. It chooses a shard's nodes one by one, those that have it first, and looks no further than at the
//! shard. Then it evens out: while a node has two replicas more than another that could have one of them, it gets it.

use std::collections::{BTreeMap, BTreeSet};

use charthold_proto::internal::{ClusterRow, ShardPlacement, ShardRange};

use super::plan;
use crate::NodeId;

/// Shards with their nodes; none: every node.
pub type Placement = BTreeMap<u32, Option<Vec<NodeId>>>;

/// A member of the cluster, as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub name: String,
    pub site: String,
    pub keyed: bool,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can be given replicas.
    Well,
    /// It is given none. A repair leaves it those that it has.
    Away,
    /// It is not coming back.
    Gone,
}

/// Where the directory has a shard; none: on every node, as the directory itself.
pub fn of(cluster: &ClusterRow, shard: u32) -> Option<&[NodeId]> {
    let placed = cluster.placements.iter().find(|placed| placed.shard == shard)?;
    Some(&placed.nodes)
}

/// Whether a shard is to be on a node. One whose nodes are all gone is on every node: else it would be nowhere.
pub fn is_on(cluster: &ClusterRow, shard: u32, node: NodeId, is_member: impl Fn(NodeId) -> bool) -> bool {
    let Some(nodes) = of(cluster, shard) else { return true };
    nodes.contains(&node) || !nodes.iter().any(|node| is_member(*node))
}

/// Where the directory has all shards that hold anything.
pub fn now(cluster: &ClusterRow) -> Placement {
    let shards = cluster.shards.iter().map(|range| range.shard);
    shards.map(|shard| (shard, of(cluster, shard).map(<[NodeId]>::to_vec))).collect()
}

/// Puts shards where they are to be, those without nodes on every one. Whether it could: only what holds anything is placed,
/// and no node is named twice.
pub(super) fn put(cluster: &mut ClusterRow, placements: Vec<ShardPlacement>) -> bool {
    let are_distinct = |nodes: &[NodeId]| nodes.iter().collect::<BTreeSet<_>>().len() == nodes.len();
    if !placements.iter().all(|placed| plan::has(&cluster.shards, placed.shard) && are_distinct(&placed.nodes)) {
        return false;
    }
    for placed in placements {
        cluster.placements.retain(|before| before.shard != placed.shard);
        if !placed.nodes.is_empty() {
            cluster.placements.push(placed);
        }
    }
    cluster.placements.sort_by_key(|placed| placed.shard);
    true
}

/// What was split off a shard is where the shard is: its rows are there.
pub(super) fn inherit(cluster: &mut ClusterRow, before: &[ShardRange], giver: u32) {
    let taker = cluster.shards.iter().map(|range| range.shard).find(|shard| !plan::has(before, *shard));
    let nodes = of(cluster, giver).map(<[NodeId]>::to_vec);
    cluster.placements.extend(taker.zip(nodes).map(|(shard, nodes)| ShardPlacement { shard, nodes }));
}

/// Whether these nodes may decide for a shard: of them, those without keys are too few to.
pub fn keyless_are_few<'a>(nodes: impl Iterator<Item = &'a Node>) -> bool {
    let (total, keyless) = nodes.fold((0, 0), |(total, keyless), node| (total + 1, keyless + usize::from(!node.keyed)));
    2 * keyless < total
}

/// Where shards would be best, with so many replicas each; 0: on every node. Fewer where there are fewer nodes to have them.
pub fn best(nodes: &[Node], now: &Placement, replicas: u32) -> Placement {
    if replicas == 0 {
        return now.keys().map(|shard| (*shard, None)).collect();
    }
    let mut planner = Planner::new(nodes.iter().filter(|node| node.state == State::Well), now);
    let count = planner.count(replicas as usize);
    for shard in now.keys() {
        let chosen = planner.choose(*shard, count);
        planner.shards.insert(*shard, chosen);
    }
    planner.even_out();
    planner.placement()
}

/// The shards that are placed on a node that is gone or no member, with others in its place, as far as there are others.
/// All else stays.
pub fn repair(nodes: &[Node], now: &Placement) -> Placement {
    let stay = |id: &NodeId| nodes.iter().any(|node| node.id == *id && node.state != State::Gone);
    let mut planner = Planner::new(nodes.iter().filter(|node| node.state != State::Gone), now);
    for shard in now.keys() {
        planner.shards.insert(*shard, planner.present(*shard));
    }
    let mut repaired = Placement::new();
    for (shard, placed) in now {
        let Some(placed) = placed else { continue };
        let mut chosen = planner.shards.remove(shard).unwrap_or_default();
        let before = chosen.len();
        while chosen.len() < placed.len() {
            let Some(node) = planner.next(*shard, &chosen, placed.len(), Prefer::Present) else { break };
            chosen.push(node);
        }
        if chosen.len() > before {
            // Who has no substitute stays named: then it gets one as soon as there is one.
            let lacking = placed.len() - chosen.len();
            let left = placed.iter().copied().filter(|id| !stay(id)).take(lacking);
            repaired.insert(*shard, Some(planner.ids(&chosen).into_iter().chain(left).collect()));
        }
        planner.shards.insert(*shard, chosen);
    }
    repaired
}

/// What matters more where two nodes would serve a shard's spread over sites alike.
#[derive(Clone, Copy)]
enum Prefer {
    /// That it has the shard.
    Present,
    /// That it does not use up what nodes without keys may have, where one with keys would do: their own sites need it.
    Keyed,
}

struct Planner<'a> {
    /// In order of their names: where all else is equal, the first one is taken.
    nodes: Vec<&'a Node>,
    now: &'a Placement,
    /// The nodes of each shard that was dealt with, by their places in `nodes`.
    shards: BTreeMap<u32, Vec<usize>>,
}

impl<'a> Planner<'a> {
    fn new(nodes: impl Iterator<Item = &'a Node>, now: &'a Placement) -> Self {
        let mut nodes = nodes.collect::<Vec<_>>();
        nodes.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
        Self { nodes, now, shards: BTreeMap::new() }
    }

    /// So many replicas a shard can have, of those that are asked for.
    fn count(&self, asked: usize) -> usize {
        let keyed = self.nodes.iter().filter(|node| node.keyed).count();
        let keyless = self.nodes.len() - keyed;
        asked.min(keyed + keyless.min(keyed.saturating_sub(1)))
    }

    fn has(&self, shard: u32, node: usize) -> bool {
        match self.now.get(&shard) {
            Some(Some(placed)) => placed.contains(&self.nodes[node].id),
            _ => true,
        }
    }

    fn present(&self, shard: u32) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.has(shard, *node)).collect()
    }

    /// Replicas that a node has by now.
    fn load(&self, node: usize) -> usize {
        self.shards.values().filter(|chosen| chosen.contains(&node)).count()
    }

    /// Of these nodes, how many are at a node's site.
    fn at_site(&self, chosen: &[usize], node: usize) -> usize {
        chosen.iter().filter(|other| self.nodes[**other].site == self.nodes[node].site).count()
    }

    /// How many nodes each site has of these, the most first: the less in that order, the better.
    fn spread(&self, chosen: &[usize]) -> Vec<usize> {
        let mut sites = BTreeMap::<&str, usize>::new();
        for node in chosen {
            *sites.entry(&self.nodes[*node].site).or_default() += 1;
        }
        let mut counts = sites.into_values().collect::<Vec<_>>();
        counts.sort_unstable_by(|one, other| other.cmp(one));
        counts
    }

    /// Whether a node may be among a shard's so many, beside these.
    fn fits(&self, chosen: &[usize], node: usize, count: usize) -> bool {
        let keyless = chosen.iter().filter(|other| !self.nodes[**other].keyed).count();
        self.nodes[node].keyed || 2 * (keyless + 1) < count
    }

    fn choose(&self, shard: u32, count: usize) -> Vec<usize> {
        let fill = |prefer: Prefer| {
            let mut chosen = Vec::new();
            while let Some(node) = self.next(shard, &chosen, count, prefer).filter(|_| chosen.len() < count) {
                chosen.push(node);
            }
            chosen
        };
        // What is there stays, unless that costs a site.
        let (staying, free) = (fill(Prefer::Present), fill(Prefer::Keyed));
        if self.spread(&staying) <= self.spread(&free) { staying } else { free }
    }

    /// The best node to have a shard besides those that are chosen, if one may.
    fn next(&self, shard: u32, chosen: &[usize], count: usize, prefer: Prefer) -> Option<usize> {
        let keyed_at_site = |node: &Node| self.nodes.iter().any(|other| other.keyed && other.site == node.site);
        let rank = |node: &usize| {
            let is_new = !self.has(shard, *node);
            let is_wasted = !self.nodes[*node].keyed && keyed_at_site(self.nodes[*node]);
            let kind = match prefer {
                Prefer::Present => (is_new, is_wasted),
                Prefer::Keyed => (is_wasted, is_new),
            };
            (self.at_site(chosen, *node), kind, self.load(*node), *node)
        };
        let may = |node: &usize| {
            let is_well = self.nodes[*node].state == State::Well;
            is_well && !chosen.contains(node) && self.fits(chosen, *node, count)
        };
        (0..self.nodes.len()).filter(may).min_by_key(rank)
    }

    /// Each step makes two nodes more equal than they were, so it ends.
    fn even_out(&mut self) {
        while let Some((shard, from, to)) = self.next_move() {
            let chosen = self.shards.entry(shard).or_default();
            chosen.retain(|node| *node != from);
            chosen.push(to);
        }
    }

    /// The cheapest one, and of those the one that evens out the most.
    fn next_move(&self) -> Option<(u32, usize, usize)> {
        let loads = (0..self.nodes.len()).map(|node| self.load(node)).collect::<Vec<_>>();
        let all = self.shards.iter().flat_map(|(shard, chosen)| {
            let pairs = chosen.iter().flat_map(|from| (0..self.nodes.len()).map(move |to| (*from, to)));
            pairs.map(|(from, to)| (*shard, from, to))
        });
        let evens = all.filter(|(_, from, to)| loads[*from] >= loads[*to] + 2);
        let good = evens.filter(|(shard, from, to)| self.may_move(*shard, *from, *to));
        good.min_by_key(|(shard, from, to)| {
            let copies = i32::from(!self.has(*shard, *to)) - i32::from(!self.has(*shard, *from));
            (copies, loads[*to] as i64 - loads[*from] as i64, *from, *to, *shard)
        })
    }

    /// Whether the rules that matter more than being even allow it.
    fn may_move(&self, shard: u32, from: usize, to: usize) -> bool {
        let Some(chosen) = self.shards.get(&shard).filter(|chosen| !chosen.contains(&to)) else { return false };
        let others = chosen.iter().copied().filter(|node| *node != from).collect::<Vec<_>>();
        self.at_site(&others, to) <= self.at_site(&others, from) && self.fits(&others, to, chosen.len())
    }

    fn ids(&self, chosen: &[usize]) -> Vec<NodeId> {
        let mut chosen = chosen.to_vec();
        chosen.sort_unstable();
        chosen.into_iter().map(|node| self.nodes[node].id).collect()
    }

    fn placement(&self) -> Placement {
        self.shards.iter().map(|(shard, chosen)| (*shard, Some(self.ids(chosen)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `A1 B1! C1? d1`: a letter for the site, a small one has no keys; `?` is away, `!` is gone.
    fn nodes(text: &str) -> Vec<Node> {
        let node = |word: &str| {
            let state = match word.chars().last() {
                Some('?') => State::Away,
                Some('!') => State::Gone,
                _ => State::Well,
            };
            let name = word.trim_end_matches(['?', '!']);
            let site = name[..1].to_ascii_lowercase();
            Node { id: id(name), name: name.to_owned(), keyed: site != name[..1], site, state }
        };
        text.split_whitespace().map(node).collect()
    }

    fn id(name: &str) -> NodeId {
        name.bytes().fold(0, |id, byte| id << 8 | NodeId::from(byte))
    }

    /// A shard between bars, the first one is 1; `*` is on every node, `-` is left out.
    fn placement(text: &str) -> Placement {
        let ids = |names: &str| names.split_whitespace().map(id).collect();
        let shards = (1..).zip(text.split('|').map(str::trim)).filter(|(_, names)| *names != "-");
        shards.map(|(shard, names)| (shard, (names != "*").then(|| ids(names)))).collect()
    }

    #[test]
    fn shards_are_where_they_are_best() {
        for (name, of, now, replicas, then) in [
            ("none to spare", "A1 B1 C1", "*|*", 3, "A1 B1 C1|A1 B1 C1"),
            ("one to spare", "A1 B1 C1 D1", "*|*|*|*", 3, "A1 B1 C1|A1 B1 D1|A1 C1 D1|B1 C1 D1"),
            ("too few", "A1 B1 C1", "*", 5, "A1 B1 C1"),
            ("everywhere", "A1 B1 C1", "A1|*", 0, "*|*"),
            ("two to a site", "A1 A2 B1 B2 c1", "*|*|*", 3, "A1 B1 c1|A2 B2 c1|A1 B1 c1"),
            ("two sites", "A1 A2 B1 B2", "*", 3, "A1 A2 B1"),
            ("a node that left", "A1 B1 D1 E1", "A1 B1 C1|B1 C1 D1", 3, "A1 B1 D1|B1 D1 E1"),
            ("one that is away", "A1 B1 C1? D1 E1", "A1 B1 C1|B1 C1 D1", 3, "A1 B1 D1|B1 D1 E1"),
            (
                "a node that came",
                "A1 B1 C1 D1",
                "A1 B1 C1|A1 B1 C1|A1 B1 C1|A1 B1 C1",
                3,
                "B1 C1 D1|A1 C1 D1|A1 B1 D1|A1 B1 C1",
            ),
            ("few without keys", "A1 B1 c1 d1", "*|*", 5, "A1 B1 c1|A1 B1 d1"),
            ("what is there stays", "A1 A2 B1 C1", "A2 B1 C1", 3, "A2 B1 C1"),
            ("but not for a site", "A1 A2 B1 C1", "A1 A2 B1", 3, "A1 B1 C1"),
            ("nor without keys", "A1 B1 b2 c1", "A1 b2 D1", 3, "A1 B1 c1"),
        ] {
            assert_eq!(best(&nodes(of), &placement(now), replicas), placement(then), "{name}");
        }
    }

    #[test]
    fn eight_shards_are_even_on_five_nodes() {
        let (nodes, now) = (nodes("A1 B1 C1 D1 E1"), placement("*|*|*|*|*|*|*|*"));
        let then = best(&nodes, &now, 3);
        assert_eq!(loads(&nodes, &then), [5, 5, 5, 5, 4]);
    }

    #[test]
    fn who_is_gone_is_replaced_and_nothing_else() {
        for (name, of, now, repaired) in [
            ("all there", "A1 B1 C1? D1", "A1 B1 C1|*", "-"),
            ("removed", "A1 B1 D1 E1", "A1 B1 C1|B1 C1 D1|*|A1 B1 D1", "A1 B1 E1|B1 D1 E1"),
            ("dead", "A1 B1 C1! D1", "A1 B1 C1|*", "A1 B1 D1"),
            ("nobody is left", "A1 B1 C1! D1?", "A1 B1 C1", "-"),
            ("one is left", "A1 B1 C1! D1! E1 F1", "A1 B1 C1 D1 E1", "A1 B1 E1 F1 C1"),
            ("no more without keys", "A1 c1 D1! e1 F1", "A1 c1 D1", "A1 F1 c1"),
        ] {
            assert_eq!(repair(&nodes(of), &placement(now)), placement(repaired), "{name}");
        }
    }

    #[test]
    fn the_directory_keeps_where_shards_are() {
        let placed = |shard: u32, names: &str| ShardPlacement { shard, nodes: names.split(' ').map(id).collect() };
        let mut cluster = ClusterRow { shards: plan::begin(2), ..Default::default() };
        assert!(put(&mut cluster, vec![placed(2, "B1 C1"), placed(1, "A1 B1")]));
        assert_eq!(now(&cluster), placement("A1 B1|B1 C1"));
        assert!(put(&mut cluster, vec![ShardPlacement { shard: 1, nodes: Vec::new() }]));
        assert_eq!(now(&cluster), placement("*|B1 C1"));
        assert_eq!((of(&cluster, 0), of(&cluster, 1)), (None, None));
        assert!(!put(&mut cluster, vec![placed(3, "A1")]), "nothing is there");
        assert!(!put(&mut cluster, vec![placed(1, "A1 A1")]));
        assert_eq!(now(&cluster), placement("*|B1 C1"));
        for (giver, then) in [(2, "*|B1 C1|B1 C1"), (1, "*|B1 C1|B1 C1|*")] {
            let before = std::mem::take(&mut cluster.shards);
            cluster.shards = plan::split(&before, giver).unwrap_or_default();
            inherit(&mut cluster, &before, giver);
            assert_eq!(now(&cluster), placement(then));
        }
    }

    fn loads(nodes: &[Node], placement: &Placement) -> Vec<usize> {
        let of = |node: &Node| placement.values().flatten().filter(|placed| placed.contains(&node.id)).count();
        nodes.iter().map(of).collect()
    }

    /// Sites that a shard's replicas could be at.
    fn sites_max(nodes: &[Node], count: usize) -> usize {
        let sites = |keyed: bool| {
            let of_kind = nodes.iter().filter(|node| node.keyed == keyed);
            of_kind.map(|node| node.site.as_str()).collect::<BTreeSet<_>>()
        };
        let (keyed, keyless) = (sites(true), sites(false));
        count.min(keyed.len() + keyless.difference(&keyed).count().min(count.saturating_sub(1) / 2))
    }

    fn check_rules(nodes: &[Node], now: &Placement, replicas: usize) {
        let then = best(nodes, now, replicas as u32);
        let keyed = nodes.iter().filter(|node| node.keyed).count();
        let count = replicas.min(keyed + (nodes.len() - keyed).min(keyed - 1));
        for placed in then.values() {
            let ids = placed.iter().flatten().collect::<BTreeSet<_>>();
            let of = || nodes.iter().filter(|node| ids.contains(&node.id));
            assert_eq!((ids.len(), of().count()), (count, count));
            assert!(keyless_are_few(of()));
            assert_eq!(of().map(|node| &node.site).collect::<BTreeSet<_>>().len(), sites_max(nodes, count));
        }
        let sites = nodes.iter().map(|node| &node.site).collect::<BTreeSet<_>>();
        if keyed == nodes.len() && sites.len() == nodes.len() {
            let loads = loads(nodes, &then);
            assert!(loads.iter().max() <= loads.iter().min().map(|least| least + 1).as_ref(), "{loads:?}");
        }
        assert_eq!(best(nodes, &then, replicas as u32), then, "planning again changes nothing");
        assert!(repair(nodes, &then).is_empty());
    }

    /// Where each of these is, and whether it has keys: the first one does.
    fn some_nodes(of: Vec<(u8, bool)>) -> Vec<Node> {
        let name = |number: usize, site: u8, keyed: bool| {
            let letter = char::from(site + if keyed { b'A' } else { b'a' });
            format!("{letter}{number}")
        };
        let names = (0..).zip(of).map(|(number, (site, keyed))| name(number, site, keyed || number == 0));
        nodes(&names.collect::<Vec<_>>().join(" "))
    }

    proptest! {
        #[test]
        fn plans_keep_the_rules(
            of in prop::collection::vec((0u8..7, prop::bool::weighted(0.7)), 1..8),
            now in prop::collection::vec(prop::option::of(prop::collection::btree_set(0usize..9, 1..6)), 1..9),
            replicas in prop::sample::select(vec![3usize, 5, 7]),
        ) {
            let nodes = some_nodes(of);
            // Some of them are no members any more.
            let id_of = |number: usize| nodes.get(number).map_or(number as NodeId, |node| node.id);
            let ids = |numbers: BTreeSet<usize>| numbers.into_iter().map(id_of).collect::<Vec<_>>();
            let now = (1..).zip(now.into_iter().map(|numbers| numbers.map(ids))).collect();
            check_rules(&nodes, &now, replicas);
        }
    }
}
