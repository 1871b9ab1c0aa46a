//! Reads at one node, one at a time: how long they take, and what they have the disk do.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use charthold_client::{Client, ListQuery};
use charthold_tests::harness::Metrics;

use super::records::{Charts, RECORDS};
use super::store::Store;
use crate::seed;

const STATE_READS: &str = "charthold_state_reads_total";
const BLOCK_READS: &str = "charthold_state_block_reads_total";
/// Where is read: its metrics are looked at.
const NODE: usize = 0;
const PAGE_ROWS: u32 = 100;

#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// A record, with its body.
    Get,
    /// A page of headers: a whole chart of this size.
    List,
}

/// A number of reads. All but the latencies are means.
pub struct Reads {
    pub p50: Duration,
    pub p99: Duration,
    /// Questions to the state.
    pub state_reads: f64,
    /// Blocks of its tables that were not in its cache.
    pub block_reads: f64,
    /// What came from the disk for the process, blobs included; less than it read if the system had it.
    pub disk_kib: f64,
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p99, state_reads, block_reads, disk_kib } = self;
        let (p50_ms, p99_ms) = (p50.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3);
        write!(
            f,
            "p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms; each {block_reads:.2} blocks in {state_reads:.2} reads of the state, \
             {disk_kib:.1} KiB from the disk"
        )
    }
}

/// What reads took and what they had read, as sums: those of several starts are added up.
#[derive(Default)]
pub struct Sums {
    took: Vec<Duration>,
    state_reads: f64,
    block_reads: f64,
    disk_bytes: f64,
}

impl Sums {
    pub fn means(mut self) -> Reads {
        self.took.sort_unstable();
        let (took, calls) = (&self.took, self.took.len() as f64);
        Reads {
            p50: took[took.len() / 2],
            p99: took[took.len() * 99 / 100],
            state_reads: self.state_reads / calls,
            block_reads: self.block_reads / calls,
            disk_kib: self.disk_bytes / calls / 1024.0,
        }
    }

    /// Calls at all places but the first, which is for a connection and what the gateway knows of tenant and grant: these are
    /// not a store's size.
    pub async fn add(&mut self, store: &mut Store, call: Call, places: &[(u64, u64)]) {
        let client = store.cluster.client_at(NODE);
        let process = store.cluster.process(NODE).id();
        ask(&client, &store.charts, call, places[0]).await;
        let (before, disk_before) = (store.cluster.metrics(NODE), bytes_from_disk(process));
        for place in &places[1..] {
            let began = Instant::now();
            ask(&client, &store.charts, call, *place).await;
            self.took.push(began.elapsed());
        }
        let after = store.cluster.metrics(NODE);
        self.state_reads += value(&after, STATE_READS) - value(&before, STATE_READS);
        self.block_reads += value(&after, BLOCK_READS) - value(&before, BLOCK_READS);
        self.disk_bytes += (bytes_from_disk(process) - disk_before) as f64;
    }
}

/// Charts, all different, and a record of each.
pub fn sample(charts: &Range<u64>, count: usize) -> Vec<(u64, u64)> {
    let mut random = fastrand::Rng::with_seed(seed());
    let chosen = random.choose_multiple(charts.clone(), count.min((charts.end * 2 / 3) as usize));
    let mut with_record: Vec<_> = chosen.into_iter().map(|chart| (chart, random.u64(..RECORDS))).collect();
    random.shuffle(&mut with_record);
    with_record
}

fn value(metrics: &Metrics, name: &str) -> f64 {
    assert!(metrics.samples.iter().any(|sample| sample.name == name), "no metric {name}");
    metrics.sum(name, &[])
}

/// What is read is right, as far as its length tells.
async fn ask(client: &Client, charts: &Charts, call: Call, (number, place): (u64, u64)) {
    let chart = Charts::chart(number);
    match call {
        Call::Get => {
            let record = charts.record(number, place);
            let found = client.get(&chart, &record).await.unwrap_or_else(|error| panic!("chart {number}: {error}"));
            assert_eq!((found.version(), found.header.record), (1, record));
        }
        Call::List => {
            let page = client.list_page(&chart, &ListQuery::default(), PAGE_ROWS, None).await;
            let page = page.unwrap_or_else(|error| panic!("chart {number}: {error}"));
            assert_eq!(page.items.len() as u64, RECORDS, "chart {number}");
        }
    }
}

/// What the system has read for a process so far.
fn bytes_from_disk(process: u32) -> u64 {
    let counted = std::fs::read_to_string(format!("/proc/{process}/io")).expect("what a process has read");
    let line = counted.lines().find_map(|line| line.strip_prefix("read_bytes:")).expect("what came from disks");
    line.trim().parse().expect("a number")
}
