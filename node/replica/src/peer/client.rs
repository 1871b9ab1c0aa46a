//! The calling end: a node's two connections to one peer, kept up, and the calls that wait on them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::frame::{Kind, Message};
use super::hello::Greeter;
use super::outbox::Outbox;
use super::transport::Transport;
use super::{CALLS_MAX, Lane, STREAM_WINDOW, connection};
use crate::{NodeId, ShardId};

const RECONNECT_AFTER_MIN: Duration = Duration::from_millis(50);
const RECONNECT_AFTER_MAX: Duration = Duration::from_secs(1);

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum CallFailure {
    /// Nothing was sent.
    #[error("not connected")]
    NotConnected,
    /// Sent, perhaps; then the connection broke.
    #[error("the connection broke")]
    Broken,
    /// Sent; no answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The peer could not serve it.
    #[error("refused by the peer")]
    Remote(pb::CallError),
}

type Answer = Result<Bytes, pb::CallError>;

enum Pending {
    Call(oneshot::Sender<Answer>),
    Stream(mpsc::Sender<Answer>),
}

/// A peer, however often its connections break. Dropping it ends them.
pub struct PeerClient {
    control: LaneClient,
    bulk: LaneClient,
}

struct LaneClient {
    current: watch::Receiver<Current>,
    keeper: tokio::task::JoinHandle<()>,
}

/// A lane's connection.
#[derive(Clone)]
enum Current {
    Up(Arc<Connection>),
    /// Since then.
    Down(Instant),
}

impl Current {
    fn down_for(&self) -> Duration {
        match self {
            Self::Up(_) => Duration::ZERO,
            Self::Down(since) => since.elapsed(),
        }
    }
}

struct Connection {
    outbox: Outbox,
    pending: Mutex<BTreeMap<u64, Pending>>,
    next_id: AtomicU64,
}

impl PeerClient {
    /// Starts connecting to a node at an address.
    pub fn start(node: NodeId, address: &str, transport: &Arc<dyn Transport>, greeter: &Arc<Greeter>) -> Self {
        let lane = |lane| LaneClient::start(lane, node, address.to_owned(), Arc::clone(transport), Arc::clone(greeter));
        Self { control: lane(Lane::Control), bulk: lane(Lane::Bulk) }
    }

    fn connection(&self, lane: Lane) -> Result<Arc<Connection>, CallFailure> {
        let lane = match lane {
            Lane::Control => &self.control,
            Lane::Bulk => &self.bulk,
        };
        match &*lane.current.borrow() {
            Current::Up(connection) if !connection.outbox.is_closed() => Ok(Arc::clone(connection)),
            _ => Err(CallFailure::NotConnected),
        }
    }

    /// How long one of the connections has not been up.
    pub fn down_for(&self) -> Duration {
        [&self.control, &self.bulk].map(|lane| lane.current.borrow().down_for()).into_iter().max().unwrap_or_default()
    }

    /// Whether both connections are up.
    pub fn is_connected(&self) -> bool {
        self.is_up(Lane::Control) && self.is_up(Lane::Bulk)
    }

    pub fn is_up(&self, lane: Lane) -> bool {
        self.connection(lane).is_ok()
    }

    /// Waits until both connections are up, however long that takes.
    pub async fn connected(&self) {
        for lane in [&self.control, &self.bulk] {
            let mut current = lane.current.clone();
            // An error: the keeper has ended, as it does with the process.
            let _ended = current.wait_for(|current| matches!(current, Current::Up(_))).await;
        }
    }

    /// One request, one answer.
    pub async fn call(
        &self,
        lane: Lane,
        kind: Kind,
        shard: ShardId,
        payload: Bytes,
        limit: Duration,
    ) -> Result<Bytes, CallFailure> {
        let connection = self.connection(lane)?;
        let (answer, answered) = oneshot::channel();
        let id = connection.open(Pending::Call(answer))?;
        let guard = PendingGuard { connection: &connection, id };
        let call = async {
            let request = Message { kind, shard, id, payload };
            guard.connection.outbox.send(request).await.map_err(|_| CallFailure::Broken)?;
            answered.await.map_err(|_| CallFailure::Broken)?.map_err(CallFailure::Remote)
        };
        tokio::time::timeout(limit, call).await.unwrap_or(Err(CallFailure::TimedOut))
    }

    /// A stream of requests that are answered in order.
    pub fn open_stream(
        &self,
        lane: Lane,
        kind: Kind,
        shard: ShardId,
    ) -> Result<(StreamSender, StreamReceiver), CallFailure> {
        let connection = self.connection(lane)?;
        let (answer, answers) = mpsc::channel(STREAM_WINDOW);
        let id = connection.open(Pending::Stream(answer))?;
        let sender = StreamSender { connection: Arc::clone(&connection), kind, shard, id };
        Ok((sender, StreamReceiver { answers, connection, shard, id }))
    }
}

/// Sends a stream's requests.
pub struct StreamSender {
    connection: Arc<Connection>,
    kind: Kind,
    shard: ShardId,
    id: u64,
}

impl StreamSender {
    pub async fn send(&self, payload: Bytes) -> Result<(), CallFailure> {
        let request = Message { kind: self.kind, shard: self.shard, id: self.id, payload };
        self.connection.outbox.send(request).await.map_err(|_| CallFailure::Broken)
    }

    /// Whether its connection still is.
    pub fn is_open(&self) -> bool {
        !self.connection.outbox.is_closed()
    }
}

/// Takes a stream's answers. Dropping it ends the stream.
pub struct StreamReceiver {
    answers: mpsc::Receiver<Answer>,
    connection: Arc<Connection>,
    shard: ShardId,
    id: u64,
}

impl StreamReceiver {
    pub async fn next(&mut self, limit: Duration) -> Result<Bytes, CallFailure> {
        match tokio::time::timeout(limit, self.answers.recv()).await {
            Ok(Some(answer)) => answer.map_err(CallFailure::Remote),
            Ok(None) => Err(CallFailure::Broken),
            Err(_) => Err(CallFailure::TimedOut),
        }
    }
}

impl Drop for StreamReceiver {
    fn drop(&mut self) {
        self.connection.pending.lock().remove(&self.id);
        let end = Message { kind: Kind::StreamEnd, shard: self.shard, id: self.id, payload: Bytes::new() };
        let connection = Arc::clone(&self.connection);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { connection.outbox.send(end).await });
        }
    }
}

/// Forgets a call whose caller went away.
struct PendingGuard<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        self.connection.pending.lock().remove(&self.id);
    }
}

impl Connection {
    fn new() -> Self {
        Self { outbox: Outbox::new(), pending: Mutex::default(), next_id: AtomicU64::new(1) }
    }

    fn open(&self, pending: Pending) -> Result<u64, CallFailure> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut open = self.pending.lock();
        if open.len() >= CALLS_MAX || self.outbox.is_closed() {
            return Err(CallFailure::NotConnected);
        }
        open.insert(id, pending);
        Ok(id)
    }

    /// An answer for nobody is normal: its caller's time ran out.
    fn on_message(&self, message: Message) -> io::Result<()> {
        let answer = match message.kind {
            Kind::Reply => Ok(message.payload),
            Kind::ReplyError => Err(pb::CallError::decode(message.payload).map_err(io::Error::other)?),
            kind => return Err(io::Error::other(format!("{kind:?} is no answer"))),
        };
        let mut pending = self.pending.lock();
        if let Some(Pending::Stream(stream)) = pending.get(&message.id) {
            return stream.try_send(answer).or_else(|error| match error {
                mpsc::error::TrySendError::Closed(_) => Ok(()),
                mpsc::error::TrySendError::Full(_) => Err(io::Error::other("more answers than requests")),
            });
        }
        if let Some(Pending::Call(call)) = pending.remove(&message.id) {
            let _caller_gone = call.send(answer);
        }
        Ok(())
    }
}

impl LaneClient {
    fn start(lane: Lane, node: NodeId, address: String, transport: Arc<dyn Transport>, greeter: Arc<Greeter>) -> Self {
        let (publish, current) = watch::channel(Current::Down(Instant::now()));
        let keeper = tokio::spawn(keep_connected(lane, node, address, transport, greeter, publish));
        Self { current, keeper }
    }
}

impl Drop for LaneClient {
    fn drop(&mut self) {
        self.keeper.abort();
        if let Current::Up(connection) = &*self.current.borrow() {
            connection.outbox.close();
            connection.pending.lock().clear();
        }
    }
}

async fn keep_connected(
    lane: Lane,
    node: NodeId,
    address: String,
    transport: Arc<dyn Transport>,
    greeter: Arc<Greeter>,
    publish: watch::Sender<Current>,
) {
    let mut pause = RECONNECT_AFTER_MIN;
    let mut last_failure = String::new();
    loop {
        let dialed = async {
            let (mut stream, identity) = transport.dial(address.clone()).await.map_err(|error| error.to_string())?;
            let introduced = greeter.call(&mut *stream, &identity, lane, node).await;
            Ok::<_, String>((stream, introduced.map_err(|error| error.to_string())?.presence))
        };
        match tokio::time::timeout(super::HANDSHAKE_MAX, dialed).await.unwrap_or(Err("too slow".to_owned())) {
            Ok((stream, presence)) => {
                tracing::info!(peer = %format_args!("{node:016x}"), address, ?lane, "connected to peer");
                (pause, last_failure) = (RECONNECT_AFTER_MIN, String::new());
                let connection = Arc::new(Connection::new());
                publish.send_replace(Current::Up(Arc::clone(&connection)));
                let on_message = |message| connection.on_message(message);
                let run = connection::run(stream, &connection.outbox, presence, on_message);
                let marks = async {
                    match lane {
                        Lane::Control => greeter.send_marks(&connection.outbox).await,
                        Lane::Bulk => std::future::pending().await,
                    }
                };
                let ended = tokio::select! { ended = run => ended, ended = marks => ended };
                publish.send_replace(Current::Down(Instant::now()));
                // Whoever waits learns it now.
                connection.pending.lock().clear();
                tracing::info!(peer = %format_args!("{node:016x}"), address, ?lane, error = %ended, "lost peer: connecting again");
            }
            Err(failure) => {
                // Once a reason, not once a try.
                if failure != last_failure {
                    tracing::warn!(
                        peer = %format_args!("{node:016x}"),
                        address,
                        ?lane,
                        error = failure,
                        "cannot reach peer, trying on: see that it runs, and what its own log says of this node"
                    );
                    last_failure = failure;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_AFTER_MAX);
    }
}
