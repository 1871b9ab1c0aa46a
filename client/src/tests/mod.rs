//! The client against gateways that fail in chosen ways, over real connections on the loopback.
#![allow(clippy::unwrap_used)]

mod documents;
mod fake;
mod pipeline;
mod tls;

use std::time::{Duration, Instant};

use tonic::{Code, Status};

use self::fake::{Gateway, Reply, dead_address, refusal, silent_gateway};
use crate::*;

fn client(endpoints: &[&str]) -> Client {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| endpoint.to_string()).collect();
    Client::plaintext(&endpoints).unwrap().with_context(RequestContext::new("nurse"))
}

fn chart() -> Chart {
    Chart::patient("p1")
}

fn id() -> RecordId {
    RecordId::new("Observation", "o1")
}

async fn put(client: &Client) -> Result<Committed, Error> {
    client.put(&chart(), &id(), Put::fhir("{}")).await
}

fn no_leader() -> Reply {
    Reply::Refuse(refusal(Code::Unavailable, "NO_LEADER", None))
}

#[tokio::test]
async fn a_commit_arrives_as_it_was_given() {
    let gateway = Gateway::start([]).await;
    let committed = put(&client(&[&gateway.address])).await.unwrap();
    assert_eq!(committed.versions, [1]);
    assert_eq!(committed.position, "position");
    let seen = gateway.commits();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].request_id, committed.request_id.to_string());
    assert_eq!(seen[0].context.as_ref().unwrap().actor, "nurse");
    assert_eq!(committed.request_id.get_version_num(), 7);
}

#[tokio::test]
async fn every_attempt_carries_the_same_request_id() {
    let broken = Reply::Refuse(Status::unavailable("a proxy lost it"));
    let unknown = Reply::Refuse(refusal(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None));
    let gateway = Gateway::start([no_leader(), broken, unknown]).await;
    let committed = put(&client(&[&gateway.address])).await.unwrap();
    let seen = gateway.commits();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|commit| commit.request_id == committed.request_id.to_string()));
    assert!(seen.iter().all(|commit| *commit == seen[0]));
}

#[tokio::test]
async fn all_attempts_belong_to_one_trace() {
    let gateway = Gateway::start([no_leader()]).await;
    let client = client(&[&gateway.address]);
    put(&client).await.unwrap();
    put(&client).await.unwrap();
    let own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    put(&client.with_traceparent(own)).await.unwrap();
    // What no header can hold is left out.
    put(&client.with_traceparent("line\nbreak")).await.unwrap();
    let seen = gateway.traceparents();
    assert_eq!((seen.len(), seen[3].as_str()), (4, own));
    assert_eq!(seen[0], seen[1], "two attempts of one call");
    assert_ne!(seen[1], seen[2], "two calls");
    assert!(seen[0].len() == own.len() && seen[0].ends_with("-00"), "{}", seen[0]);
}

#[tokio::test]
async fn a_dead_gateway_is_passed_over() {
    let gateway = Gateway::start([]).await;
    let client = client(&[&dead_address().await, &gateway.address]);
    for _ in 0..3 {
        put(&client).await.unwrap();
    }
    assert_eq!(gateway.commits().len(), 3);
}

#[tokio::test]
async fn a_gateway_that_breaks_the_connection_is_passed_over() {
    let rude = fake::hanging_up_gateway().await;
    let gateway = Gateway::start([]).await;
    put(&client(&[&rude, &gateway.address])).await.unwrap();
    assert_eq!(gateway.commits().len(), 1);
}

#[tokio::test]
async fn a_gateway_that_stops_is_left_and_a_restarted_one_found_again() {
    let mut first = Gateway::start([]).await;
    let second = Gateway::start([]).await;
    let client = client(&[&first.address, &second.address]);
    put(&client).await.unwrap();
    first.stop();
    put(&client).await.unwrap();
    assert_eq!((first.commits().len(), second.commits().len()), (1, 1));
    first.restart().await;
    while first.commits().len() < 2 {
        put(&client).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_named_leader_is_asked_next_time() {
    let leader = Gateway::start([]).await;
    let follower = Gateway::start([Reply::Done { leader: leader.address.clone() }]).await;
    let client = client(&[&follower.address]);
    put(&client).await.unwrap();
    put(&client).await.unwrap();
    assert_eq!((follower.commits().len(), leader.commits().len()), (1, 1));
    client.put(&Chart::patient("p2"), &id(), Put::fhir("{}")).await.unwrap();
    assert_eq!(follower.commits().len(), 2, "a hint is about one chart");
}

#[tokio::test]
async fn a_hint_to_a_dead_leader_does_no_harm() {
    let follower = Gateway::start([Reply::Done { leader: dead_address().await }]).await;
    let client = client(&[&follower.address]);
    put(&client).await.unwrap();
    put(&client).await.unwrap();
    assert_eq!(follower.commits().len(), 2);
}

#[tokio::test]
async fn a_gateway_that_never_answers_leaves_the_outcome_unknown() {
    let gateway = Gateway::start([Reply::Hang]).await;
    let client = client(&[&gateway.address]).with_deadline(Duration::from_millis(300));
    let error = put(&client).await.unwrap_err();
    let request_id = gateway.commits()[0].request_id.parse().unwrap();
    assert_eq!(error, Error::OutcomeUnknown { request_id });

    let committed = client.commit_with_id(request_id, &chart(), vec![Mutation::delete(id())]).await.unwrap();
    assert_eq!(committed.request_id, request_id);
}

#[tokio::test]
async fn a_gateway_that_only_accepts_connections_leaves_the_outcome_unknown() {
    let client = client(&[&silent_gateway().await]).with_deadline(Duration::from_millis(300));
    assert!(matches!(put(&client).await, Err(Error::OutcomeUnknown { .. })));
}

#[tokio::test]
async fn nothing_happened_when_nobody_was_reached_or_nobody_led() {
    let gateway = Gateway::start(std::iter::repeat_with(no_leader).take(1_000)).await;
    let dead = dead_address().await;
    for endpoints in [&[dead.as_str()][..], &[&gateway.address], &[&dead, &gateway.address]] {
        let client = client(endpoints).with_deadline(Duration::from_millis(300));
        assert!(matches!(put(&client).await, Err(Error::Unavailable { .. })), "{}", endpoints.len());
    }
    assert!(gateway.commits().len() >= 2);
}

#[tokio::test]
async fn one_unknown_attempt_makes_the_outcome_unknown_unless_it_is_settled_later() {
    let unknown = || Reply::Refuse(refusal(Code::Unavailable, "OUTCOME_UNKNOWN", None));
    let check = async |replies: Vec<Reply>, settled: bool| {
        let gateway = Gateway::start(replies.into_iter().chain(std::iter::repeat_with(no_leader).take(1_000))).await;
        let client = client(&[&gateway.address]).with_deadline(Duration::from_millis(300));
        let error = put(&client).await.unwrap_err();
        assert_eq!(!matches!(error, Error::OutcomeUnknown { .. }), settled, "{error}");
    };
    check(vec![unknown()], false).await;
    check(vec![unknown(), Reply::Refuse(refusal(Code::PermissionDenied, "NO_GRANT", None))], false).await;
    check(vec![unknown(), Reply::Refuse(refusal(Code::FailedPrecondition, "REQUEST_EXPIRED", None))], false).await;
    check(vec![unknown(), Reply::Refuse(refusal(Code::Aborted, "VERSION_MISMATCH", None))], true).await;
    check(vec![unknown(), Reply::Refuse(refusal(Code::AlreadyExists, "RECORD_EXISTS", None))], true).await;
}

#[tokio::test]
async fn an_overloaded_gateway_is_given_the_time_it_asks_for() {
    let wait = Duration::from_millis(400);
    let busy = || Reply::Refuse(refusal(Code::ResourceExhausted, "OVERLOADED", Some(wait)));
    let gateway = Gateway::start([busy()]).await;
    let started = Instant::now();
    put(&client(&[&gateway.address])).await.unwrap();
    assert!(started.elapsed() >= wait);
    assert_eq!(gateway.commits().len(), 2);

    let gateway = Gateway::start([busy(), busy()]).await;
    let hurried = client(&[&gateway.address]).with_deadline(wait / 2);
    assert!(matches!(put(&hurried).await, Err(Error::Overloaded { .. })), "the wait is longer than the deadline");
    assert_eq!(gateway.commits().len(), 1);
}

#[tokio::test]
async fn what_cannot_get_better_is_not_repeated() {
    let check = async |code: Code, reason: &str| {
        let gateway = Gateway::start([Reply::Refuse(refusal(code, reason, None))]).await;
        let error = put(&client(&[&gateway.address])).await.unwrap_err();
        assert_eq!(gateway.commits().len(), 1, "{reason}");
        error
    };
    assert!(matches!(check(Code::InvalidArgument, "INVALID_FIELD").await, Error::Invalid { .. }));
    assert_eq!(check(Code::InvalidArgument, "REQUEST_ID_REUSED").await, Error::RequestIdReused);
    assert_eq!(check(Code::PermissionDenied, "NO_GRANT").await, Error::Denied);
    assert_eq!(check(Code::FailedPrecondition, "CHART_ERASED").await, Error::Erased);
    assert_eq!(check(Code::FailedPrecondition, "REQUEST_EXPIRED").await, Error::Expired);
    assert_eq!(check(Code::DataLoss, "DAMAGED").await, Error::DataLoss);
    assert!(matches!(check(Code::Unauthenticated, "BAD_CERTIFICATE").await, Error::Unauthenticated { .. }));
    assert!(matches!(check(Code::Aborted, "VERSION_MISMATCH").await, Error::VersionMismatch { .. }));
    assert!(matches!(check(Code::Internal, "INTERNAL").await, Error::Internal { .. }));
    assert!(matches!(check(Code::Unimplemented, "").await, Error::Internal { .. }));
}

#[tokio::test]
async fn damaged_here_is_read_elsewhere() {
    let damaged = || Reply::Refuse(refusal(Code::DataLoss, "DAMAGED", None));
    let (first, second) = (Gateway::start([damaged()]).await, Gateway::start([]).await);
    put(&client(&[&first.address, &second.address])).await.unwrap();
    assert_eq!((first.commits().len(), second.commits().len()), (1, 1));

    let (first, second) = (Gateway::start([damaged()]).await, Gateway::start([damaged()]).await);
    assert_eq!(put(&client(&[&first.address, &second.address])).await, Err(Error::DataLoss), "each was asked once");
    assert_eq!((first.commits().len(), second.commits().len()), (1, 1));
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_at_once() {
    let gateway = Gateway::start([]).await;
    let put = Put::fhir(vec![b'x'; MESSAGE_BYTES_MAX + 1]);
    let error = client(&[&gateway.address]).put(&chart(), &id(), put).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert_eq!(gateway.commits().len(), 0);
}

#[tokio::test]
async fn a_batch_is_asked_for_until_all_is_answered() {
    let gateway = Gateway::start([]).await;
    let ids: Vec<_> = (0..2_500).map(|n| RecordId::new("Observation", format!("{n}"))).collect();
    let found = client(&[&gateway.address]).batch_get(&chart(), &ids).await.unwrap();
    assert_eq!(found.len(), ids.len());
    for (id, record) in ids.iter().zip(found) {
        let absent = id.id.ends_with('7');
        assert!(record.map(|record| record.header.record) == Some(id.clone()).filter(|_| !absent));
    }
}

#[tokio::test]
async fn lists_are_read_to_their_last_page() {
    let gateway = Gateway::start([]).await;
    let client = client(&[&gateway.address]);
    let listed = client.list(&chart(), Some("Observation")).await.unwrap();
    let ids: Vec<_> = listed.iter().map(|header| header.record.id.as_str()).collect();
    assert_eq!(ids, ["0", "1", "2", "3", "4"]);
    assert!(listed.iter().all(|header| header.record.type_ == "Observation"));
    let page = client.list_page(&chart(), &ListQuery::default(), 2, None).await.unwrap();
    assert_eq!((page.items.len(), page.next, page.position.as_str()), (2, PageToken::new("2"), "position"));
}

#[tokio::test]
async fn a_pager_fetches_as_it_is_asked_and_goes_on_after_an_error() {
    let denied = || Reply::Refuse(refusal(Code::PermissionDenied, "NO_GRANT", None));
    let done = || Reply::Done { leader: String::new() };
    let gateway = Gateway::start([done(), denied(), done()]).await;
    let client = client(&[&gateway.address]);
    let mut pager = client.list_where(&chart(), ListQuery::of_type("A").newest_first());
    assert_eq!(pager.position(), "");
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(pager.next().await.unwrap().unwrap().record.id);
    }
    assert_eq!(pager.position(), "position");
    assert!(matches!(pager.next().await, Some(Err(Error::Denied))));
    ids.push(pager.next().await.unwrap().unwrap().record.id);
    assert_eq!(pager.next_page().await.unwrap().unwrap().len(), 1, "what is left of the page");
    ids.extend(pager.all().await.unwrap().into_iter().map(|header| header.record.id));
    assert_eq!(ids, ["0", "1", "2", "4"]);
}

#[tokio::test]
async fn charts_are_found_by_an_identifier() {
    let gateway = Gateway::start([no_leader()]).await;
    let query = FindQuery::new("mrn", "4711").of_type("Patient").in_charts_of(ChartKind::Patient);
    let found = client(&[&gateway.address]).find_charts(query).all().await.unwrap();
    let expected = Match { chart: Chart::patient("4711"), record: RecordId::new("Patient", "4711"), version: 3 };
    assert!(found == [expected]);
}

#[tokio::test]
async fn a_chart_is_read_to_its_end() {
    let gateway = Gateway::start([no_leader()]).await;
    let mut records = client(&[&gateway.address]).read_chart(&chart()).await.unwrap();
    assert_eq!(records.position(), "position");
    let mut count = 0;
    while let Some(record) = records.next().await {
        assert_eq!(record.unwrap().header.record.id, count.to_string());
        count += 1;
    }
    assert_eq!(count, 6);
}

#[tokio::test]
async fn a_stream_that_is_cut_is_an_error() {
    for cut in [Reply::Cut, Reply::CutByError] {
        let gateway = Gateway::start([cut]).await;
        let mut records = client(&[&gateway.address]).read_chart(&chart()).await.unwrap();
        let mut outcomes = Vec::new();
        while let Some(record) = records.next().await {
            outcomes.push(record.map(|_| ()));
        }
        let last = outcomes.pop().unwrap();
        assert!(matches!(last, Err(Error::Unavailable { .. })), "{last:?}");
        assert_eq!(outcomes, [Ok(()), Ok(())]);
    }
}

#[tokio::test]
async fn a_stream_that_stalls_ends_at_the_deadline() {
    let gateway = Gateway::start([Reply::Hang]).await;
    let client = client(&[&gateway.address]).with_deadline(Duration::from_millis(300));
    let mut records = client.read_chart(&chart()).await.unwrap();
    let mut last = None;
    while let Some(record) = records.next().await {
        last = Some(record.map(|_| ()));
    }
    assert!(matches!(last, Some(Err(Error::Unavailable { .. }))));
}

#[tokio::test]
async fn absence_is_not_found() {
    let gateway = Gateway::start([Reply::Refuse(refusal(Code::NotFound, "RECORD_NOT_FOUND", None))]).await;
    let outcome = client(&[&gateway.address]).get(&chart(), &id()).await;
    assert!(matches!(outcome, Err(Error::NotFound { index: None, deleted_version: None })));
}

#[tokio::test]
async fn a_node_asked_by_name_is_asked_once_and_no_other_answers_for_it() {
    let gateway = Gateway::start([]).await;
    let admin = client(&[&gateway.address]).admin();
    let dead = dead_address().await;
    assert!(matches!(admin.status_of(&dead).await, Err(Error::Unavailable { .. })));
    assert!(matches!(admin.status_of("nonsense").await, Err(Error::Config(_))));
}

#[test]
fn outside_a_runtime_it_says_so() {
    assert!(matches!(Client::plaintext(&["a:1".into()]), Err(Error::Config(_))));
}

#[test]
fn futures_may_move_between_threads() {
    fn check<T: Send>(_: T) {}
    fn all(client: Client, chart: Chart, id: RecordId) {
        check(client.commit(&chart, vec![]));
        check(client.read_chart(&chart));
        check(client.batch_get(&chart, std::slice::from_ref(&id)));
        check(client.history(&chart, &id));
        check(client.admin().list_grants(None));
    }
    let _ = all;
}
