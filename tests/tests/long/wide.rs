//! What 60 ms between sites cost: a commit against the round trip to the nearest quorum, throughput, and what bodies of
//! 1 MiB do to small ones.
//!
//! All shards are led at one site, and the clients are beside it: what is measured is the way to a majority, and not a
//! client's own. The round trip is what the network gives in the same run, by packets and their echoes.

use std::sync::Arc;
use std::time::Duration;

use charthold_tests::harness::{Cluster, Metrics, Options, Wan};
use charthold_tests::versus::load::{self, Call, Case, Figures, Pace, Subject};
use charthold_tests::versus::values::{Kind, Values};
use charthold_tests::versus::{CHARTS, Charthold};

const ROUND_TRIP: Duration = Duration::from_millis(60);
/// Between the first two sites, when the third one is far from both.
const NEAR_ROUND_TRIP: Duration = Duration::from_millis(10);
/// The site of the leaders, and the one that is near it.
const HERE: usize = 0;
const NEAR: usize = 1;
/// Timing as shipped.
const CONFIG: &str = "[raft]\nleader_sites = [\"a\"]\n";
/// What the median of a lone commit may be, of the round trip: the rest is for two syncs, sealing and the hops here.
const RATIO_MAX: f64 = 1.1;
/// What the 99th percentile of small commits may be beside large ones: a round trip and what is before them in the queues, but
/// no wait for a flush, which is seconds.
const BESIDE_P99_MS_MAX: f64 = 500.0;
const SMALL_BYTES: usize = 1 << 10;
const LARGE_BYTES: usize = 1 << 20;
const SMALL_WRITERS: usize = 16;
const LARGE_WRITERS: usize = 4;
const MANY_WRITERS: usize = 256;
/// The label of its requests.
const COMMIT: (&str, &str) = ("method", "charthold.v1.Charts/Commit");
/// Of each case: some 300 commits one after the other, at 60 ms.
const TIME: Duration = Duration::from_secs(20);
const ECHOES: usize = 100;

pub async fn run() {
    if !Wan::is_possible() {
        println!("wide: left out, since this process may not make networks (that needs root and /dev/net/tun)");
        return;
    }
    let options = Options { config: CONFIG.to_owned(), round_trip: Some(ROUND_TRIP), ..Options::default() };
    let mut cluster = Cluster::start_with(options).await;
    for other in (0..cluster.size()).filter(|node| *node != HERE) {
        cluster.wait_leads_nothing(other).await;
    }
    let (small, large) = (subject(&mut cluster, "Small", SMALL_BYTES), subject(&mut cluster, "Large", LARGE_BYTES));
    // A chart's first commit makes its key, which takes a round trip of its own.
    small.fill(CHARTS).await;
    let mut table = Table::default();
    let lone = Lone::measure(&cluster, &small, ROUND_TRIP, &mut table).await;
    let (many, busy_ms) = tokio::join!(put(&small, MANY_WRITERS), async { round_trip_ms(&cluster) });
    table.add(&MANY_WRITERS.to_string(), busy_ms, many);
    table.add(&SMALL_WRITERS.to_string(), lone.round_trip_ms, put(&small, SMALL_WRITERS).await);
    let (beside, of_large) = tokio::join!(put(&small, SMALL_WRITERS), put(&large, LARGE_WRITERS));
    table.add(&format!("{SMALL_WRITERS}, beside {LARGE_WRITERS} of 1 MiB"), lone.round_trip_ms, beside);
    table.add(&format!("those {LARGE_WRITERS}: MiB/s"), lone.round_trip_ms, of_large);
    let wan = cluster.wan().expect("it was asked for");
    for (from, to) in [(HERE, NEAR), (NEAR, HERE)] {
        wan.change(from, to, |link| link.delay = NEAR_ROUND_TRIP / 2);
    }
    let near = Lone::measure(&cluster, &small, NEAR_ROUND_TRIP, &mut table).await;
    table.print(&lone, &near);
    assert!(beside.p99_ms <= BESIDE_P99_MS_MAX, "small commits beside large ones wait {:.0} ms", beside.p99_ms);
    assert!(lone.ratio() <= RATIO_MAX, "a lone commit takes {:.3} round trips", lone.ratio());
}

/// Puts of one size, by a client of its own at the leaders' site.
fn subject(cluster: &mut Cluster, record_type: &'static str, bytes: usize) -> Arc<Subject> {
    let processes = (0..cluster.size()).map(|node| cluster.process(node).id()).collect();
    let store = Charthold::of_running(cluster.client_at(HERE), record_type, processes);
    Subject::new(Arc::new(store), Arc::new(Values::new(Kind::Random, bytes)))
}

async fn put(subject: &Arc<Subject>, writers: usize) -> Figures {
    load::run(subject, Case { call: Call::Put, pace: Pace::Closed(writers), time: TIME }).await
}

/// One commit at a time, against the network.
struct Lone {
    round_trip_ms: f64,
    p50_ms: f64,
    parts_ms: Vec<f64>,
}

impl Lone {
    /// `nearest`: the round trip to the site that is a majority together with the leaders' own.
    async fn measure(cluster: &Cluster, small: &Arc<Subject>, nearest: Duration, table: &mut Table) -> Self {
        let round_trip_ms = round_trip_ms(cluster);
        let metrics = || PARTS.map(|part| cluster.metrics(part.site));
        let before = metrics();
        let figures = put(small, 1).await;
        let after = metrics();
        let parts_ms = PARTS.iter().zip(before.iter().zip(&after)).map(|(part, (from, to))| part.mean_ms(from, to));
        table.add(&format!("1, sites {} ms apart", nearest.as_millis()), round_trip_ms, figures);
        Self { round_trip_ms, p50_ms: figures.p50_ms, parts_ms: parts_ms.collect() }
    }

    fn ratio(&self) -> f64 {
        self.p50_ms / self.round_trip_ms
    }
}

/// The median between the leaders' site and the nearest one.
fn round_trip_ms(cluster: &Cluster) -> f64 {
    let wan = cluster.wan().expect("it was asked for");
    // On this thread, which the runtime does without meanwhile: what it forwards is what is waited for.
    let mut echoes = tokio::task::block_in_place(|| wan.round_trips(HERE, NEAR, ECHOES));
    echoes.sort();
    echoes[ECHOES / 2].as_secs_f64() * 1e3
}

/// A histogram of a node, whose mean tells where a commit's time goes. They overlap.
struct Part {
    what: &'static str,
    site: usize,
    metric: &'static str,
    label: Option<(&'static str, &'static str)>,
}

const PARTS: [Part; 7] = [
    Part::of("the call, as the gateway sees it", HERE, "charthold_request_seconds", Some(COMMIT)),
    Part::of("of it: sealing", HERE, "charthold_commit_stage_seconds", Some(("stage", "seal"))),
    Part::of("of it: the proposal", HERE, "charthold_commit_stage_seconds", Some(("stage", "propose"))),
    Part::of("the leader's write and sync", HERE, "charthold_log_sync_seconds", None),
    Part::of("from its sync to its apply", HERE, "charthold_raft_quorum_seconds", None),
    Part::of("apply", HERE, "charthold_apply_batch_seconds", None),
    Part::of("the follower's write and sync", NEAR, "charthold_log_sync_seconds", None),
];

impl Part {
    const fn of(
        what: &'static str,
        site: usize,
        metric: &'static str,
        label: Option<(&'static str, &'static str)>,
    ) -> Self {
        Self { what, site, metric, label }
    }

    /// Of what came between two looks at the metrics.
    fn mean_ms(&self, before: &Metrics, after: &Metrics) -> f64 {
        let grown = |suffix: &str| {
            let sum = |metrics: &Metrics| metrics.sum(&format!("{}_{suffix}", self.metric), self.label.as_slice());
            sum(after) - sum(before)
        };
        grown("sum") / grown("count") * 1e3
    }
}

/// What is printed.
#[derive(Default)]
struct Table(String);

impl Table {
    fn add(&mut self, case: &str, round_trip_ms: f64, figures: Figures) {
        let Figures { per_s, p50_ms, p99_ms, cpu_us, .. } = figures;
        let ratio = p50_ms / round_trip_ms;
        let latency = format!("{p50_ms:.1} | {p99_ms:.1} | {round_trip_ms:.1} | {ratio:.2}");
        let row = format!("| {case} | {per_s:.1} | {latency} | {cpu_us:.0} |\n");
        self.0 += &row;
    }

    fn print(&self, lone: &Lone, near: &Lone) {
        let ratio = lone.p50_ms / (ROUND_TRIP.as_secs_f64() * 1e3);
        println!(
            "\n| under way | commits/s | p50 ms | p99 ms | round trip ms, p50 | p50 / round trip | nodes' µs each |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- |\n{}", self.0);
        println!("A lone commit, against the nominal {} ms: {ratio:.3}\n", ROUND_TRIP.as_millis());
        println!("| part of a lone commit, mean ms | far | near |\n| --- | --- | --- |");
        for (part, (far_ms, near_ms)) in PARTS.iter().zip(lone.parts_ms.iter().zip(&near.parts_ms)) {
            println!("| {} | {far_ms:.2} | {near_ms:.2} |", part.what);
        }
    }
}
