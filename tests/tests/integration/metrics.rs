//! The ops port of running nodes: probes, and metrics that are what their documentation says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};

use charthold_client::{Chart, Mutation, Put, RecordId};
use charthold_tests::harness::{Cluster, Metrics, Options, TENANT_NAME, until};

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");
/// A label has few values, and none is of a tenant or a patient.
const LABELS: [&str; 11] =
    ["code", "engine", "lane", "level", "method", "peer", "port", "reason", "shard", "stage", "version"];
const PATIENT: &str = "patient-of-the-metrics";

/// Name, type and labels of each row of the documentation's table.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let rows = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `charthold_"));
    let rows = rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[2].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        (format!("charthold_{}", cells[0].trim_end_matches('`')), (cells[1].to_owned(), labels))
    });
    rows.collect()
}

/// A histogram's samples have suffixes.
fn metric_of(page: &Metrics, sample: &str) -> String {
    let suffixes = ["_bucket", "_sum", "_count"].into_iter().filter_map(|suffix| sample.strip_suffix(suffix));
    let histogram = suffixes.into_iter().find(|name| page.types.get(*name).is_some_and(|kind| kind == "histogram"));
    histogram.unwrap_or(sample).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_what_their_page_says_and_name_nobody() {
    let cluster = Cluster::start(3).await;
    let (chart, id) = (Chart::patient(PATIENT), RecordId::new("Note", "note-of-the-metrics"));
    for node in 0..cluster.size() {
        let client = cluster.client_at(node);
        client.put(&chart, &id, Put::new("text/plain", "clear text")).await.unwrap();
        client.get(&chart, &id).await.unwrap();
        client.commit(&chart, vec![Mutation::put(id.clone(), Put::new("a", "b")).must_not_exist()]).await.unwrap_err();
    }
    let documented = documented();
    assert!(documented.len() > 40, "the table was not read");
    let mut labels = BTreeMap::<String, BTreeSet<String>>::new();
    let mut types = BTreeMap::<String, String>::new();
    for node in 0..cluster.size() {
        // Round trips are measured once a second.
        until("a round trip", || async {
            let trip = cluster.metrics(node).sum("charthold_peer_round_trip_seconds", &[]);
            if trip > 0.0 { Ok(()) } else { Err("none".to_owned()) }
        })
        .await;
        let page = cluster.metrics(node);
        types.extend(page.types.clone());
        for sample in &page.samples {
            let metric = metric_of(&page, &sample.name);
            assert!(page.described.contains(&metric), "{metric} has no description");
            let names = sample.labels.keys().filter(|label| *label != "le");
            labels.entry(metric).or_default().extend(names.cloned());
        }
        for word in [PATIENT, "note-of-the-metrics", TENANT_NAME, cluster.tenant(), "clear text", "spiffe"] {
            assert!(!page.text.contains(word), "{word} is in a metric of node {node}");
        }
    }
    let found: BTreeMap<_, _> = types.iter().collect();
    let expected: BTreeMap<_, _> = documented.iter().map(|(name, (kind, _))| (name, kind)).collect();
    assert_eq!(found, expected, "names and types, here and in docs/metrics.md");
    for (metric, found) in &labels {
        assert_eq!(found, &documented[metric].1, "labels of {metric}");
        assert!(found.iter().all(|label| LABELS.contains(&label.as_str())), "{metric} has labels {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happens() {
    let cluster = Cluster::start(3).await;
    let (chart, id) = (Chart::patient(PATIENT), RecordId::new("Note", "n"));
    // A new one each time: one that has been told who leads would go there.
    let client = || cluster.client_at(1);
    client().put(&chart, &id, Put::new("text/plain", "1")).await.unwrap();
    let before = cluster.metrics(1);
    client().put(&chart, &id, Put::new("text/plain", "2")).await.unwrap();
    client().get(&chart, &id).await.unwrap();
    client().get(&chart, &RecordId::new("Note", "absent")).await.unwrap_err();
    // The last answer is counted when its last byte has gone.
    let not_found = [("method", "charthold.v1.Charts/Get"), ("code", "NOT_FOUND")];
    let after = until("the last request is counted", || async {
        let after = cluster.metrics(1);
        match after.sum("charthold_requests_total", &not_found) {
            0.0 => Err("not yet".to_owned()),
            _ => Ok(after),
        }
    })
    .await;
    let grown = |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    let method = |name: &'static str| ("method", name);
    assert_eq!(grown("charthold_requests_total", &[method("charthold.v1.Charts/Commit"), ("code", "OK")]), 1.0);
    assert_eq!(grown("charthold_requests_total", &[method("charthold.v1.Charts/Get"), ("code", "OK")]), 1.0);
    assert_eq!(grown("charthold_requests_total", &[method("charthold.v1.Charts/Get"), ("code", "NOT_FOUND")]), 1.0);
    assert_eq!(grown("charthold_request_seconds_count", &[method("charthold.v1.Charts/Get")]), 2.0);
    assert_eq!(grown("charthold_refusals_total", &[("reason", "RECORD_NOT_FOUND")]), 1.0);
    for stage in ["admit", "key", "seal", "propose", "answer"] {
        assert_eq!(grown("charthold_commit_stage_seconds_count", &[("stage", stage)]), 1.0, "{stage}");
    }
    assert!(grown("charthold_log_sync_seconds_count", &[]) >= 1.0);
    assert!(grown("charthold_apply_batch_entries_sum", &[]) >= 1.0);
    let leaders = |shard: &str| {
        let led = |node| cluster.metrics(node).sum("charthold_raft_is_leader", &[("shard", shard)]);
        (0..cluster.size()).map(led).sum::<f64>()
    };
    for shard in 0..=8 {
        until("one leader", || async {
            let leaders = leaders(&shard.to_string());
            if leaders == 1.0 { Ok(()) } else { Err(format!("{leaders}")) }
        })
        .await;
    }
    let page = cluster.metrics(0);
    assert_eq!(page.sum("charthold_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(page.sum("charthold_peer_connected", &[]), 4.0, "two peers, two lanes");
    let expiry = page.sum("charthold_certificate_expiry_timestamp_seconds", &[("port", "service")]);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!(expiry > now, "{expiry}");
    let free = page.sum("charthold_disk_free_bytes", &[]);
    assert!(free > 0.0 && free <= page.sum("charthold_disk_size_bytes", &[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_say_why_a_node_does_not_serve() {
    let mut cluster = Cluster::prepare(Options::default());
    cluster.restart_all();
    let page = async |cluster: &Cluster, path: &str, status: u16, words: &str| {
        until(&format!("{path} is {status}"), || async {
            let page = cluster.ops(0, path).ok_or("it does not answer")?;
            if page.status == status && page.body.contains(words) { Ok(()) } else { Err(format!("{page:?}")) }
        })
        .await;
    };
    page(&cluster, "/livez", 200, "ok").await;
    page(&cluster, "/readyz", 503, "the cluster is not initialized").await;
    cluster.initialize().await;
    page(&cluster, "/readyz", 200, "ready").await;
    for node in [1, 2] {
        cluster.kill(node);
    }
    page(&cluster, "/readyz", 503, "shard 0").await;
    page(&cluster, "/livez", 200, "ok").await;
    assert_eq!(cluster.metrics(0).sum("charthold_ready", &[]), 0.0);
    cluster.restart(1);
    page(&cluster, "/readyz", 200, "ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ops_port_does_nothing_else() {
    let cluster = Cluster::start(1).await;
    for (request, status) in [
        ("GET / HTTP/1.1", 404),
        ("GET /debug HTTP/1.1", 404),
        ("GET /metrics/x HTTP/1.1", 404),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 0", 405),
        ("DELETE /readyz HTTP/1.1", 405),
        ("GET /livez HTTP/1.1\r\nX: ", 200),
        ("nonsense", 400),
    ] {
        let page = cluster.ops_request(0, &format!("{request}\r\nHost: a\r\nConnection: close\r\n\r\n")).unwrap();
        assert_eq!(page.status, status, "{request}: {page:?}");
    }
    let head = cluster.ops_request(0, "HEAD /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let long = format!("GET /livez HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(64 << 10));
    assert!(cluster.ops_request(0, &long).is_none_or(|page| page.status >= 400));

    // More than it takes, none of which ever asks anything: they are cut, and it answers.
    let endpoint = cluster.ops_endpoint(0);
    let mut idle: Vec<_> = (0..200).filter_map(|_| std::net::TcpStream::connect(&endpoint).ok()).collect();
    for stream in &mut idle {
        let _cut_already = stream.write_all(b"GET /li");
    }
    until("it answers again", || async {
        let page = cluster.ops(0, "/livez").ok_or("it does not answer")?;
        if page.status == 200 { Ok(()) } else { Err(format!("{page:?}")) }
    })
    .await;
    for mut stream in idle {
        stream.set_read_timeout(Some(charthold_tests::harness::WAIT_MAX)).unwrap();
        let mut said = Vec::new();
        // Reset or closed, both are an end.
        let _end = stream.read_to_end(&mut said);
        let said = String::from_utf8(said).unwrap();
        assert!(said.is_empty() || said.contains("408"), "{said}");
    }
}
