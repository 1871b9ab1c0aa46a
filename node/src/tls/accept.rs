//! Accepting connections: one loop for both ports.
//!
//! Handshakes run beside each other, each with a time limit, so that one that never finishes delays nobody. Finished
//! connections wait in a bounded channel; when nobody takes them, handshakes stop being started and the kernel's
//! backlog holds the rest.
//!
//! Must not know: which authority or identity counts; that is in the configuration and in what the receiver makes of
//! the certificate.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::{CertificateError, OtherError, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tracing::{debug, warn};

use super::TlsError;

/// Finished handshakes that nobody has taken yet.
const FINISHED_MAX: usize = 16;
/// After `accept` failed (in practice: no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub(super) struct AcceptLimits {
    /// Connections, handshakes among them. One more is closed at once: its client has other nodes to go to.
    pub connections_max: usize,
    pub handshakes_max: usize,
    pub handshake_timeout: Duration,
}

/// A finished handshake: the stream, and the end-entity certificate that the configuration's verifier has accepted.
pub(super) struct Accepted {
    stream: TlsStream<TcpStream>,
    pub leaf: CertificateDer<'static>,
    place: OwnedSemaphorePermit,
}

impl Accepted {
    pub fn identified<Identity>(self, identity: Identity) -> Connection<Identity> {
        Connection { stream: self.stream, identity, _place: Some(self.place) }
    }
}

/// Needs a tokio runtime, as everything that listens does.
pub(super) fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), TlsError> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let local = listener.local_addr()?;
        Ok((TcpListener::from_std(listener)?, local))
    };
    bind().map_err(|source| TlsError::Listen { address, source })
}

/// The loop's task; dropping it closes the port and gives up the handshakes under way.
pub(super) struct Accepting(tokio::task::JoinHandle<()>);

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) fn start(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    limits: AcceptLimits,
) -> (Accepting, mpsc::Receiver<Accepted>) {
    let (finished, receiver) = mpsc::channel(FINISHED_MAX);
    (Accepting(tokio::spawn(accept_all(listener, config, limits, finished))), receiver)
}

async fn accept_all(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    limits: AcceptLimits,
    finished: mpsc::Sender<Accepted>,
) {
    let connections = Arc::new(Semaphore::new(limits.connections_max));
    let handshakes = Arc::new(Semaphore::new(limits.handshakes_max));
    let mut tasks = JoinSet::new();
    let mut full = false;
    loop {
        let Ok(turn) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting connections fails; most likely too many files are open: raise the limit");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        let place = Arc::clone(&connections).try_acquire_owned();
        // Once per episode: a flood of connections must not become a flood of log lines.
        if place.is_err() && !full {
            warn!(%remote, limit = limits.connections_max, "refusing connections: the limit is reached");
        }
        full = place.is_err();
        let Ok(place) = place else { continue };
        // Read per connection: a reload counts from the next one on.
        let acceptor = TlsAcceptor::from(config.load_full());
        let finished = finished.clone();
        tasks.spawn(async move {
            match handshake(acceptor, stream, limits.handshake_timeout).await {
                Ok((stream, leaf)) => {
                    // The receiver is gone when its owner shuts down; the connection then closes with it.
                    let _ = finished.send(Accepted { stream, leaf, place }).await;
                }
                Err(error) => debug!(%remote, error = reason(&error), "handshake failed"),
            }
            drop(turn);
        });
    }
}

/// Rustls shows what our own verifier said as a name only; its words are what helps.
fn reason(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(said)))) => said.to_string(),
        _ => error.to_string(),
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    timeout: Duration,
) -> io::Result<(TlsStream<TcpStream>, CertificateDer<'static>)> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(timeout, acceptor.accept(stream)).await??;
    finish(stream.into())
}

/// The verified certificate of the other end, which every configuration here demands.
pub(super) fn finish(stream: TlsStream<TcpStream>) -> io::Result<(TlsStream<TcpStream>, CertificateDer<'static>)> {
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    let leaf = leaf.ok_or_else(|| io::Error::new(io::ErrorKind::PermissionDenied, "no certificate was presented"))?;
    Ok((stream, leaf.into_owned()))
}

/// An encrypted stream whose other end is known. It holds its place under the limit of connections until it is dropped.
pub struct Connection<Identity> {
    stream: TlsStream<TcpStream>,
    pub(super) identity: Identity,
    /// None for a connection that this node has dialled.
    _place: Option<OwnedSemaphorePermit>,
}

impl<Identity> Connection<Identity> {
    pub(super) fn dialled(stream: TlsStream<TcpStream>, identity: Identity) -> Self {
        Self { stream, identity, _place: None }
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut TlsStream<TcpStream>>
    where
        Identity: Unpin,
    {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl<Identity: Unpin> AsyncRead for Connection<Identity> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(context, buffer)
    }
}

impl<Identity: Unpin> AsyncWrite for Connection<Identity> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}
