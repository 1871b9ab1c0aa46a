//! Two nodes over a network in memory.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;

use super::client::{CallFailure, PeerClient};
use super::frame::Kind;
use super::hello::Greeter;
use super::registry::Start;
use super::server::{Caller, Handler, serve};
use super::transport::{PeerIdentity, Transport};
use super::{CALLS_MAX, Lane, STREAM_WINDOW};
use crate::ShardId;
use crate::store::identity::Boot;
use crate::testing::peers::{client_of_b, greeter, new_greeter, serve_b};
use crate::testing::transport::{MemoryNetwork, identity};
use crate::testing::{WAIT_MAX, eventually};

type Answer = Result<Bytes, pb::CallError>;

/// Answers with what it was asked, and some words with deeds.
#[derive(Default)]
struct Echo {
    /// Streams that have begun.
    begun: Mutex<Vec<ShardId>>,
    /// Append streams that have ended.
    ended: Arc<Mutex<Vec<ShardId>>>,
}

fn refusal() -> pb::CallError {
    pb::CallError { kind: pb::call_error::Kind::NotLeader as i32, leader: 7 }
}

impl Handler for Echo {
    fn call(self: Arc<Self>, from: Caller, kind: Kind, shard: ShardId, payload: Bytes) -> BoxFuture<'static, Answer> {
        assert_eq!((from.id, kind, shard), (1, Kind::Forward, 3));
        async move {
            match payload.as_ref() {
                b"never" => std::future::pending().await,
                b"refuse" => Err(refusal()),
                _ => Ok(payload),
            }
        }
        .boxed()
    }

    fn stream(
        self: Arc<Self>,
        from: Caller,
        _kind: Kind,
        shard: ShardId,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Answer> {
        assert_eq!(from.id, 1);
        self.begun.lock().push(shard);
        if shard == 6 {
            // One that refuses, and ends.
            return futures::stream::iter([Err(refusal())]).boxed();
        }
        if shard == 8 {
            // One that takes nothing, and keeps the stream open.
            return futures::stream::once(async move {
                let _held = requests;
                std::future::pending().await
            })
            .boxed();
        }
        let ended = Arc::clone(&self.ended);
        let told = futures::stream::once(async move { ended.lock().push(shard) }).filter_map(|()| async { None });
        // Some later requests are done sooner: the answers keep their order.
        let answer = |(number, request): (u64, Bytes)| async move {
            tokio::time::sleep(Duration::from_micros(number * 7_919 % 1_000)).await;
            Ok(request)
        };
        requests
            .zip(futures::stream::iter(0..))
            .map(move |(request, number)| answer((number, request)))
            .buffered(4)
            .chain(told)
            .boxed()
    }
}

async fn connected(network: &MemoryNetwork) -> PeerClient {
    let client = client_of_b(network);
    eventually("connecting", async || client.is_connected().then_some(())).await;
    client
}

async fn call(client: &PeerClient, lane: Lane, payload: Bytes) -> Result<Bytes, CallFailure> {
    client.call(lane, Kind::Forward, 3, payload, WAIT_MAX).await
}

/// Else a new leader would give its shards to whoever has just died.
#[tokio::test]
async fn who_has_gone_is_not_taken_for_well() {
    let (network, called) = (MemoryNetwork::default(), greeter(2, "b"));
    tokio::spawn(serve(network.join("b"), Arc::clone(&called), Arc::new(Echo::default())));
    let _client = connected(&network).await;
    eventually("it says that it may lead", async || called.leadership.willing_for(1)).await;
    network.cut_off("a");
    eventually("what it said is forgotten", async || (!called.leadership.remembers(1)).then_some(())).await;
}

#[tokio::test]
async fn every_call_gets_its_own_answer() {
    let network = MemoryNetwork::default();
    serve_b(&network, Arc::new(Echo::default()));
    let client = connected(&network).await;
    let calls = (0..200_usize).map(|i| {
        let lane = if i % 2 == 0 { Lane::Control } else { Lane::Bulk };
        // Most are small; some take many frames.
        let payload = Bytes::from(vec![i as u8; if i % 50 == 0 { 3 << 20 } else { i }]);
        let client = &client;
        async move { (call(client, lane, payload.clone()).await, payload) }
    });
    for (answer, payload) in futures::future::join_all(calls).await {
        assert!(answer.unwrap() == payload);
    }
    assert_eq!(call(&client, Lane::Bulk, Bytes::from_static(b"refuse")).await, Err(CallFailure::Remote(refusal())));
}

#[tokio::test]
async fn a_call_without_an_answer_ends_and_harms_no_other() {
    let network = MemoryNetwork::default();
    serve_b(&network, Arc::new(Echo::default()));
    let client = connected(&network).await;
    let never = Bytes::from_static(b"never");
    let failure = client.call(Lane::Bulk, Kind::Forward, 3, never, Duration::from_millis(20)).await;
    assert_eq!(failure, Err(CallFailure::TimedOut));
    assert_eq!(call(&client, Lane::Bulk, Bytes::from_static(b"next")).await, Ok(Bytes::from_static(b"next")));
}

#[tokio::test]
async fn a_broken_connection_is_told_and_made_again() {
    let network = MemoryNetwork::default();
    serve_b(&network, Arc::new(Echo::default()));
    let client = connected(&network).await;
    let (stream, mut answers) = client.open_stream(Lane::Bulk, Kind::Append, 1).unwrap();
    let cut = async {
        tokio::task::yield_now().await;
        network.cut_off("b");
    };
    let (broken, ()) = tokio::join!(call(&client, Lane::Bulk, Bytes::from_static(b"never")), cut);
    assert_eq!(broken, Err(CallFailure::Broken));
    assert_eq!(answers.next(WAIT_MAX).await, Err(CallFailure::Broken));
    assert_eq!(stream.send(Bytes::new()).await, Err(CallFailure::Broken));
    let gone = eventually("losing the peer", async || call(&client, Lane::Bulk, Bytes::new()).await.err()).await;
    assert_eq!(gone, CallFailure::NotConnected);
    network.reconnect("b");
    eventually("connecting again", async || call(&client, Lane::Bulk, Bytes::new()).await.ok()).await;
    eventually("connecting again", async || call(&client, Lane::Control, Bytes::new()).await.ok()).await;
}

#[tokio::test]
async fn strangers_are_refused() {
    let network = MemoryNetwork::default();
    serve_b(&network, Arc::new(Echo::default()));
    let foreign = PeerIdentity { cluster: "d".to_owned(), ..identity("a") };
    let keyless = PeerIdentity { keyed: false, ..identity("a") };
    // Who they say they are, what their certificate says, and what they hear.
    let strangers = [
        (greeter(1, "a"), identity("x"), "certificate of x"),
        (greeter(1, "a"), foreign, "another cluster"),
        (greeter(1, "a"), keyless, "certificate of a"),
        (greeter(66, "a"), identity("a"), "no member"),
        (greeter(2, "a"), identity("a"), "copy"),
    ];
    for (greeter, shown, wanted) in strangers {
        let transport = network.join_as("stranger", shown);
        let (mut stream, found) = transport.dial("b".to_owned()).await.unwrap();
        let error = greeter.call(&mut *stream, &found, Lane::Bulk, 2).await.err().unwrap().to_string();
        assert!(error.contains("refused by the peer") && error.contains(wanted), "{error}");
    }
    // They kept nobody else out.
    let client = connected(&network).await;
    assert_eq!(call(&client, Lane::Bulk, Bytes::new()).await, Ok(Bytes::new()));
}

#[tokio::test]
async fn append_streams_keep_their_order_beside_each_other() {
    const REQUESTS: u32 = 300;
    let network = MemoryNetwork::default();
    let echo = Arc::new(Echo::default());
    serve_b(&network, Arc::clone(&echo) as _);
    let client = connected(&network).await;
    let run = async |lane, shard: ShardId| {
        let (stream, mut answers) = client.open_stream(lane, Kind::Append, shard).unwrap();
        let request = |number: u32| Bytes::from([number.to_be_bytes(), u32::from(shard).to_be_bytes()].concat());
        let mut sent = 0;
        for number in 0..REQUESTS {
            while sent < REQUESTS.min(number + STREAM_WINDOW as u32) {
                stream.send(request(sent)).await.unwrap();
                sent += 1;
            }
            assert_eq!(answers.next(WAIT_MAX).await, Ok(request(number)));
        }
    };
    tokio::join!(run(Lane::Bulk, 1), run(Lane::Bulk, 2), run(Lane::Control, 1));
    // Each end was told.
    eventually("the streams' ends", async || (echo.ended.lock().len() == 3).then_some(())).await;
}

#[tokio::test]
async fn what_comes_after_the_end_of_a_stream_begins_no_other() {
    let network = MemoryNetwork::default();
    let echo = Arc::new(Echo::default());
    serve_b(&network, Arc::clone(&echo) as _);
    let client = connected(&network).await;
    let (refused, mut refusals) = client.open_stream(Lane::Bulk, Kind::Snapshot, 6).unwrap();
    refused.send(Bytes::new()).await.unwrap();
    assert_eq!(refusals.next(WAIT_MAX).await, Err(CallFailure::Remote(refusal())));
    let (other, mut answers) = client.open_stream(Lane::Bulk, Kind::Append, 1).unwrap();
    for _ in 0..3 {
        // On their way, so to speak, before the refusal was read.
        refused.send(Bytes::new()).await.unwrap();
        other.send(Bytes::new()).await.unwrap();
        answers.next(WAIT_MAX).await.unwrap();
    }
    assert_eq!(*echo.begun.lock(), [6, 1]);
}

#[tokio::test]
async fn a_flood_beyond_the_window_breaks_the_connection() {
    let network = MemoryNetwork::default();
    serve_b(&network, Arc::new(Echo::default()));
    let client = connected(&network).await;
    let (stream, mut answers) = client.open_stream(Lane::Bulk, Kind::Append, 8).unwrap();
    for _ in 0..=2 * STREAM_WINDOW + 1 {
        // The last ones may find it broken already.
        let _sent = stream.send(Bytes::new()).await;
    }
    assert_eq!(answers.next(WAIT_MAX).await, Err(CallFailure::Broken));
}

#[tokio::test]
async fn a_node_hears_how_far_its_peer_is_synced() {
    let network = MemoryNetwork::default();
    let called = greeter(2, "b");
    tokio::spawn(serve(network.join("b"), Arc::clone(&called), Arc::new(Echo::default())));
    let caller = greeter(1, "a");
    let transport: Arc<dyn Transport> = network.join("a");
    let _client = PeerClient::start(2, "b", &transport, &caller);
    caller.log.write_and_wait(Vec::new(), true).await.unwrap();
    eventually("the mark", async || (called.registry.synced(1) == Some(caller.log.synced())).then_some(())).await;
    assert!(caller.log.synced() > 0);
}

#[tokio::test]
async fn a_newer_start_ends_the_connections_of_the_older() {
    let network = MemoryNetwork::default();
    serve_b(&network, Arc::new(Echo::default()));
    let transport: Arc<dyn Transport> = network.join("a");
    let old = PeerClient::start(2, "b", &transport, &greeter(1, "a"));
    eventually("connecting", async || old.is_connected().then_some(())).await;
    let next = Start { boot: Boot { counter: 2, nonce: 2 }, previous: Boot { counter: 1, nonce: 1 }, recovered: 9 };
    let never = call(&old, Lane::Bulk, Bytes::from_static(b"never"));
    let restart = async {
        tokio::task::yield_now().await;
        let new = PeerClient::start(2, "b", &transport, &Arc::new(Greeter { start: next, ..new_greeter(1, "a") }));
        eventually("connecting", async || new.is_connected().then_some(())).await;
        new
    };
    let (ended, new) = tokio::join!(never, restart);
    assert_eq!(ended, Err(CallFailure::Broken));
    eventually("the end of the older", async || (!old.is_connected()).then_some(())).await;
    assert_eq!(call(&new, Lane::Control, Bytes::new()).await, Ok(Bytes::new()));
}

#[tokio::test]
async fn a_flood_of_calls_breaks_the_connection() {
    let network = MemoryNetwork::default();
    serve_b(&network, Arc::new(Echo::default()));
    let client = connected(&network).await;
    let never = || client.call(Lane::Bulk, Kind::Forward, 3, Bytes::from_static(b"never"), WAIT_MAX);
    // A caller that forgets its calls while they run; the called end counts them.
    let mut running = FuturesUnordered::new();
    let broken = loop {
        running.push(never());
        if running.len() > CALLS_MAX / 2 {
            tokio::select! {
                biased;
                ended = running.next() => break ended,
                () = tokio::task::yield_now() => running.clear(),
            }
        }
    };
    assert_eq!(broken, Some(Err(CallFailure::Broken)));
}
