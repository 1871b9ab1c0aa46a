//! A month in miniature: an hour of mixed load with restarts. Memory, disk, file descriptors and latency stay flat.
//!
//! Each minute is a sample. What must be flat is compared between the second quarter of the time (the first one warms
//! up) and the last one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use charthold_client::{Chart, Client, Error, Put, RecordId};
use charthold_tests::harness::{Cluster, Options, RAFT_AS_SHIPPED, bytes_in, resident_kib};
use tokio::sync::Mutex;

use super::minutes;

const WRITERS: usize = 12;
const READERS: usize = 6;
const CHARTS: u64 = 400;
const RECORDS: u64 = 40;
/// Of a writer between two writes, so that the machine is busy and not full.
const PAUSE: Duration = Duration::from_millis(20);
const RESTART_EVERY: u32 = 3;
/// How much more of it there may be at the end.
const GROWTH_MAX: f64 = 1.25;
/// p99 moves with every restart that falls into a minute.
const LATENCY_GROWTH_MAX: f64 = 2.0;
/// Bytes on a disk for a byte of a clear body: a log, a state, what waits for compaction, seals and audit.
const AMPLIFICATION_MAX: f64 = 6.0;

#[derive(Default)]
struct Counts {
    done: AtomicBool,
    commits: AtomicU64,
    reads: AtomicU64,
    body_bytes: AtomicU64,
    latencies: Mutex<Vec<Duration>>,
}

/// What one minute was like; of the nodes, the worst.
#[derive(Clone, Copy, Debug)]
struct Sample {
    rss_kib: u64,
    descriptors: u64,
    disk_bytes: u64,
    body_bytes: u64,
    p99_ms: f64,
}

pub async fn run() {
    let time = minutes(60);
    let config = format!("{RAFT_AS_SHIPPED}snapshot_after_entries = 4000\nkeep_entries = 4000\n");
    let mut cluster = Cluster::start_with(Options { config, ..Options::default() }).await;
    let counts = Arc::new(Counts::default());
    let tasks = start_load(&cluster, &counts);
    let (began, mut samples, mut minute) = (Instant::now(), Vec::new(), 0);
    while began.elapsed() < time {
        tokio::time::sleep_until((began + Duration::from_secs(60) * (minute + 1)).into()).await;
        minute += 1;
        let sample = sample(&mut cluster, &counts).await;
        println!("minute {minute}: {sample:?}");
        samples.push(sample);
        if minute % RESTART_EVERY == 0 {
            let node = (minute / RESTART_EVERY) as usize % cluster.size();
            assert!(cluster.stop(node).success(), "{}", cluster.last_words());
            cluster.restart(node);
            cluster.wait_ready().await;
        }
    }
    counts.done.store(true, SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    cluster.wait_roots_equal().await;
    report(&samples, &counts);
}

fn start_load(cluster: &Cluster, counts: &Arc<Counts>) -> Vec<tokio::task::JoinHandle<()>> {
    let writers = (0..WRITERS).map(|number| tokio::spawn(write(cluster.client(), number as u64, Arc::clone(counts))));
    let readers = (0..READERS).map(|number| tokio::spawn(read(cluster.client(), number as u64, Arc::clone(counts))));
    writers.chain(readers).collect()
}

/// Any spread will do: a multiplicative hash of the step (Knuth, TAOCP 6.4).
fn spread(step: u64, seed: u64) -> u64 {
    (step + seed * 0x1_0001).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20
}

fn place(step: u64, seed: u64) -> (Chart, RecordId) {
    let at = spread(step, seed);
    (Chart::patient(format!("m{}", at % CHARTS)), RecordId::new("Note", format!("n{}", at / CHARTS % RECORDS)))
}

async fn write(client: Client, seed: u64, counts: Arc<Counts>) {
    for step in 0.. {
        if counts.done.load(SeqCst) {
            return;
        }
        let (chart, record) = place(step, seed);
        let length = 200 + spread(step, seed + 7) % 4_000;
        // Text as good as random: it does not compress to nothing.
        let body = (0..length / 16).map(|part| format!("{:016x}", spread(part, step))).collect::<String>();
        let (bytes, began) = (body.len() as u64, Instant::now());
        let put = Put::new("text/plain", body.into_bytes());
        client.put(&chart, &record, put).await.unwrap_or_else(|error| panic!("writer {seed}: {error}"));
        counts.latencies.lock().await.push(began.elapsed());
        counts.commits.fetch_add(1, SeqCst);
        counts.body_bytes.fetch_add(bytes, SeqCst);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read(client: Client, seed: u64, counts: Arc<Counts>) {
    for step in 0.. {
        if counts.done.load(SeqCst) {
            return;
        }
        let (chart, record) = place(step, seed);
        let answered = match step % 4 {
            0 => client.list(&chart, Some("Note")).await.map(drop),
            1 => client.history(&chart, &record).await.map(drop),
            2 => read_all(&client, &chart).await,
            _ => client.get(&chart, &record).await.map(drop),
        };
        match answered {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => panic!("reader {seed}: {error}"),
        }
        counts.reads.fetch_add(1, SeqCst);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read_all(client: &Client, chart: &Chart) -> Result<(), Error> {
    let mut records = client.read_chart(chart).await?;
    while let Some(record) = records.next().await {
        record?;
    }
    Ok(())
}

async fn sample(cluster: &mut Cluster, counts: &Counts) -> Sample {
    let mut latencies = std::mem::take(&mut *counts.latencies.lock().await);
    latencies.sort_unstable();
    let p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default();
    let (mut rss_kib, mut descriptors, mut disk_bytes) = (0, 0, 0);
    for node in 0..cluster.size() {
        let process = Path::new("/proc").join(cluster.process(node).id().to_string());
        rss_kib = rss_kib.max(resident_kib(cluster.process(node).id()));
        descriptors = descriptors.max(std::fs::read_dir(process.join("fd")).unwrap().count() as u64);
        disk_bytes = disk_bytes.max(bytes_in(&cluster.data_dir(node)));
    }
    let body_bytes = counts.body_bytes.load(SeqCst);
    Sample { rss_kib, descriptors, disk_bytes, body_bytes, p99_ms: p99.as_secs_f64() * 1_000.0 }
}

fn report(samples: &[Sample], counts: &Counts) {
    let quarter = (samples.len() / 4).max(1);
    let mean = |of: &[Sample], what: fn(&Sample) -> f64| of.iter().map(what).sum::<f64>() / of.len() as f64;
    let (early, late) = (
        &samples[quarter.min(samples.len() - 1)..(2 * quarter).min(samples.len())],
        &samples[samples.len() - quarter..],
    );
    let growth = |what: fn(&Sample) -> f64| mean(late, what) / mean(early, what);
    let (rss, descriptors) = (growth(|sample| sample.rss_kib as f64), growth(|sample| sample.descriptors as f64));
    let p99 = growth(|sample| sample.p99_ms);
    let last = samples.last().unwrap();
    let amplification = last.disk_bytes as f64 / last.body_bytes as f64;
    println!(
        "month: {} minutes, {} commits, {} reads; growth from the second to the last quarter: memory {rss:.2} (to {} MiB), \
         descriptors {descriptors:.2} (to {}), p99 {p99:.2} (to {:.1} ms); on each disk {amplification:.2} bytes a byte of body",
        samples.len(),
        counts.commits.load(SeqCst),
        counts.reads.load(SeqCst),
        last.rss_kib >> 10,
        last.descriptors,
        last.p99_ms,
    );
    assert!(rss <= GROWTH_MAX && descriptors <= GROWTH_MAX && p99 <= LATENCY_GROWTH_MAX);
    assert!(amplification <= AMPLIFICATION_MAX);
}
