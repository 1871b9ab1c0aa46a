//! What a commit may not be: each fault is refused by name, and what was there stays.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use charthold_client::{Chart, RecordId};
use charthold_proto::v1;
use charthold_proto::v1::mutation::Operation;
use charthold_tests::harness::Cluster;
use prost::Message;
use tonic::Code;
use uuid::{NoContext, Timestamp, Uuid};

use super::wire::{Refusal, Wire};

const COMMIT: &str = "charthold.v1.Charts/Commit";
const MIB: usize = 1 << 20;

fn put(id: &str, body: impl Into<Bytes>) -> v1::Mutation {
    let put = v1::Put { content_type: "text/plain".to_owned(), body: body.into(), ..Default::default() };
    v1::Mutation {
        record: Some(v1::RecordRef { r#type: "Note".to_owned(), id: id.to_owned() }),
        precondition: None,
        operation: Some(Operation::Put(put)),
    }
}

fn commit(mutations: Vec<v1::Mutation>) -> v1::CommitRequest {
    v1::CommitRequest {
        context: Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() }),
        request_id: Uuid::now_v7().to_string(),
        chart: Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: "p1".to_owned() }),
        mutations,
    }
}

fn with(change: impl FnOnce(&mut v1::CommitRequest)) -> v1::CommitRequest {
    let mut request = commit(vec![put("n1", "other")]);
    change(&mut request);
    request
}

fn with_mutation(change: impl FnOnce(&mut v1::Mutation)) -> v1::CommitRequest {
    with(|request| change(&mut request.mutations[0]))
}

fn with_record(r#type: &str, id: &str) -> v1::CommitRequest {
    with_mutation(|mutation| mutation.record = Some(v1::RecordRef { r#type: r#type.to_owned(), id: id.to_owned() }))
}

fn with_chart(kind: i32, id: &str) -> v1::CommitRequest {
    with(|request| request.chart = Some(v1::ChartRef { kind, id: id.to_owned() }))
}

fn with_context(change: impl FnOnce(&mut v1::RequestContext)) -> v1::CommitRequest {
    with(|request| change(request.context.as_mut().unwrap()))
}

fn with_precondition(operation: Operation, condition: Option<v1::precondition::Condition>) -> v1::CommitRequest {
    with_mutation(|mutation| {
        mutation.operation = Some(operation);
        mutation.precondition = condition.map(|condition| v1::Precondition { condition: Some(condition) });
    })
}

/// A cluster of one with a record that all of the following must not touch.
struct Tried {
    cluster: Cluster,
    wire: Wire,
}

impl Tried {
    async fn start() -> Self {
        let cluster = Cluster::start(1).await;
        let wire = Wire::connect(&cluster, 0, "client");
        let tried = Self { cluster, wire };
        tried.send(&commit(vec![put("n1", "kept")])).await.unwrap();
        tried
    }

    async fn send(&self, request: &v1::CommitRequest) -> Result<v1::CommitResponse, Refusal> {
        self.wire.ask(COMMIT, request).await.map_err(|status| Refusal::of(&status))
    }

    async fn refused(&self, request: &v1::CommitRequest) -> Refusal {
        match self.send(request).await {
            Ok(_) => panic!("was committed"),
            Err(refusal) => refusal,
        }
    }

    /// A field is named with what is wrong with it, for programs and in the text.
    async fn check(&self, request: v1::CommitRequest, field: &str, description: &str) {
        let refusal = self.refused(&request).await;
        let found = refusal.fields.iter().find(|(name, _)| name == field);
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{refusal:?}");
        assert!(found.is_some_and(|(_, text)| text.contains(description)), "{field} {description}: {refusal:?}");
        assert!(refusal.message.contains(&format!("{field}: ")), "{refusal:?}");
    }

    /// Nothing of what was refused is there, everything else is, and a good commit still works.
    async fn nothing_was_lost(self) {
        let client = self.cluster.client();
        let chart = Chart::patient("p1");
        let record = client.get(&chart, &RecordId::new("Note", "n1")).await.unwrap();
        assert_eq!((record.version(), record.body.as_ref()), (1, &b"kept"[..]));
        let mut records = client.read_chart(&chart).await.unwrap();
        assert!(records.next().await.unwrap().is_ok() && records.next().await.is_none(), "more than one record");
        let committed = self.send(&commit(vec![put("n1", "newer"), put("n2", "new")])).await.unwrap();
        assert_eq!(committed.versions, [2, 1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_by_name() {
    let tried = Tried::start().await;
    let long = "x".repeat(129);
    tried.check(commit(vec![put("n1", vec![0; MIB + 1])]), "mutations[0].put.body", "longer than 1048576 bytes").await;
    let many = (0..513).map(|index| put(&index.to_string(), "x")).collect();
    tried.check(commit(many), "mutations", "are 513, of 1 to 512").await;
    tried.check(commit(Vec::new()), "mutations", "are 0, of 1 to 512").await;
    let large = (0..5).map(|index| put(&index.to_string(), vec![0; MIB])).collect();
    tried.check(commit(large), "mutations", "more than 4194304 bytes together").await;
    let beyond_a_message = (0..9).map(|index| put(&index.to_string(), vec![0; MIB])).collect();
    tried.check(commit(beyond_a_message), "message", "8388608 bytes").await;
    tried.check(with_record("Note", &long), "mutations[0].record.id", "longer than 128 bytes").await;
    tried.check(with_record(&long, "n1"), "mutations[0].record.type", "longer than 128 bytes").await;
    tried.check(with_chart(1, &long), "chart.id", "longer than 128 bytes").await;
    tried.check(with_context(|it| it.reason = "x".repeat(257)), "context.reason", "longer than 256 bytes").await;
    let limits = [(128, "content_type"), (64, "clinical_date"), (128, "status"), (128, "author"), (128, "labels")];
    for (bytes_max, name) in limits {
        let text = "x".repeat(bytes_max + 1);
        let mut fields = v1::Put::default();
        match name {
            "content_type" => fields.content_type = text,
            "clinical_date" => fields.clinical_date = text,
            "status" => fields.status = text,
            "author" => fields.author = text,
            _ => fields.labels = vec![text],
        }
        let request = with_mutation(|mutation| mutation.operation = Some(Operation::Put(fields)));
        tried.check(request, &format!("mutations[0].put.{name}"), &format!("longer than {bytes_max} bytes")).await;
    }
    let labels = v1::Put { labels: vec!["x".to_owned(); 17], ..Default::default() };
    let labels = with_mutation(|mutation| mutation.operation = Some(Operation::Put(labels)));
    tried.check(labels, "mutations[0].put.labels", "more than 16").await;
    tried.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_by_name() {
    use v1::precondition::Condition;
    let tried = Tried::start().await;
    let (check, delete) = (|| Operation::Check(v1::Check {}), || Operation::Delete(v1::Delete {}));
    tried.check(commit(vec![put("n1", "a"), put("n1", "b")]), "mutations[1].record", "earlier mutation").await;
    tried.check(with_record("Note", ""), "mutations[0].record.id", "is required").await;
    tried.check(with_record("", "n1"), "mutations[0].record.type", "is required").await;
    tried.check(with_record("Note", "n\u{1b}[2J"), "mutations[0].record.id", "control characters").await;
    tried.check(with_mutation(|it| it.record = None), "mutations[0].record", "is required").await;
    tried.check(with_mutation(|it| it.operation = None), "mutations[0]", "no operation").await;
    tried.check(with_precondition(check(), None), "mutations[0].precondition", "needs one").await;
    let absent = Some(Condition::MustNotExist(true));
    tried.check(with_precondition(delete(), absent), "mutations[0].precondition", "must not exist").await;
    let (zero, not) = (Some(Condition::Version(0)), Some(Condition::MustNotExist(false)));
    tried.check(with_precondition(delete(), zero), "mutations[0].precondition", "from 1").await;
    tried.check(with_precondition(check(), not), "mutations[0].precondition", "must_not_exist").await;
    tried.check(with_chart(0, "p1"), "chart.kind", "neither PATIENT nor SHARED").await;
    tried.check(with_chart(77, "p1"), "chart.kind", "neither PATIENT nor SHARED").await;
    tried.check(with_chart(1, ""), "chart.id", "is required").await;
    tried.check(with_chart(1, "p\n1"), "chart.id", "control characters").await;
    tried.check(with(|it| it.chart = None), "chart", "is required").await;
    tried.check(with(|it| it.context = None), "context", "is required").await;
    tried.check(with_context(|it| it.actor.clear()), "context.actor", "is required").await;
    tried.check(with_context(|it| it.device = "a\u{7}".to_owned()), "context.device", "control characters").await;
    tried.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_must_be_fresh_uuids_of_version_7() {
    let tried = Tried::start().await;
    let id = |text: &str| with(|request| request.request_id = text.to_owned());
    tried.check(id(""), "request_id", "is required").await;
    tried.check(id("n1"), "request_id", "no UUID").await;
    tried.check(id("017f22e2-79b0-7cc3-98c4-dc0c0c07398"), "request_id", "no UUID").await;
    tried.check(id("2c1d43b8-e6d7-4dd0-9a0b-2d4b1d9f0f3c"), "request_id", "another version than 7").await;
    tried.check(id(&Uuid::nil().to_string()), "request_id", "another version than 7").await;
    let (hour, minute) = (Duration::from_secs(3_600), Duration::from_secs(60));
    for expired in
        [id_made(SystemTime::now() - hour - minute), id_made(SystemTime::now() + minute * 7), id_made(UNIX_EPOCH)]
    {
        let refusal = tried.refused(&id(&expired)).await;
        assert_eq!(
            (refusal.code, refusal.reason.as_str()),
            (Code::FailedPrecondition, "REQUEST_EXPIRED"),
            "{refusal:?}"
        );
        assert!(refusal.message.contains("older than an hour, or ahead of the cluster's clock"), "{refusal:?}");
    }
    tried.nothing_was_lost().await;
}

fn id_made(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap();
    Uuid::new_v7(Timestamp::from_unix(NoContext, since.as_secs(), since.subsec_nanos())).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_stands_for_one_content() {
    let tried = Tried::start().await;
    let first = commit(vec![put("n3", "first")]);
    let committed = tried.send(&first).await.unwrap();
    let again = tried.send(&first).await.unwrap();
    assert_eq!((&again.versions, again.committed_at), (&vec![1], committed.committed_at), "the first outcome again");
    let other = |change: &dyn Fn(&mut v1::CommitRequest)| {
        let mut request = first.clone();
        change(&mut request);
        request
    };
    let others = [
        other(&|it| it.mutations[0] = put("n3", "other")),
        other(&|it| it.mutations[0] = put("n4", "first")),
        other(&|it| it.mutations.push(put("n4", "more"))),
        other(&|it| {
            it.mutations[0].precondition =
                Some(v1::Precondition { condition: Some(v1::precondition::Condition::Version(1)) })
        }),
    ];
    for request in others {
        let refusal = tried.refused(&request).await;
        assert_eq!(
            (refusal.code, refusal.reason.as_str()),
            (Code::InvalidArgument, "REQUEST_ID_REUSED"),
            "{refusal:?}"
        );
    }
    let record = tried.cluster.client().get(&Chart::patient("p1"), &RecordId::new("Note", "n3")).await.unwrap();
    assert_eq!((record.version(), record.body.as_ref()), (1, &b"first"[..]));
    tried.cluster.client().delete(&Chart::patient("p1"), &RecordId::new("Note", "n3"), 1).await.unwrap();
    tried.nothing_was_lost().await;
}

/// Bytes that no library of ours would send.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_is_refused() {
    let tried = Tried::start().await;
    let good = commit(vec![put("CANARY", "other")]).encode_to_vec();
    let canary = good.windows(6).position(|window| window == b"CANARY").unwrap();
    let mut invalid_text = good.clone();
    invalid_text[canary] = 0xff;
    let mut surrogate = good.clone();
    surrogate[canary..canary + 3].copy_from_slice(&[0xed, 0xa0, 0x80]);
    let cut = good[..good.len() - 3].to_vec();
    let noise = vec![0xff; 64];
    for (what, bytes) in [("text", invalid_text), ("surrogate", surrogate), ("cut", cut), ("noise", noise)] {
        let refusal = Refusal::of(&tried.wire.call(COMMIT, bytes.into()).await.expect_err(what));
        assert_eq!(
            (refusal.code, refusal.reason.as_str()),
            (Code::InvalidArgument, "INVALID_FIELD"),
            "{what}: {refusal:?}"
        );
        assert_eq!(refusal.fields[0].0, "message", "{what}: {refusal:?}");
        assert!(refusal.message.contains("decode") && !refusal.message.contains("CANARY"), "{what}: {refusal:?}");
    }
    let refusal = Refusal::of(&tried.wire.call("charthold.v1.Charts/Steal", Bytes::new()).await.unwrap_err());
    assert_eq!(refusal.code, Code::Unimplemented);
    let refusal = Refusal::of(&tried.wire.call("nowhere/at/all", Bytes::new()).await.unwrap_err());
    assert_eq!(refusal.code, Code::Unimplemented);
    tried.nothing_was_lost().await;
}
