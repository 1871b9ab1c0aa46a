//! Serving HTTP/2 on the client port's connections: each by itself, so that each can be brought to its end by itself.
//!
//! Owns when a connection ends, and what one client may cost:
//!
//! | limit | what is beyond it |
//! | --- | --- |
//! | [`STREAMS_MAX`] calls at a time; as many again on streams of calls | refused by HTTP/2; not read |
//! | [`HEADERS_BYTES_MAX`] of headers, continuations with them | the connection is closed |
//! | [`RESETS_MAX`] calls reset before they were looked at | the connection is closed |
//! | [`ABANDONED_MAX`] calls given up in a second | the connection is closed |
//! | [`FIRST_CALL_MAX`] without any call | closed |
//! | [`IDLE_MAX`] without a call | told to go away |
//! | [`CONNECTION_AGE_MAX`] | told to go away; running calls may finish |
//! | the node's certificate was replaced | the same, within [`OUTDATED_MAX`] |
//! | its certificate is revoked, expired, of no trusted authority | cut at once, streams too |
//! | no answer to a ping within [`KEEPALIVE_TIMEOUT`]: also a client that reads nothing at all | closed |
//!
//! What a request's and an answer's body may do is in [`super::bodies`]; how many connections there may be, and how
//! long a handshake takes, in [`crate::tls`]. Must not know: methods, tenants, grants.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use charthold_client::Gathered;
use futures::StreamExt;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use super::answer;
use super::bodies::{RequestBody, ResponseBody, Room, Streams};
use super::error::GatewayError;
use super::pipeline::{self, OfConnection};
use crate::tls::{ClientIdentity, Connection, ServiceListener};

pub const STREAMS_MAX: u32 = 256;
pub const HEADERS_BYTES_MAX: u32 = 16 << 10;
/// Streams that a client resets before they are served: more, and its connection is closed (CVE-2023-44487).
pub const RESETS_MAX: usize = 64;
/// Streams that it resets while they are served, or whose answers it does not take, in a second.
pub const ABANDONED_MAX: u64 = 1_000;
const ABANDONED_WINDOW: Duration = Duration::from_secs(1);
/// What a client may send that nobody has read yet. Times the connections, this is memory that clients decide about.
const WINDOW_STREAM_BYTES: u32 = 512 << 10;
const WINDOW_CONNECTION_BYTES: u32 = 1 << 20;
/// Of one answer, what waits for a client to take it.
const SEND_BUFFER_BYTES: usize = 256 << 10;
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
pub const FIRST_CALL_MAX: Duration = Duration::from_secs(30);
pub const IDLE_MAX: Duration = Duration::from_secs(15 * 60);
/// The client makes another then: with the certificate that it has by that time.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(60 * 60);
pub const OUTDATED_MAX: Duration = Duration::from_secs(60);

/// Serves until `stop` is done, then lets running calls end.
pub async fn serve<S>(mut listener: ServiceListener, service: S, stop: impl Future<Output = ()>)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let (stopping, room, mut connections) = (CancellationToken::new(), Room::of_gateway(), JoinSet::new());
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            connection = listener.next() => {
                let Some(connection) = connection else { break };
                while connections.try_join_next().is_some() {}
                connections.spawn(serve_one(connection, service.clone(), room.of_connection(), stopping.clone()));
            }
        }
    }
    // The port closes: whoever comes now goes elsewhere at once.
    drop(listener);
    stopping.cancel();
    while connections.join_next().await.is_some() {}
}

async fn serve_one<S>(connection: Connection<ClientIdentity>, service: S, room: Room, stopping: CancellationToken)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let (ending, identity) = (connection.ending(), connection.identity().clone());
    let activity = Arc::new(Activity::default());
    let (leaving, turns) = (CancellationToken::new(), Arc::new(Semaphore::new(STREAMS_MAX as usize)));
    let of_connection = OfConnection { leaving: leaving.clone(), turns, activity: Arc::clone(&activity) };
    let serve = {
        let activity = Arc::clone(&activity);
        hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(identity.clone());
            request.extensions_mut().insert(of_connection.clone());
            call(service.clone(), request, room.clone(), activity.begin())
        })
    };
    let served = http().serve_connection(TokioIo::new(Gathered::new(connection)), serve);
    tokio::pin!(served);
    tokio::select! {
        _ended = &mut served => return,
        () = ending.cut() => return,
        () = activity.too_much_is_abandoned() => return,
        () = activity.never_used() => return,
        () = ending.outdated() => {}
        () = stopping.cancelled() => {}
        () = activity.idle() => {}
        () = sleep(CONNECTION_AGE_MAX) => {}
    }
    served.as_mut().graceful_shutdown();
    // Streams that would go on for ever come to their ends.
    leaving.cancel();
    let outdated_for_long = async {
        ending.outdated().await;
        sleep(OUTDATED_MAX).await;
    };
    tokio::select! {
        _ended = &mut served => {}
        () = ending.cut() => {}
        () = activity.too_much_is_abandoned() => {}
        () = outdated_for_long => {}
    }
}

fn http() -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(Streams);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_STREAM_BYTES)
        .initial_connection_window_size(WINDOW_CONNECTION_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder
}

/// One call: the caller's deadline holds for all of it, also for the arrival of its request.
async fn call<S>(
    service: S,
    request: Request<Incoming>,
    room: Room,
    running: Running,
) -> Result<Response<ResponseBody>, Infallible>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let limit = answer::given_timeout(request.headers());
    let many = request.uri().path() == pipeline::PATH;
    let answered = service.oneshot(request.map(|body| Body::new(RequestBody::new(body, room, many))));
    let answered = match limit {
        Some(limit) => tokio::time::timeout(limit, answered).await,
        None => Ok(answered.await),
    };
    let late = || Status::from(GatewayError::OutcomeUnknown).into_http();
    let response = answered.map_or_else(|_late| late(), |Ok(response)| response);
    Ok(response.map(|body| ResponseBody::new(body, running)))
}

/// What a client does with its connection.
#[derive(Default)]
pub(super) struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
    abandoned: AtomicU64,
}

impl Activity {
    /// So many more calls were given up, that were on a stream.
    pub fn are_abandoned(&self, calls: usize) {
        self.abandoned.fetch_add(calls as u64, Ordering::Relaxed);
    }

    fn begin(self: &Arc<Self>) -> Running {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Running { activity: Arc::clone(self), finished: false }
    }

    async fn never_used(&self) {
        sleep(FIRST_CALL_MAX).await;
        if self.begun.load(Ordering::Relaxed) > 0 {
            std::future::pending().await
        }
    }

    async fn idle(&self) {
        loop {
            let begun = self.begun.load(Ordering::Relaxed);
            sleep(IDLE_MAX).await;
            let running = self.ended.load(Ordering::Relaxed) != self.begun.load(Ordering::Relaxed);
            if begun == self.begun.load(Ordering::Relaxed) && !running {
                return;
            }
        }
    }

    async fn too_much_is_abandoned(&self) {
        loop {
            sleep(ABANDONED_WINDOW).await;
            if self.abandoned.swap(0, Ordering::Relaxed) > ABANDONED_MAX {
                return;
            }
        }
    }
}

/// A call, from its headers to the last of its answer.
pub(super) struct Running {
    activity: Arc<Activity>,
    finished: bool,
}

impl Running {
    /// The whole answer was taken.
    pub fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.activity.ended.fetch_add(1, Ordering::Relaxed);
        if !self.finished {
            self.activity.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }
}
