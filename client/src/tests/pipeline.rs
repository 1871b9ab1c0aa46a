//! Many calls at once: on one stream, and as good as by themselves.

use std::collections::HashSet;

use futures::future::join_all;

use super::*;

/// At once: all but the first few find a stream, if there is one.
const CALLS: usize = 40;

async fn puts(client: &Client) -> Vec<Result<Committed, Error>> {
    join_all((0..CALLS).map(|_| put(client))).await
}

/// Has a stream opened, and gives how many calls came on it until now.
async fn opened(client: &Client, gateway: &Gateway) -> usize {
    while gateway.pipelined() == 0 {
        assert!(puts(client).await.iter().all(Result::is_ok));
    }
    gateway.pipelined()
}

#[tokio::test]
async fn many_calls_share_a_stream_and_few_do_not() {
    let gateway = Gateway::start([]).await;
    let client = client(&[&gateway.address]);
    for _ in 0..CALLS {
        put(&client).await.unwrap();
    }
    assert_eq!(gateway.pipelined(), 0, "one after the other they go by themselves");
    let (before, commits) = (opened(&client, &gateway).await, gateway.commits().len());
    let ids = puts(&client).await.into_iter().map(|committed| committed.unwrap().request_id.to_string());
    let ids = ids.collect::<HashSet<_>>();
    assert!(gateway.pipelined() > before + CALLS / 2, "{before}, then {}", gateway.pipelined());
    let seen = gateway.commits().into_iter().skip(commits).map(|commit| commit.request_id).collect::<Vec<_>>();
    assert_eq!((seen.len(), seen.into_iter().collect::<HashSet<_>>()), (CALLS, ids), "each once");
    let traces = gateway.traceparents();
    assert_eq!(traces.iter().collect::<HashSet<_>>().len(), traces.len(), "a trace for each");
    let reads = join_all((0..CALLS).map(async |_| client.get(&chart(), &id()).await)).await;
    assert!(reads.into_iter().all(|read| read.unwrap().body.as_ref() == b"{}"));
}

#[tokio::test]
async fn an_error_on_a_stream_says_what_it_says_by_itself() {
    let gateway = Gateway::start([]).await;
    let client = client(&[&gateway.address]);
    let before = opened(&client, &gateway).await;
    let refused = || Reply::Refuse(refusal(Code::FailedPrecondition, "CHART_ERASED", None));
    gateway.script((0..CALLS).map(|_| refused()));
    let answers = puts(&client).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(Error::Erased))), "{answers:?}");
    assert!(gateway.pipelined() > before);
}

#[tokio::test]
async fn when_a_stream_breaks_its_calls_go_on_elsewhere_with_their_ids() {
    let (mut hanging, well) = (Gateway::start([]).await, Gateway::start([]).await);
    let client = client(&[&hanging.address, &well.address]);
    let before = opened(&client, &hanging).await;
    let commits = hanging.commits().len();
    hanging.script((0..CALLS).map(|_| Reply::Hang));
    let calls = tokio::spawn({
        let client = client.clone();
        async move { puts(&client).await }
    });
    while hanging.commits().len() < commits + CALLS {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(hanging.pipelined() > before);
    hanging.stop();
    let ids = calls.await.unwrap().into_iter().map(|committed| committed.unwrap().request_id.to_string());
    let again = well.commits().into_iter().map(|commit| commit.request_id).collect::<HashSet<_>>();
    assert_eq!(ids.collect::<HashSet<_>>(), again);
}

#[tokio::test]
async fn what_ends_a_stream_is_no_answer_to_its_calls() {
    let gateway = Gateway::start([]).await;
    let client = client(&[&gateway.address]);
    let before = opened(&client, &gateway).await;
    gateway.break_stream();
    assert!(puts(&client).await.into_iter().all(|answer| answer.is_ok()));
    assert!(gateway.pipelined() > before, "a stream that was there to be broken");
}

#[tokio::test]
async fn a_large_message_goes_by_itself() {
    let gateway = Gateway::start([]).await;
    let client = client(&[&gateway.address]);
    let before = opened(&client, &gateway).await;
    let large = Put::new("text/plain", "x".repeat(300 << 10));
    let answers = join_all((0..CALLS).map(async |_| client.put(&chart(), &id(), large.clone()).await)).await;
    assert!(answers.into_iter().all(|answer| answer.is_ok()));
    assert_eq!(gateway.pipelined(), before);
}

#[tokio::test]
async fn who_wants_none_gets_no_stream() {
    let gateway = Gateway::start([]).await;
    let client = client(&[&gateway.address]).without_streams();
    assert!(puts(&client).await.into_iter().all(|answer| answer.is_ok()));
    let reads = join_all((0..CALLS).map(async |_| client.get(&chart(), &id()).await)).await;
    assert!(reads.into_iter().all(|read| read.is_ok()));
    assert_eq!((gateway.pipelined(), gateway.commits().len()), (0, CALLS));
}

#[tokio::test]
async fn a_gateway_without_streams_gets_calls_by_themselves() {
    let gateway = Gateway::start_old().await;
    let client = client(&[&gateway.address]);
    for _ in 0..2 {
        assert!(puts(&client).await.into_iter().all(|answer| answer.is_ok()));
    }
    assert_eq!((gateway.pipelined(), gateway.commits().len()), (0, 2 * CALLS));
}
