//! One request, followed from its caller over gateway and leader to the followers.

use std::collections::{BTreeSet, HashMap};

use charthold_client::{Chart, Mutation, Put, RecordId};
use charthold_tests::harness::{Cluster, Options, until};

use super::collector::{Collector, Sent};

const CALLERS_SPAN: &str = "b7ad6b7169203331";

/// The trace of the request that was sent to a node.
fn trace_id(node: usize) -> String {
    format!("0af7651916cd43dd8448eb211c8031{node:02x}")
}

fn of_trace(collector: &Collector, trace: &str) -> Vec<Sent> {
    collector.spans().into_iter().filter(|span| span.trace == trace).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_followed_from_client_to_followers() {
    let collector = Collector::start();
    let options = Options { config: collector.config(0.0), ..Options::default() };
    let cluster = Cluster::start_with(options).await;
    let (chart, id) = (Chart::patient("p1"), RecordId::new("Note", "n1"));
    // A chart's first commit makes its key too, which is an entry of its own.
    cluster.client().put(&chart, &id, Put::new("text/plain", "first")).await.unwrap();
    for node in 0..cluster.size() {
        // The first call goes to this node; its answer says who leads.
        let client = cluster.client_at(node);
        let traced = client.with_traceparent(&format!("00-{}-{CALLERS_SPAN}-01", trace_id(node)));
        traced.put(&chart, &id, Put::new("text/plain", "traced")).await.unwrap();
        // Nobody asks for this one, and the ratio is none.
        client.put(&chart, &id, Put::new("text/plain", "not traced")).await.unwrap();
    }
    let mut forwarded = 0;
    for node in 0..cluster.size() {
        let spans = until("all spans of a commit", || async {
            let spans = of_trace(&collector, &trace_id(node));
            let appliers: BTreeSet<_> =
                spans.iter().filter(|span| span.name == "apply").map(|span| &span.node).collect();
            let answered = |span: &Sent| span.fields.get("rpc.grpc.status_code").is_some_and(|code| code == "0");
            let whole = appliers.len() == 3 && spans.iter().any(answered);
            if whole { Ok(spans) } else { Err(format!("{spans:?}")) }
        })
        .await;
        let by_id: HashMap<&str, &Sent> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
        // A try that met no leader, of a group that is young, left spans too: followed is the one that committed.
        let committed = spans.iter().find(|span| span.name == "leader" && span.fields.contains_key("log_index"));
        let leader = committed.unwrap_or_else(|| panic!("no leader: {spans:?}"));
        // The leader's span hangs below the gateway's, over a forward if that is another node.
        let above = by_id[leader.parent.as_str()];
        let root = match above.name.as_str() {
            "forward" => {
                assert_ne!(leader.node, above.node);
                forwarded += 1;
                by_id[above.parent.as_str()]
            }
            _ => above,
        };
        assert_eq!((root.name.as_str(), root.parent.as_str()), ("charthold.v1.Charts/Commit", CALLERS_SPAN));
        assert_eq!((root.fields["rpc.grpc.status_code"].as_str(), &root.node), ("0", &above.node));
        for stage in ["admit", "key", "seal", "propose", "answer"] {
            let named = spans.iter().find(|span| span.name == stage && span.parent == root.id);
            assert_eq!(named.map(|span| &span.node), Some(&root.node), "{stage}: {spans:?}");
        }
        for below in spans.iter().filter(|span| ["log", "apply"].contains(&span.name.as_str())) {
            assert_eq!(below.parent, leader.id, "{below:?}");
            assert_eq!(below.fields["log_index"], leader.fields["log_index"]);
            assert_eq!(below.fields["shard"], leader.fields["shard"]);
        }
        let logged = spans.iter().filter(|span| span.name == "log").map(|span| &span.node);
        assert_eq!(logged.collect::<BTreeSet<_>>().len(), 3, "{spans:?}");
    }
    assert!(forwarded >= 2, "one of three nodes leads, at most");
    let traces: BTreeSet<String> = collector.spans().into_iter().map(|span| span.trace).collect();
    assert_eq!(traces, (0..cluster.size()).map(trace_id).collect(), "only what was asked for is traced");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_callers_trace_the_ratio_decides_and_refusals_say_why() {
    let collector = Collector::start();
    let options = Options { sites: 1, config: collector.config(1.0), ..Options::default() };
    let cluster = Cluster::start_with(options).await;
    let (chart, id) = (Chart::patient("p1"), RecordId::new("Note", "n1"));
    let delete = Mutation::delete(id.clone()).if_version(7);
    cluster.client().commit(&chart, vec![delete]).await.unwrap_err();
    cluster.client().get(&chart, &id).await.unwrap_err();
    until("both refusals", || async {
        let spans = collector.spans();
        let reason = |method: &str| {
            let root = spans.iter().find(|span| span.name.ends_with(method) && span.fields.contains_key("reason"));
            root.map(|root| root.fields["reason"].clone()).ok_or_else(|| format!("none of {method}: {spans:?}"))
        };
        let barrier = spans.iter().any(|span| span.name == "barrier");
        let reasons = (reason("Charts/Commit")?, reason("Charts/Get")?, barrier);
        let expected = ("VERSION_MISMATCH".to_owned(), "RECORD_NOT_FOUND".to_owned(), true);
        if reasons == expected { Ok(()) } else { Err(format!("{reasons:?}")) }
    })
    .await;
}

/// A collector that is not there costs spans and one line, nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_collector_is_no_trouble() {
    let config = Collector::start().config(1.0);
    let mut cluster = Cluster::start_with(Options { sites: 1, config, ..Options::default() }).await;
    let chart = Chart::patient("p1");
    for number in 0..20 {
        let id = RecordId::new("Note", format!("n{number}"));
        cluster.client().put(&chart, &id, Put::new("text/plain", "1")).await.unwrap();
    }
    until("spans are dropped", || async {
        let dropped = cluster.metrics(0).sum("charthold_trace_spans_dropped_total", &[]);
        if dropped > 0.0 { Ok(()) } else { Err(format!("{dropped}")) }
    })
    .await;
    assert!(cluster.stop(0).success());
    let log = std::fs::read_to_string(cluster.log(0)).unwrap();
    assert_eq!(log.matches("traces cannot be exported").count(), 1, "{log}");
}
