//! A node that lacks more than the log holds is brought up by snapshots; also one that dies over it.

use std::path::Path;
use std::time::Instant;

use charthold_client::{Chart, Mutation, Put, RecordId};
use charthold_tests::away::{away_for, log_ends, wait_purged_beyond};
use charthold_tests::harness::{Cluster, Options, WAIT_MAX};

const COMMITS: u64 = 5_000;
const QUICK: &str = "[raft]\nheartbeat_ms = 100\nelection_min_ms = 500\nelection_max_ms = 1000\n";

fn options(snapshots: &str) -> Options {
    Options { config: format!("{QUICK}{snapshots}"), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_comes_back_by_snapshots_while_writes_go_on() {
    let mut cluster = Cluster::start_with(options("snapshot_after_entries = 200\nkeep_entries = 100\n")).await;
    away_for(&mut cluster, COMMITS).await;
}

const CHARTS: usize = 40;
const RECORDS: usize = 5;
/// Incompressible, so that a shard's snapshot is received over seconds, at the slowest pace allowed.
const BODY_BYTES: usize = 64 << 10;

/// Where an install is, as its files tell.
#[derive(Clone, Copy, Debug)]
enum Step {
    Receiving,
    Installing,
    Installed,
}

/// Until a snapshot of some shard is at this step.
fn wait_for(step: Step, incoming: &Path) {
    let with = |ending: &str| {
        let files = std::fs::read_dir(incoming).into_iter().flatten().flatten();
        files.filter(|file| file.file_name().to_string_lossy().ends_with(ending)).count()
    };
    let (deadline, mut seen) = (Instant::now() + WAIT_MAX, 0);
    loop {
        let installing = with(".install");
        match step {
            Step::Receiving if with(".part") > 0 => return,
            Step::Installing if installing > 0 => return,
            Step::Installed if installing < seen => return,
            _ => seen = installing,
        }
        assert!(Instant::now() < deadline, "no snapshot was {step:?} in time");
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

fn body(chart: usize, record: usize) -> Vec<u8> {
    // xorshift64 (Marsaglia 2003): any bytes will do that zstd makes nothing of.
    let mut state = ((chart * RECORDS + record + 1) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(BODY_BYTES).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_at_each_step_of_an_install_ends_correct() {
    let slow = "snapshot_after_entries = 16\nkeep_entries = 0\nsnapshot_bytes_per_s = 1048576\n";
    let mut cluster = Cluster::start_with(options(slow)).await;
    let client = cluster.client();
    let ends = log_ends(&cluster, 2).await;
    cluster.kill(2);
    let record = |number: usize| RecordId::new("Scan", format!("s{number}"));
    for chart in 0..CHARTS {
        let of_chart = Chart::patient(format!("p{chart}"));
        for number in 0..RECORDS {
            let put = Put::new("application/octet-stream", body(chart, number));
            client.commit(&of_chart, vec![Mutation::put(record(number), put)]).await.unwrap();
        }
    }
    // Small ones, so that what was before them is purged in batches.
    for chart in 0..CHARTS {
        let puts = (0..80).map(|number| {
            let (client, of_chart) = (client.clone(), Chart::patient(format!("p{chart}")));
            async move { client.put(&of_chart, &RecordId::new("Note", format!("n{number}")), Put::fhir("{}")).await }
        });
        for put in futures_join(puts.collect()).await {
            put.unwrap();
        }
    }
    for node in [0, 1] {
        wait_purged_beyond(&cluster, node, &ends).await;
    }
    let incoming = cluster.data_dir(2).join("incoming");
    for step in [Step::Receiving, Step::Installing, Step::Installed, Step::Installing, Step::Receiving] {
        cluster.restart(2);
        wait_for(step, &incoming);
        cluster.kill(2);
    }
    cluster.restart(2);
    wait_purged_beyond(&cluster, 2, &ends).await;
    cluster.wait_ready().await;
    cluster.wait_roots_equal().await;
    cluster.assert_rows_equal().await;
    // Read from its own rows.
    let client = cluster.client_at(2);
    for chart in 0..CHARTS {
        for number in 0..RECORDS {
            let found = client.get(&Chart::patient(format!("p{chart}")), &record(number)).await.unwrap();
            assert!(found.body == body(chart, number), "chart {chart}, record {number}");
        }
    }
}

async fn futures_join<T: Send + 'static>(tasks: Vec<impl std::future::Future<Output = T> + Send + 'static>) -> Vec<T> {
    let tasks = tasks.into_iter().map(tokio::spawn).collect::<Vec<_>>();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}
