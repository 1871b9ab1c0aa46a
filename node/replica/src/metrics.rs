//! What a node measures below the wall: every handle is here, made once.
//!
//! Owns names, descriptions, buckets. Must not know who reads them: above the wall [`Metrics::register`] puts them into
//! the registry that `/metrics` shows. A process is one node, so the handles are one static, and who counts something
//! needs nothing handed in.
//!
//! To add one: a field here, its line in [`Metrics::register`], a row in `docs/metrics.md` (a test compares them). A
//! label has few values and is of the list in that document: never a tenant, a chart, or anything else of a patient.

use std::sync::LazyLock;
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The process's handles.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// From a tenth of a millisecond, a cached read, to the longest deadline that a client is likely to have.
const SECONDS: [f64; 17] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const BYTES: [f64; 8] = [1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 16777216.0, 67108864.0];
const COUNTS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 32.0, 128.0, 512.0, 1024.0];

/// A duration.
pub fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// A size.
pub fn bytes() -> Histogram {
    Histogram::new(BYTES)
}

fn counts() -> Histogram {
    Histogram::new(COUNTS)
}

/// One label whose values are words of the program.
pub type Word = [(&'static str, &'static str); 1];
/// By shard.
pub type OfShard = [(&'static str, u16); 1];
/// By a word of the program and a node's name.
pub type OfPeer = [(&'static str, String); 2];

pub struct Metrics {
    /// From the queue of the log's thread to its batch.
    pub log_queue: Histogram,
    pub log_queued: Gauge,
    pub log_batch_jobs: Histogram,
    pub log_batch: Histogram,
    pub log_sync: Histogram,
    /// From this node's sync to the begin of apply: what a majority takes.
    pub quorum: Histogram,
    pub apply: Histogram,
    pub apply_entries: Histogram,
    pub flush: Histogram,
    pub flush_bytes: Histogram,
    read_stage: Family<Word, Histogram>,
    pub read_barrier: Histogram,
    pub read_rows: Histogram,
    pub read_open: Histogram,
    pub barrier_queued: Gauge,
    pub state_reads: Counter,
    pub state_block_reads: Counter,
    pub spans_dropped: Counter,
    pub forged: Counter,
    pub state_damaged: Gauge,
    // What follows is set when somebody looks, by `Replica::refresh_metrics`.
    pub raft: RaftGauges,
    pub engine: EngineGauges,
    pub peer: PeerGauges,
}

/// Of each shard's replica.
#[derive(Default)]
pub struct RaftGauges {
    pub leader: Family<OfShard, Gauge>,
    pub has_leader: Family<OfShard, Gauge>,
    pub term: Family<OfShard, Gauge>,
    pub log_index: Family<OfShard, Gauge>,
    pub committed_index: Family<OfShard, Gauge>,
    pub applied_index: Family<OfShard, Gauge>,
    pub seq: Family<OfShard, Gauge>,
    pub stopped: Family<OfShard, Gauge>,
    pub degraded: Family<OfShard, Gauge>,
    pub follower_lag: Family<OfPeer, Gauge>,
}

/// Of the two RocksDB instances.
#[derive(Default)]
pub struct EngineGauges {
    pub live_bytes: Family<Word, Gauge>,
    pub files_bytes: Family<Word, Gauge>,
    pub memtable_bytes: Family<Word, Gauge>,
    pub cache_bytes: Family<Word, Gauge>,
    pub compaction_pending_bytes: Family<Word, Gauge>,
    pub compactions_running: Family<Word, Gauge>,
    pub writes_stopped: Family<Word, Gauge>,
    pub level_files: Family<[(&'static str, &'static str); 2], Gauge>,
}

/// Of each other node.
#[derive(Default)]
pub struct PeerGauges {
    pub connected: Family<OfPeer, Gauge>,
    pub round_trip: Family<[(&'static str, String); 1], Gauge<f64, std::sync::atomic::AtomicU64>>,
    pub clock_offset: Family<[(&'static str, String); 1], Gauge<f64, std::sync::atomic::AtomicU64>>,
}

impl Metrics {
    fn new() -> Self {
        let read_stage = Family::<Word, Histogram>::new_with_constructor(seconds as fn() -> Histogram);
        let stage = |name| read_stage.get_or_create_owned(&[("stage", name)]);
        Self {
            log_queue: seconds(),
            log_queued: Gauge::default(),
            log_batch_jobs: counts(),
            log_batch: bytes(),
            log_sync: seconds(),
            quorum: seconds(),
            apply: seconds(),
            apply_entries: counts(),
            flush: seconds(),
            flush_bytes: bytes(),
            read_barrier: stage("barrier"),
            read_rows: stage("rows"),
            read_open: stage("open"),
            read_stage,
            barrier_queued: Gauge::default(),
            state_reads: Counter::default(),
            state_block_reads: Counter::default(),
            spans_dropped: Counter::default(),
            forged: Counter::default(),
            state_damaged: Gauge::default(),
            raft: RaftGauges::default(),
            engine: EngineGauges::default(),
            peer: PeerGauges::default(),
        }
    }

    /// Puts all of them where they are shown.
    pub fn register(&self, to: &mut Registry) {
        let seconds = || Unit::Seconds;
        to.register_with_unit("log_queue", "Wait of a write for the log's thread", seconds(), self.log_queue.clone());
        to.register("log_queued_writes", "Writes that wait for the log's thread now", self.log_queued.clone());
        to.register("log_batch_writes", "Writes of one batch of the log", self.log_batch_jobs.clone());
        to.register_with_unit("log_batch", "Size of one batch of the log", Unit::Bytes, self.log_batch.clone());
        to.register_with_unit("log_sync", "Write and fsync of one batch of the log", seconds(), self.log_sync.clone());
        let help =
            "On the leader, from its own fsync of an entry to its apply: what a majority takes; one entry at a time";
        to.register_with_unit("raft_quorum", help, seconds(), self.quorum.clone());
        to.register_with_unit("apply_batch", "Apply of one batch of entries", seconds(), self.apply.clone());
        to.register("apply_batch_entries", "Entries of one batch of apply", self.apply_entries.clone());
        to.register_with_unit("flush", "One flush of the state", seconds(), self.flush.clone());
        to.register_with_unit("flush_size", "What one flush of the state wrote", Unit::Bytes, self.flush_bytes.clone());
        to.register_with_unit("read_stage", "Parts of a read", seconds(), self.read_stage.clone());
        to.register("barrier_queued_reads", "Reads that wait for a read barrier now", self.barrier_queued.clone());
        let help = "Reads of the state for requests: a row, or a step of a scan";
        to.register("state_reads", help, self.state_reads.clone());
        let help = "Blocks of the state's tables that these reads did not find in the cache";
        to.register("state_block_reads", help, self.state_block_reads.clone());
        let help = "Spans that were thrown away because the collector does not keep up";
        to.register("trace_spans_dropped", help, self.spans_dropped.clone());
        let help = "What nodes without keys brought as leaders, and this one did not take";
        to.register("forged", help, self.forged.clone());
        let help = "1 from when a file of the state was found damaged until the node ends over it";
        to.register("state_damaged", help, self.state_damaged.clone());
        self.raft.register(to);
        self.engine.register(to);
        self.peer.register(to);
    }
}

impl RaftGauges {
    fn register(&self, to: &mut Registry) {
        to.register("raft_is_leader", "1 where this node leads the shard", self.leader.clone());
        to.register("raft_has_leader", "1 where this node knows a leader of the shard", self.has_leader.clone());
        to.register("raft_term", "Raft term of the shard", self.term.clone());
        to.register("raft_log_index", "Newest entry in this node's log", self.log_index.clone());
        to.register("raft_committed_index", "Newest entry known to be committed", self.committed_index.clone());
        to.register("raft_applied_index", "Newest entry applied here", self.applied_index.clone());
        to.register("raft_seq", "Outcomes recorded by this replica", self.seq.clone());
        to.register("raft_stopped", "1 where this replica has stopped", self.stopped.clone());
        let degraded = "1 where this leader answers commits without a site that it should wait for";
        to.register("raft_degraded", degraded, self.degraded.clone());
        let help = "On the leader: entries that a follower's log lacks";
        to.register("raft_follower_lag_entries", help, self.follower_lag.clone());
    }
}

impl EngineGauges {
    fn register(&self, to: &mut Registry) {
        let bytes = || Unit::Bytes;
        to.register_with_unit("engine_live", "Estimate of the data that is not dead", bytes(), self.live_bytes.clone());
        to.register_with_unit("engine_files", "Table files on disk", bytes(), self.files_bytes.clone());
        to.register_with_unit(
            "engine_memtables",
            "Data not yet flushed, in memory",
            bytes(),
            self.memtable_bytes.clone(),
        );
        to.register_with_unit("engine_cache", "Blocks cached in memory", bytes(), self.cache_bytes.clone());
        let help = "Data that compaction has yet to rewrite";
        to.register_with_unit("engine_compaction_pending", help, bytes(), self.compaction_pending_bytes.clone());
        to.register("engine_compactions_running", "Compactions under way", self.compactions_running.clone());
        to.register("engine_writes_stopped", "1 while compaction holds up all writes", self.writes_stopped.clone());
        to.register("engine_level_tables", "Table files of a level", self.level_files.clone());
    }
}

impl PeerGauges {
    fn register(&self, to: &mut Registry) {
        to.register("peer_connected", "1 while this node is connected to the other", self.connected.clone());
        let help = "Newest round trip to another node";
        to.register_with_unit("peer_round_trip", help, Unit::Seconds, self.round_trip.clone());
        let help = "How far another node's clock is ahead of this node's";
        to.register_with_unit("peer_clock_offset", help, Unit::Seconds, self.clock_offset.clone());
    }
}

/// Measures until it is dropped.
pub struct Timed<'a> {
    to: &'a Histogram,
    began: Instant,
}

pub fn timed(to: &Histogram) -> Timed<'_> {
    Timed { to, began: Instant::now() }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.to.observe(self.began.elapsed().as_secs_f64());
    }
}

/// One of those who wait, until it is dropped.
pub struct Counted<'a>(&'a Gauge);

pub fn counted(gauge: &Gauge) -> Counted<'_> {
    gauge.inc();
    Counted(gauge)
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
