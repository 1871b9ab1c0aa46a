//! Who breaks things, one or two at a time, and mends them again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tokio::sync::oneshot;
use turmoil::Sim;

use super::clients::Workload;
use super::gateway::{Call, What, made_at};
use super::node::Node;
use super::{EPOCH_MS, SHARDS, SHARDS_MAX};

const QUIET_MS: Range<u64> = 2_000..25_000;
const BROKEN_MS: Range<u64> = 1_000..40_000;
/// Every so many-th time now and then, something else breaks too.
const SECOND_PERCENT: u64 = 30;
const SLOW_LINK: Range<u64> = 50..800;
const SLOW_DISK_MS: Range<u64> = 50..3_000;
const CLOCK_JUMP_MS: Range<i64> = -10_000..10_000;
/// Of a shard that was moved.
const REPLICAS: usize = 3;
/// Less than a peer waits for before it takes a node for gone, and more.
pub const LATENCY: Range<u64> = 1..20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One node loses its power, and gets it back.
    PowerCut,
    /// All at once.
    PowerCutAll,
    /// A node reaches nobody.
    Isolate,
    /// A node is not heard, or does not hear.
    Mute,
    Deaf,
    /// Any of the links are cut.
    Graph,
    /// What a node sends and is sent is held back, and delivered all at once.
    Hold,
    SlowLink,
    SlowDisk,
    ClockJump,
    /// Leadership of all shards goes to others.
    HandOver,
    /// A node loses its power, and its state for ever.
    LoseState,
    /// A node is gone for ever, and a new one comes in its place.
    Replace,
    /// A shard gives half of its slots to another one.
    Split,
    /// A shard moves: it has replicas on three nodes from then on.
    Place,
}

impl Kind {
    pub const ALL: [Self; 15] = [
        Self::PowerCut,
        Self::PowerCutAll,
        Self::Isolate,
        Self::Mute,
        Self::Deaf,
        Self::Graph,
        Self::Hold,
        Self::SlowLink,
        Self::SlowDisk,
        Self::ClockJump,
        Self::HandOver,
        Self::LoseState,
        Self::Replace,
        Self::Split,
        Self::Place,
    ];
}

/// What was done to the links between nodes.
enum Links {
    Whole,
    Cut,
    /// Those of one node hold back what is sent.
    Held(usize),
}

pub struct Nemesis {
    /// Whose nodes these are, and whose operator is called.
    workload: Arc<Workload>,
    nodes: Vec<Arc<Node>>,
    random: fastrand::Rng,
    /// When something happens next.
    at: Duration,
    broken: bool,
    /// Without power.
    down: Vec<usize>,
    /// How many there are, or will be.
    shards: u16,
    links: Links,
    pub faults: BTreeMap<Kind, usize>,
    /// Writes of the log that power cuts took.
    pub lost_writes: usize,
}

impl Nemesis {
    pub fn new(workload: Arc<Workload>, seed: u64) -> Self {
        Self {
            nodes: workload.nodes.clone(),
            workload,
            random: fastrand::Rng::with_seed(seed),
            at: Duration::ZERO,
            broken: false,
            down: Vec::new(),
            shards: SHARDS,
            links: Links::Whole,
            faults: BTreeMap::new(),
            lost_writes: 0,
        }
    }

    /// To be called after each step.
    pub fn act(&mut self, sim: &mut Sim<'_>) {
        if sim.elapsed() < self.at {
            return;
        }
        let next = if self.broken {
            self.mend(sim);
            QUIET_MS
        } else {
            self.break_one(sim);
            if self.random.u64(0..100) < SECOND_PERCENT {
                self.break_one(sim);
            }
            self.broken = true;
            BROKEN_MS
        };
        self.at = sim.elapsed() + Duration::from_millis(self.random.u64(next));
    }

    fn break_one(&mut self, sim: &mut Sim<'_>) {
        let kind = Kind::ALL[self.random.usize(0..Kind::ALL.len())];
        let node = self.random.usize(0..self.nodes.len());
        if !self.is_possible(kind, node) {
            return;
        }
        self.workload.digest.add(&(sim.elapsed().as_millis() as u64, kind, node));
        *self.faults.entry(kind).or_default() += 1;
        let others = (0..self.nodes.len()).filter(|other| *other != node).collect::<Vec<_>>();
        match kind {
            Kind::Isolate | Kind::Mute | Kind::Deaf | Kind::Graph => self.links = Links::Cut,
            Kind::Hold => self.links = Links::Held(node),
            _ => {}
        }
        match kind {
            Kind::PowerCut => self.cut_power(sim, &[node]),
            Kind::PowerCutAll => self.cut_power(sim, &(0..self.nodes.len()).collect::<Vec<_>>()),
            Kind::Isolate => others.iter().for_each(|other| sim.partition(self.name(node), self.name(*other))),
            Kind::Mute => others.iter().for_each(|other| sim.partition_oneway(self.name(node), self.name(*other))),
            Kind::Deaf => others.iter().for_each(|other| sim.partition_oneway(self.name(*other), self.name(node))),
            Kind::Graph => {
                let cut = self.random.u32(..);
                cut_links(sim, &self.nodes, cut);
            }
            Kind::Hold => others.iter().for_each(|other| sim.hold(self.name(node), self.name(*other))),
            Kind::SlowLink => {
                let latency = Duration::from_millis(self.random.u64(SLOW_LINK));
                let other = others[self.random.usize(0..others.len())];
                sim.set_link_latency(self.name(node), self.name(other), latency);
            }
            Kind::SlowDisk => self.nodes[node].slow_ms.store(self.random.u64(SLOW_DISK_MS), SeqCst),
            Kind::ClockJump => self.nodes[node].clock_ahead_ms.store(self.random.i64(CLOCK_JUMP_MS), SeqCst),
            Kind::HandOver => self.hand_over(node),
            Kind::LoseState => {
                self.cut_power(sim, &[node]);
                self.nodes[node].lose_state();
            }
            Kind::Replace => self.replace(sim, node),
            Kind::Split => self.split(sim.elapsed()),
            Kind::Place => self.place(sim.elapsed()),
        }
    }

    /// Whether it would change anything, and turmoil can do it: what is held back cannot be cut, nor the other way round.
    fn is_possible(&self, kind: Kind, node: usize) -> bool {
        match kind {
            Kind::PowerCut => !self.down.contains(&node),
            Kind::HandOver => self.nodes[node].calls().is_some(),
            Kind::LoseState => !self.down.contains(&node) && self.all_have_everything(),
            Kind::Replace => !self.down.contains(&node) && self.all_have_everything() && self.may_go(node),
            Kind::Split => self.shards < SHARDS_MAX,
            Kind::Place => self.nodes.len() > REPLICAS && self.all_have_everything(),
            Kind::PowerCutAll => self.down.len() < self.nodes.len(),
            Kind::Hold => matches!(self.links, Links::Whole),
            Kind::Isolate | Kind::Mute | Kind::Deaf | Kind::Graph => !matches!(self.links, Links::Held(_)),
            Kind::SlowLink | Kind::SlowDisk | Kind::ClockJump => true,
        }
    }

    /// What one of them loses, others have. They lose it one at a time.
    fn all_have_everything(&self) -> bool {
        self.workload.operator.is_idle() && self.nodes.iter().all(|node| node.id().is_some())
    }

    /// Nodes with keys stay more than those without.
    fn may_go(&self, node: usize) -> bool {
        let keyed = self.nodes.iter().filter(|node| node.keyed).count();
        !self.nodes[node].keyed || keyed - 1 > self.nodes.len() - keyed
    }

    /// Everything is well again, but for what that leaves behind.
    pub fn mend(&mut self, sim: &mut Sim<'_>) {
        self.workload.digest.add(&(sim.elapsed().as_millis() as u64, "mend"));
        if let Links::Held(node) = std::mem::replace(&mut self.links, Links::Whole) {
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                sim.release(self.name(node), self.name(other));
            }
        }
        self.mend_links(sim);
        for node in &self.nodes {
            node.slow_ms.store(0, SeqCst);
            node.clock_ahead_ms.store(0, SeqCst);
        }
        for node in std::mem::take(&mut self.down) {
            sim.bounce(self.name(node));
        }
        self.broken = false;
    }

    fn mend_links(&self, sim: &mut Sim<'_>) {
        for (at, one) in self.nodes.iter().enumerate() {
            for other in &self.nodes[..at] {
                sim.repair(one.name.as_str(), other.name.as_str());
                sim.set_link_latency(one.name.as_str(), other.name.as_str(), Duration::from_millis(LATENCY.start));
                let most = Duration::from_millis(LATENCY.end);
                sim.set_link_max_message_latency(one.name.as_str(), other.name.as_str(), most);
            }
        }
    }

    fn cut_power(&mut self, sim: &mut Sim<'_>, nodes: &[usize]) {
        for node in nodes.iter().copied().filter(|node| !self.down.contains(node)).collect::<Vec<_>>() {
            self.lost_writes += self.nodes[node].cut_power();
            sim.crash(self.name(node));
            self.down.push(node);
        }
    }

    fn replace(&self, sim: &mut Sim<'_>, node: usize) {
        let Some(old) = self.nodes[node].id() else { return };
        sim.crash(self.name(node));
        self.nodes[node].wipe();
        sim.bounce(self.name(node));
        let at_ms = EPOCH_MS + sim.elapsed().as_millis() as u64;
        self.workload.operator.replace(old, self.nodes[node].address(), at_ms);
    }

    /// Nodes with keys are more than those without, also of these.
    fn place(&mut self, time: Duration) {
        let shard = self.random.u16(1..=self.shards);
        let mut nodes = self.nodes.iter().filter_map(|node| Some((node.id()?, node.keyed))).collect::<Vec<_>>();
        self.random.shuffle(&mut nodes);
        nodes.sort_by_key(|(_, keyed)| !keyed);
        let keyless = nodes.iter().filter(|(_, keyed)| !keyed).count().min(self.random.usize(0..=REPLICAS / 2));
        let chosen = nodes[..REPLICAS - keyless].iter().chain(nodes.iter().rev().take(keyless));
        let chosen = chosen.map(|(id, _)| *id).collect();
        self.workload.operator.place(shard, chosen, made_at(EPOCH_MS + time.as_millis() as u64));
    }

    fn split(&mut self, time: Duration) {
        let shard = self.random.u16(1..=self.shards);
        self.shards += 1;
        self.workload.operator.split(shard, made_at(EPOCH_MS + time.as_millis() as u64));
    }

    fn hand_over(&self, node: usize) {
        let Some(calls) = self.nodes[node].calls() else { return };
        let (reply, _nobody_waits) = oneshot::channel();
        let _full = calls.try_send(Call { what: What::HandOver, within: Duration::ZERO, reply });
    }

    fn name(&self, node: usize) -> &'static str {
        super::NAMES[node]
    }
}

/// Cuts the links whose bits are set: 0-1, 0-2, 1-2, 0-3, and so on.
pub fn cut_links(sim: &mut Sim<'_>, nodes: &[Arc<Node>], cut: u32) {
    for (bit, (one, other)) in links(nodes.len()).enumerate() {
        if cut >> bit & 1 == 1 {
            sim.partition(nodes[one].name.as_str(), nodes[other].name.as_str());
        }
    }
}

/// All pairs of nodes, in the order of their bits.
pub fn links(nodes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..nodes).flat_map(|other| (0..other).map(move |one| (one, other)))
}
