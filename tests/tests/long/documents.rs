//! A document of 100 MiB neither stalls its shard nor grows memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use charthold_client::{Chart, Client, Put, RecordId};
use charthold_tests::harness::{self, Cluster, Options, RAFT_AS_SHIPPED};

const DOCUMENT_BYTES: u64 = 100 << 20;
/// Each: commits alone for as long as the document before took, then beside a document.
const ROUNDS: usize = 4;
/// On the document's own chart, so that all are in one shard and one log.
const WRITERS: usize = 4;
const QUIET: Duration = Duration::from_secs(10);
/// What the 99th percentile of small commits may be, of what it is without a document.
const RATIO_MAX: f64 = 3.0;
/// By how much the largest resident size of a node may grow from its first document to its last: what RocksDB's write
/// buffers hold at the one moment and not at the other (64 MiB each, of log and state, and what is being flushed), and
/// never a document.
const GROWTH_MIB_MAX: u64 = 150;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

pub async fn run() {
    let mut cluster = Cluster::start_with(Options { config: RAFT_AS_SHIPPED.to_owned(), ..Options::default() }).await;
    let client = cluster.client();
    let chart = Chart::patient("p1");
    commits_during(&client, &chart, tokio::time::sleep(QUIET)).await;
    let fresh_mib = resident_mib(&mut cluster);
    let (mut alone, mut beside, mut peaks_mib, mut took) = (Vec::new(), Vec::new(), Vec::new(), QUIET);
    for round in 0..ROUNDS {
        alone.extend(commits_during(&client, &chart, tokio::time::sleep(took)).await);
        let begun = Instant::now();
        let done = Arc::new(AtomicBool::new(false));
        let upload = upload(client.clone(), chart.clone(), round, Arc::clone(&done));
        let (commits, peak_mib) = tokio::join!(commits_during(&client, &chart, upload), peak(&mut cluster, &done));
        took = begun.elapsed();
        let round_p99 = p99(&mut commits.clone());
        println!("round {round}: {took:?}, p99 beside {round_p99:?} of {}, peak {peak_mib} MiB", commits.len());
        beside.extend(commits);
        peaks_mib.push(peak_mib);
    }
    let (alone_p99, beside_p99) = (p99(&mut alone), p99(&mut beside));
    let ratio = beside_p99.as_secs_f64() / alone_p99.as_secs_f64();
    let growth_mib = peaks_mib.iter().max().unwrap().saturating_sub(peaks_mib[0]);
    println!(
        "document_beside_commits: p99 of {} small commits alone {alone_p99:?}, of {} beside {ROUNDS} x 100 MiB \
         {beside_p99:?}, ratio {ratio:.2}; nodes' largest resident size {fresh_mib} MiB before, {} MiB in the first \
         document, {growth_mib} MiB more in those after",
        alone.len(),
        beside.len(),
        peaks_mib[0],
    );
    assert!(ratio <= RATIO_MAX);
    assert!(growth_mib <= GROWTH_MIB_MAX);
    read_back(&client, &chart).await;
}

/// What does not compress, without holding it: a counter, scattered.
struct Noise {
    state: u64,
}

impl Noise {
    fn of(round: usize) -> Self {
        Self { state: round as u64 }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word.copy_from_slice(&(mixed ^ (mixed >> 27)).to_le_bytes()[..word.len()]);
        }
    }
}

impl tokio::io::AsyncRead for Noise {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        // Whole words, so that the same bytes come however they are asked for.
        let length = (into.remaining() / 8 * 8).min(64 << 10);
        self.fill(into.initialize_unfilled_to(length));
        into.advance(length);
        std::task::Poll::Ready(Ok(()))
    }
}

async fn upload(client: Client, chart: Chart, round: usize, done: Arc<AtomicBool>) {
    use tokio::io::AsyncReadExt as _;
    let record = RecordId::new("Scan", round.to_string());
    client.put_document(&chart, &record, Put::default(), Noise::of(round).take(DOCUMENT_BYTES)).await.unwrap();
    done.store(true, SeqCst);
}

async fn read_back(client: &Client, chart: &Chart) {
    for round in 0..ROUNDS {
        let mut stream = client.read_document(chart, &RecordId::new("Scan", round.to_string())).await.unwrap();
        let (mut noise, mut length) = (Noise::of(round), 0);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.unwrap();
            let mut expected = vec![0; chunk.len()];
            noise.fill(&mut expected);
            assert!(chunk == expected, "document {round} after byte {length}");
            length += chunk.len() as u64;
        }
        assert_eq!(length, DOCUMENT_BYTES);
    }
}

/// How long each small commit took while something else went on.
async fn commits_during(client: &Client, chart: &Chart, what: impl Future<Output = ()>) -> Vec<Duration> {
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| tokio::spawn(write(client.clone(), chart.clone(), number, Arc::clone(&done))))
        .collect();
    what.await;
    done.store(true, SeqCst);
    let mut took = Vec::new();
    for writer in writers {
        took.extend(writer.await.unwrap());
    }
    took
}

async fn write(client: Client, chart: Chart, number: usize, done: Arc<AtomicBool>) -> Vec<Duration> {
    let record = RecordId::new("Counter", number.to_string());
    let mut took = Vec::new();
    while !done.load(SeqCst) {
        let begun = Instant::now();
        client.put(&chart, &record, Put::fhir(format!("{{\"n\":{}}}", took.len()))).await.unwrap();
        took.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    took
}

fn p99(took: &mut [Duration]) -> Duration {
    took.sort();
    took[took.len() * 99 / 100]
}

async fn peak(cluster: &mut Cluster, done: &AtomicBool) -> u64 {
    let mut peak_mib = 0;
    while !done.load(SeqCst) {
        peak_mib = peak_mib.max(resident_mib(cluster));
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
    peak_mib
}

/// Of the node that has most.
fn resident_mib(cluster: &mut Cluster) -> u64 {
    (0..cluster.size()).map(|node| harness::resident_mib(cluster.process(node).id())).max().unwrap()
}
