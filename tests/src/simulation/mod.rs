//! A whole cluster in one thread, with a clock, a network, disks and a chance of its own: hours in minutes, and a seed
//! does the same again.
//!
//! ```text
//! node.rs      a node: the replica as it is, over engines in memory     network.rs  the peers' connections
//! gateway.rs   what a node does for clients, without sealing            digest.rs   what happened, as one number
//! clients.rs   the workload                                             graphs.rs   every way to cut links
//! nemesis.rs   faults                                                   verdict.rs  what is wrong, at the end
//! operator.rs  nodes that are removed and added
//! ```
//! What is real: everything below the wall but RocksDB's threads (Raft, peers' frames and handshakes, the log's writer,
//! apply, snapshots, barriers). [Turmoil](https://docs.rs/turmoil) gives each node a runtime of its own whose clock
//! stands still while it works, and carries what they send. Clear text stands in for sealed bytes.

mod clients;
mod digest;
mod gateway;
pub mod graphs;
mod nemesis;
mod network;
mod node;
mod operator;
mod report;
mod verdict;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use charthold_replica::platform;
use turmoil::Sim;

pub use self::nemesis::Kind;
pub use self::report::Report;

use self::clients::Workload;
use self::digest::Digest;
use self::nemesis::Nemesis;
use self::node::Node;

/// Shards that a cluster begins with, beside the directory; and as many as it may have.
pub const SHARDS: u16 = 2;
pub const SHARDS_MAX: u16 = 3;
/// 2026-11-01.
const EPOCH_MS: u64 = 1_793_491_200_000;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// All hosts run for so long in turn: what happens between two of them is as fine as this.
const TICK: Duration = Duration::from_millis(10);
/// Whatever was broken, a cluster whose nodes are all well must be one again by then.
const SETTLE_MAX: Duration = Duration::from_secs(120);
/// Segments that wait at an end of a connection; turmoil has no back pressure there.
const SEGMENTS_MAX: usize = 1 << 16;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    /// 3 or 5.
    pub nodes: usize,
    /// How many of them, the last ones, have no keys.
    pub keyless: usize,
    /// Where to write all that happens.
    pub log: Option<PathBuf>,
}

/// What a run is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub setup: Setup,
    /// Of the cluster's time, from when it is formed.
    pub time: Duration,
}

/// Runs it on a thread of its own: chance, and who listens to log lines, are the thread's.
pub fn run(plan: &Plan) -> Report {
    let plan = plan.clone();
    on_own_thread(move || {
        let (mut world, mut nemesis) = World::formed(&plan.setup);
        let end = world.sim.elapsed() + plan.time;
        while world.sim.elapsed() < end {
            world.step();
            nemesis.act(&mut world.sim);
        }
        nemesis.mend(&mut world.sim);
        assert!(world.time_to_writes().is_some(), "a shard takes no writes though everything is well again");
        world.settle();
        Report::new(&plan, nemesis, world)
    })
}

fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let ended = std::thread::Builder::new().name("simulation".to_owned()).spawn(work).unwrap().join();
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Nodes, clients, and what carries them.
struct World {
    sim: Sim<'static>,
    nodes: Vec<Arc<Node>>,
    workload: Arc<Workload>,
    digest: Digest,
    begun: std::time::Instant,
    _listening: tracing::subscriber::DefaultGuard,
    _folder: tempfile::TempDir,
}

impl World {
    /// A cluster with its clients at work, and who breaks it.
    fn formed(setup: &Setup) -> (Self, Nemesis) {
        let mut world = Self::new(setup);
        while !world.nodes[0].formed.load(SeqCst) {
            assert!(world.sim.elapsed() < SETTLE_MAX, "the cluster was not formed");
            world.step();
        }
        let nemesis = Nemesis::new(Arc::clone(&world.workload), setup.seed);
        (world, nemesis)
    }

    fn new(&Setup { seed, nodes, keyless, ref log }: &Setup) -> Self {
        platform::seed_chance(seed);
        let digest = Digest::default();
        let listening = digest.listen();
        log.iter().for_each(|path| digest.write_to(path).unwrap());
        // Few small files, synced often: not on a disk, where there is a choice.
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let names = NAMES[..nodes].iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut random = fastrand::Rng::with_seed(seed);
        let new = |(number, name): (usize, &String)| {
            let keyed = number < nodes - keyless;
            Arc::new(Node::new(name, &names, keyed, folder.path(), random.u64(..)))
        };
        let nodes = names.iter().enumerate().map(new).collect::<Vec<_>>();
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .enable_random_order()
            .tick_duration(TICK)
            .simulation_duration(Duration::MAX)
            .min_message_latency(Duration::from_millis(nemesis::LATENCY.start))
            .max_message_latency(Duration::from_millis(nemesis::LATENCY.end))
            .tcp_capacity(SEGMENTS_MAX)
            .build();
        for node in &nodes {
            let node = Arc::clone(node);
            sim.host(node.name.clone(), move || Arc::clone(&node).run());
        }
        let workload = Workload::new(nodes.clone(), digest.clone(), seed);
        sim.client("clients", Arc::clone(&workload).run());
        let begun = std::time::Instant::now();
        Self { sim, nodes, workload, digest, begun, _listening: listening, _folder: folder }
    }

    fn step(&mut self) {
        self.sim.step().unwrap_or_else(|error| panic!("a host ended: {error}"));
        // A supervisor starts what has ended by itself.
        for node in self.nodes.iter().filter(|node| node.gave_up.swap(false, SeqCst)) {
            self.sim.crash(node.name.as_str());
            node.cut_power();
            node.lose_state();
            self.sim.bounce(node.name.as_str());
        }
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.step();
        }
    }

    /// The clients come to their ends, and the nodes to the same position.
    fn settle(&mut self) {
        // Then all nodes have the same.
        self.workload.operator.place_everywhere(EPOCH_MS + self.sim.elapsed().as_millis() as u64);
        self.workload.stop();
        let end = self.sim.elapsed() + SETTLE_MAX;
        while !(self.workload.has_stopped() && verdict::all_equal(&self.nodes)) {
            assert!(self.sim.elapsed() < end, "the nodes do not come to the same position");
            self.run_for(Duration::from_secs(1));
        }
    }
}
