//! Fills a store: many commits under way at once, each with one whole chart.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use charthold_client::Client;
use tokio::task::JoinSet;

use super::records::{Charts, RECORDS};

const COMMITS_UNDER_WAY: usize = 64;
/// Longer than the loss of a node lasts, as an import waits.
const DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at the disk.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Of looks, those that are told of.
const LOOKS_TOLD: u32 = 6;

/// What was loaded, and how long it took.
pub struct Loaded {
    pub commits: u64,
    pub body_bytes: u64,
    pub took: Duration,
}

impl Loaded {
    pub fn records(&self) -> u64 {
        self.commits * RECORDS
    }

    pub fn per_s(&self, count: u64) -> f64 {
        count as f64 / self.took.as_secs_f64()
    }
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (records, mean_bytes) = (self.records(), self.body_bytes / self.records().max(1));
        let (records_per_s, mb_per_s) = (self.per_s(records), self.per_s(self.body_bytes) / 1e6);
        let secs = self.took.as_secs_f64();
        write!(
            f,
            "{records} records of {mean_bytes} bytes in {secs:.1} s: {records_per_s:.0} a second, {mb_per_s:.1} MB/s"
        )
    }
}

/// Where the load is.
struct Progress {
    next: AtomicU64,
    end: u64,
    commits: AtomicU64,
    body_bytes: AtomicU64,
}

/// Commits these charts; looks at the disk meanwhile, and panics when `check` does.
pub async fn load(client: &Client, charts: &Arc<Charts>, numbers: Range<u64>, check: impl Fn()) -> Loaded {
    let (next, end) = (AtomicU64::new(numbers.start), numbers.end);
    let progress = Arc::new(Progress { next, end, commits: AtomicU64::new(0), body_bytes: AtomicU64::new(0) });
    let (began, mut looks, mut tasks) = (Instant::now(), 0, JoinSet::new());
    let loaded = || Loaded {
        commits: progress.commits.load(SeqCst),
        body_bytes: progress.body_bytes.load(SeqCst),
        took: began.elapsed(),
    };
    for _ in 0..COMMITS_UNDER_WAY {
        let client = client.with_deadline(DEADLINE);
        tasks.spawn(commit_charts(client, Arc::clone(charts), Arc::clone(&progress)));
    }
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(ended) => ended.unwrap(),
                None => break loaded(),
            },
            _ = look.tick() => {
                check();
                looks += 1;
                if looks % LOOKS_TOLD == 0 {
                    println!("scale: so far {}", loaded());
                }
            }
        }
    }
}

async fn commit_charts(client: Client, charts: Arc<Charts>, progress: Arc<Progress>) {
    loop {
        let number = progress.next.fetch_add(1, SeqCst);
        if number >= progress.end {
            return;
        }
        let (mutations, body_bytes) = charts.mutations(number);
        let committed = client.commit(&Charts::chart(number), mutations).await;
        committed.unwrap_or_else(|error| panic!("chart {number}: {error}"));
        progress.commits.fetch_add(1, SeqCst);
        progress.body_bytes.fetch_add(body_bytes, SeqCst);
    }
}
