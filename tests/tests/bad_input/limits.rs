//! Every limit that `charthold/v1` promises, from the outside: what is at the limit is taken, what is one above is
//! refused with its code, reason and field.
//!
//! | limit | at it, taken | one above, refused |
//! | --- | --- | --- |
//! | an id: 1 to 128 bytes of UTF-8 (chart, type, record) | here | here (bytes, not characters); `requests`, `reads` |
//! | a tenant's name: 1 to 128 bytes | here | here; `admin` |
//! | each field of a context: 256 bytes | here | here |
//! | content type, status, author, label: 128 bytes; clinical date: 64 | here | here; `requests` |
//! | labels: 16 | here | here; `requests` |
//! | a body: 1 MiB by default, 4 MiB where configured | here | here; `configs` (a configuration of more) |
//! | a commit: 1 to 512 mutations, 4 MiB of bodies | here | here; `requests` |
//! | a message on charts: 8 MiB; on tenants and the cluster: 4 MiB | here | here |
//! | BatchGet: 1 to 1,000 records, 4 MiB an answer | here | here; `reads` |
//! | a page: 1,000 rows (100 if not said); tokens for an hour | here | here; `reads` (tokens) |
//! | a request id: up to 1 h old, up to 5 min ahead | here | `requests` |
//! | headers of a call: 16 KiB | here | here |
//! | a call without a deadline: 30 s; a deadline: up to 5 min | here | here; `node/src/gateway/answer.rs` (the 5 min) |
//! | connections, handshakes | `node/src/tls/tests/conduct.rs` | the same |
//! | messages between nodes: 256 KiB a frame, 16 MiB, 64 MiB begun | `node/replica/src/peer/frame.rs` | the same |

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use charthold_proto::v1;
use charthold_proto::v1::mutation::Operation;
use charthold_tests::harness::{Cluster, Options, until};
use prost::Message;
use tonic::{Code, Request};
use uuid::{NoContext, Timestamp, Uuid};

use super::wire::{Refusal, Wire};

const MIB: usize = 1 << 20;
const MESSAGE_BYTES_MAX: usize = 8 * MIB;
const COMMIT: &str = "charthold.v1.Charts/Commit";
const GET: &str = "charthold.v1.Charts/Get";
const LIST: &str = "charthold.v1.Charts/List";

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn context() -> v1::RequestContext {
    v1::RequestContext { actor: "test".to_owned(), ..Default::default() }
}

fn chart(id: &str) -> v1::ChartRef {
    v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: id.to_owned() }
}

fn record(id: &str) -> v1::RecordRef {
    v1::RecordRef { r#type: "Note".to_owned(), id: id.to_owned() }
}

fn put(id: &str, put: v1::Put) -> v1::Mutation {
    v1::Mutation { record: Some(record(id)), precondition: None, operation: Some(Operation::Put(put)) }
}

fn body(bytes: usize) -> v1::Put {
    v1::Put { content_type: "text/plain".to_owned(), body: vec![b'x'; bytes].into(), ..Default::default() }
}

/// Bytes that don't compress, so that what is sealed is as large as it can be.
fn noise(bytes: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(step).collect::<Vec<u8>>().into()
}

/// On a chart of its own for each test: `p1` and up.
fn commit(chart_id: &str, mutations: Vec<v1::Mutation>) -> v1::CommitRequest {
    let request_id = Uuid::now_v7().to_string();
    v1::CommitRequest { context: Some(context()), request_id, chart: Some(chart(chart_id)), mutations }
}

/// The caller of one gateway, who knows what is to be taken and what is not.
struct Caller(Wire);

impl Caller {
    async fn taken(&self, what: &str, request: &v1::CommitRequest) {
        let answer = self.0.ask::<v1::CommitResponse>(COMMIT, request).await;
        let versions = answer.map(|answer| answer.versions.len());
        assert_eq!(versions.map_err(|status| Refusal::of(&status)).unwrap(), request.mutations.len(), "{what}");
    }

    async fn refused(&self, what: &str, method: &str, request: &impl Message, field: &str) {
        self.refused_bytes(what, method, request.encode_to_vec().into(), field).await;
    }

    async fn refused_bytes(&self, what: &str, method: &str, request: Bytes, field: &str) {
        let answer = self.0.call(method, request).await;
        let refusal = Refusal::of(&answer.err().unwrap_or_else(|| panic!("{what} was taken")));
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{what}");
        let fields: Vec<&str> = refusal.fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(fields, [field], "{what}: {refusal:?}");
    }
}

async fn start() -> (Cluster, Caller) {
    let cluster = Cluster::start(1).await;
    let caller = Caller(Wire::connect(&cluster, 0, "client"));
    (cluster, caller)
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_have_bytes_not_characters() {
    let (cluster, caller) = start().await;
    // Two bytes each.
    let (longest, too_long) = ("é".repeat(64), format!("{}x", "é".repeat(64)));
    let with = |chart_id: &str, type_: &str, id: &str| {
        let record = v1::RecordRef { r#type: type_.to_owned(), id: id.to_owned() };
        commit(chart_id, vec![v1::Mutation { record: Some(record), ..put("", body(1)) }])
    };
    caller.taken("ids of 128 bytes", &with(&longest, &longest, &longest)).await;
    caller.taken("ids of one byte", &with("p", "T", "i")).await;
    caller.refused("a chart's id", COMMIT, &with(&too_long, "T", "i"), "chart.id").await;
    caller.refused("a type", COMMIT, &with("p", &too_long, "i"), "mutations[0].record.type").await;
    caller.refused("a record's id", COMMIT, &with("p", "T", &too_long), "mutations[0].record.id").await;

    let operator = Caller(Wire::connect(&cluster, 0, "operator"));
    let create = |name: &str| {
        let request_id = Uuid::now_v7().to_string();
        v1::CreateTenantRequest { context: Some(context()), request_id, name: name.to_owned() }
    };
    let made = operator.0.ask::<v1::CreateTenantResponse>("charthold.v1.Tenants/CreateTenant", &create(&longest)).await;
    assert_eq!(made.unwrap().tenant.unwrap().name, longest);
    operator.refused("a tenant's name", "charthold.v1.Tenants/CreateTenant", &create(&too_long), "name").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_a_context_and_of_a_put_has_its_limit() {
    let (_cluster, caller) = start().await;
    type Field<T> = (&'static str, fn(&mut T) -> &mut String, usize);
    let of_context: [Field<v1::RequestContext>; 7] = [
        ("actor", |it| &mut it.actor, 256),
        ("on_behalf_of", |it| &mut it.on_behalf_of, 256),
        ("purpose_of_use", |it| &mut it.purpose_of_use, 256),
        ("reason", |it| &mut it.reason, 256),
        ("session", |it| &mut it.session, 256),
        ("device", |it| &mut it.device, 256),
        ("origin", |it| &mut it.origin, 256),
    ];
    let mut longest = context();
    for (name, field, bytes_max) in of_context {
        *field(&mut longest) = text(bytes_max);
        let mut over = context();
        *field(&mut over) = text(bytes_max + 1);
        let over = v1::CommitRequest { context: Some(over), ..commit("p1", vec![put("n1", body(1))]) };
        caller.refused(name, COMMIT, &over, &format!("context.{name}")).await;
    }
    let all = v1::CommitRequest { context: Some(longest), ..commit("p1", vec![put("n1", body(1))]) };
    caller.taken("a context with all fields at their limit", &all).await;

    let of_put: [Field<v1::Put>; 4] = [
        ("content_type", |it| &mut it.content_type, 128),
        ("clinical_date", |it| &mut it.clinical_date, 64),
        ("status", |it| &mut it.status, 128),
        ("author", |it| &mut it.author, 128),
    ];
    let mut longest = v1::Put { labels: vec![text(128); 16], ..body(1) };
    for (name, field, bytes_max) in of_put {
        *field(&mut longest) = text(bytes_max);
        let mut over = body(1);
        *field(&mut over) = text(bytes_max + 1);
        caller.refused(name, COMMIT, &commit("p1", vec![put("n1", over)]), &format!("mutations[0].put.{name}")).await;
    }
    caller.taken("a put with all fields at their limit", &commit("p1", vec![put("n2", longest)])).await;
    for labels in [vec![text(129)], vec!["x".to_owned(); 17]] {
        let over = commit("p1", vec![put("n1", v1::Put { labels, ..body(1) })]);
        caller.refused("labels", COMMIT, &over, "mutations[0].put.labels").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_commits_have_their_sizes() {
    let (_cluster, caller) = start().await;
    caller.taken("a body of 1 MiB", &commit("p1", vec![put("n1", body(MIB))])).await;
    let over = commit("p1", vec![put("n1", body(MIB + 1))]);
    caller.refused("a body of more", COMMIT, &over, "mutations[0].put.body").await;

    let bodies = |last: usize| {
        let sizes = [MIB, MIB, MIB, MIB - 1, last];
        sizes.into_iter().enumerate().map(|(index, size)| put(&format!("n{index}"), body(size))).collect()
    };
    caller.taken("a commit of 4 MiB", &commit("p2", bodies(1))).await;
    caller.refused("a commit of more", COMMIT, &commit("p2", bodies(2)), "mutations").await;

    let many = |count: usize| (0..count).map(|index| put(&format!("n{index}"), body(1))).collect();
    caller.taken("a commit of 512 mutations", &commit("p3", many(512))).await;
    caller.refused("a commit of 513", COMMIT, &commit("p3", many(513)), "mutations").await;
    caller.refused("a commit of none", COMMIT, &commit("p3", Vec::new()), "mutations").await;

    // All at once: as many records as may be, as large as may be, everything said about each.
    let fields = v1::Put {
        content_type: text(128),
        clinical_date: text(64),
        status: text(128),
        author: text(128),
        labels: vec![text(128); 16],
        body: noise(4 * MIB / 512),
        ..Default::default()
    };
    let full = (0..512).map(|index| {
        let record = v1::RecordRef { r#type: text(128), id: format!("{index:0>128}") };
        v1::Mutation { record: Some(record), ..put("", fields.clone()) }
    });
    caller.taken("the largest commit of all", &commit(&text(128), full.collect())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_may_allow_bodies_of_4_mib() {
    let options = Options { sites: 1, config: "[limits]\nbody_bytes_max = 4194304\n".to_owned(), ..Options::default() };
    let cluster = Cluster::start_with(options).await;
    let caller = Caller(Wire::connect(&cluster, 0, "client"));
    caller.taken("a body of 4 MiB", &commit("p1", vec![put("n1", body(4 * MIB))])).await;
    let get = v1::GetRequest {
        context: Some(context()),
        chart: Some(chart("p1")),
        record: Some(record("n1")),
        ..Default::default()
    };
    let read: v1::GetResponse = caller.0.ask(GET, &get).await.unwrap();
    assert_eq!(read.record.unwrap().body.len(), 4 * MIB);
    let over = commit("p1", vec![put("n1", body(4 * MIB + 1))]);
    let answer = caller.0.call(COMMIT, over.encode_to_vec().into()).await;
    let refusal = Refusal::of(&answer.unwrap_err());
    let fields: Vec<&str> = refusal.fields.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((refusal.code, fields), (Code::InvalidArgument, vec!["mutations[0].put.body", "mutations"]));
}

/// A commit whose message has exactly so many bytes.
fn message_of(bytes: usize) -> Bytes {
    let empty = commit("p1", vec![put("n1", body(MESSAGE_BYTES_MAX - 1_000))]);
    let missing = bytes - empty.encoded_len();
    let filled = commit("p1", vec![put("n1", body(MESSAGE_BYTES_MAX - 1_000 + missing))]).encode_to_vec();
    assert_eq!(filled.len(), bytes);
    filled.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_has_its_size() {
    let (cluster, caller) = start().await;
    // It is read, and then found to be too much for a commit.
    let largest = caller.0.call(COMMIT, message_of(MESSAGE_BYTES_MAX)).await;
    let fields = Refusal::of(&largest.unwrap_err()).fields;
    assert!(fields.iter().all(|(name, _)| name.starts_with("mutations")), "{fields:?}");
    caller.refused_bytes("a message of more", COMMIT, message_of(MESSAGE_BYTES_MAX + 1), "message").await;

    let operator = Caller(Wire::connect(&cluster, 0, "operator"));
    for method in ["Tenants/AddGrant", "Cluster/Status"] {
        let large = vec![0; 4 * MIB + 1].into();
        operator.refused_bytes(method, &format!("charthold.v1.{method}"), large, "message").await;
    }
    caller.taken("a commit after all that", &commit("p1", vec![put("n1", body(1))])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_their_rows_and_bytes() {
    let (cluster, caller) = start().await;
    let ids: Vec<String> = (0..1_001).map(|index| format!("n{index}")).collect();
    for some in ids.chunks(512) {
        caller.taken("records", &commit("p1", some.iter().map(|id| put(id, body(1))).collect())).await;
    }
    let list = |page_size: u32| v1::ListRequest {
        context: Some(context()),
        chart: Some(chart("p1")),
        page_size,
        ..Default::default()
    };
    for (page_size, rows) in [(1, 1), (0, 100), (1_000, 1_000)] {
        let page: v1::ListResponse = caller.0.ask(LIST, &list(page_size)).await.unwrap();
        assert_eq!((page.headers.len(), page.next_page_token.is_empty()), (rows, false), "{page_size}");
    }
    caller.refused("rows of a page", LIST, &list(1_001), "page_size").await;
    let history = v1::HistoryRequest {
        context: Some(context()),
        chart: Some(chart("p1")),
        record: Some(record("n0")),
        page_size: 1_001,
        ..Default::default()
    };
    caller.refused("rows of a history", "charthold.v1.Charts/History", &history, "page_size").await;

    let batch = |ids: &[String]| v1::BatchGetRequest {
        context: Some(context()),
        chart: Some(chart("p1")),
        records: ids.iter().map(|id| record(id)).collect(),
        ..Default::default()
    };
    let method = "charthold.v1.Charts/BatchGet";
    let read: v1::BatchGetResponse = caller.0.ask(method, &batch(&ids[..1_000])).await.unwrap();
    assert_eq!(read.results.iter().filter(|result| result.record.is_some()).count(), 1_000);
    caller.refused("records of a batch", method, &batch(&ids), "records").await;
    // Five bodies of 1 MiB are more than an answer holds: it stops before.
    for id in &ids[..5] {
        caller.taken("a large body", &commit("p1", vec![put(id, body(MIB))])).await;
    }
    let read: v1::BatchGetResponse = caller.0.ask(method, &batch(&ids[..5])).await.unwrap();
    assert_eq!(read.results.len(), 4);

    let operator = Caller(Wire::connect(&cluster, 0, "operator"));
    let tenants = |page_size| v1::ListTenantsRequest { context: Some(context()), page_size, ..Default::default() };
    let grants = |page_size| v1::ListGrantsRequest { context: Some(context()), page_size, ..Default::default() };
    let (list_tenants, list_grants) = ("charthold.v1.Tenants/ListTenants", "charthold.v1.Tenants/ListGrants");
    assert_eq!(
        operator.0.ask::<v1::ListTenantsResponse>(list_tenants, &tenants(1_000)).await.unwrap().tenants.len(),
        1
    );
    assert_eq!(operator.0.ask::<v1::ListGrantsResponse>(list_grants, &grants(1_000)).await.unwrap().grants.len(), 1);
    operator.refused("rows of tenants", list_tenants, &tenants(1_001), "page_size").await;
    operator.refused("rows of grants", list_grants, &grants(1_001), "page_size").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_may_be_an_hour_old_or_a_little_ahead() {
    let (_cluster, caller) = start().await;
    let (hour, minute) = (Duration::from_secs(3_600), Duration::from_secs(60));
    for (index, at) in [SystemTime::now() - (hour - minute), SystemTime::now() + minute * 4].into_iter().enumerate() {
        let since = at.duration_since(UNIX_EPOCH).unwrap();
        let id = Uuid::new_v7(Timestamp::from_unix(NoContext, since.as_secs(), since.subsec_nanos()));
        let mutations = vec![put(&format!("n{index}"), body(1))];
        caller.taken("an id", &v1::CommitRequest { request_id: id.to_string(), ..commit("p1", mutations) }).await;
    }
}

/// A call's headers: more of them than are read, and the call is refused, not the connection's other calls.
#[tokio::test(flavor = "multi_thread")]
async fn headers_have_their_size() {
    let (_cluster, caller) = start().await;
    let list = v1::ListRequest { context: Some(context()), chart: Some(chart("p1")), ..Default::default() };
    let with_header = |bytes: usize| {
        let mut request = Request::new(Bytes::from(list.encode_to_vec()));
        request.metadata_mut().insert("x-more", text(bytes).parse().unwrap());
        request
    };
    assert!(caller.0.call_with(LIST, with_header(8 << 10)).await.is_ok());
    assert!(caller.0.call_with(LIST, with_header(17 << 10)).await.is_err());
    assert!(caller.0.call_with(LIST, with_header(8 << 10)).await.is_ok());
}

/// A leader that cannot answer: the deadline ends a call, the caller's, or the gateway's 30 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_at_its_deadline_or_after_30_s() {
    let mut cluster = Cluster::start(3).await;
    let caller = Caller(Wire::connect(&cluster, 1, "client"));
    caller.taken("a commit with a quorum", &commit("p1", vec![put("n1", body(1))])).await;
    // By a gateway whose leader is out of reach callers are told so, and not kept.
    for other in ["a1", "c1"] {
        cluster.operator_cli(&["node", "drain", other]).await.ok();
    }
    until("it leads all shards", || async {
        let status = cluster.status_of_all().await?;
        let led = |node: &str| status.shards.iter().all(|shard| shard.leader_node_id.as_deref() == Some(node));
        let named = status.nodes.iter().find(|node| node.name == "b1");
        named.filter(|node| led(&node.id)).map(drop).ok_or_else(|| "others lead".to_owned())
    })
    .await;
    cluster.kill(0);
    cluster.kill(2);
    let refused = async |deadline: Option<Duration>| {
        let mut request = Request::new(Bytes::from(commit("p1", vec![put("n2", body(1))]).encode_to_vec()));
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let began = Instant::now();
        let refusal = Refusal::of(&caller.0.call_with(COMMIT, request).await.unwrap_err());
        let said = ["NO_LEADER", "NO_QUORUM", "OUTCOME_UNKNOWN"].contains(&refusal.reason.as_str());
        // On a busy machine the caller's own gRPC library may be first at the caller's own deadline.
        let late = deadline.is_some() && matches!(refusal.code, Code::DeadlineExceeded | Code::Cancelled);
        assert!(refusal.code == Code::Unavailable && said || late, "{refusal:?}");
        began.elapsed()
    };
    let (own, default) = tokio::join!(refused(Some(Duration::from_secs(5))), refused(None));
    assert!(own >= Duration::from_secs(4), "{own:?}: given up before its deadline");
    assert!(default >= Duration::from_secs(28), "{default:?}: given up before the default deadline");
}
