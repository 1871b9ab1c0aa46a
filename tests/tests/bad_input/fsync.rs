//! A disk that fails: its node ends at once and says so, the others go on, and it comes back with what it has.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use charthold_client::{Chart, Put, RecordId};
use charthold_tests::harness::{Cluster, Options, fsync_shim, until};

const BAD: usize = 1;

async fn write(cluster: &Cluster, count: usize, from: usize) {
    for index in from..from + count {
        let (chart, id) = (Chart::patient(format!("p{index}")), RecordId::new("Note", "n"));
        let put = Put::new("text/plain", index.to_string());
        cluster.client().put(&chart, &id, put).await.unwrap_or_else(|error| panic!("{index}: {error}"));
    }
}

async fn all_is_there(cluster: &Cluster, count: usize) {
    let client = cluster.client();
    for index in 0..count {
        let record = client.get(&Chart::patient(format!("p{index}")), &RecordId::new("Note", "n")).await;
        assert_eq!(record.unwrap().body.as_ref(), index.to_string().as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_the_node_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("disk-is-bad");
    let shim = fsync_shim(folder.path());
    let environment = |name: &str, value: &Path| (BAD, name.to_owned(), value.to_str().unwrap().to_owned());
    let options = Options {
        node_environment: vec![environment("LD_PRELOAD", &shim), environment("FSYNC_SHIM_CONTROL", &control)],
        ..Options::default()
    };
    let mut cluster = Cluster::start_with(options).await;
    write(&cluster, 20, 0).await;
    assert!(cluster.is_running(BAD));

    std::fs::write(&control, b"").unwrap();
    // Whether it leads or follows: whatever is written to its log has to be synced.
    write(&cluster, 20, 20).await;
    let status = cluster.process(BAD).wait();
    assert_eq!(status.signal(), Some(6), "the node aborts: {status}");
    let log = std::fs::read_to_string(cluster.log(BAD)).unwrap();
    let last = log.lines().last().unwrap();
    assert!(last.contains("ERROR") && last.contains("durability is lost, ending this process"), "last line: {last}");
    assert!(last.contains("check the disk"), "it says what to do: {last}");

    write(&cluster, 20, 40).await;
    all_is_there(&cluster, 60).await;

    // Its disk is whole again.
    cluster.stop(BAD);
    std::fs::remove_file(&control).unwrap();
    cluster.restart(BAD);
    cluster.wait_ready().await;
    write(&cluster, 5, 60).await;
    cluster.wait_roots_equal().await;
    let own = cluster.client_at(BAD);
    until("the node serves what it missed", || async {
        let record = own.get(&Chart::patient("p50"), &RecordId::new("Note", "n")).await;
        record.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    all_is_there(&cluster, 65).await;
}

/// With a bad disk from the beginning a node does not even begin: it has nothing that it could promise.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_start_on_a_disk_that_cannot_sync() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("disk-is-bad");
    std::fs::write(&control, b"").unwrap();
    let cluster = Cluster::prepare(Options { sites: 1, ..Options::default() });
    let mut start = cluster.cli_command("operator", &["start", "--config", cluster.config(0).to_str().unwrap()]);
    let output =
        start.env("LD_PRELOAD", fsync_shim(folder.path())).env("FSYNC_SHIM_CONTROL", &control).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.lines().last().unwrap().contains("Input/output error"), "{said}");
}
