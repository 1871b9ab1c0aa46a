//! Nodes come, go, are drained and come back, while clients write: nobody notices but by the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use charthold_client::{Chart, Client, Put, RecordId};
use charthold_tests::harness::{Cluster, Options, Writers, until};
use tokio::task::JoinHandle;

async fn wait_more(writers: &Writers, what: &str) {
    let before = writers.acknowledged();
    until(what, || async {
        let more = writers.acknowledged() - before;
        if more >= 30 { Ok(()) } else { Err(format!("{more} more commits")) }
    })
    .await;
}

async fn check_and_stop(cluster: &Cluster, writers: Writers) {
    let client = cluster.client();
    for log in writers.stop().await {
        assert!(log.acknowledged() > 0);
        log.check(&client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_three_nodes_to_five_to_three_others() {
    let config = format!("{}snapshot_after_entries = 50\nkeep_entries = 20\n", charthold_tests::harness::RAFT);
    let mut cluster = Cluster::start_with(Options { sites: 5, members: 3, config, ..Options::default() }).await;
    let writers = Writers::start(&cluster, 4);
    wait_more(&writers, "there is something to catch up with").await;
    for node in [3, 4] {
        cluster.restart(node);
        until("the new node listens", || async {
            let added = cluster.operator_cli(&["node", "add", &cluster.peer_endpoint(node)]).await;
            if added.code == 0 { Ok(()) } else { Err(added.stderr) }
        })
        .await;
    }
    cluster.wait_voters(&[0, 1, 2, 3, 4]).await;
    // Of five, two may go; of the three that were there first, only one could.
    cluster.kill(0);
    cluster.kill(1);
    wait_more(&writers, "three of five go on").await;
    cluster.restart(0);
    cluster.restart(1);
    cluster.wait_ready().await;
    cluster.wait_voters(&[0, 1, 2, 3, 4]).await;

    // One that runs, one that is gone for ever.
    cluster.operator_cli(&["node", "remove", "a1"]).await.ok();
    cluster.kill(1);
    cluster.operator_cli(&["node", "remove", "b1"]).await.ok();
    cluster.wait_voters(&[2, 3, 4]).await;
    // As after an answer that was lost.
    cluster.operator_cli(&["node", "remove", "b1"]).await.ok();
    wait_more(&writers, "the three others go on").await;

    the_removed_one_stays_out(&mut cluster).await;
    check_and_stop(&cluster, writers).await;
}

/// With its old data it ends, whenever it is started; with an empty directory it is a new node of the old name.
async fn the_removed_one_stays_out(cluster: &mut Cluster) {
    let endpoint = cluster.peer_endpoint(0);
    for _ in 0..2 {
        assert!(!cluster.process(0).wait().success());
        let log = std::fs::read_to_string(cluster.log(0)).unwrap();
        assert!(log.lines().last().unwrap().contains("this node was removed from the cluster"), "{log}");
        cluster.forget(0);
        cluster.restart(0);
    }
    assert!(!cluster.process(0).wait().success());
    cluster.forget(0);
    cluster.wipe(0);
    cluster.restart(0);
    until("a new node of the old name is added", || async {
        let added = cluster.operator_cli(&["node", "add", &endpoint]).await;
        if added.code == 0 { Ok(()) } else { Err(added.stderr) }
    })
    .await;
    cluster.wait_voters(&[0, 2, 3, 4]).await;
    cluster.operator_cli(&["shard", "check"]).await.ok();
    let nodes = cluster.operator_cli(&["node", "list"]).await.ok();
    assert_eq!(nodes.text().lines().count(), 5, "{}", nodes.text());
    let sites = cluster.operator_cli(&["site", "list"]).await.ok();
    assert!(sites.text().contains("1 of 1"), "{}", sites.text());
}

/// A client that writes, and for which every single call must succeed.
struct Strict {
    calls: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Strict {
    fn start(client: Client, number: usize) -> Self {
        let (calls, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, ends) = (Arc::clone(&calls), Arc::clone(&done));
        let task = tokio::spawn(async move {
            let record = RecordId::new("Note", "n1");
            while !ends.load(SeqCst) {
                let at = counted.fetch_add(1, SeqCst);
                let chart = Chart::patient(format!("strict-{number}-{}", at % 32));
                let version = client.put(&chart, &record, Put::fhir("{}")).await.expect("no write fails").versions[0];
                let found = client.get(&chart, &record).await.expect("no read fails");
                assert_eq!(found.version(), version);
            }
        });
        Self { calls, done, task }
    }

    async fn stop(self) {
        self.done.store(true, SeqCst);
        self.task.await.unwrap();
        assert!(self.calls.load(SeqCst) > 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_no_request_and_leaders_come_home() {
    let mut cluster = Cluster::start(3).await;
    let strict = (0..3).map(|number| Strict::start(cluster.client(), number)).collect::<Vec<_>>();
    for node in 0..3 {
        let name = ["a1", "b1", "c1"][node];
        cluster.operator_cli(&["node", "drain", name]).await.ok();
        let shown = cluster.operator_cli(&["cluster", "status"]).await.ok();
        assert!(shown.text().contains(&format!("node {name} is drained")), "{}", shown.text());
        assert!(cluster.stop(node).success());
        cluster.restart(node);
        cluster.wait_ready().await;
    }
    for one in strict {
        one.stop().await;
    }
    until("each node leads its third", || async {
        let status = cluster.status_of_all().await?;
        let leads = |id: &str| status.shards.iter().filter(|shard| shard.leader_node_id.as_deref() == Some(id)).count();
        let found = status.nodes.iter().map(|node| leads(&node.id)).collect::<Vec<_>>();
        if found == [3, 3, 3] { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}
