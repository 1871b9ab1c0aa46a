//! Nodes come and go under the load: from three to five, and back to three, of which one was there at first.

use std::time::Duration;

use super::nemesis::operate;
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
        operate(cluster, async |operator| operator.admin().add_node(&cluster.peer_endpoint(node)).await).await;
    }
    cluster.wait_voters(&[0, 1, 2, 3, 4]).await;
    wait_even(cluster, &[0, 1, 2, 3, 4]).await;
    tokio::time::sleep(time / 3).await;
    for node in GO {
        operate(cluster, async |operator| operator.admin().remove_node(&cluster.name(node)).await).await;
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
