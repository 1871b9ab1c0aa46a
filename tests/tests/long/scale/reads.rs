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
/// The first of the reads, which warm nothing up for each other yet, not even in a small store.
const FIRST: usize = 20;

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
    pub first_block_reads: f64,
    /// What came from the disk for the process, blobs included; less than it read if the system had it.
    pub disk_kib: f64,
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p99, state_reads, block_reads, first_block_reads, disk_kib } = self;
        let (p50_ms, p99_ms) = (p50.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3);
        write!(
            f,
            "p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms; each {block_reads:.2} blocks (of the first: \
             {first_block_reads:.2}) in {state_reads:.2} reads of the state, {disk_kib:.1} KiB from the disk"
        )
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

pub async fn measure(store: &mut Store, call: Call, sample: &[(u64, u64)]) -> Reads {
    let client = store.cluster.client_at(NODE);
    let process = store.cluster.process(NODE).id();
    // A connection, and what the gateway knows of tenant and grant, are not a store's size.
    ask(&client, &store.charts, call, sample[0]).await;
    let (before, disk_before) = (store.cluster.metrics(NODE), bytes_from_disk(process));
    let (first, rest) = sample[1..].split_at(FIRST.min(sample.len() / 2));
    let mut took = ask_all(&client, &store.charts, call, first).await;
    let after_first = store.cluster.metrics(NODE);
    took.extend(ask_all(&client, &store.charts, call, rest).await);
    let (after, disk_bytes) = (store.cluster.metrics(NODE), bytes_from_disk(process) - disk_before);
    took.sort_unstable();
    let counted =
        |name: &str, until: &Metrics, calls: usize| (value(until, name) - value(&before, name)) / calls as f64;
    Reads {
        p50: took[took.len() / 2],
        p99: took[took.len() * 99 / 100],
        state_reads: counted(STATE_READS, &after, took.len()),
        block_reads: counted(BLOCK_READS, &after, took.len()),
        first_block_reads: counted(BLOCK_READS, &after_first, first.len()),
        disk_kib: disk_bytes as f64 / took.len() as f64 / 1024.0,
    }
}

async fn ask_all(client: &Client, charts: &Charts, call: Call, places: &[(u64, u64)]) -> Vec<Duration> {
    let mut took = Vec::with_capacity(places.len());
    for place in places {
        let began = Instant::now();
        ask(client, charts, call, *place).await;
        took.push(began.elapsed());
    }
    took
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
