//! All nodes die at once, again and again: whatever was acknowledged is there, and happened once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use charthold_client::{Chart, Client, Error, Mutation, Put, RecordId, new_request_id};
use charthold_tests::harness::{Cluster, until};
use charthold_tests::patients;

const CUTS: u64 = 10;
/// That the import of all patients makes, about; the cuts are spread over them.
const COMMITS: u64 = 240;
const WRITERS: usize = 4;
/// Of each writer.
const RECORDS: u64 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_ten_power_cuts() {
    let expected = patients::expected(1..=24);
    let mut cluster = Cluster::start(3).await;
    let before = cluster.recorded().await;
    let folder = patients::folder();
    // One import that lives through all of it; `--jobs 1` so that it takes its time.
    let mut import = cluster.cli_start("client", &["import", "--jobs", "1", folder.to_str().unwrap()]);
    let writers = Writers::start(&cluster);

    for cut in 1..=CUTS {
        let goal = cut * COMMITS / (CUTS + 2);
        until(&format!("{goal} commits of the import are stored"), || async {
            let stored = cluster.recorded().await.saturating_sub(before + writers.acknowledged.load(SeqCst));
            if stored >= goal { Ok(()) } else { Err(format!("{stored} are")) }
        })
        .await;
        assert!(import.is_running(), "the import was over before power cut {cut}");
        cluster.kill_all();
        assert!(import.is_running(), "the import gave up at power cut {cut}");
        cluster.restart_all();
        cluster.wait_ready().await;
    }
    let finished = import.finish().await.ok();
    assert!(finished.text().starts_with("51,934 read, 51,281 stored"), "{}", finished.text());
    let logs = writers.stop().await;
    assert!(logs.iter().all(|log| log.bodies.len() as u64 > CUTS), "the writers have hardly written");

    cluster.wait_ready().await;
    let client = cluster.client();
    for log in &logs {
        log.check(&client).await;
    }
    let versions = patients::assert_stored(&client, &expected).await;
    assert!(versions.values().all(|version| *version == 1), "something was stored twice");
    cluster.wait_roots_equal().await;
}

/// Clients that write beside the import and note what they were promised.
struct Writers {
    tasks: Vec<tokio::task::JoinHandle<Log>>,
    done: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

impl Writers {
    fn start(cluster: &Cluster) -> Self {
        let (done, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |number| {
            let client = cluster.client();
            tokio::spawn(Log::write(client, Chart::patient(format!("w{number}")), done.clone(), acknowledged.clone()))
        };
        Self { tasks: (0..WRITERS).map(writer).collect(), done, acknowledged }
    }

    async fn stop(self) -> Vec<Log> {
        self.done.store(true, SeqCst);
        let mut logs = Vec::new();
        for task in self.tasks {
            logs.push(task.await.unwrap());
        }
        logs
    }
}

/// What one writer was promised: the n-th commit's body, in the chart that nobody else writes to.
struct Log {
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

    async fn check(&self, client: &Client) {
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
