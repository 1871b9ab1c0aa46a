//! Writers that note how long each of their commits took: what clients notice when leaders go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use charthold_client::{Chart, Client, Error, Mutation, Put, RecordId, new_request_id};
use charthold_tests::harness::Cluster;
use tokio::task::JoinHandle;

/// Charts of every shard, so that whoever goes, some writer notices.
pub const WRITERS: usize = 16;

/// When a commit began, and how long it took until its answer.
type Wait = (Instant, Duration);

pub struct Waiting {
    done: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<Wait>>>,
}

impl Waiting {
    pub fn start(cluster: &Cluster) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let writer = |number| tokio::spawn(write(cluster.client(), number, Arc::clone(&done)));
        Self { writers: (0..WRITERS).map(writer).collect(), done }
    }

    pub async fn stop(self) -> Waits {
        self.done.store(true, SeqCst);
        let mut waits = Vec::new();
        for writer in self.writers {
            waits.extend(writer.await.unwrap());
        }
        Waits(waits)
    }
}

pub struct Waits(Vec<Wait>);

impl Waits {
    pub fn commits(&self) -> usize {
        self.0.len()
    }

    /// Of each moment, the longest wait that reached into the time after it, in order of length.
    pub fn longest_after(&self, moments: &[Instant], within: Duration) -> Vec<Duration> {
        let longest = |moment: &Instant| {
            let hit = self.0.iter().filter(|(begun, took)| *begun + *took > *moment && *begun < *moment + within);
            hit.map(|(_, took)| *took).max().unwrap_or_default()
        };
        let mut longest = moments.iter().map(longest).collect::<Vec<_>>();
        longest.sort();
        longest
    }
}

/// Writes one record over and over.
async fn write(client: Client, number: usize, done: Arc<AtomicBool>) -> Vec<Wait> {
    let chart = Chart::patient(format!("writer-{number}"));
    let record = RecordId::new("Counter", "n");
    let mut waits = Vec::new();
    while !done.load(SeqCst) {
        let (begun, request_id) = (Instant::now(), new_request_id());
        let mutations = vec![Mutation::put(record.clone(), Put::fhir(format!("{{\"n\":{}}}", waits.len())))];
        let committed = loop {
            match client.commit_with_id(request_id, &chart, mutations.clone()).await {
                Ok(committed) => break committed,
                Err(Error::OutcomeUnknown { .. } | Error::Unavailable { .. } | Error::Overloaded { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(committed.versions, [waits.len() as u64 + 1], "a commit was lost, or happened twice");
        waits.push((begun, begun.elapsed()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    waits
}
