//! What scripts rely on: exit codes, what is on stdout, bytes that come back as they went in.

use std::collections::HashSet;

use charthold_tests::harness::{Cluster, Options, command};
use charthold_tests::patients;

/// Not UTF-8, not JSON, with a NUL and no newline at its end.
const BYTES: &[u8] = b"\xff\x00%PDF\r\n\x80";

fn record<'a>(verb: &'a str, id: &'a str) -> [&'a str; 8] {
    ["record", verb, "--patient", "p1", "--type", "Note", "--id", id]
}

fn with<'a>(arguments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [arguments, more].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_by_hand() {
    let cluster = Cluster::start(1).await;
    let put = cluster.cli_with("client", &record("put", "n1"), BYTES).await.ok();
    assert_eq!(put.text(), "version 1");
    let typed = with(&record("put", "n1"), &["--content-type", "text/plain", "--status", "final", "--if-version", "1"]);
    let put = cluster.cli_with("client", &with(&typed, &["--output", "json"]), b"second").await.ok().json();
    assert_eq!(put["version"], 2);
    assert_eq!(cluster.cli(&record("get", "n1")).await.ok().stdout, b"second");
    assert_eq!(cluster.cli(&with(&record("get", "n1"), &["--version", "1"])).await.ok().stdout, BYTES);
    let got = cluster.cli(&with(&record("get", "n1"), &["--output", "json"])).await.ok().json();
    assert_eq!((&got["body"], &got["content_type"]), (&"second".into(), &"text/plain".into()));

    cluster.cli(&with(&record("delete", "n1"), &["--if-version", "2"])).await.ok();
    assert_eq!(cluster.cli(&record("get", "n1")).await.code, 3);
    let history = cluster.cli(&with(&record("history", "n1"), &["--output", "json"])).await.ok().json();
    let versions: Vec<_> =
        history.as_array().unwrap().iter().map(|v| (v["version"].clone(), v["deleted"].clone())).collect();
    assert_eq!(versions, [(3.into(), true.into()), (2.into(), false.into()), (1.into(), false.into())]);
    let list = cluster.cli(&["record", "list", "--patient", "p1", "--output", "json"]).await.ok().json();
    assert_eq!(list, serde_json::json!([]));
    // A new life begins where the old one ended.
    let put = cluster.cli_with("client", &with(&record("put", "n1"), &["--must-not-exist"]), b"third").await.ok();
    assert_eq!(put.text(), "version 4");
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes() {
    let mut cluster = Cluster::start(3).await;
    cluster.cli_with("client", &record("put", "n1"), b"x").await.ok();
    let ends = async |arguments: &[&str], code: i32, text: &str| {
        let finished = cluster.cli(arguments).await;
        assert_eq!(finished.code, code, "{arguments:?}: {finished:?}");
        assert!(finished.stdout.is_empty(), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains(text), "{arguments:?}: {finished:?}");
        if code != 2 {
            assert_eq!(finished.stderr.trim_end().lines().count(), 1, "{arguments:?}: {finished:?}");
        }
    };
    ends(&record("get", "absent"), 3, "RECORD_NOT_FOUND").await;
    ends(&with(&record("get", "n1"), &["--version", "9"]), 3, "RECORD_NOT_FOUND").await;
    ends(&["chart", "export", "nobody"], 3, "no such chart").await;
    ends(&with(&record("put", "n1"), &["--must-not-exist"]), 4, "RECORD_EXISTS").await;
    ends(&with(&record("put", "n1"), &["--if-version", "9"]), 4, "the newest is 1").await;
    ends(&with(&record("delete", "n1"), &["--if-version", "9"]), 4, "VERSION_MISMATCH").await;
    ends(&record("get", &"i".repeat(129)), 1, "INVALID_FIELD").await;
    ends(&["cluster", "status"], 1, "NO_GRANT").await;
    ends(&["tenant", "create", "x"], 1, "NO_GRANT").await;
    ends(&["record", "get", "--patient", "p1"], 2, "--type").await;
    ends(&["import"], 2, "PATH").await;
    ends(&["nonsense"], 2, "nonsense").await;
    ends(&["import", "/nonexistent"], 1, "/nonexistent").await;
    ends(
        &["record", "get", "--profile", "/nonexistent", "--patient", "p", "--type", "T", "--id", "i"],
        1,
        "/nonexistent",
    )
    .await;
    let without = command(&record("get", "n1")).output().unwrap();
    assert_eq!(without.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&without.stderr).contains("CHARTHOLD_PROFILE"));
    let init = cluster.operator_cli(&["cluster", "init"]).await;
    assert_eq!((init.code, init.stderr.contains("ALREADY_INITIALIZED")), (4, true), "{init:?}");

    // One of three nodes is no quorum: nothing is answered, and nothing is known to be wrong.
    cluster.kill(0);
    cluster.kill(2);
    let (get, put) = (record("get", "n1"), record("put", "n1"));
    let (get, put) = tokio::join!(cluster.cli(&get), cluster.cli_with("client", &put, b"y"));
    assert_eq!((get.code, put.code), (5, 5), "{get:?} {put:?}");
    assert!(get.stdout.is_empty() && get.stderr.contains("unavailable"), "{get:?}");
    cluster.restart_all();
    cluster.wait_ready().await;
    cluster.cli(&record("get", "n1")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_what_was_imported() {
    let numbers = [2, 3, 7];
    let cluster = Cluster::start(1).await;
    let files: Vec<String> = numbers.iter().map(|n| patients::file(*n).to_str().unwrap().to_owned()).collect();
    let arguments: Vec<&str> = ["import"].into_iter().chain(files.iter().map(String::as_str)).collect();
    cluster.cli(&arguments).await.ok();
    let file = cluster.folder().join("export.ndjson");
    for (chart, entries) in patients::expected(numbers) {
        let kind = match chart.kind() {
            charthold_client::ChartKind::Patient => "patient",
            charthold_client::ChartKind::Shared => "shared",
        };
        let arguments = ["chart", "export", chart.id(), "--kind", kind];
        let export = cluster.cli(&arguments).await.ok();
        assert!(export.stdout.ends_with(b"\n"));
        let lines: Vec<&[u8]> = export.stdout.trim_ascii_end().split(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), entries.len());
        let bodies: HashSet<&[u8]> = entries.values().map(|entry| &entry.body[..]).collect();
        assert!(lines.into_iter().collect::<HashSet<_>>() == bodies, "an exported record differs from its source");

        let to_file = cluster.cli(&with(&arguments, &["--out", file.to_str().unwrap()])).await.ok();
        assert!(to_file.stdout.is_empty());
        assert!(std::fs::read(&file).unwrap() == export.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_forms_a_cluster_with_commands_alone() {
    let mut cluster = Cluster::prepare(Options::default());
    cluster.restart_all();
    for node in 0..cluster.size() {
        cluster.wait_answers(node).await;
    }
    cluster.operator_cli(&["cluster", "init"]).await.ok();
    cluster.wait_leaders().await;
    let tenant = cluster.operator_cli(&["tenant", "create", "Hôpital", "--output", "json"]).await.ok().json();
    let uid = tenant["uid"].as_str().unwrap();
    let list = cluster.operator_cli(&["tenant", "list", "--output", "json"]).await.ok().json();
    assert_eq!((&list[0]["uid"], &list[0]["name"]), (&uid.into(), &"Hôpital".into()));

    let (authority, out) = (cluster.folder().join("authority"), cluster.folder().join("client"));
    let certificate = ["cert", "create-client", "--tenant", uid, "--service", "ehr"];
    let paths = ["--ca", authority.to_str().unwrap(), "--out", out.to_str().unwrap()];
    cluster.operator_cli(&with(&certificate, &paths)).await.ok();
    let operator = std::fs::read_to_string(cluster.profile("operator")).unwrap();
    std::fs::write(cluster.profile("client"), operator.replace("operator/", "client/")).unwrap();
    let principal = format!("spiffe://test/tenant/{uid}/service/ehr");
    cluster.operator_cli(&["grant", "add", &principal, "--role", "reader", "--role", "writer"]).await.ok();
    cluster.wait_ready().await;
    cluster.cli_with("client", &record("put", "n1"), b"x").await.ok();
    assert_eq!(cluster.cli(&record("get", "n1")).await.ok().text(), "x");
    let status = cluster.operator_cli(&["cluster", "status", "--output", "json"]).await.ok().json();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3, "{status}");
}
