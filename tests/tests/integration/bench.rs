//! `charthold bench` against a running cluster: what it counts is what there is. Figures are not judged here.

use charthold_tests::harness::{Cluster, Finished};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn count(report: &Value, kind: &str) -> u64 {
    report[kind]["count"].as_u64().unwrap_or_else(|| panic!("no {kind} in {report}"))
}

fn missed(report: &Value, kind: &str) -> u64 {
    report[kind]["errors"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_loop_writes_and_reads_in_a_tenant_of_its_own() {
    let cluster = Cluster::start(1).await;
    let histogram = cluster.folder().join("out.hgrm");
    let (operator, authority) = (cluster.profile("operator"), cluster.folder().join("authority"));
    let arguments = [
        &["bench", "--writers", "2", "--readers", "2", "--seconds", "2", "--warm-up", "0", "--size", "100,1000"][..],
        &["--operator-profile", operator.to_str().unwrap(), "--authority", authority.to_str().unwrap()],
        &["--histogram", histogram.to_str().unwrap(), "--output", "json"],
    ];
    let report = cluster.cli(&arguments.concat()).await.ok().json();
    assert!(count(&report, "write") > 0 && count(&report, "read") > 0, "{report}");
    assert_eq!((missed(&report, "write"), missed(&report, "read")), (0, 0), "{report}");
    assert_eq!((&report["loop"]["kind"], &report["cut_off"]), (&"closed".into(), &false.into()));
    for kind in ["write", "read"] {
        let file = std::fs::read_to_string(cluster.folder().join(format!("out.{kind}.hgrm"))).unwrap();
        assert!(file.contains(&format!("Total count    = {:>12}]", count(&report, kind))), "{file}");
    }
    let tenants = cluster.operator().admin().list_tenants().await.unwrap();
    assert_eq!(tenants.iter().filter(|tenant| tenant.name.starts_with("bench-")).count(), 1);
}

/// Every call that was due is in the report, whatever became of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_accounts_for_every_call() {
    let cluster = Cluster::start(1).await;
    let arguments = ["bench", "--rate", "50", "--reads", "40", "--seconds", "3", "--warm-up", "1", "--output", "json"];
    let report = cluster.cli(&arguments).await.ok().json();
    let all = ["write", "read"].iter().map(|kind| count(&report, kind) + missed(&report, kind)).sum::<u64>();
    assert_eq!(all, 150, "{report}");
    assert_eq!(report["loop"]["rate_per_second"], 50);
    let table = cluster.cli(&["bench", "--rate", "20", "--seconds", "1", "--warm-up", "0"]).await.ok();
    let header: Vec<&str> = table.text().lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header[..3], ["CALL", "COUNT", "PER"], "{table:?}");
    assert!(table.text().contains("P99.9"), "{table:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_prints_what_was_measured() {
    let cluster = Cluster::start(1).await;
    let mut bench: tokio::process::Command =
        cluster.cli_command("client", &["bench", "--seconds", "600", "--warm-up", "0", "--output", "json"]).into();
    let bench = bench.kill_on_drop(true).spawn().unwrap();
    let id = Pid::from_raw(bench.id().unwrap().cast_signed()).unwrap();
    // Long enough for some calls to be answered; the seeding writes come before.
    charthold_tests::harness::until("records are written", || async {
        let status = cluster.operator().admin().status().await.map_err(|error| error.to_string())?;
        let outcomes: u64 = status.shards.iter().map(|shard| shard.seq).sum();
        if outcomes > 300 { Ok(()) } else { Err(format!("{outcomes} outcomes")) }
    })
    .await;
    kill_process(id, Signal::INT).unwrap();
    let finished = Finished::new(bench.wait_with_output().await.unwrap()).ok();
    let report = finished.json();
    assert!(count(&report, "write") > 0, "{report}");
    assert_eq!(report["cut_off"], true);
    assert!(report["seconds"].as_f64().unwrap() < 600.0);
    assert!(finished.stderr.contains("cut off after"), "{finished:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_measured_is_said_at_once() {
    let cluster = Cluster::start(1).await;
    cluster.service("reader", &[charthold_client::Role::Reader]).await;
    let denied = cluster.cli_with("reader", &["bench", "--seconds", "600"], b"").await;
    assert_eq!(denied.code, 1, "{denied:?}");
    assert!(denied.stderr.contains("NO_GRANT") && denied.stdout.is_empty(), "{denied:?}");
    for wrong in [
        &["bench", "--writers", "0"][..],
        &["bench", "--rate", "10", "--writers", "1"],
        &["bench", "--reads", "10"],
        &["bench", "--rate", "0"],
        &["bench", "--size", "0"],
        &["bench", "--seconds", "0"],
    ] {
        assert_eq!(cluster.cli(wrong).await.code, 2, "{wrong:?}");
    }
    let nowhere = cluster.cli(&["bench", "--histogram", "/nonexistent/out.hgrm"]).await;
    assert_eq!((nowhere.code, nowhere.stderr.contains("/nonexistent")), (1, true), "{nowhere:?}");
}
