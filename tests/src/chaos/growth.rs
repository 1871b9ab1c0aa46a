//! Nodes come and go under the load: from three to five, and back to three, of which one was there at first.

use std::time::Duration;

use crate::harness::{Cluster, until};

/// Nodes that form the cluster.
pub const AT_FIRST: usize = 3;
const COME: [usize; 2] = [3, 4];
const GO: [usize; 2] = [0, 1];
/// The fullest node may hold so much more than the emptiest.
const UNEVEN_MAX: f64 = 1.2;

/// Three equal parts of the time: before, with all, and after. What is between them takes as long as it takes.
pub async fn run(cluster: &mut Cluster, time: Duration) {
    tokio::time::sleep(time / 3).await;
    for node in COME {
        cluster.restart(node);
        let endpoint = cluster.peer_endpoint(node);
        command(cluster, "the new node listens", &["node", "add", &endpoint]).await;
    }
    cluster.wait_voters(&[0, 1, 2, 3, 4]).await;
    wait_even(cluster, &[0, 1, 2, 3, 4]).await;
    tokio::time::sleep(time / 3).await;
    for node in GO {
        let name = cluster.name(node);
        command(cluster, "the node is taken out", &["node", "remove", &name]).await;
    }
    cluster.wait_voters(&[2, 3, 4]).await;
    wait_even(cluster, &[2, 3, 4]).await;
    for node in GO {
        // It is told, and ends.
        assert!(!tokio::task::block_in_place(|| cluster.process(node).wait()).success());
        cluster.forget(node);
    }
    tokio::time::sleep(time / 3).await;
}

/// Until it is done: an answer may be lost on the way.
async fn command(cluster: &Cluster, what: &str, arguments: &[&str]) {
    until(what, || async {
        let done = cluster.operator_cli(arguments).await;
        if done.code == 0 { Ok(()) } else { Err(done.stderr) }
    })
    .await;
}

/// Each node holds every shard, so all come to hold the same; what is dead by then goes at its own pace.
async fn wait_even(cluster: &Cluster, nodes: &[usize]) {
    let held = |node: &usize| cluster.metrics(*node).sum("charthold_engine_live_bytes", &[("engine", "state")]);
    until("all nodes hold the same", || async {
        let held = nodes.iter().map(held).collect::<Vec<_>>();
        let (least, most) =
            held.iter().fold((f64::MAX, 0.0_f64), |(least, most), held| (least.min(*held), most.max(*held)));
        if least > 0.0 && most <= least * UNEVEN_MAX { Ok(()) } else { Err(format!("{held:?} bytes")) }
    })
    .await;
}
