//! The called end: takes connections, hands requests to the groups, sends back answers.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::frame::{Kind, Message};
use super::hello::Greeter;
use super::outbox::Outbox;
use super::transport::{PeerIdentity, Stream, Transport};
use super::{STREAM_WINDOW, connection};
use crate::{NodeId, ShardId};

const CONNECTIONS_MAX: usize = 256;
/// Calls that one connection may have running; a further one is answered as unavailable.
const CALLS_MAX: usize = 4_096;
const STREAMS_MAX: usize = 256;

/// What serves the requests.
pub trait Handler: Send + Sync + 'static {
    /// One request, one answer.
    fn call(
        self: Arc<Self>,
        from: NodeId,
        kind: Kind,
        shard: ShardId,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, pb::CallError>>;

    /// A stream of append requests, answered in order.
    fn append(
        self: Arc<Self>,
        from: NodeId,
        shard: ShardId,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, pb::CallError>>;
}

/// Accepts connections until dropped; they end with it.
pub async fn serve(transport: Arc<dyn Transport>, greeter: Arc<Greeter>, handler: Arc<dyn Handler>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = transport.accept().await;
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match accepted {
            Ok((stream, identity)) => {
                let served = serve_one(stream, identity, Arc::clone(&greeter), Arc::clone(&handler));
                connections.spawn(served.map(move |()| drop(permit)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept peers");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(
    mut stream: Box<dyn Stream>,
    identity: PeerIdentity,
    greeter: Arc<Greeter>,
    handler: Arc<dyn Handler>,
) {
    let from = match greeter.answer(&mut *stream, &identity).await {
        Ok(hello) => hello.member.map_or(0, |member| member.id),
        Err(error) => {
            tracing::warn!(peer = identity.name, %error, "peer refused");
            return;
        }
    };
    let outbox = Arc::new(Outbox::new());
    let mut session = Session {
        from,
        handler,
        outbox: Arc::clone(&outbox),
        calls: Arc::new(Semaphore::new(CALLS_MAX)),
        streams: HashMap::new(),
    };
    let ended = connection::run(stream, &outbox, |message| session.on_message(message)).await;
    tracing::debug!(peer = identity.name, error = %ended, "peer's connection ended");
}

struct Session {
    from: NodeId,
    handler: Arc<dyn Handler>,
    outbox: Arc<Outbox>,
    calls: Arc<Semaphore>,
    streams: HashMap<u64, mpsc::Sender<Bytes>>,
}

impl Session {
    fn on_message(&mut self, message: Message) -> io::Result<()> {
        match message.kind {
            Kind::Vote | Kind::PreVote | Kind::TransferLeader | Kind::ReadIndex | Kind::Forward => {
                self.call(message);
                Ok(())
            }
            Kind::Append => self.append(message),
            Kind::StreamEnd => {
                self.streams.remove(&message.id);
                Ok(())
            }
            Kind::Ping | Kind::Hello | Kind::Reply | Kind::ReplyError => {
                Err(io::Error::other(format!("{:?} is no request", message.kind)))
            }
        }
    }

    fn call(&self, message: Message) {
        let Message { kind, shard, id, payload } = message;
        let permit = Arc::clone(&self.calls).try_acquire_owned();
        let (handler, outbox, from) = (Arc::clone(&self.handler), Arc::clone(&self.outbox), self.from);
        tokio::spawn(async move {
            let answer = match permit {
                Ok(_permit) => handler.call(from, kind, shard, payload).await,
                Err(_) => Err(unavailable()),
            };
            // A closed connection has nobody to tell.
            let _closed = outbox.send(reply(shard, id, answer)).await;
        });
    }

    fn append(&mut self, message: Message) -> io::Result<()> {
        let Message { shard, id, payload, .. } = message;
        if !self.streams.contains_key(&id) {
            self.streams.retain(|_, requests| !requests.is_closed());
            if self.streams.len() >= STREAMS_MAX {
                return Err(io::Error::other("too many append streams"));
            }
            self.open(shard, id);
        }
        let Some(requests) = self.streams.get(&id) else { return Ok(()) };
        match requests.try_send(payload) {
            // The group has ended the stream, and said why: what was on its way is dropped.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(io::Error::other("more requests than the window")),
        }
    }

    fn open(&mut self, shard: ShardId, id: u64) {
        // Twice the window: an answer may be on its way while the sender already has room for the next request.
        let (requests, received) = mpsc::channel(2 * STREAM_WINDOW);
        self.streams.insert(id, requests);
        let received = tokio_stream::wrappers::ReceiverStream::new(received);
        let mut answers = Arc::clone(&self.handler).append(self.from, shard, received.boxed());
        let outbox = Arc::clone(&self.outbox);
        tokio::spawn(async move {
            while let Some(answer) = answers.next().await {
                if outbox.send(reply(shard, id, answer)).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn reply(shard: ShardId, id: u64, answer: Result<Bytes, pb::CallError>) -> Message {
    match answer {
        Ok(payload) => Message { kind: Kind::Reply, shard, id, payload },
        Err(error) => Message { kind: Kind::ReplyError, shard, id, payload: error.encode_to_vec().into() },
    }
}

fn unavailable() -> pb::CallError {
    pb::CallError { kind: pb::call_error::Kind::Unavailable as i32, leader: 0 }
}
