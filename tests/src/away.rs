//! A node that was away for longer than the others keep their log: it comes back by snapshots, while writes go on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use charthold_client::{Chart, Client, Committed, Error, Mutation, Put, RecordId, Uuid, new_request_id};

use crate::harness::{Cluster, until};

/// Charts, and writers: all shards have some.
const CHARTS: usize = 64;
/// Records of a chart: each is written again and again.
const RECORDS: u64 = 5;

/// What one writer was told.
#[derive(Default)]
pub struct Told {
    /// Of each record: its newest version, and what is in it.
    newest: HashMap<u64, (u64, String)>,
    /// The first commit, to be asked for again.
    first: Option<(Uuid, Mutation, Committed)>,
}

/// Writers that go on until they are stopped.
pub struct Load {
    writers: Vec<tokio::task::JoinHandle<Told>>,
    done: Arc<AtomicBool>,
    pub commits: Arc<AtomicU64>,
}

fn chart(number: usize) -> Chart {
    Chart::patient(format!("away-{number}"))
}

fn record(number: u64) -> RecordId {
    RecordId::new("Note", format!("n{number}"))
}

impl Load {
    pub fn start(client: &Client) -> Self {
        let (done, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |number| tokio::spawn(write(client.clone(), number, Arc::clone(&done), Arc::clone(&commits)));
        Self { writers: (0..CHARTS).map(writer).collect(), done, commits }
    }

    /// Until so many commits were made.
    pub async fn reach(&self, commits: u64) {
        let (mut seen, mut silent) = (0, 0);
        loop {
            let made = self.commits.load(SeqCst);
            if made >= commits {
                return;
            }
            (seen, silent) = if made > seen { (made, 0) } else { (seen, silent + 1) };
            assert!(silent < 600, "nothing was written for a minute, after {made} commits");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    pub async fn stop(self) -> Vec<Told> {
        self.done.store(true, SeqCst);
        let mut told = Vec::new();
        for writer in self.writers {
            told.push(writer.await.expect("a writer"));
        }
        told
    }
}

async fn write(client: Client, number: usize, done: Arc<AtomicBool>, commits: Arc<AtomicU64>) -> Told {
    let mut told = Told::default();
    for step in 0_u64.. {
        if done.load(SeqCst) {
            break;
        }
        let (of, body) = (step % RECORDS, format!("{{\"step\":{step},\"writer\":{number}}}"));
        let (request_id, mutation) = (new_request_id(), Mutation::put(record(of), Put::fhir(body.clone())));
        let committed = client.commit_with_id(request_id, &chart(number), vec![mutation.clone()]).await;
        let committed = committed.unwrap_or_else(|error| panic!("writer {number}: {error}"));
        told.newest.insert(of, (committed.versions[0], body));
        told.first.get_or_insert((request_id, mutation, committed));
        commits.fetch_add(1, SeqCst);
    }
    told
}

/// Everything that was promised: newest versions and their bodies, whole histories, first outcomes of repeated requests.
pub async fn check(client: &Client, told: &[Told]) {
    for (number, of_chart) in told.iter().enumerate() {
        for (of, (version, body)) in &of_chart.newest {
            let found = client.get(&chart(number), &record(*of)).await.expect("an acknowledged record");
            assert_eq!((found.header.version, found.body.as_ref()), (*version, body.as_bytes()), "chart {number}");
            // A page of it: that there are as many as there were writes is what versions say.
            let history = client.history(&chart(number), &record(*of)).await.expect("a history");
            let versions = history.iter().map(|header| header.version).collect::<Vec<_>>();
            assert!(versions.iter().rev().copied().eq(1..=*version), "chart {number}: {versions:?}");
        }
        if let Some((request_id, mutation, committed)) = &of_chart.first {
            let again = client.commit_with_id(*request_id, &chart(number), vec![mutation.clone()]).await;
            assert_eq!(again, Ok(committed.clone()), "chart {number}: a repeated request");
            let other = Mutation::put(record(0), Put::fhir("{}"));
            let reused = client.commit_with_id(*request_id, &chart(number), vec![other]).await;
            assert_eq!(reused, Err(Error::RequestIdReused), "chart {number}");
        }
    }
}

/// The last log position on a node of each shard that has charts.
pub async fn log_ends(cluster: &Cluster, node: usize) -> HashMap<u32, u64> {
    let status = cluster.status_of(node).await.expect("a node's status");
    status.shards.iter().filter(|shard| shard.slots.is_some()).map(|shard| (shard.shard, shard.log_index)).collect()
}

/// Until a node's log begins after these positions, in every shard.
pub async fn wait_purged_beyond(cluster: &Cluster, node: usize, ends: &HashMap<u32, u64>) {
    until(&format!("node {node} has purged what was there before"), || async {
        let status = cluster.status_of(node).await.map_err(|error| error.to_string())?;
        let kept =
            status.shards.iter().filter(|shard| ends.get(&shard.shard).is_some_and(|end| shard.purged_index <= *end));
        let kept = kept.map(|shard| (shard.shard, shard.purged_index)).collect::<Vec<_>>();
        if kept.is_empty() { Ok(()) } else { Err(format!("shards and where they are purged: {kept:?}")) }
    })
    .await;
}

/// Stops a node for so many commits, takes it back while writes go on, and checks all that was promised, also with
/// this node as one of two.
pub async fn away_for(cluster: &mut Cluster, commits: u64) {
    let (away, other) = (2, 0);
    let load = Load::start(&cluster.client());
    load.reach(commits / 20).await;
    let ends = log_ends(cluster, away).await;
    cluster.kill(away);
    load.reach(load.commits.load(SeqCst) + commits).await;
    for node in [0, 1] {
        wait_purged_beyond(cluster, node, &ends).await;
    }
    cluster.restart(away);
    wait_purged_beyond(cluster, away, &ends).await;
    let log = std::fs::read_to_string(cluster.log(away)).expect("a node's log");
    let installed = log.matches("a snapshot was installed").count();
    assert!(installed >= ends.len(), "{installed} snapshots for {} shards", ends.len());
    load.reach(load.commits.load(SeqCst) + commits / 20).await;
    let told = load.stop().await;
    cluster.wait_roots_equal().await;
    check(&cluster.client(), &told).await;
    // Repeated requests were answered from each replica's own rows: else they would differ now.
    cluster.wait_roots_equal().await;
    cluster.kill(other);
    check(&cluster.client_at(away), &told).await;
    cluster.restart(other);
    cluster.wait_ready().await;
    cluster.wait_roots_equal().await;
    cluster.assert_rows_equal().await;
}
