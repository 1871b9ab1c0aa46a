//! Disks that somebody else fills: reads go on, writes are refused before anything is in danger, and all goes on by
//! itself when there is room again.

use std::time::Duration;

use charthold_client::{Chart, Client, Error, Put, RecordId};
use charthold_tests::harness::{Cluster, Options, SmallDisk, Writers, until};

const DISK_MIB: u64 = 768;
/// What a node must have left; below half of it, it takes no entries either.
const RESERVE_MIB: u64 = 64;
const WRITERS: usize = 4;

/// Nodes with a disk each that is theirs alone. The disks first: they are dropped first.
struct Nodes {
    disks: Vec<SmallDisk>,
    cluster: Cluster,
}

impl Nodes {
    async fn start(sites: usize) -> Option<Self> {
        let config = format!("[disk]\nreserve_bytes = {}\n", RESERVE_MIB << 20);
        let mut cluster = Cluster::prepare(Options { sites, config, ..Options::default() });
        let disks = cluster.data_dirs().into_iter().map(|folder| SmallDisk::mount(&folder, DISK_MIB));
        let Some(disks) = disks.collect::<Option<Vec<_>>>() else {
            skip();
            return None;
        };
        cluster.restart_all();
        cluster.initialize().await;
        Some(Self { disks, cluster })
    }

    /// What a supervisor does: whoever has ended is started again.
    fn supervise(&mut self) {
        for node in 0..self.cluster.size() {
            if !self.cluster.is_running(node) {
                self.cluster.process(node).wait();
                self.cluster.stop(node);
                self.cluster.restart(node);
            }
        }
    }

    /// Until the node's log says so.
    async fn says(&self, node: usize, words: &str, times: usize) {
        let log = self.cluster.log(node);
        until(&format!("node {node} says \"{words}\""), || async {
            let text = std::fs::read_to_string(&log).unwrap();
            let found = text.lines().filter(|line| line.contains(words)).count();
            if found >= times { Ok(()) } else { Err(format!("{found} of {times} times")) }
        })
        .await;
    }
}

#[allow(clippy::print_stderr)]
fn skip() {
    eprintln!("SKIPPED: only root may mount a small disk");
}

fn note() -> RecordId {
    RecordId::new("Note", "n")
}

async fn write(client: &Client, patient: &str) -> Result<(), Error> {
    client.put(&Chart::patient(patient), &note(), Put::new("text/plain", patient.to_owned())).await.map(|_| ())
}

async fn reads_go_on(client: &Client, patient: &str) {
    let record = client.get(&Chart::patient(patient), &note()).await.unwrap();
    assert_eq!(record.body, patient.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_one_node_costs_nothing() {
    let Some(mut nodes) = Nodes::start(3).await else { return };
    let full = nodes.cluster.leader_of_most().await;
    let writers = Writers::start(&nodes.cluster, WRITERS);
    write(&nodes.cluster.client(), "before").await.unwrap();

    nodes.disks[full].fill(RESERVE_MIB * 5 / 8);
    nodes.says(full, "writes are refused", 1).await;
    // Others lead what it led, so that writes go on.
    for shard in 0..32 {
        write(&nodes.cluster.client(), &format!("low{shard}")).await.unwrap();
    }
    reads_go_on(&nodes.cluster.client_at(full), "before").await;

    nodes.disks[full].fill(RESERVE_MIB / 8);
    nodes.says(full, "this replica stands still", 1).await;
    for shard in 0..32 {
        write(&nodes.cluster.client(), &format!("full{shard}")).await.unwrap();
    }
    let before = writers.acknowledged();
    until("writers go on", || async {
        let now = writers.acknowledged();
        if now > before + 100 { Ok(()) } else { Err(format!("{before}, {now}")) }
    })
    .await;
    assert!(nodes.cluster.is_running(full), "it waits for room");

    nodes.disks[full].empty();
    nodes.says(full, "the disk has room again", 1).await;
    let logs = writers.stop().await;
    nodes.cluster.wait_roots_equal().await;
    for log in logs {
        log.check(&nodes.cluster.client_at(full)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_everywhere_refuse_writes_and_nothing_else() {
    let Some(mut nodes) = Nodes::start(3).await else { return };
    let all = 0..nodes.cluster.size();
    let writers = Writers::start(&nodes.cluster, WRITERS);
    write(&nodes.cluster.client(), "before").await.unwrap();
    let before = writers.acknowledged();
    until("the writers write", || async {
        if writers.acknowledged() > before + 50 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;

    for round in 1..=2 {
        nodes.disks.iter().for_each(|disk| disk.fill(RESERVE_MIB * 5 / 8));
        for node in all.clone() {
            nodes.says(node, "writes are refused", round).await;
        }
        let impatient = nodes.cluster.client().with_deadline(Duration::from_secs(3));
        let refused = until("writes are refused", || async {
            match write(&impatient, "refused").await {
                Err(error @ Error::Overloaded { .. }) => Ok(error.to_string()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert!(refused.contains("no room for writes"), "{refused}");
        for node in all.clone() {
            reads_go_on(&nodes.cluster.client_at(node), "before").await;
        }

        nodes.disks.iter().for_each(|disk| disk.fill(RESERVE_MIB / 8));
        for node in all.clone() {
            nodes.says(node, "this replica stands still", round).await;
            reads_go_on(&nodes.cluster.client_at(node), "before").await;
        }

        // Others go on filling, to the last byte, the room that the nodes gave up included; a power cut on top. A node
        // that cannot write at all may end, and may not get up again: its supervisor tries on.
        if round == 2 {
            nodes.cluster.kill_all();
        }
        nodes.disks.iter().for_each(SmallDisk::fill_up);
        nodes.cluster.restart_all();
        tokio::time::sleep(Duration::from_secs(2)).await;
        nodes.supervise();

        nodes.disks.iter().for_each(SmallDisk::empty);
        let before = writers.acknowledged();
        loop {
            nodes.supervise();
            if write(&impatient, &format!("after{round}")).await.is_ok() && writers.acknowledged() > before + 20 {
                break;
            }
        }
    }
    let logs = writers.stop().await;
    nodes.cluster.wait_ready().await;
    nodes.cluster.wait_roots_equal().await;
    for log in logs {
        log.check(&nodes.cluster.client()).await;
    }
}
