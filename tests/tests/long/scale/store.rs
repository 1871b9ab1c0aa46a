//! A cluster that is loaded, started cold, and watched: how much memory it takes, and that its disk holds it.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use charthold_tests::harness::{Cluster, Options, RAFT_AS_SHIPPED};
use charthold_tests::harness::{bytes_in, drop_page_cache, free_bytes, peak_resident_mib, until_within};

use super::load::{self, Loaded};
use super::records::Charts;

pub const NODES: usize = 3;
/// On one node, of a record (1,750 were measured): its state, and what compactions have not made smaller yet.
const RECORD_BYTES_MAX: u64 = 1_800;
/// On one node, beside its records: above all its log.
const NODE_BYTES_MORE: u64 = 900_000_000;
const SETTLED_MAX: Duration = Duration::from_secs(20 * 60);
/// How often a node that takes snapshots of all shards may have its records: those that it had, files of those that came, and
/// most of them as new rows already (2.7 times were measured).
const TIMES_IN_SNAPSHOT: u64 = 3;

/// What the nodes' folders may grow to.
#[derive(Clone, Copy)]
pub struct Budget {
    records_bytes: u64,
}

impl Budget {
    pub fn of(records: u64) -> Self {
        Self { records_bytes: records * RECORD_BYTES_MAX }
    }

    /// All nodes, while one of them takes a snapshot of all shards.
    fn total_bytes(self) -> u64 {
        let nodes = NODES as u64;
        nodes * NODE_BYTES_MORE + (nodes - 1 + TIMES_IN_SNAPSHOT) * self.records_bytes
    }

    /// Before anything is written.
    pub fn check_room(self, folder: &Path) {
        let (free, needed) = (free_bytes(folder), self.total_bytes());
        println!("scale: {} GB are free, of which up to {} are needed", gb(free), gb(needed));
        let path = folder.display();
        assert!(
            free > needed,
            "{path}: {} GB are free, and this takes up to {}: set TMPDIR, or CHARTHOLD_SCALE_RECORDS",
            gb(free),
            gb(needed)
        );
    }

    fn check(self, folder: &Path) {
        let (found, budget) = (bytes_in(folder), self.total_bytes());
        assert!(found <= budget, "the nodes' folders hold {} GB, and were to hold {} at most", gb(found), gb(budget));
    }
}

fn gb(bytes: u64) -> f64 {
    (bytes as f64 / 1e8).round() / 10.0
}

pub struct Store {
    pub cluster: Cluster,
    pub charts: Arc<Charts>,
    budget: Budget,
    peak_resident_mib: u64,
}

impl Store {
    pub async fn create(charts: Arc<Charts>, budget: Budget) -> Self {
        let options = Options { sites: NODES, config: RAFT_AS_SHIPPED.to_owned(), ..Options::default() };
        Self { cluster: Cluster::start_with(options).await, charts, budget, peak_resident_mib: 0 }
    }

    pub async fn load(&self, numbers: Range<u64>) -> Loaded {
        load::load(&self.cluster.client(), &self.charts, numbers, || self.check_disk()).await
    }

    /// Panics if the nodes' folders are larger than they were to be.
    pub fn check_disk(&self) {
        self.budget.check(self.cluster.folder());
    }

    /// Until no engine has anything left to compact: that would be read and written beside what is measured.
    async fn settle(&self) {
        until_within("compactions are done", SETTLED_MAX, || async {
            let left = (0..NODES).map(|node| {
                let metrics = self.cluster.metrics(node);
                metrics.sum("charthold_engine_compactions_running", &[])
                    + metrics.sum("charthold_engine_compaction_pending_bytes", &[])
            });
            let left = left.sum::<f64>();
            (left == 0.0).then_some(()).ok_or_else(|| format!("{left} bytes are pending"))
        })
        .await;
    }

    /// Stops all nodes and starts them: nothing is in their caches, nor, if it may be dropped, in the system's.
    pub async fn restart_cold(&mut self) {
        self.settle().await;
        self.note_memory();
        for node in 0..NODES {
            let stopped = self.cluster.stop(node);
            assert!(stopped.success(), "node {node}: {}", self.cluster.last_words());
        }
        drop_page_cache();
        self.cluster.restart_all();
        self.cluster.wait_ready().await;
        self.settle().await;
        if !drop_page_cache() {
            println!("scale: this process may not drop the system's page cache: what is cold is so in RocksDB only");
        }
    }

    /// What the process that needed most has needed, of all there were.
    pub fn peak_resident_mib(&mut self) -> u64 {
        self.note_memory();
        self.peak_resident_mib
    }

    /// To be called before a process ends, too.
    pub fn note_memory(&mut self) {
        for node in 0..NODES {
            if self.cluster.is_running(node) {
                let peak = peak_resident_mib(self.cluster.process(node).id());
                self.peak_resident_mib = self.peak_resident_mib.max(peak);
            }
        }
    }

    /// Of the largest node: its state, its log, and all of it.
    pub fn bytes_of_node(&self) -> [u64; 3] {
        let of = |folder: &str| self.cluster.data_dirs().iter().map(|data| bytes_in(&data.join(folder))).max().unwrap();
        [of("state"), of("log"), of("")]
    }
}
