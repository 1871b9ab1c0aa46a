//! Calls on a stream: each is judged and answered as if it came by itself, whatever becomes of its neighbours.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use charthold_client::Role;
use charthold_proto::v1;
use charthold_tests::harness::{Cluster, until};
use prost::Message;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use uuid::Uuid;
use v1::pipeline_request::Call;
use v1::pipeline_response::Answer;

use super::roles::{Everybody, ROLES};
use super::wire::{Refusal, Wire};

const METHOD: &str = "charthold.v1.Charts/Pipeline";
/// More than may be unanswered.
const MANY: u64 = 600;
/// A request that does not come is waited for so long.
const ARRIVAL_MAX: Duration = Duration::from_secs(30);

fn request(id: u64, call: Option<Call>) -> Bytes {
    v1::PipelineRequest { id, call, ..Default::default() }.encode_to_vec().into()
}

/// All of it, then the end; what is answered, by id.
async fn exchange(caller: &Wire, requests: Vec<Bytes>) -> Result<BTreeMap<u64, Answer>, Status> {
    let mut stream = caller.exchange(METHOD, futures::stream::iter(requests)).await?;
    let mut answers = BTreeMap::new();
    while let Some(message) = stream.message().await? {
        let v1::PipelineResponse { id, answer } = v1::PipelineResponse::decode(message).unwrap();
        assert!(answers.insert(id, answer.unwrap()).is_none(), "{id} was answered twice");
    }
    Ok(answers)
}

fn refusal(answer: &Answer) -> Refusal {
    let Answer::Error(error) = answer else { panic!("done") };
    let status = tonic_types::pb::Status::decode(error.clone()).unwrap();
    Refusal::of(&Status::with_details(Code::from(status.code), status.message, error.clone()))
}

fn context() -> Option<v1::RequestContext> {
    Some(v1::RequestContext { actor: "test".to_owned(), ..Default::default() })
}

fn chart(id: &str) -> Option<v1::ChartRef> {
    Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: id.to_owned() })
}

fn commit(id: &str, content_type: &str) -> v1::CommitRequest {
    let put = v1::Put { content_type: content_type.to_owned(), body: "{}".into(), ..Default::default() };
    let mutation = v1::Mutation {
        record: Some(v1::RecordRef { r#type: "Note".to_owned(), id: id.to_owned() }),
        precondition: None,
        operation: Some(v1::mutation::Operation::Put(put)),
    };
    let request_id = Uuid::now_v7().to_string();
    v1::CommitRequest { context: context(), request_id, chart: chart("piped"), mutations: vec![mutation] }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_may_on_a_stream_what_it_may_without() {
    let everybody = Everybody::start().await;
    for role in ROLES {
        let caller = everybody.caller(role);
        for method in ["Commit", "Get", "BatchGet"] {
            let message = everybody.request(&format!("charthold.v1.Charts/{method}"));
            let alone = caller.call(&format!("charthold.v1.Charts/{method}"), message.clone()).await;
            let call = match method {
                "Commit" => Call::Commit(v1::CommitRequest::decode(message).unwrap()),
                "Get" => Call::Get(v1::GetRequest::decode(message).unwrap()),
                _ => Call::BatchGet(v1::BatchGetRequest::decode(message).unwrap()),
            };
            let alone = alone.as_ref().err().map(Refusal::of).map(|refusal| (refusal.code, refusal.reason));
            let piped = match exchange(caller, vec![request(1, Some(call))]).await {
                Err(status) => Some(Refusal::of(&status)),
                Ok(answers) => match &answers[&1] {
                    answer @ Answer::Error(_) => Some(refusal(answer)),
                    _ => None,
                },
            };
            assert_eq!(piped.map(|refusal| (refusal.code, refusal.reason)), alone, "{method} by {role}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_has_an_answer_of_its_own() {
    let cluster = Cluster::start(1).await;
    let caller = Wire::connect(&cluster, 0, "client");
    let absent = v1::RecordRef { r#type: "Note".to_owned(), id: "absent".to_owned() };
    let get = v1::GetRequest { context: context(), chart: chart("piped"), record: Some(absent), ..Default::default() };
    let requests = (0..MANY).map(|id| match id % 4 {
        0 => request(id, Some(Call::Commit(commit(&id.to_string(), "text/plain")))),
        1 => request(id, Some(Call::Get(get.clone()))),
        2 => request(id, Some(Call::Commit(commit(&id.to_string(), &"x".repeat(129))))),
        _ => request(id, None),
    });
    let answers = exchange(&caller, requests.collect()).await.unwrap();
    assert_eq!(answers.keys().copied().collect::<Vec<_>>(), (0..MANY).collect::<Vec<_>>());
    let mut versions = 0;
    for (id, answer) in &answers {
        match id % 4 {
            0 => {
                let Answer::Commit(committed) = answer else { panic!("{:?}", refusal(answer)) };
                versions += committed.versions.iter().sum::<u64>();
            }
            1 => assert_eq!(
                (refusal(answer).code, refusal(answer).reason.as_str()),
                (Code::NotFound, "RECORD_NOT_FOUND")
            ),
            2 => assert_eq!(refusal(answer).fields[0].0, "mutations[0].put.content_type"),
            _ => assert_eq!(refusal(answer).fields[0].0, "call"),
        }
    }
    assert_eq!(versions, MANY / 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_ends_a_stream_and_no_call_before_it() {
    let cluster = Cluster::start(1).await;
    let caller = Wire::connect(&cluster, 0, "client");
    for broken in [Bytes::from_static(&[0xff; 10]), Bytes::from(vec![0; 9 << 20])] {
        let calls = (0..20).map(|id| request(id, Some(Call::Commit(commit(&id.to_string(), "text/plain")))));
        let requests = calls.chain([broken]).collect::<Vec<_>>();
        let mut stream = caller.exchange(METHOD, futures::stream::iter(requests)).await.unwrap();
        let mut done = 0;
        let status = loop {
            match stream.message().await {
                Ok(message) => {
                    let answer = v1::PipelineResponse::decode(message.expect("an error at the end")).unwrap().answer;
                    done += usize::from(matches!(answer, Some(Answer::Commit(_))));
                }
                Err(status) => break status,
            }
        };
        let refusal = Refusal::of(&status);
        assert_eq!((done, refusal.code, refusal.fields[0].0.as_str()), (20, Code::InvalidArgument, "message"));
    }
}

/// Between two calls a stream may rest, longer than half a request may take; and it holds up no node that stops.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_rests_and_ends_with_its_node() {
    let mut cluster = Cluster::start(1).await;
    let caller = Wire::connect(&cluster, 0, "client");
    let (requests, queue) = mpsc::channel(1);
    let mut answers = caller.exchange(METHOD, ReceiverStream::new(queue)).await.unwrap();
    for id in 0..2 {
        let call = Call::Commit(commit("resting", "text/plain"));
        requests.send(request(id, Some(call))).await.unwrap();
        let answer = v1::PipelineResponse::decode(answers.message().await.unwrap().unwrap()).unwrap();
        let Some(Answer::Commit(committed)) = answer.answer else { panic!("not done") };
        assert_eq!((answer.id, committed.versions), (id, vec![id + 1]));
        if id == 0 {
            tokio::time::sleep(ARRIVAL_MAX + Duration::from_secs(1)).await;
        }
    }
    let stopped = tokio::task::block_in_place(|| cluster.stop(0));
    assert!(stopped.success(), "{stopped}");
    assert_eq!(answers.message().await.unwrap(), None, "it ended as a stream should");
}

/// A stream whose node is to end: what is under way is answered, and what still comes learns that nothing was done.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_a_node_leaves_is_refused_at_once() {
    let mut cluster = Cluster::start(3).await;
    let caller = Wire::connect(&cluster, 0, "client");
    let (requests, queue) = mpsc::channel(1);
    let mut answers = caller.exchange(METHOD, ReceiverStream::new(queue)).await.unwrap();
    let mut answer = async || answers.message().await.unwrap().map(|it| v1::PipelineResponse::decode(it).unwrap());
    let send = async |id: u64, timeout_ms| {
        let call = Some(Call::Commit(commit(&id.to_string(), "text/plain")));
        let message = v1::PipelineRequest { id, timeout_ms, call, ..Default::default() };
        requests.send(message.encode_to_vec().into()).await.unwrap();
    };
    send(1, 0).await;
    assert!(matches!(answer().await.unwrap().answer, Some(Answer::Commit(_))));
    // Alone it commits nothing: the next call waits for all of its time, which is less than a node that leaves has.
    cluster.kill(1);
    cluster.kill(2);
    send(2, 4_000).await;
    cluster.process(0).signal(Signal::TERM);
    until("the port is closed, so the gateway leaves", || async {
        match tokio::net::TcpStream::connect(cluster.endpoint(0)).await {
            Ok(_) => Err("it accepts".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    send(3, 60_000).await;
    let refused = answer().await.unwrap();
    assert_eq!((refused.id, refusal(&refused.answer.unwrap()).reason.as_str()), (3, "NO_QUORUM"));
    let last = answer().await.unwrap();
    assert!(last.id == 2 && matches!(last.answer, Some(Answer::Error(_))));
    assert_eq!(answer().await.map(|more| more.id), None, "it ends as a stream should");
}

/// A grant that is taken away holds for a stream that is open, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_outlives_no_grant() {
    let cluster = Cluster::start(1).await;
    cluster.service("leaving", &[Role::Writer]).await;
    let caller = Wire::connect(&cluster, 0, "leaving");
    let (requests, queue) = mpsc::channel(1);
    let mut answers = caller.exchange(METHOD, ReceiverStream::new(queue)).await.unwrap();
    let mut ask = async |id| {
        requests.send(request(id, Some(Call::Commit(commit("leaving", "text/plain"))))).await.unwrap();
        v1::PipelineResponse::decode(answers.message().await.unwrap().unwrap()).unwrap().answer.unwrap()
    };
    assert!(matches!(ask(1).await, Answer::Commit(_)));
    let principal =
        format!("spiffe://{}/tenant/{}/service/leaving", charthold_tests::harness::CLUSTER, cluster.tenant());
    cluster.operator().admin().remove_grant(&principal).await.unwrap();
    for id in 2.. {
        match ask(id).await {
            Answer::Commit(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            answer => return assert_eq!(refusal(&answer).reason, "NO_GRANT"),
        }
    }
}
