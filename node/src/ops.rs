//! The ops port: `/metrics` for Prometheus, `/livez` and `/readyz` for probes. Nothing else, and no records.
//!
//! HTTP/1 without TLS, on loopback unless configured otherwise. Bounded: in connections, in what a request may be and
//! how long it may take to come, and in the life of a connection, so that a slow reader holds nothing for long.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_replica::replica::Replica;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::health::Health;
use crate::metrics;
use crate::tls::TlsFiles;

/// One more is closed at once.
const CONNECTIONS_MAX: usize = 64;
/// For a request's head; also how long a connection may be idle.
const HEAD_MAX: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Of a connection. Prometheus makes a new one then.
const LIFE_MAX: Duration = Duration::from_secs(60);
/// After `accept` failed, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TEXT: &str = "text/plain; charset=utf-8";
const INDEX: &str = "/metrics: Prometheus\n/livez: the process answers\n/readyz: this node serves, or why not\n";

/// What the port shows.
pub struct Ops {
    replica: Arc<Replica>,
    health: Arc<Health>,
    data: PathBuf,
    certificates: Vec<(&'static str, TlsFiles)>,
}

impl Ops {
    pub fn new(config: &Config, replica: Arc<Replica>, health: Arc<Health>) -> Arc<Self> {
        let certificates = certificates(config);
        Arc::new(Self { replica, health, data: config.data.clone(), certificates })
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD only\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match path {
            "/metrics" => self.metrics(),
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.health.ready() {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            _ => text(StatusCode::NOT_FOUND, INDEX),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let source = metrics::Source {
            observer: self.replica.observer(),
            ready: self.health.ready().is_ok(),
            data: &self.data,
            certificates: &self.certificates,
        };
        match metrics::text(&source) {
            Ok(page) => {
                let mut response = text(StatusCode::OK, page);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
                response
            }
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n"),
        }
    }
}

/// The ports that show a certificate, with its files.
pub fn certificates(config: &Config) -> Vec<(&'static str, TlsFiles)> {
    let service = config.tls.service.iter().map(|files| ("service", files.clone()));
    std::iter::once(("peer", config.tls.peer.clone())).chain(service).collect()
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}

/// Listens from here on.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until it is dropped; its connections end with it.
pub async fn serve(listener: TcpListener, ops: Arc<Ops>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the ops port cannot accept connections; most likely too many files are open");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
        let served = serve_one(stream, Arc::clone(&ops));
        connections.spawn(async move {
            // Who is cut off here, or broke the protocol, asks again.
            let _ended = tokio::time::timeout(LIFE_MAX, served).await;
            drop(place);
        });
    }
}

async fn serve_one(stream: TcpStream, ops: Arc<Ops>) -> hyper::Result<()> {
    let answer = move |request: Request<Incoming>| {
        let ops = Arc::clone(&ops);
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            // It reads files and asks the engines.
            let answered = tokio::task::spawn_blocking(move || ops.answer(&method, &path)).await;
            let failed = |_| text(StatusCode::INTERNAL_SERVER_ERROR, "the node is stopping\n");
            Ok::<_, Infallible>(answered.unwrap_or_else(failed))
        }
    };
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await
}
