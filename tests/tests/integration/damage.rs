//! A disk spoils a file of a node's state: other nodes answer, the node has its state made anew by them, and nobody has to
//! do more than a supervisor does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use charthold_tests::fault_disk::FaultDisk;
use charthold_tests::harness::{Cluster, Options, RAFT, until};
use charthold_tests::numbered::Numbered;

/// More than the logs hold.
const RECORDS: Numbered = Numbered { records: 1_000, bytes: 2_000 };
const SPOILED: usize = 1;

async fn start() -> Option<Cluster> {
    if !FaultDisk::is_possible() {
        skip();
        return None;
    }
    let config = format!("{RAFT}snapshot_after_entries = 50\nkeep_entries = 50\n");
    let cluster = Cluster::start_with(Options { config, fault_disks: true, ..Options::default() }).await;
    RECORDS.put_all(&cluster.client()).await;
    Some(cluster)
}

#[allow(clippy::print_stderr)]
fn skip() {
    eprintln!("SKIPPED: fault disks need root and /dev/fuse");
}

/// Where most of the bodies are.
fn blob_files(cluster: &Cluster) -> Vec<PathBuf> {
    let is_blob = |file: &Path| file.extension().is_some_and(|extension| extension == "blob");
    cluster.disk(SPOILED).files().into_iter().filter(|file| is_blob(file)).collect()
}

/// One bit in each KiB: no body in there is what it was.
fn spoil(cluster: &Cluster, file: &Path) {
    let bits = std::fs::metadata(file).unwrap().len() as usize * 8;
    (0..bits).step_by(8 << 10).for_each(|bit| cluster.disk(SPOILED).flip(file, bit));
}

fn says(cluster: &Cluster, words: &str) -> bool {
    std::fs::read_to_string(cluster.log(SPOILED)).unwrap().contains(words)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoiled_state_is_noticed_answered_by_others_and_made_anew() {
    let Some(mut cluster) = start().await else { return };
    // What is in files only is read from there after a restart.
    cluster.stop(SPOILED);
    let files = blob_files(&cluster);
    assert!(!files.is_empty(), "bodies are in blob files");
    files.iter().for_each(|file| spoil(&cluster, file));
    cluster.restart(SPOILED);

    assert_eq!(RECORDS.read_all(&cluster.client()).await, 0, "the cluster's answers are not harmed");
    let spoiled = cluster.client_at(SPOILED).with_deadline(Duration::from_secs(1));
    until("the damage is found", || async {
        let (chart, record) = RECORDS.place(0);
        let read = spoiled.get(&chart, &record).await.err();
        let found = says(&cluster, "a file of the state is damaged");
        if found { Ok(()) } else { Err(format!("nothing is said, {read:?}")) }
    })
    .await;
    // By itself, once it was heard that all others are well.
    assert!(!cluster.process(SPOILED).wait().success());
    assert!(says(&cluster, "the state is damaged ("), "its last line says why");
    assert_eq!(RECORDS.read_all(&cluster.client()).await, 0);
    cluster.stop(SPOILED);
    cluster.restart(SPOILED);
    cluster.wait_ready().await;
    assert!(says(&cluster, "the shard's rows were fetched"), "its log alone has too little");
    assert_eq!(RECORDS.read_all(&cluster.client_at(SPOILED)).await, 0);
    cluster.wait_roots_equal().await;
    cluster.assert_rows_equal().await;
    let left = ["DAMAGED", "REFILLING", "state.damaged"].map(|name| cluster.data_dir(SPOILED).join(name).exists());
    assert_eq!(left, [false; 3], "nothing of it is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_be_opened_is_made_anew() {
    let Some(mut cluster) = start().await else { return };
    for what in ["CURRENT", "all of it"] {
        cluster.stop(SPOILED);
        let state = cluster.data_dir(SPOILED).join("state");
        match what {
            "CURRENT" => std::fs::write(state.join("CURRENT"), "no name of a file\n").unwrap(),
            _ => std::fs::remove_dir_all(&state).unwrap(),
        }
        cluster.restart(SPOILED);
        cluster.wait_ready().await;
        assert_eq!(RECORDS.read_all(&cluster.client_at(SPOILED)).await, 0, "{what}");
        cluster.wait_roots_equal().await;
    }
}
