//! Data directories that are somebody else's, copied, rolled back, wiped or damaged.

use std::path::{Path, PathBuf};

use charthold_client::{Chart, Put, RecordId};
use charthold_proto::v1;
use charthold_tests::harness::{Cluster, until};
use charthold_tests::strangers::{beside, copy, impostor, in_place_of, log_of};

use super::configs::refuses_to_start;
use super::wire::Wire;

/// The node whose directory is played with; the others are a majority.
const NODE: usize = 2;

async fn start() -> Cluster {
    let cluster = Cluster::start(3).await;
    write(&cluster, "p1").await;
    cluster.wait_roots_equal().await;
    cluster
}

async fn write(cluster: &Cluster, patient: &str) {
    let id = RecordId::new("Note", "n1");
    cluster.client().put(&Chart::patient(patient), &id, Put::new("text/plain", "kept")).await.unwrap();
}

/// The node is back with its own directory, and everything that was acknowledged is there, read through it.
async fn nothing_was_lost(mut cluster: Cluster, patients: &[&str]) {
    cluster.restart(NODE);
    cluster.wait_ready().await;
    write(&cluster, "last").await;
    cluster.wait_roots_equal().await;
    for patient in patients.iter().chain(&["last"]) {
        let record = cluster.client_at(NODE).get(&Chart::patient(*patient), &RecordId::new("Note", "n1")).await;
        assert_eq!(record.unwrap().version(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_another_node_or_cluster_or_process_is_refused() {
    let mut cluster = start().await;
    cluster.stop(NODE);
    let own = cluster.data_dir(NODE);
    let last = refuses_to_start(&cluster, 0, &beside(&own), 1).await;
    let words = "belongs to node c1 of cluster test, this node is node a1 of cluster test";
    assert!(last.contains(words) && last.contains("give every node its own data directory"), "{last}");

    let other = cluster.folder().join("other-cluster");
    copy(&own, &other);
    let identity = std::fs::read_to_string(own.join("IDENTITY")).unwrap();
    std::fs::write(other.join("IDENTITY"), identity.replace("cluster test", "cluster elsewhere")).unwrap();
    let last = refuses_to_start(&cluster, NODE, &beside(&other), 1).await;
    assert!(last.contains("belongs to node c1 of cluster elsewhere, this node is node c1 of cluster test"), "{last}");

    let last = refuses_to_start(&cluster, 0, &beside(&cluster.data_dir(0)), 1).await;
    assert!(last.contains("another process uses this data directory"), "{last}");
    assert!(cluster.is_running(0));
    nothing_was_lost(cluster, &["p1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_data_is_refused_by_name() {
    let mut cluster = start().await;
    cluster.stop(NODE);
    let (own, damaged) = (cluster.data_dir(NODE), cluster.folder().join("damaged"));
    let refuse = async |damage: &dyn Fn(&Path), words: &[&str]| {
        copy(&own, &damaged);
        damage(&damaged);
        let last = refuses_to_start(&cluster, NODE, &beside(&damaged), 1).await;
        for words in words {
            assert!(last.contains(words), "{words}: {last}");
        }
        std::fs::remove_dir_all(&damaged).unwrap();
    };
    let write =
        |name: &'static str, text: &'static str| move |folder: &Path| std::fs::write(folder.join(name), text).unwrap();
    refuse(&write("IDENTITY", "charthold-data 9\n"), &["IDENTITY is damaged", "unknown format"]).await;
    refuse(&write("IDENTITY", "charthold-data 1\ncluster test\n"), &["IDENTITY is damaged", "node"]).await;
    refuse(&write("BOOT", "many\n"), &["BOOT is damaged"]).await;
    refuse(&|folder| std::fs::remove_file(folder.join("IDENTITY")).unwrap(), &["no IDENTITY"]).await;
    refuse(&|folder| std::fs::write(folder.join("SYNCED"), [0xff; 48]).unwrap(), &["SYNCED", "bad"]).await;
    let without_log = |folder: &Path| std::fs::remove_dir_all(folder.join("log")).unwrap();
    refuse(&without_log, &["the disk lost acknowledged data", "must not vote again"]).await;
    nothing_was_lost(cluster, &["p1"]).await;
}

/// A disk that comes back with an older log has lost what was acknowledged: this node must not vote with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_rolled_back_is_refused() {
    let mut cluster = start().await;
    cluster.stop(NODE);
    let (own, old) = (cluster.data_dir(NODE), cluster.folder().join("old"));
    copy(&own, &old);
    cluster.restart(NODE);
    cluster.wait_ready().await;
    for patient in ["p2", "p3", "p4"] {
        write(&cluster, patient).await;
        // The mark is written once a second.
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    }
    cluster.wait_roots_equal().await;
    cluster.stop(NODE);
    let mixed = cluster.folder().join("mixed");
    copy(&own, &mixed);
    std::fs::remove_dir_all(mixed.join("log")).unwrap();
    copy(&old.join("log"), &mixed.join("log"));
    let last = refuses_to_start(&cluster, NODE, &beside(&mixed), 1).await;
    assert!(last.contains("the disk lost acknowledged data") && last.contains("must not vote again"), "{last}");
    nothing_was_lost(cluster, &["p1", "p2", "p3", "p4"]).await;
}

/// Until one of these logs says, in one line, who is refused and why.
async fn is_said(logs: &[PathBuf], who: &str, why: &str) {
    until(&format!("a log says {why:?} of {who}"), || async {
        let texts: Vec<String> = logs.iter().map(|log| std::fs::read_to_string(log).unwrap()).collect();
        let said = texts.iter().any(|text| text.lines().any(|line| line.contains(who) && line.contains(why)));
        if said { Ok(()) } else { Err(texts.concat().lines().rev().take(20).collect::<Vec<_>>().join("\n")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_directory_is_refused_by_the_others() {
    let mut cluster = start().await;
    cluster.stop(NODE);
    let clone = cluster.folder().join("clone");
    copy(&cluster.data_dir(NODE), &clone);
    let old = cluster.folder().join("old");
    copy(&clone, &old);
    cluster.restart(NODE);
    cluster.wait_ready().await;
    // Both were started once since the copy: the same start of the same node, twice.
    let process = impostor(&cluster, NODE, "clone", &beside(&clone));
    is_said(&[cluster.log(0), cluster.log(1)], "c1", "its data directory is a copy").await;
    drop(process);
    write(&cluster, "p2").await;
    cluster.wait_roots_equal().await;
    // The original goes on counting; the copy stays behind.
    cluster.stop(NODE);
    cluster.restart(NODE);
    cluster.wait_ready().await;
    let process = impostor(&cluster, NODE, "old", &beside(&old));
    is_said(&[cluster.log(0), cluster.log(1)], "c1", "its data directory was rolled back").await;
    drop(process);
    write(&cluster, "p3").await;
    cluster.wait_roots_equal().await;
    cluster.stop(NODE);
    nothing_was_lost(cluster, &["p1", "p2", "p3"]).await;
}

/// A wiped node comes back as a stranger: it would vote without knowing what it acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_directory_is_a_stranger() {
    let mut cluster = start().await;
    cluster.stop(NODE);
    let empty = cluster.folder().join("empty");
    let process = impostor(&cluster, NODE, "wiped", &[in_place_of(&empty)]);
    // Whoever calls it asks for the node that was there before; both sides say so.
    is_said(&[log_of(&cluster, "wiped")], "a1", "you expect node").await;
    is_said(&[cluster.log(0)], &cluster.peer_endpoint(NODE), "refused by the peer: you expect node").await;
    // And nobody talks it into a cluster of its own.
    let context = Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() });
    let init = v1::InitRequest { context, expected_nodes: 3, shards: 0 };
    let operator = Wire::connect(&cluster, NODE, "operator");
    let status = operator.ask::<v1::InitResponse>("charthold.v1.Cluster/Init", &init).await.err().unwrap();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("is no member of this cluster"), "{}", status.message());
    drop(process);
    write(&cluster, "p2").await;
    nothing_was_lost(cluster, &["p1", "p2"]).await;
}
