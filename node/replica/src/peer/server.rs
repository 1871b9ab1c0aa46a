//! The called end: takes connections, hands requests to the groups, sends back answers.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::frame::{Kind, Message};
use super::hello::{Greeter, Introduced};
use super::outbox::Outbox;
use super::transport::{PeerIdentity, Stream, Transport};
use super::{CALLS_MAX, KEEP_INTERVAL, STREAM_WINDOW, connection};
use crate::{NodeId, ShardId};

const CONNECTIONS_MAX: usize = 256;
/// Calls that one connection may have running. Twice what a caller may have open: it forgets a call whose time is up a
/// little before the call ends here. One beyond breaks the connection.
const RUNNING_MAX: usize = 2 * CALLS_MAX;
const STREAMS_MAX: usize = 256;

/// The node at the other end, as the handshake proved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub id: NodeId,
    /// It holds the cluster's keys: so its certificate says.
    pub keyed: bool,
}

/// What serves the requests.
pub trait Handler: Send + Sync + 'static {
    /// One request, one answer.
    fn call(
        self: Arc<Self>,
        from: Caller,
        kind: Kind,
        shard: ShardId,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, pb::CallError>>;

    /// A stream of requests of one kind, answered in order.
    fn stream(
        self: Arc<Self>,
        from: Caller,
        kind: Kind,
        shard: ShardId,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, pb::CallError>>;
}

/// Accepts connections until dropped; they end with it.
pub async fn serve(transport: Arc<dyn Transport>, greeter: Arc<Greeter>, handler: Arc<dyn Handler>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let refusals = Arc::new(Refusals::default());
    let mut connections = JoinSet::new();
    connections.spawn(keep_marks(Arc::clone(&greeter)));
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = transport.accept().await;
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match accepted {
            Ok((stream, identity)) => {
                let (greeter, handler, refusals) = (Arc::clone(&greeter), Arc::clone(&handler), Arc::clone(&refusals));
                let served = serve_one(stream, identity, greeter, handler, refusals);
                connections.spawn(served.map(move |()| drop(permit)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept peers; most likely too many files are open: raise the limit");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn keep_marks(greeter: Arc<Greeter>) {
    loop {
        tokio::time::sleep(KEEP_INTERVAL).await;
        greeter.registry.keep().await;
    }
}

async fn serve_one(
    mut stream: Box<dyn Stream>,
    identity: PeerIdentity,
    greeter: Arc<Greeter>,
    handler: Arc<dyn Handler>,
    refusals: Arc<Refusals>,
) {
    let introduced = match greeter.answer(&mut *stream, &identity).await {
        Ok(introduced) => introduced,
        Err(error) => {
            let reason = error.to_string();
            match refusals.is_new(&identity.name, &reason) {
                true => tracing::warn!(
                    peer = identity.name,
                    error = reason,
                    "peer refused: it stays outside until that is mended on its side"
                ),
                false => tracing::debug!(peer = identity.name, error = reason, "peer refused again"),
            }
            return;
        }
    };
    refusals.forget(&identity.name);
    let outbox = Arc::new(Outbox::new());
    let presence = introduced.presence.clone();
    let mut session = Session {
        from: introduced.caller(),
        introduced,
        greeter: Arc::clone(&greeter),
        handler,
        outbox: Arc::clone(&outbox),
        calls: Arc::new(Semaphore::new(RUNNING_MAX)),
        streams: BTreeMap::new(),
    };
    let ended = connection::run(stream, &outbox, presence, |message| session.on_message(message)).await;
    if session.introduced.hello.lane() == pb::hello::Lane::Control {
        greeter.leadership.forget(session.from.id);
    }
    greeter.registry.keep().await;
    tracing::debug!(peer = identity.name, error = %ended, "peer's connection ended");
}

/// Why each peer was refused last. A peer that is refused tries again every second: a reason is worth one line.
#[derive(Default)]
struct Refusals(Mutex<BTreeMap<String, String>>);

impl Refusals {
    fn is_new(&self, peer: &str, reason: &str) -> bool {
        let mut last = self.0.lock();
        if last.len() >= CONNECTIONS_MAX {
            last.clear();
        }
        last.insert(peer.to_owned(), reason.to_owned()).is_none_or(|before| before != reason)
    }

    fn forget(&self, peer: &str) {
        self.0.lock().remove(peer);
    }
}

struct Session {
    from: Caller,
    introduced: Introduced,
    greeter: Arc<Greeter>,
    handler: Arc<dyn Handler>,
    outbox: Arc<Outbox>,
    calls: Arc<Semaphore>,
    streams: BTreeMap<u64, mpsc::Sender<Bytes>>,
}

impl Session {
    fn on_message(&mut self, message: Message) -> io::Result<()> {
        match message.kind {
            Kind::Vote
            | Kind::PreVote
            | Kind::TransferLeader
            | Kind::ReadIndex
            | Kind::Forward
            | Kind::NodeStatus
            | Kind::Echo
            | Kind::GiveWay
            | Kind::ChangeMember
            | Kind::ReadRows => self.call(message),
            Kind::Mark => self.greeter.on_mark(&self.introduced, message.payload),
            Kind::Append | Kind::Snapshot | Kind::FetchSnapshot => self.stream(message),
            Kind::StreamEnd => {
                self.streams.remove(&message.id);
                Ok(())
            }
            Kind::Ping | Kind::Hello | Kind::Reply | Kind::ReplyError => {
                Err(io::Error::other(format!("{:?} is no request", message.kind)))
            }
        }
    }

    fn call(&self, message: Message) -> io::Result<()> {
        let Message { kind, shard, id, payload } = message;
        let permit = Arc::clone(&self.calls).try_acquire_owned().map_err(|_| io::Error::other("too many calls"))?;
        let (handler, outbox, from) = (Arc::clone(&self.handler), Arc::clone(&self.outbox), self.from);
        tokio::spawn(async move {
            let answer = handler.call(from, kind, shard, payload).await;
            // A closed connection has nobody to tell.
            let _closed = outbox.send(reply(shard, id, answer)).await;
            drop(permit);
        });
        Ok(())
    }

    fn stream(&mut self, message: Message) -> io::Result<()> {
        let Message { kind, shard, id, payload } = message;
        // A stream that the group has ended stays known until its caller says that it knows: what was on its way until then
        // must not pass for the beginning of another.
        if !self.streams.contains_key(&id) {
            if self.streams.len() >= STREAMS_MAX {
                return Err(io::Error::other("too many streams"));
            }
            self.open(kind, shard, id);
        }
        let Some(requests) = self.streams.get(&id) else { return Ok(()) };
        match requests.try_send(payload) {
            // The group has ended the stream, and said why: what was on its way is dropped.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(io::Error::other("more requests than the window")),
        }
    }

    fn open(&mut self, kind: Kind, shard: ShardId, id: u64) {
        // Twice the window: an answer may be on its way while the sender already has room for the next request.
        let (requests, received) = mpsc::channel(2 * STREAM_WINDOW);
        self.streams.insert(id, requests);
        let received = tokio_stream::wrappers::ReceiverStream::new(received);
        let mut answers = Arc::clone(&self.handler).stream(self.from, kind, shard, received.boxed());
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
