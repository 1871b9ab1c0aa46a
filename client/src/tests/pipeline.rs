//! Many calls at once: on one stream, and as good as by themselves.

use std::collections::HashSet;

use futures::future::join_all;

use super::*;

/// Enough that all but the first few find a stream.
const CALLS: usize = 40;

/// So many commits at once, twice: the first time the stream is being opened.
async fn puts(client: &Client) -> Vec<Result<Committed, Error>> {
    let first = join_all((0..CALLS).map(|_| put(client))).await;
    let second = join_all((0..CALLS).map(|_| put(client))).await;
    first.into_iter().chain(second).collect()
}

#[tokio::test]
async fn many_calls_share_a_stream_and_few_do_not() {
    let gateway = Gateway::start([]).await;
    let client = client(&[&gateway.address]);
    for _ in 0..CALLS {
        put(&client).await.unwrap();
    }
    assert_eq!(gateway.pipelined(), 0, "one after the other they go by themselves");
    let ids = puts(&client).await.into_iter().map(|committed| committed.unwrap().request_id.to_string());
    let ids = ids.collect::<HashSet<_>>();
    assert!(gateway.pipelined() > CALLS / 2, "{} on the stream", gateway.pipelined());
    let seen = gateway.commits().into_iter().skip(CALLS).map(|commit| commit.request_id).collect::<Vec<_>>();
    assert_eq!((seen.len(), seen.into_iter().collect::<HashSet<_>>()), (2 * CALLS, ids), "each once");
    let reads = join_all((0..CALLS).map(async |_| client.get(&chart(), &id()).await)).await;
    assert!(reads.into_iter().all(|read| read.unwrap().body.as_ref() == b"{}"));
    assert_eq!(gateway.traceparents().into_iter().collect::<HashSet<_>>().len(), 3 * CALLS, "a trace for each");
}

#[tokio::test]
async fn an_error_on_a_stream_says_what_it_says_by_itself() {
    let refused = || Reply::Refuse(refusal(Code::FailedPrecondition, "CHART_ERASED", None));
    let gateway = Gateway::start((0..2 * CALLS).map(|_| refused())).await;
    let answers = puts(&client(&[&gateway.address])).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(Error::Erased))), "{answers:?}");
    assert!(gateway.pipelined() > 0);
}

#[tokio::test]
async fn when_a_stream_breaks_its_calls_go_on_elsewhere_with_their_ids() {
    let (mut hanging, well) =
        (Gateway::start((0..CALLS).map(|_| Reply::Done { leader: String::new() })).await, Gateway::start([]).await);
    let client = client(&[&hanging.address, &well.address]);
    join_all((0..CALLS).map(|_| put(&client))).await;
    // From here on it does not answer.
    hanging.script((0..CALLS).map(|_| Reply::Hang));
    let calls = tokio::spawn({
        let client = client.clone();
        async move { join_all((0..CALLS).map(|_| put(&client))).await }
    });
    while hanging.commits().len() < 2 * CALLS {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(hanging.pipelined() > 0);
    hanging.stop();
    let ids = calls.await.unwrap().into_iter().map(|committed| committed.unwrap().request_id.to_string());
    let again = well.commits().into_iter().map(|commit| commit.request_id).collect::<HashSet<_>>();
    assert_eq!(ids.collect::<HashSet<_>>(), again);
}

#[tokio::test]
async fn a_gateway_without_streams_gets_calls_by_themselves() {
    let gateway = Gateway::start_old().await;
    assert!(puts(&client(&[&gateway.address])).await.into_iter().all(|answer| answer.is_ok()));
    assert_eq!((gateway.pipelined(), gateway.commits().len()), (0, 2 * CALLS));
}
