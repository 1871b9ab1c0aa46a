//! Who should lead: this node gives away what it leads and another one should, and follows who fell silent
//! ([`super::succession`]).
//!
//! - *At once*, all of it: while its disk is full or hangs, after an operator told it to give way, and while it has no
//!   keys: such a node leads as a caretaker only.
//! - *When it is quiet*, one shard at a time: to the shard's *home*. Homes are dealt out over the keyed voters in order of
//!   their names (those at the preferred sites, if there are any), so that leaders are spread evenly, stay where the
//!   clients are, and return when a site is back.
//!
//! Each leader judges for itself, by what its peers tell of themselves. A successor is chosen only if it lacks little: a
//! transfer cannot be taken back (openraft #1747), and one that fails costs an election timeout.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Replica;
use super::whereabouts::Whereabouts;
use crate::directory::{DirectoryView, placement};
use crate::peer::disks::ClusterDisks;
use crate::peer::leadership::Leadership;
use crate::shard::config::Timing;
use crate::shard::group::Group;
use crate::shard::types::Member;
use crate::store::disk::DiskLevel;
use crate::{NodeId, ShardId};

const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// What it leads in spite of all, it tries to give away again after this.
const GIVE_WAY_AGAIN: Duration = Duration::from_secs(10);
/// At most one shard goes home in this time, and no shard is tried twice in that.
const HOME_INTERVAL: Duration = Duration::from_secs(2);
const HOME_AGAIN: Duration = Duration::from_secs(60);
/// A node is given nothing before it has been well for so long.
const WELL_FOR: Duration = Duration::from_secs(10);
/// Entries that a successor may lack: it gets them within the time that a transfer waits.
const BEHIND_MAX: u64 = 500;

/// What a node needs to judge.
pub(super) struct Leaders {
    pub groups: Vec<Arc<Group>>,
    pub disks: Arc<ClusterDisks>,
    pub leadership: Arc<Leadership>,
    /// Where leaders should be, if there is a choice.
    pub sites: Vec<String>,
    pub directory: DirectoryView,
    pub timing: Timing,
}

/// Why this node leads nothing.
#[derive(Clone, Copy)]
pub(super) enum Reason {
    Disk(DiskLevel),
    NoKeys,
    Told,
}

impl Leaders {
    pub fn new(whereabouts: &Whereabouts, disks: Arc<ClusterDisks>, sites: Vec<String>, timing: Timing) -> Self {
        let Whereabouts { groups, leadership, state, .. } = whereabouts.clone();
        Self { groups, disks, leadership, sites, directory: DirectoryView::new(state), timing }
    }

    /// `campaigns_from`: this node may.
    pub async fn run(self, campaigns_from: Instant) {
        tokio::join!(self.give_away(), self.succeed(campaigns_from));
    }

    async fn give_away(&self) {
        let (mut given_away, mut going_home) = (Tried::default(), Tried::default());
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            match self.reason() {
                None => self.send_one_home(&mut going_home).await,
                Some(reason) => self.give_all_away(reason, &mut given_away).await,
            }
        }
    }

    async fn give_all_away(&self, reason: Reason, tried: &mut Tried) {
        // A disk that hangs or is full is worse than a successor that has to catch up.
        let behind_max = if matches!(reason, Reason::Disk(_)) { u64::MAX } else { BEHIND_MAX };
        let fit = |node, behind| behind <= behind_max && self.is_fit(node);
        // One that was told to give way leads rather than one without keys, which orders nothing.
        let last_resort = |group: &Group, node, behind| {
            let keyed = group.member(node).is_some_and(|member| member.keyed);
            matches!(reason, Reason::NoKeys) && keyed && behind <= behind_max && self.disks.is_good(node)
        };
        let successor = |group: &Group| {
            group.successor(fit).or_else(|| group.successor(|node, behind| last_resort(group, node, behind)))
        };
        let led = self.groups.iter().filter(|group| group.leads());
        let going = led.filter_map(|group| Some((group, successor(group)?)));
        let going = going.filter(|(group, _)| tried.begin(group.shard, GIVE_WAY_AGAIN)).collect::<Vec<_>>();
        if going.is_empty() {
            return;
        }
        match reason {
            Reason::Disk(level) => {
                tracing::warn!(
                    ?level,
                    shards = going.len(),
                    "the disk is full, hangs, or is damaged: handing over leadership"
                );
            }
            Reason::NoKeys => tracing::info!(shards = going.len(), "this node has no keys: handing over what it leads"),
            Reason::Told => tracing::info!(shards = going.len(), "told to give way: handing over leadership"),
        }
        let hand_over = async |group: &Group, to: NodeId| group.hand_over_to(|node, _| node == to).await;
        futures::future::join_all(going.iter().map(|(group, to)| hand_over(group, *to))).await;
    }

    pub(super) fn reason(&self) -> Option<Reason> {
        match self.disks.own() {
            _ if self.leadership.was_told() => Some(Reason::Told),
            DiskLevel::Good => self.leadership.gives_way().then_some(Reason::NoKeys),
            level => Some(Reason::Disk(level)),
        }
    }

    fn is_fit(&self, node: NodeId) -> bool {
        self.disks.is_good(node) && self.leadership.willing_for(node).is_some()
    }

    async fn send_one_home(&self, tried: &mut Tried) {
        if tried.last.is_some_and(|at| at.elapsed() < HOME_INTERVAL) {
            return;
        }
        for group in self.groups.iter().filter(|group| group.leads()) {
            let Some(home) = self.home_elsewhere(group) else { continue };
            if tried.begin(group.shard, HOME_AGAIN) {
                tracing::info!(shard = group.shard, to = %format_args!("{home:016x}"), "leadership goes to where it belongs");
                group.hand_over_to(|node, _| node == home).await;
                return;
            }
        }
    }

    /// The node that should lead the group, if that is another one and it is well and has all but the newest entries. None that
    /// the group is to leave.
    fn home_elsewhere(&self, group: &Group) -> Option<NodeId> {
        let (composition, cluster) = (group.composition(), self.directory.cluster().ok()?);
        let on = cluster.as_ref().and_then(|cluster| placement::of(cluster, group.shard.into()));
        let voters = composition.members.into_iter().filter(|(id, _)| composition.voters.contains(id));
        let voters = voters.filter(|(id, _)| on.is_none_or(|on| on.contains(id)));
        let home = home(group.shard, voters.collect(), &self.sites)?;
        let well = || self.leadership.willing_for(home).is_some_and(|since| since > WELL_FOR) && self.is_fit(home);
        let caught_up = || group.successor(|node, behind| node == home && behind <= BEHIND_MAX).is_some();
        (home != group.node && !composition.changing && well() && caught_up()).then_some(home)
    }
}

/// Where a shard's leader belongs.
pub(super) fn home(shard: ShardId, mut voters: Vec<(NodeId, Member)>, sites: &[String]) -> Option<NodeId> {
    voters.retain(|(_, member)| member.keyed);
    let at_a_site = |(_, member): &(NodeId, Member)| sites.contains(&member.site);
    if voters.iter().any(at_a_site) {
        voters.retain(at_a_site);
    }
    voters.sort_by(|(_, one), (_, other)| one.name.cmp(&other.name));
    (!voters.is_empty()).then(|| voters[usize::from(shard) % voters.len()].0)
}

/// Which shards were handed over lately, or were to be.
#[derive(Default)]
struct Tried {
    last: Option<Instant>,
    shards: BTreeMap<ShardId, Instant>,
}

impl Tried {
    /// Whether a shard's turn has come (again).
    fn begin(&mut self, shard: ShardId, again: Duration) -> bool {
        let due = self.shards.get(&shard).is_none_or(|at| at.elapsed() >= again);
        if due {
            self.last = Some(Instant::now());
            self.shards.insert(shard, Instant::now());
        }
        due
    }
}

impl Replica {
    /// Has this node lead nothing that another can lead, or lead again. Answers at once.
    pub fn give_way(&self, give_way: bool) {
        self.greeter.leadership.tell(give_way);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, site: &str, keyed: bool) -> (NodeId, Member) {
        let id = u64::from(name.as_bytes()[0]);
        let member = Member { name: name.to_owned(), site: site.to_owned(), keyed, ..Member::default() };
        (id, member)
    }

    /// By shard: the first letters of the names of those that should lead.
    fn homes(nodes: &[(NodeId, Member)], sites: &[&str]) -> String {
        let sites = sites.iter().map(|site| site.to_string()).collect::<Vec<_>>();
        let of = |shard| home(shard, nodes.to_vec(), &sites).map_or('-', |id| char::from(id as u8));
        (0..6).map(of).collect()
    }

    #[test]
    fn leaders_are_spread_over_keyed_nodes_and_preferred_sites() {
        let nodes = [node("c", "z", true), node("a", "x", true), node("k", "y", false), node("b", "x", true)];
        assert_eq!(homes(&nodes, &[]), "abcabc");
        assert_eq!(homes(&nodes, &["x"]), "ababab");
        assert_eq!(homes(&nodes, &["z", "x"]), "abcabc");
        assert_eq!(homes(&nodes, &["y"]), "abcabc", "nobody there can lead");
        assert_eq!(homes(&nodes[2..3], &[]), "------");
    }

    #[test]
    fn a_shard_is_not_tried_again_at_once() {
        let mut tried = Tried::default();
        assert!(tried.last.is_none());
        assert!(tried.begin(1, HOME_AGAIN) && tried.last.is_some());
        assert!(!tried.begin(1, HOME_AGAIN));
        assert!(tried.begin(2, HOME_AGAIN));
        assert!(tried.begin(1, Duration::ZERO));
    }
}
