//! A node that was away, and how long it takes until it is there again: after a crash, behind by some of the log, and
//! behind by more than that.

use std::time::{Duration, Instant};

use charthold_tests::away::{log_ends, wait_purged_beyond};
use charthold_tests::harness::{drop_page_cache, until, until_within};

use super::load::Loaded;
use super::records::Charts;
use super::store::Store;

/// Not the one that is read at.
const NODE: usize = 2;
/// Just before the crash, so that some of it is in the log only.
const CRASH_CHARTS: u64 = 1_000;
/// A chart is some four entries (its key, its index's rows in two shards, the commit), of two shards: fewer than each keeps
/// of its log, 16,384.
const LOG_CHARTS: u64 = 6_000;
/// More than twice what it keeps: from one snapshot to the next nothing is purged.
const SNAPSHOT_CHARTS: u64 = 22_000;
/// All that are written here.
pub const CHARTS: u64 = CRASH_CHARTS + LOG_CHARTS + SNAPSHOT_CHARTS;
/// For all of a store to be sent, at the rate that is allowed by default, several times over.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(20 * 60);

pub struct Returns {
    /// From the start of the process to the first answer, after SIGKILL.
    pub serving: Duration,
    /// What the node had then.
    pub node_bytes: u64,
    /// Commits that it lacked, and from its start to when it had them.
    pub by_log: (Loaded, Duration),
    /// Its whole state, and from its start to when it had all of it.
    pub by_snapshot: (u64, Duration),
}

impl Returns {
    /// Writes the charts from `first` on.
    pub async fn measure(store: &mut Store, first: u64) -> Self {
        let log_from = first + CRASH_CHARTS;
        let snapshot_from = log_from + LOG_CHARTS;
        store.load(first..log_from).await;
        let (node_bytes, serving) = (store.bytes_of_node()[2], serving_after_kill(store).await);
        println!("scale: serving {serving:.1?} after a kill, with {:.1} GB", node_bytes as f64 / 1e9);
        caught_up(store).await;

        stop(store);
        let loaded = store.load(log_from..snapshot_from).await;
        let by_log = (loaded, start_and_catch_up(store).await);
        println!("scale: {} commits of the log were caught up with in {:.1?}", by_log.0.commits, by_log.1);

        let ends = log_ends(&store.cluster, NODE).await;
        let installed_before = installed(store);
        stop(store);
        store.load(snapshot_from..snapshot_from + SNAPSHOT_CHARTS).await;
        for node in (0..store.cluster.size()).filter(|node| *node != NODE) {
            wait_purged_beyond(&store.cluster, node, &ends).await;
        }
        let by_snapshot = (store.bytes_of_node()[0], start_and_catch_up(store).await);
        println!("scale: {:.1} GB of snapshots came in {:.1?}", by_snapshot.0 as f64 / 1e9, by_snapshot.1);
        let installed = installed(store) - installed_before;
        assert!(installed >= ends.len(), "{installed} snapshots for {} shards", ends.len());
        store.cluster.wait_roots_equal().await;
        Self { serving, node_bytes, by_log, by_snapshot }
    }
}

fn stop(store: &mut Store) {
    store.note_memory();
    assert!(store.cluster.stop(NODE).success(), "{}", store.cluster.last_words());
}

async fn serving_after_kill(store: &mut Store) -> Duration {
    store.note_memory();
    store.cluster.kill(NODE);
    drop_page_cache();
    let (began, chart) = (Instant::now(), Charts::chart(0));
    store.cluster.restart(NODE);
    let (cluster, record) = (&store.cluster, store.charts.record(0, 0));
    until("the node says that it is ready", || async {
        let page = cluster.ops(NODE, "/readyz").ok_or("it does not listen")?;
        (page.status == 200).then_some(()).ok_or(page.body)
    })
    .await;
    let client = cluster.client_at(NODE);
    until("the node answers", || async { client.get(&chart, &record).await.map_err(|error| error.to_string()) }).await;
    began.elapsed()
}

async fn start_and_catch_up(store: &mut Store) -> Duration {
    let began = Instant::now();
    store.cluster.restart(NODE);
    caught_up(store).await;
    began.elapsed()
}

/// Until it has recorded in each shard what another node has. Nobody writes.
async fn caught_up(store: &Store) {
    let cluster = &store.cluster;
    let seqs = |node| async move {
        let status = cluster.status_of(node).await.map_err(|error| error.to_string())?;
        Ok::<_, String>(status.shards.iter().map(|shard| (shard.shard, shard.seq)).collect::<Vec<_>>())
    };
    until_within("the node has what the others have", CAUGHT_UP_MAX, || async {
        store.check_disk();
        let (own, others) = (seqs(NODE).await?, seqs(0).await?);
        (own == others).then_some(()).ok_or_else(|| format!("{own:?} of {others:?}"))
    })
    .await;
}

/// How many snapshots it has installed since it was made.
fn installed(store: &Store) -> usize {
    let log = std::fs::read_to_string(store.cluster.log(NODE)).expect("a node's log");
    log.matches("a snapshot was installed").count()
}
