//! Who breaks nodes: one fault at a time, healed after a while, then some quiet.

use std::time::{Duration, Instant};

use charthold_client::{Client, Error};
use rustix::process::Signal;

use super::history::Recorder;
use crate::fault_disk::{FaultDisk, Lost};
use crate::harness::{Cluster, Link, WAIT_MAX, Wan};

const SLOW_DELAY: Duration = Duration::from_millis(150);
const SLOW_LOST_PERCENT: u8 = 5;
const SLOW_RATE: u64 = 256 << 10;
const SLOW_SYNC_MS: std::ops::Range<u64> = 20..300;
const CLOCK_JUMP_MS_MAX: i64 = 120_000;
/// How often a node looks at its clock, and some.
const CLOCK_LOOKS: Duration = Duration::from_secs(2);
/// Of the 64 MiB that a node is to have left: too little for writes, too little for anything.
const LEFT_BYTES: [usize; 2] = [40 << 20, 8 << 20];

/// Of a shard that was moved.
const REPLICAS: u32 = 3;

/// One try of what an operator does, and the pause before the next.
const OPERATION_MAX: Duration = Duration::from_secs(10);
const OPERATION_AGAIN: Duration = Duration::from_millis(250);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// SIGKILL to one node.
    Kill,
    /// SIGKILL to all at once.
    KillAll,
    /// SIGSTOP for 1 to 10 seconds: a node that is there and does nothing.
    Pause,
    /// SIGTERM, as an operator stops a node.
    Restart,
    /// The same to one node after the other, each once the one before serves again: an upgrade.
    RollingRestart,
    /// A wall clock that jumps by up to two minutes, either way, and back. A node whose clock is far from the others' ends.
    ClockJump,
    /// A site that reaches no other one; its clients still reach it.
    Isolate,
    /// A site that hears the others, and is not heard.
    Mute,
    /// A site that is heard, and does not hear the others.
    Deaf,
    /// Two sites that do not reach each other; any third one reaches both.
    Bridge,
    /// Each site reaches those beside it only: all have a majority, each another one. Nothing is cut of three.
    Ring,
    /// A site that answers another one's connections with resets, as a firewall does.
    Reset,
    /// A site behind a slow link that loses packets.
    SlowLink,
    /// A node dies, and its disk loses what was not synced.
    PowerCut,
    /// The same to all at once.
    PowerCutAll,
    /// A disk that answers nothing for up to six seconds.
    StallDisk,
    /// A disk whose syncs take up to 0.3 s longer.
    SlowDisk,
    /// A disk that somebody else fills.
    FillDisk,
    /// An operator drains a node: another one leads each of its shards, in the middle of everything.
    Drain,
    /// A node that is removed for ever, loses its data, and comes back as a new one.
    Replace,
    /// A shard gives half of its charts to a spare one; nothing happens once there is none.
    Split,
    /// A shard moves to three nodes, of four or more.
    Place,
}

impl Kind {
    pub const ALL: [Self; 22] = [
        Self::Kill,
        Self::KillAll,
        Self::Pause,
        Self::Restart,
        Self::RollingRestart,
        Self::ClockJump,
        Self::Isolate,
        Self::Mute,
        Self::Deaf,
        Self::Bridge,
        Self::Ring,
        Self::Reset,
        Self::SlowLink,
        Self::PowerCut,
        Self::PowerCutAll,
        Self::StallDisk,
        Self::SlowDisk,
        Self::FillDisk,
        Self::Drain,
        Self::Replace,
        Self::Split,
        Self::Place,
    ];

    /// Whether it is a fault of the network, which only sites with networks of their own have.
    pub fn is_of_network(self) -> bool {
        use Kind::{Bridge, Deaf, Isolate, Mute, Reset, Ring, SlowLink};
        matches!(self, Isolate | Mute | Deaf | Bridge | Ring | Reset | SlowLink)
    }

    /// Whether it needs fault disks.
    pub fn is_of_disk(self) -> bool {
        matches!(self, Self::PowerCut | Self::PowerCutAll | Self::StallDisk | Self::SlowDisk | Self::FillDisk)
    }

    /// Here, by this process.
    pub fn is_possible(self) -> bool {
        (!self.is_of_network() || Wan::is_possible())
            && (self != Self::Reset || Wan::has_firewall())
            && (!self.is_of_disk() || FaultDisk::is_possible())
    }

    /// How many sites it takes to mean anything.
    pub fn sites_min(self) -> usize {
        if matches!(self, Self::Ring | Self::Place) { 4 } else { 3 }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillAll => "kill-all",
            Self::Pause => "pause",
            Self::Restart => "restart",
            Self::RollingRestart => "rolling-restart",
            Self::ClockJump => "clock-jump",
            Self::Isolate => "isolate",
            Self::Mute => "mute",
            Self::Deaf => "deaf",
            Self::Bridge => "bridge",
            Self::Ring => "ring",
            Self::Reset => "reset",
            Self::SlowLink => "slow-link",
            Self::PowerCut => "power-cut",
            Self::PowerCutAll => "power-cut-all",
            Self::StallDisk => "stall-disk",
            Self::SlowDisk => "slow-disk",
            Self::FillDisk => "fill-disk",
            Self::Drain => "drain",
            Self::Replace => "replace",
            Self::Split => "split",
            Self::Place => "place",
        }
    }
}

/// A fault that happened.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub began_ns: u64,
    /// What disks lost, if their power was cut.
    pub lost: Lost,
}

pub struct Nemesis<'a> {
    random: fastrand::Rng,
    kinds: Vec<Kind>,
    recorder: &'a Recorder,
}

impl<'a> Nemesis<'a> {
    pub fn new(seed: u64, kinds: &[Kind], recorder: &'a Recorder) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), kinds: kinds.to_vec(), recorder }
    }

    /// Rounds of all kinds, each round in an order of its own, until the time is over; at least one whole round. All
    /// nodes run on return.
    pub async fn run(mut self, cluster: &mut Cluster, time: Duration) -> Vec<Fault> {
        let (begin, mut faults) = (Instant::now(), Vec::new());
        self.rest(2_000..4_000).await;
        loop {
            let mut round = self.kinds.clone();
            self.random.shuffle(&mut round);
            for kind in round {
                if begin.elapsed() > time && faults.len() >= self.kinds.len() {
                    return faults;
                }
                let began_ns = self.recorder.now_ns();
                let lost = self.break_and_heal(cluster, kind).await;
                faults.push(Fault { kind, began_ns, lost });
                self.rest(3_000..6_000).await;
                for node in 0..cluster.size() {
                    assert!(
                        cluster.is_running(node),
                        "after {kind:?} a node ended by itself:\n{}",
                        cluster.last_words()
                    );
                }
            }
            if self.kinds.is_empty() {
                tokio::time::sleep(time.saturating_sub(begin.elapsed())).await;
                return faults;
            }
        }
    }

    async fn break_and_heal(&mut self, cluster: &mut Cluster, kind: Kind) -> Lost {
        let mut lost = Lost::default();
        let node = self.random.usize(0..cluster.size());
        match kind {
            Kind::Kill => {
                cluster.kill(node);
                self.rest(200..4_000).await;
            }
            Kind::KillAll => {
                cluster.kill_all();
                self.rest(0..1_000).await;
            }
            Kind::Pause => {
                cluster.process(node).signal(Signal::STOP);
                self.rest(1_000..10_000).await;
                cluster.process(node).signal(Signal::CONT);
            }
            Kind::Restart => {
                stop(cluster, node);
                self.rest(0..1_000).await;
            }
            Kind::RollingRestart => {
                for node in 0..cluster.size() {
                    stop(cluster, node);
                    cluster.restart(node);
                    cluster.wait_ready().await;
                }
            }
            Kind::ClockJump => {
                cluster.set_clock(node, self.random.i64(-CLOCK_JUMP_MS_MAX..CLOCK_JUMP_MS_MAX));
                self.rest(2_000..10_000).await;
                cluster.set_clock(node, 0);
                // If it was about to end, it has.
                tokio::time::sleep(CLOCK_LOOKS).await;
                if !cluster.is_running(node) {
                    cluster.forget(node);
                }
            }
            Kind::Isolate | Kind::Mute | Kind::Deaf | Kind::Bridge | Kind::Ring | Kind::Reset | Kind::SlowLink => {
                let wan = cluster.wan().expect("a fault of the network needs one");
                self.break_network(wan, kind, node, cluster.size());
                self.rest(2_000..10_000).await;
                wan.heal();
            }
            Kind::Drain => {
                operate(cluster, async |operator| operator.admin().drain_node(&cluster.name(node), false).await).await;
                cluster.wait_leads_nothing(node).await;
                self.rest(500..4_000).await;
                operate(cluster, async |operator| operator.admin().drain_node(&cluster.name(node), true).await).await;
            }
            Kind::Replace => replace(cluster, node).await,
            Kind::Split => split(cluster, &mut self.random).await,
            Kind::Place => place(cluster, &mut self.random).await,
            Kind::PowerCut | Kind::PowerCutAll | Kind::StallDisk | Kind::SlowDisk | Kind::FillDisk => {
                lost = self.break_disk(cluster, kind, node).await;
            }
        }
        cluster.restart_all();
        lost
    }

    async fn break_disk(&mut self, cluster: &mut Cluster, kind: Kind, node: usize) -> Lost {
        match kind {
            Kind::PowerCut => {
                let lost = cluster.cut_power(&[node], &mut self.random);
                self.rest(0..4_000).await;
                return lost;
            }
            Kind::PowerCutAll => {
                let all = (0..cluster.size()).collect::<Vec<_>>();
                let lost = cluster.cut_power(&all, &mut self.random);
                self.rest(0..1_000).await;
                return lost;
            }
            Kind::StallDisk => {
                cluster.disk(node).stall();
                self.rest(500..6_000).await;
                cluster.disk(node).resume();
            }
            Kind::SlowDisk => {
                cluster.disk(node).slow_syncs(Duration::from_millis(self.random.u64(SLOW_SYNC_MS)));
                self.rest(2_000..10_000).await;
                cluster.disk(node).slow_syncs(Duration::ZERO);
            }
            _ => {
                let left = LEFT_BYTES[self.random.usize(0..LEFT_BYTES.len())];
                cluster.disk(node).leave(left);
                self.rest(2_000..10_000).await;
                cluster.disk(node).make_room();
            }
        }
        Lost::default()
    }

    fn break_network(&mut self, wan: &Wan, kind: Kind, site: usize, sites: usize) {
        let others = (0..sites).filter(|other| *other != site).collect::<Vec<_>>();
        let cut = |link: &mut Link| link.cut = true;
        match kind {
            Kind::Bridge => {
                let other = others[self.random.usize(0..others.len())];
                wan.change(site, other, cut);
                wan.change(other, site, cut);
            }
            Kind::Ring => {
                let beside = |one: usize, other: usize| (one + 1) % sites == other || (other + 1) % sites == one;
                let pairs = (0..sites).flat_map(|from| (0..sites).map(move |to| (from, to)));
                pairs
                    .filter(|(from, to)| from != to && !beside(*from, *to))
                    .for_each(|(from, to)| wan.change(from, to, cut));
            }
            Kind::Reset => wan.reset(site, others[self.random.usize(0..others.len())]),
            Kind::Mute => others.iter().for_each(|other| wan.change(site, *other, cut)),
            Kind::Deaf => others.iter().for_each(|other| wan.change(*other, site, cut)),
            Kind::SlowLink => others.iter().for_each(|other| {
                let slow = |link: &mut Link| {
                    (link.delay, link.lost_percent, link.bytes_per_s) =
                        (link.delay + SLOW_DELAY, SLOW_LOST_PERCENT, Some(SLOW_RATE));
                };
                wan.change(site, *other, slow);
                wan.change(*other, site, slow);
            }),
            _ => others.iter().for_each(|other| {
                wan.change(site, *other, cut);
                wan.change(*other, site, cut);
            }),
        }
    }

    async fn rest(&mut self, millis: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.random.u64(millis))).await;
    }
}

/// Repeats what an operator does until it is done.
pub(super) async fn operate<T>(cluster: &Cluster, mut act: impl AsyncFnMut(Client) -> Result<T, Error>) -> T {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        match act(cluster.operator().with_deadline(OPERATION_MAX)).await {
            Ok(done) => return done,
            Err(error) if Instant::now() > deadline => panic!("{error}\n{}", cluster.last_words()),
            Err(_) => tokio::time::sleep(OPERATION_AGAIN).await,
        }
    }
}

async fn replace(cluster: &mut Cluster, node: usize) {
    // Then it votes in all shards again, as what it is then.
    place_everywhere(cluster).await;
    operate(cluster, async |operator| operator.admin().remove_node(&cluster.name(node)).await).await;
    let ended = tokio::task::block_in_place(|| cluster.process(node).wait());
    assert!(!ended.success(), "a node that was removed ended as if it had been told to");
    cluster.forget(node);
    cluster.wipe(node);
    cluster.restart(node);
    operate(cluster, async |operator| operator.admin().add_node(&cluster.peer_endpoint(node)).await).await;
    cluster.wait_voters(&(0..cluster.size()).collect::<Vec<_>>()).await;
}

async fn split(cluster: &Cluster, random: &mut fastrand::Rng) {
    let status = operate(cluster, async |operator| operator.admin().status().await).await;
    let held = status.shards.iter().filter(|shard| shard.slots.is_some()).map(|shard| shard.shard).collect::<Vec<_>>();
    let Some(shard) = random.choice(held) else { return };
    operate(cluster, async |operator| match operator.admin().split_shard(shard).await {
        Err(Error::CannotChange { .. }) => Ok(()),
        done => done.map(drop),
    })
    .await;
}

/// While it moves, and after that, whatever comes next comes.
async fn place(cluster: &Cluster, random: &mut fastrand::Rng) {
    let status = operate(cluster, async |operator| operator.admin().status().await).await;
    let held = status.shards.iter().filter(|shard| shard.slots.is_some()).map(|shard| shard.shard).collect::<Vec<_>>();
    let Some(shard) = random.choice(held) else { return };
    let nodes = random.choose_multiple(status.nodes.iter().map(|node| node.id.clone()), REPLICAS as usize);
    operate(cluster, async |operator| operator.admin().place_shards(&[(shard, nodes.clone())], REPLICAS).await).await;
}

/// Returns when every node has a replica of every shard.
pub(super) async fn place_everywhere(cluster: &Cluster) {
    operate(cluster, async |operator| {
        let placed = operator.admin().status().await?.placements;
        let everywhere = placed.into_iter().map(|(shard, _)| (shard, Vec::new())).collect::<Vec<_>>();
        operator.admin().place_shards(&everywhere, 0).await
    })
    .await;
    cluster.wait_voters(&(0..cluster.size()).collect::<Vec<_>>()).await;
}

fn stop(cluster: &mut Cluster, node: usize) {
    let status = tokio::task::block_in_place(|| cluster.stop(node));
    assert!(status.success(), "a node that was told to stop: {status}\n{}", cluster.last_words());
}
