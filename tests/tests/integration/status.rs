//! `charthold cluster status`: the whole cluster by one question to one node, and what is wrong with it.

use charthold_tests::harness::{Cluster, until};
use serde_json::Value;

const STATUS: [&str; 4] = ["cluster", "status", "--output", "json"];

async fn status(cluster: &Cluster) -> Value {
    cluster.operator_cli(&STATUS).await.ok().json()
}

/// Says of a node that the disk of the machine which runs the tests is nearly full: not for these tests to mend.
const DISK: &str = "of its disk is free";

fn wrong(status: &Value) -> Vec<String> {
    let all = status["wrong"].as_array().unwrap().iter().map(|finding| finding["what"].as_str().unwrap().to_owned());
    all.filter(|what| !what.contains(DISK)).collect()
}

async fn wait_wrong(cluster: &Cluster, what: &str, expected: impl Fn(&[String]) -> bool) {
    until(what, || async {
        let wrong = wrong(&status(cluster).await);
        if expected(&wrong) { Ok(()) } else { Err(format!("{wrong:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_all_nodes_and_what_is_wrong() {
    let mut cluster = Cluster::start(3).await;
    wait_wrong(&cluster, "nothing is wrong", <[String]>::is_empty).await;
    let whole = status(&cluster).await;
    for node in whole["nodes"].as_array().unwrap() {
        assert_eq!((&node["answered"], &node["ready"]), (&true.into(), &true.into()), "{node}");
        assert_eq!(node["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(node["shards"].as_array().unwrap().len(), 9);
        assert_eq!(node["connected_node_ids"].as_array().unwrap().len(), 2);
        assert_eq!(node["certificates"].as_array().unwrap().len(), 2);
        assert!(node["clock_offset_ms"].as_i64().unwrap().abs() < 2_000, "{node}");
        let (free, total) = (node["disk_free_bytes"].as_u64().unwrap(), node["disk_total_bytes"].as_u64().unwrap());
        assert!(free <= total && total > 0 && node["resident_bytes"].as_u64().unwrap() > 1 << 20, "{node}");
    }
    let led = whole["nodes"].as_array().unwrap().iter().map(|node| node["leads"].as_u64().unwrap());
    assert_eq!(led.sum::<u64>(), 9, "each shard has one leader");
    let screen = cluster.operator_cli(&["cluster", "status", "--check"]).await;
    let well = screen.text().ends_with("nothing is wrong");
    assert_eq!(well, screen.code == 0, "{}", screen.text());
    // A finding is two lines.
    let of_disks = 2 * screen.text().lines().filter(|line| line.contains(DISK)).count();
    assert!(screen.text().lines().count() - of_disks < 25, "more than a screen: {}", screen.text());

    // One node is down: the others tell, and `--check` ends with 1, as a script wants it.
    cluster.kill(2);
    wait_wrong(
        &cluster,
        "the dead node alone is wrong",
        |wrong| matches!(wrong, [one] if one.starts_with("node c1 cannot be reached")),
    )
    .await;
    let screen = cluster.operator_cli(&["cluster", "status"]).await.ok();
    assert!(screen.text().contains("what is wrong:\n"), "{}", screen.text());
    assert!(screen.text().contains("\n  node c1 cannot be reached"), "{}", screen.text());
    let check = cluster.operator_cli(&["cluster", "status", "--check"]).await;
    assert!(check.code == 1 && check.stderr.contains("wrong"), "{check:?}");
    cluster.restart(2);
    wait_wrong(&cluster, "nothing is wrong again", <[String]>::is_empty).await;
}
