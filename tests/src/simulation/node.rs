//! One node: a replica over engines in memory, a clock that can jump, a disk that can be slow, and a power cut.
//!
//! It is its own gateway: what clients ask comes over a channel, in clear, and becomes the commands that a real gateway
//! would make, but for the sealing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_replica::NodeId;
use charthold_replica::platform::Platform;
use charthold_replica::replica::stores::Stores;
use charthold_replica::replica::{Replica, ReplicaConfig};
use charthold_replica::shard::authors::{AuthorKey, Code};
use charthold_replica::shard::config::{Retention, Timing};
use charthold_replica::shard::types::Member;
use charthold_replica::store::disk::DiskLimits;
use charthold_replica::store::log::memory::MemoryLog;
use charthold_replica::store::state::MemoryLimits;
use charthold_replica::store::state::memory::MemoryState;
use tokio::sync::mpsc;

use super::gateway::{Call, begin, serve};
use super::network::{CLUSTER, PORT, SimulatedTransport};
use super::{EPOCH_MS, NAMES, SHARDS_MAX};

/// As between data centers of one continent.
const TIMING: Timing = Timing { heartbeat_ms: 250, election_min_ms: 750, election_max_ms: 1_250 };
/// So little log that who was away for half a minute comes back by a snapshot.
const SNAPSHOT_AFTER_ENTRIES: u64 = 30;
const KEEP_ENTRIES: u64 = 10;
/// A write of the log on a disk that is well takes up to so long.
const LOG_WRITE_MAX: Duration = Duration::from_millis(8);
/// Calls of clients that wait.
const CALLS_MAX: usize = 1_024;
const FORM_AGAIN: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// No secret, and else as the real one.
struct SimulatedKey;

impl AuthorKey for SimulatedKey {
    fn code(&self, parts: &[&[u8]]) -> Code {
        let mut code = Code::default();
        for (salt, half) in code.chunks_mut(8).enumerate() {
            let mut hasher = DefaultHasher::new();
            (salt, parts).hash(&mut hasher);
            half.copy_from_slice(&hasher.finish().to_be_bytes());
        }
        code
    }

    fn check(&self, parts: &[&[u8]], code: &[u8]) -> bool {
        self.code(parts) == code
    }
}

/// What survives a power cut, and what faults turn.
pub struct Node {
    pub name: String,
    /// Without keys it stores and votes, and serves no client.
    pub keyed: bool,
    folder: PathBuf,
    peers: Vec<String>,
    inner: Mutex<Inner>,
    /// Its wall clock is so much ahead of the simulation's.
    pub clock_ahead_ms: AtomicI64,
    /// A write of the log takes up to so much longer.
    pub slow_ms: AtomicU64,
    /// The cluster is formed.
    pub formed: AtomicBool,
    /// It has ended over its state, which it lacks a part of.
    pub gave_up: AtomicBool,
}

struct Inner {
    log: Arc<MemoryLog>,
    state: Arc<MemoryState>,
    random: fastrand::Rng,
    calls: Option<mpsc::Sender<Call>>,
    /// As which it runs, or ran last.
    id: Option<NodeId>,
}

impl Node {
    /// One of `names`, with its folder in `folder`.
    pub fn new(name: &str, names: &[String], keyed: bool, folder: &Path, seed: u64) -> Self {
        let peers = names.iter().filter(|other| *other != name).map(|other| format!("{other}:{PORT}"));
        let (log, state) = Default::default();
        Self {
            name: name.to_owned(),
            keyed,
            folder: folder.join(name),
            peers: peers.collect(),
            inner: Mutex::new(Inner { log, state, random: fastrand::Rng::with_seed(seed), calls: None, id: None }),
            clock_ahead_ms: AtomicI64::default(),
            slow_ms: AtomicU64::default(),
            formed: AtomicBool::default(),
            gave_up: AtomicBool::default(),
        }
    }

    /// Where clients ask, while it runs.
    pub fn calls(&self) -> Option<mpsc::Sender<Call>> {
        self.inner.lock().unwrap().calls.clone()
    }

    fn engines(&self) -> (Arc<MemoryLog>, Arc<MemoryState>) {
        let inner = self.inner.lock().unwrap();
        (Arc::clone(&inner.log), Arc::clone(&inner.state))
    }

    /// What is in its state.
    pub fn state(&self) -> Arc<MemoryState> {
        self.engines().1
    }

    /// Takes what was not synced, but for some of the log's last writes. The process has to be ended too.
    pub fn cut_power(&self) -> usize {
        let mut inner = self.inner.lock().unwrap();
        let unsynced = inner.log.pending_writes();
        let kept = inner.random.usize(0..=unsynced);
        inner.log = Arc::new(inner.log.after_crash(kept));
        inner.state = Arc::new(inner.state.after_crash());
        inner.calls = None;
        unsynced - kept
    }

    /// Takes its state as well, whose disk is another one. The log has all that it has acknowledged.
    pub fn lose_state(&self) {
        let mut inner = self.inner.lock().unwrap();
        (inner.state, inner.id) = Default::default();
    }

    /// Nothing until it runs, after its state was lost or everything was.
    pub fn id(&self) -> Option<NodeId> {
        self.inner.lock().unwrap().id
    }

    /// Takes all that it keeps. The process has to have been ended; the next one is a node that nobody knows.
    pub fn wipe(&self) {
        let mut inner = self.inner.lock().unwrap();
        (inner.log, inner.state) = Default::default();
        (inner.calls, inner.id) = (None, None);
        std::fs::remove_dir_all(&self.folder).unwrap();
    }

    pub fn address(&self) -> String {
        format!("{}:{PORT}", self.name)
    }

    /// The process, until it is ended.
    pub async fn run(self: Arc<Self>) -> turmoil::Result {
        let (clock, chance, disk) = (Arc::clone(&self), Arc::clone(&self), Arc::clone(&self));
        let platform = Platform::new(
            move || (EPOCH_MS + now_ms()).saturating_add_signed(clock.clock_ahead_ms.load(SeqCst)),
            move || chance.random(0..u64::MAX),
        );
        let delay = move || {
            let most = LOG_WRITE_MAX.as_millis() as u64 + disk.slow_ms.load(SeqCst);
            Duration::from_millis(disk.random(0..most))
        };
        let config = self.config();
        let stores = Stores::simulate(&config, &platform, self.engines(), delay, SHARDS_MAX)?;
        let transport = Arc::new(SimulatedTransport::listen(&self.name, self.keyed).await?);
        let replica = Replica::start(config, stores, transport, platform).await?;
        let (calls, mut waiting) = mpsc::channel(CALLS_MAX);
        {
            let mut inner = self.inner.lock().unwrap();
            inner.id = Some(replica.node_id);
            inner.calls = self.keyed.then(|| calls.clone());
        }
        if self.is_first() && !self.formed.load(SeqCst) {
            tokio::spawn(Arc::clone(&self).form(Arc::clone(&replica)));
        }
        let ends = async {
            while replica.gave_up_state().is_none() {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            self.gave_up.store(true, SeqCst);
            std::future::pending::<()>().await;
        };
        let serves = async {
            while let Some(call) = waiting.recv().await {
                tokio::spawn(serve(Arc::clone(&replica), call));
            }
        };
        futures::future::join(ends, serves).await;
        Ok(())
    }

    fn random(&self, range: std::ops::Range<u64>) -> u64 {
        self.inner.lock().unwrap().random.u64(range)
    }

    fn is_first(&self) -> bool {
        self.name == NAMES[0]
    }

    async fn form(self: Arc<Self>, replica: Arc<Replica>) {
        while replica.form(Some(self.peers.len() + 1)).await.is_err() || !begin(&replica).await {
            tokio::time::sleep(FORM_AGAIN).await;
        }
        self.formed.store(true, SeqCst);
    }

    fn config(&self) -> ReplicaConfig {
        let (name, site) = (self.name.clone(), self.name.clone());
        let (peer_address, client_address) = (self.address(), String::new());
        ReplicaConfig {
            data: self.folder.clone(),
            cluster: CLUSTER.to_owned(),
            member: Member { name, site, peer_address, client_address, keyed: self.keyed, code: None },
            timing: TIMING,
            retention: Retention {
                snapshot_after_entries: SNAPSHOT_AFTER_ENTRIES,
                keep_entries: KEEP_ENTRIES,
                ..Retention::default()
            },
            disk: DiskLimits::default(),
            memory: MemoryLimits::default(),
            join: self.peers.clone(),
            key_check: if self.keyed { Bytes::from_static(b"one key") } else { Bytes::new() },
            describe: Arc::new(pb::NodeStatus::default),
            upload_idle: Duration::from_secs(3_600),
            leader_sites: Vec::new(),
            keyed_sites_within: None,
            author_key: self.keyed.then(|| Arc::new(SimulatedKey) as _),
            keyless_snapshots: false,
        }
    }
}

/// Of the host that asks, since the simulation began.
pub fn now_ms() -> u64 {
    turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64)
}
