//! A disk that does not answer: others lead in its node's place, and if it stays so its node ends within a bound.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;

use charthold_client::{Chart, Put, RecordId};
use charthold_tests::harness::{Cluster, Options, Writers, fsync_shim, until};
use tempfile::TempDir;

const WRITERS: usize = 4;

/// A cluster each of whose disks can be made to hang.
struct Nodes {
    cluster: Cluster,
    folder: TempDir,
}

impl Nodes {
    async fn start(stall_max_ms: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shim = fsync_shim(folder.path());
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let variables = |node: usize| {
            let stall = folder.path().join(format!("stall-{node}"));
            [(node, "LD_PRELOAD".to_owned(), text(shim.clone())), (node, "FSYNC_SHIM_STALL".to_owned(), text(stall))]
        };
        let options = Options {
            node_environment: (0..3).flat_map(variables).collect(),
            config: format!("[disk]\nreserve_bytes = 67108864\nstall_warn_ms = 1000\nstall_max_ms = {stall_max_ms}\n"),
            ..Options::default()
        };
        Self { cluster: Cluster::start_with(options).await, folder }
    }

    fn hang(&self, node: usize) {
        std::fs::write(self.stall(node), b"").unwrap();
    }

    fn answer(&self, node: usize) {
        std::fs::remove_file(self.stall(node)).unwrap();
    }

    fn stall(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("stall-{node}"))
    }

    fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.cluster.log(node)).unwrap()
    }

    /// In every shard, as good as surely.
    async fn write_everywhere(&self, name: &str) {
        for number in 0..32 {
            let chart = Chart::patient(format!("{name}{number}"));
            self.cluster.client().put(&chart, &RecordId::new("Note", "n"), Put::fhir("{}")).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_ends_its_node_and_others_take_over() {
    let mut nodes = Nodes::start(4_000).await;
    let stalled = nodes.cluster.leader_of_most().await;
    let writers = Writers::start(&nodes.cluster, WRITERS);
    nodes.write_everywhere("before").await;

    nodes.hang(stalled);
    let status = nodes.cluster.process(stalled).wait();
    assert_eq!(status.signal(), Some(9), "{status}");
    let log = nodes.log(stalled);
    assert!(log.contains("handing over leadership"), "{log}");
    let why = log.lines().find(|line| line.contains("the disk does not answer, ending this process"));
    assert!(why.is_some_and(|line| line.contains("ERROR")), "{log}");
    nodes.write_everywhere("without").await;

    nodes.answer(stalled);
    nodes.cluster.stop(stalled);
    nodes.cluster.restart(stalled);
    nodes.cluster.wait_ready().await;
    let logs = writers.stop().await;
    nodes.cluster.wait_roots_equal().await;
    for log in logs {
        log.check(&nodes.cluster.client_at(stalled)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_for_a_while_costs_the_lead_only() {
    let mut nodes = Nodes::start(600_000).await;
    let stalled = nodes.cluster.leader_of_most().await;
    let writers = Writers::start(&nodes.cluster, WRITERS);
    nodes.hang(stalled);
    until("the others lead", || async {
        match nodes.log(stalled).contains("handing over leadership") {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        }
    })
    .await;
    nodes.write_everywhere("without").await;
    nodes.answer(stalled);
    nodes.cluster.wait_ready().await;
    assert!(nodes.cluster.is_running(stalled));
    let logs = writers.stop().await;
    nodes.cluster.wait_roots_equal().await;
    for log in logs {
        log.check(&nodes.cluster.client_at(stalled)).await;
    }
}
