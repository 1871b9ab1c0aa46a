//! Clients that write all the time, and remember every promise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use charthold_client::{Chart, Client, Error, Mutation, Put, RecordId, new_request_id};

use super::Cluster;

/// Of each writer.
const RECORDS: u64 = 5;

/// Clients that write beside whatever happens to the cluster, and note what they were promised.
pub struct Writers {
    tasks: Vec<tokio::task::JoinHandle<Log>>,
    done: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

impl Writers {
    pub fn start(cluster: &Cluster, count: usize) -> Self {
        let (done, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |number| {
            let client = cluster.client();
            tokio::spawn(Log::write(client, Chart::patient(format!("w{number}")), done.clone(), acknowledged.clone()))
        };
        Self { tasks: (0..count).map(writer).collect(), done, acknowledged }
    }

    /// Commits so far, of all writers.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(SeqCst)
    }

    pub async fn stop(self) -> Vec<Log> {
        self.done.store(true, SeqCst);
        let mut logs = Vec::new();
        for task in self.tasks {
            logs.push(task.await.unwrap());
        }
        logs
    }
}

/// What one writer was promised: the n-th commit's body, in the chart that nobody else writes to.
pub struct Log {
    chart: Chart,
    bodies: Vec<String>,
}

impl Log {
    async fn write(client: Client, chart: Chart, done: Arc<AtomicBool>, acknowledged: Arc<AtomicU64>) -> Self {
        let mut log = Self { chart, bodies: Vec::new() };
        while !done.load(SeqCst) {
            let (number, request_id) = (log.bodies.len() as u64, new_request_id());
            let body = format!("{{\"number\":{number},\"request\":\"{request_id}\"}}");
            let mutations = vec![Mutation::put(record(number), Put::fhir(body.clone()))];
            let committed = loop {
                match client.commit_with_id(request_id, &log.chart, mutations.clone()).await {
                    Ok(committed) => break committed,
                    Err(Error::OutcomeUnknown { .. } | Error::Unavailable { .. } | Error::Overloaded { .. }) => {}
                    Err(error) => panic!("a writer: {error}"),
                }
            };
            // Nobody else writes here: another version would be a commit that was lost, or happened twice.
            assert_eq!(committed.versions, [number / RECORDS + 1], "commit {number}");
            log.bodies.push(body);
            acknowledged.fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        log
    }

    pub fn acknowledged(&self) -> u64 {
        self.bodies.len() as u64
    }

    /// All that was promised is there, and nothing else.
    pub async fn check(&self, client: &Client) {
        for (number, body) in (0..).zip(&self.bodies) {
            let version = number / RECORDS + 1;
            let found = client.get_version(&self.chart, &record(number), version).await;
            let found = found.unwrap_or_else(|error| panic!("commit {number} was acknowledged: {error}"));
            assert_eq!(found.body, body.as_bytes(), "commit {number}");
        }
        let mut versions = 0;
        for number in 0..RECORDS {
            versions += client.history(&self.chart, &record(number)).await.unwrap().len();
        }
        assert_eq!(versions, self.bodies.len(), "there are versions that nobody was told of");
    }
}

fn record(number: u64) -> RecordId {
    RecordId::new("Counter", format!("r{}", number % RECORDS))
}
