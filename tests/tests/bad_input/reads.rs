//! What a read may not ask for, and page tokens that are not the caller's.

use bytes::Bytes;
use charthold_client::{Chart, Put, RecordId, Role};
use charthold_proto::v1;
use charthold_tests::harness::Cluster;
use prost::Message;
use tonic::Code;

use super::wire::{Refusal, Wire};

fn context() -> Option<v1::RequestContext> {
    Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() })
}

fn chart(id: &str) -> Option<v1::ChartRef> {
    Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: id.to_owned() })
}

fn record(id: &str) -> Option<v1::RecordRef> {
    Some(v1::RecordRef { r#type: "Note".to_owned(), id: id.to_owned() })
}

async fn start() -> (Cluster, Wire) {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    for id in ["n1", "n2", "n3"] {
        client.put(&Chart::patient("p1"), &RecordId::new("Note", id), Put::new("text/plain", id)).await.unwrap();
    }
    let wire = Wire::connect(&cluster, 0, "client");
    (cluster, wire)
}

async fn refused(wire: &Wire, method: &str, request: &impl Message) -> Refusal {
    let answer = wire.call(&format!("charthold.v1.{method}"), request.encode_to_vec().into()).await;
    Refusal::of(&answer.expect_err(method))
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_within_limits_or_not_at_all() {
    let (_cluster, wire) = start().await;
    let long = "x".repeat(129);
    let get = v1::GetRequest { context: context(), chart: chart("p1"), record: record("n1"), ..Default::default() };
    let list = v1::ListRequest { context: context(), chart: chart("p1"), ..Default::default() };
    let history =
        v1::HistoryRequest { context: context(), chart: chart("p1"), record: record("n1"), ..Default::default() };
    let batch = |count: usize| v1::BatchGetRequest {
        context: context(),
        chart: chart("p1"),
        records: (0..count).filter_map(|_| record("n1")).collect(),
        as_of: String::new(),
        freshness: None,
    };
    let too_long = v1::BatchGetRequest { records: record(&long).into_iter().collect(), ..batch(1) };
    let cases: [(&str, Bytes, &str); 13] = [
        ("Charts/Get", v1::GetRequest { chart: chart(&long), ..get.clone() }.encode_to_vec().into(), "chart.id"),
        ("Charts/Get", v1::GetRequest { chart: None, ..get.clone() }.encode_to_vec().into(), "chart"),
        ("Charts/Get", v1::GetRequest { record: record(""), ..get.clone() }.encode_to_vec().into(), "record.id"),
        ("Charts/Get", v1::GetRequest { context: None, ..get.clone() }.encode_to_vec().into(), "context"),
        ("Charts/BatchGet", batch(0).encode_to_vec().into(), "records"),
        ("Charts/BatchGet", batch(1_001).encode_to_vec().into(), "records"),
        ("Charts/BatchGet", too_long.encode_to_vec().into(), "records[0].id"),
        ("Charts/List", v1::ListRequest { page_size: 1_001, ..list.clone() }.encode_to_vec().into(), "page_size"),
        ("Charts/List", v1::ListRequest { r#type: long.clone(), ..list.clone() }.encode_to_vec().into(), "type"),
        (
            "Charts/List",
            v1::ListRequest { page_token: long.clone(), ..list.clone() }.encode_to_vec().into(),
            "page_token",
        ),
        (
            "Charts/History",
            v1::HistoryRequest { page_size: 1_001, ..history.clone() }.encode_to_vec().into(),
            "page_size",
        ),
        ("Charts/History", v1::HistoryRequest { record: None, ..history }.encode_to_vec().into(), "record"),
        (
            "Charts/ReadChart",
            v1::ReadChartRequest { context: context(), ..Default::default() }.encode_to_vec().into(),
            "chart",
        ),
    ];
    for (method, request, field) in cases {
        let refusal = Refusal::of(&wire.call(&format!("charthold.v1.{method}"), request).await.expect_err(field));
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{refusal:?}");
        assert!(refusal.fields.iter().any(|(name, _)| name == field), "{method} {field}: {refusal:?}");
        assert!(!refusal.message.contains(&long), "values are not repeated: {refusal:?}");
    }
}

/// What a list may not ask for, and positions that are none of this chart's.
#[tokio::test(flavor = "multi_thread")]
async fn lists_and_positions_make_sense_or_are_refused() {
    let (cluster, wire) = start().await;
    let list = || v1::ListRequest { context: context(), chart: chart("p1"), ..Default::default() };
    let position = wire.ask::<v1::ListResponse>("charthold.v1.Charts/List", &list()).await.unwrap();
    let position = position.answer.unwrap().position;
    let elsewhere = {
        let charts = ["q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8", "q9"].map(Chart::patient);
        let mut positions = Vec::new();
        for chart in charts {
            let put = Put::new("text/plain", "x");
            positions.push(cluster.client().put(&chart, &RecordId::new("Note", "n1"), put).await.unwrap().position);
        }
        // version 1, shard 2, seq 8
        positions.into_iter().find(|other| other[..6] != position[..6]).expect("one of nine charts is in another shard")
    };
    let ahead = format!("{}{:016x}", &position[..6], u64::MAX);
    let fresh = |mode| Some(v1::Freshness { mode });
    let stale = |ms| fresh(Some(v1::freshness::Mode::StaleMsMax(ms)));
    let lease = |lease| fresh(Some(v1::freshness::Mode::Lease(lease)));
    let text = str::to_owned;
    let cases = [
        (v1::ListRequest { order: 77, ..list() }, "order"),
        (v1::ListRequest { clinical_from: text("soon"), ..list() }, "clinical_from"),
        (v1::ListRequest { clinical_to: text("2024-13"), ..list() }, "clinical_to"),
        (v1::ListRequest { clinical_from: text("2024"), clinical_to: text("2024"), ..list() }, "clinical_to"),
        (v1::ListRequest { status: vec!["s".repeat(129)], ..list() }, "status"),
        (v1::ListRequest { status: vec![text("s"); 17], ..list() }, "status"),
        (v1::ListRequest { as_of: text("nonsense"), ..list() }, "as_of"),
        (v1::ListRequest { as_of: ahead.clone(), ..list() }, "as_of"),
        (v1::ListRequest { as_of: elsewhere.clone(), ..list() }, "as_of"),
        (v1::ListRequest { freshness: fresh(None), ..list() }, "freshness"),
        (v1::ListRequest { freshness: lease(false), ..list() }, "freshness.lease"),
        (v1::ListRequest { freshness: stale(0), ..list() }, "freshness.stale_ms_max"),
        (v1::ListRequest { freshness: stale(3_600_001), ..list() }, "freshness.stale_ms_max"),
        (v1::ListRequest { freshness: lease(true), as_of: position.clone(), ..list() }, "freshness"),
    ];
    for (request, field) in cases {
        let refusal = refused(&wire, "Charts/List", &request).await;
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{refusal:?}");
        assert!(refusal.fields.len() == 1 && refusal.fields[0].0 == field, "{field}: {refusal:?}");
    }
    for as_of in [ahead, elsewhere, text("01")] {
        let (chart, record) = (chart("p1"), record("n1"));
        let get = v1::GetRequest {
            context: context(),
            chart: chart.clone(),
            record: record.clone(),
            as_of: as_of.clone(),
            ..Default::default()
        };
        let batch = v1::BatchGetRequest {
            context: context(),
            chart: chart.clone(),
            records: record.clone().into_iter().collect(),
            as_of: as_of.clone(),
            freshness: None,
        };
        let history = v1::HistoryRequest {
            context: context(),
            chart: chart.clone(),
            record,
            as_of: as_of.clone(),
            ..Default::default()
        };
        let refusals = [
            refused(&wire, "Charts/Get", &get).await,
            refused(&wire, "Charts/BatchGet", &batch).await,
            refused(&wire, "Charts/History", &history).await,
            refused(
                &wire,
                "Charts/ReadChart",
                &v1::ReadChartRequest { context: context(), chart, as_of, freshness: None },
            )
            .await,
        ];
        assert!(refusals.iter().all(|refusal| refusal.fields[0].0 == "as_of"), "{refusals:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finds_make_sense_or_are_refused() {
    let (_cluster, wire) = start().await;
    let term = |system: &str, value: &str| Some(v1::IndexTerm { system: system.to_owned(), value: value.to_owned() });
    let find = || v1::FindChartsRequest { context: context(), term: term("mrn", "4711"), ..Default::default() };
    let cases = [
        (v1::FindChartsRequest { context: None, ..find() }, "context"),
        (v1::FindChartsRequest { term: None, ..find() }, "term"),
        (v1::FindChartsRequest { term: term("", "4711"), ..find() }, "term.system"),
        (v1::FindChartsRequest { term: term("mrn", ""), ..find() }, "term.value"),
        (v1::FindChartsRequest { term: term(&"x".repeat(129), "4711"), ..find() }, "term.system"),
        (v1::FindChartsRequest { term: term("mrn", &"x".repeat(257)), ..find() }, "term.value"),
        (v1::FindChartsRequest { term: term("mrn", "4711\u{1b}[2J"), ..find() }, "term.value"),
        (v1::FindChartsRequest { chart_kind: 77, ..find() }, "chart_kind"),
        (v1::FindChartsRequest { r#type: "x".repeat(129), ..find() }, "type"),
        (v1::FindChartsRequest { page_size: 1_001, ..find() }, "page_size"),
        (v1::FindChartsRequest { page_token: "nonsense".to_owned(), ..find() }, "page_token"),
    ];
    for (request, field) in cases {
        let refusal = refused(&wire, "Charts/FindCharts", &request).await;
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{refusal:?}");
        assert!(refusal.fields.len() == 1 && refusal.fields[0].0 == field, "{field}: {refusal:?}");
        assert!(!refusal.message.contains("4711"), "values are not repeated: {refusal:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_absent_is_absent() {
    let (cluster, wire) = start().await;
    let get = |id, version| v1::GetRequest {
        context: context(),
        chart: chart("p1"),
        record: record(id),
        version,
        ..Default::default()
    };
    for (id, version) in [("n9", 0), ("n1", 2), ("n1", u64::MAX)] {
        let refusal = refused(&wire, "Charts/Get", &get(id, version)).await;
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::NotFound, "RECORD_NOT_FOUND"), "{id} {version}");
    }
    let history =
        v1::HistoryRequest { context: context(), chart: chart("p1"), record: record("n9"), ..Default::default() };
    assert_eq!(refused(&wire, "Charts/History", &history).await.code, Code::NotFound);
    let read = v1::ReadChartRequest { context: context(), chart: chart("p9"), ..Default::default() };
    let pages = wire.call("charthold.v1.Charts/ReadChart", read.encode_to_vec().into()).await.unwrap();
    let last = v1::ReadChartResponse::decode(pages.last().unwrap().clone()).unwrap();
    assert!(pages.len() == 1 && last.complete && last.records.is_empty());
    assert!(cluster.client().list(&Chart::patient("p9"), None).await.unwrap().is_empty());
}

/// A page token is good for whom it was given to, for the query that it was given for, and unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn page_tokens_are_bound_to_caller_and_query() {
    let (cluster, wire) = start().await;
    cluster.service("second", &[Role::Reader]).await;
    let list = v1::ListRequest { context: context(), chart: chart("p1"), page_size: 2, ..Default::default() };
    let first: v1::ListResponse = wire.ask("charthold.v1.Charts/List", &list).await.unwrap();
    assert_eq!(first.headers.len(), 2);
    let token = first.next_page_token;
    let mut changed = token.clone().into_bytes();
    let middle = changed.len() / 2;
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).unwrap();
    let next = v1::ListRequest { page_token: token.clone(), ..list };
    let others = [
        v1::ListRequest { chart: chart("p2"), ..next.clone() },
        v1::ListRequest { r#type: "Note".to_owned(), ..next.clone() },
        v1::ListRequest { order: v1::Order::NewestFirst as i32, ..next.clone() },
        v1::ListRequest { status: vec!["final".to_owned()], ..next.clone() },
        v1::ListRequest { clinical_from: "2024".to_owned(), ..next.clone() },
        v1::ListRequest { include_deleted: true, ..next.clone() },
        v1::ListRequest { as_of: first.answer.unwrap().position, ..next.clone() },
        v1::ListRequest { page_token: changed, ..next.clone() },
        v1::ListRequest { page_token: token[..token.len() - 4].to_owned(), ..next.clone() },
    ];
    let mut refusals = Vec::new();
    for other in &others {
        refusals.push(refused(&wire, "Charts/List", other).await);
    }
    refusals.push(refused(&Wire::connect(&cluster, 0, "second"), "Charts/List", &next).await);
    let history = v1::HistoryRequest {
        context: context(),
        chart: chart("p1"),
        record: record("n1"),
        page_size: 2,
        page_token: token,
        ..Default::default()
    };
    refusals.push(refused(&wire, "Charts/History", &history).await);
    for refusal in refusals {
        assert_eq!((refusal.code, refusal.fields[0].0.as_str()), (Code::InvalidArgument, "page_token"), "{refusal:?}");
        assert!(refusal.message.contains("not of this listing, or has expired"), "{refusal:?}");
    }
    let second: v1::ListResponse = wire.ask("charthold.v1.Charts/List", &next).await.unwrap();
    assert_eq!((second.headers.len(), second.next_page_token.as_str()), (1, ""));
}
