//! Two tenants with charts, records, page tokens and request ids of the same names: each sees its own and nothing of
//! the other's.

use bytes::Bytes;
use charthold_client::{Chart, Put, RecordId, Role};
use charthold_proto::v1;
use charthold_tests::harness::CLUSTER;
use prost::Message;
use tonic::Code;
use uuid::Uuid;

use super::roles::{CANARY, Everybody, TABLE, client_of};
use super::wire::{Refusal, Wire};

fn found_in(answers: &[Bytes]) -> bool {
    answers.iter().any(|answer| answer.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()))
}

/// Every method on charts, asked by the other tenant for the same chart and record: whatever it answers, there is
/// nothing of the first tenant in it.
#[tokio::test(flavor = "multi_thread")]
async fn no_method_gives_one_tenant_what_is_anothers() {
    let everybody = Everybody::start().await;
    let other = everybody.caller("other");
    let methods: Vec<&str> = TABLE.iter().map(|(method, _)| *method).filter(|it| it.contains(".Charts/")).collect();
    for method in &methods {
        let answer = other.call(method, everybody.request(method)).await;
        match answer {
            Ok(answers) => assert!(!found_in(&answers), "{method} gives what is the first tenant's"),
            Err(status) => assert!(!status.message().contains(CANARY), "{method}: {}", status.message()),
        }
    }
    // The same requests do find it, for those whose it is.
    let reader = everybody.caller("reader");
    for method in ["Get", "BatchGet", "List", "History", "ReadChart"] {
        let method = format!("charthold.v1.Charts/{method}");
        assert!(found_in(&reader.call(&method, everybody.request(&method)).await.unwrap()), "{method}");
    }
    // With a chart and a record of the same names they are two.
    let (chart, id) = (Chart::patient("p1"), RecordId::new("Note", "n1"));
    let others = client_of(&everybody.cluster, "other");
    assert_eq!(others.put(&chart, &id, Put::new("text/plain", "theirs")).await.unwrap().versions, [1]);
    for method in &methods {
        let answer = other.call(method, everybody.request(method)).await.unwrap_or_default();
        assert!(!found_in(&answer), "{method} gives what is the first tenant's");
    }
    let ours = everybody.cluster.client().get(&chart, &id).await.unwrap();
    assert_eq!((ours.version(), ours.body.as_ref()), (1, CANARY.as_bytes()));
    assert_eq!(others.get(&chart, &id).await.unwrap().body.as_ref(), b"theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn page_tokens_of_one_tenant_are_nothing_to_another() {
    let everybody = Everybody::start().await;
    let (chart, client) = (Chart::patient("p1"), everybody.cluster.client());
    client.put(&chart, &RecordId::new("Note", "n2"), Put::new("text/plain", CANARY)).await.unwrap();
    client.put(&chart, &RecordId::new("Note", "n1"), Put::new("text/plain", CANARY)).await.unwrap();
    let context = Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() });
    let chart = Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: "p1".to_owned() });
    let list = v1::ListRequest { context: context.clone(), chart: chart.clone(), page_size: 1, ..Default::default() };
    let record = Some(v1::RecordRef { r#type: "Note".to_owned(), id: "n1".to_owned() });
    let history = v1::HistoryRequest { context, chart, record, page_size: 1, ..Default::default() };
    let (reader, other) = (everybody.caller("reader"), everybody.caller("other"));

    let page: v1::ListResponse = reader.ask("charthold.v1.Charts/List", &list).await.unwrap();
    let listed = v1::ListRequest { page_token: page.next_page_token, ..list };
    let page: v1::HistoryResponse = reader.ask("charthold.v1.Charts/History", &history).await.unwrap();
    let seen = v1::HistoryRequest { page_token: page.next_page_token, ..history };
    assert!(!listed.page_token.is_empty() && !seen.page_token.is_empty());
    for (method, request) in [("List", listed.encode_to_vec()), ("History", seen.encode_to_vec())] {
        let method = format!("charthold.v1.Charts/{method}");
        let refusal = Refusal::of(&other.call(&method, request.clone().into()).await.unwrap_err());
        let found = (refusal.code, refusal.reason.as_str(), refusal.fields[0].0.as_str());
        assert_eq!(found, (Code::InvalidArgument, "INVALID_FIELD", "page_token"), "{method}");
        assert!(reader.call(&method, request.into()).await.is_ok(), "{method}: whose token it is goes on");
    }
}

/// A request id that both use stands for two requests.
#[tokio::test(flavor = "multi_thread")]
async fn request_ids_of_two_tenants_do_not_meet() {
    let everybody = Everybody::start().await;
    let commit = |body: &'static str, request_id: Uuid| {
        let put = v1::Put { content_type: "text/plain".to_owned(), body: body.into(), ..Default::default() };
        v1::CommitRequest {
            context: Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() }),
            request_id: request_id.to_string(),
            chart: Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: "p2".to_owned() }),
            mutations: vec![v1::Mutation {
                record: Some(v1::RecordRef { r#type: "Note".to_owned(), id: "n1".to_owned() }),
                precondition: None,
                operation: Some(v1::mutation::Operation::Put(put)),
            }],
        }
    };
    let request_id = Uuid::now_v7();
    let (ours, theirs) = (commit(CANARY, request_id), commit("theirs", request_id));
    let send = async |caller: &Wire, request: &v1::CommitRequest| {
        let answer = caller.ask::<v1::CommitResponse>("charthold.v1.Charts/Commit", request).await;
        answer.map(|answer| answer.committed_at).map_err(|status| Refusal::of(&status)).unwrap()
    };
    let (writer, other) = (everybody.caller("writer"), everybody.caller("other"));
    let first = send(writer, &ours).await;
    let their_first = send(other, &theirs).await;
    assert_eq!(send(writer, &ours).await, first);
    assert_eq!(send(other, &theirs).await, their_first);
    let (chart, id) = (Chart::patient("p2"), RecordId::new("Note", "n1"));
    let (ours, theirs) = (everybody.cluster.client(), client_of(&everybody.cluster, "other"));
    assert_eq!(ours.get(&chart, &id).await.unwrap().body.as_ref(), CANARY.as_bytes());
    assert_eq!(theirs.get(&chart, &id).await.unwrap().body.as_ref(), b"theirs");
}

/// An admin grants within its own tenant: nothing else, and it sees no other's grants.
#[tokio::test(flavor = "multi_thread")]
async fn admins_grant_within_their_tenant() {
    let everybody = Everybody::start().await;
    let (ours, theirs) = (everybody.cluster.connect("admin", None), client_of(&everybody.cluster, "other"));
    let (our_uid, their_uid) = (everybody.cluster.tenant(), everybody.other_tenant.as_str());
    let principal = |uid: &str| format!("spiffe://{CLUSTER}/tenant/{uid}/service/somebody");
    ours.admin().add_grant(&principal(our_uid), &[Role::Reader]).await.unwrap();
    theirs.admin().add_grant(&principal(their_uid), &[Role::Writer]).await.unwrap();
    for (admin, foreign) in [(&ours, their_uid), (&theirs, our_uid)] {
        let admin = admin.admin();
        let denied = charthold_client::Error::Denied;
        assert_eq!(admin.add_grant(&principal(foreign), &[Role::Reader]).await.unwrap_err(), denied);
        assert_eq!(admin.remove_grant(&principal(foreign)).await.unwrap_err(), denied);
        assert_eq!(admin.list_grants(Some(foreign)).await.unwrap_err(), denied);
        assert_eq!(admin.list_grants(None).await.unwrap_err(), denied);
    }
    let grants = theirs.admin().list_grants(Some(their_uid)).await.unwrap();
    assert!(grants.iter().all(|grant| grant.principal.contains(their_uid)), "another tenant's grants");
}
