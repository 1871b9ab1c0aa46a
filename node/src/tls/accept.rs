//! Accepting connections: one loop for both ports.
//!
//! Handshakes run beside each other, each with a time limit, so that one that never finishes delays nobody. Finished
//! connections wait in a bounded channel; when nobody takes them, handshakes stop being started and the kernel's
//! backlog holds the rest. No address may take all places or all handshakes: what it has beyond its share is closed at
//! once, so that a flood from a few addresses costs others nothing.
//!
//! Must not know: which authority or identity counts; that is in the configuration and in what the receiver makes of
//! the certificate.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::{CertificateError, OtherError};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::{debug, warn};

use super::TlsError;
use super::places::{Episode, Place, Places};
use super::port::{Ending, Port, Registration};

/// Finished handshakes that nobody has taken yet.
const FINISHED_MAX: usize = 16;
/// After `accept` failed (in practice: no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub(super) struct AcceptLimits {
    /// Connections, handshakes among them. One more is closed at once: its client has other nodes to go to.
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub handshakes_max: usize,
    pub handshakes_per_address_max: usize,
    pub handshake_timeout: Duration,
}

/// A finished handshake: the stream, and the chain that the configuration's verifier has accepted.
pub(super) struct Accepted {
    stream: TlsStream<TcpStream>,
    leaf: CertificateDer<'static>,
    registration: Registration,
    place: Place,
}

impl Accepted {
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    pub fn identified<Identity>(self, identity: Identity) -> Connection<Identity> {
        Connection { _place: Some(self.place), ..Connection::dialled(self.stream, identity, self.registration) }
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
    port: Arc<Port>,
    limits: AcceptLimits,
) -> (Accepting, mpsc::Receiver<Accepted>) {
    let (finished, receiver) = mpsc::channel(FINISHED_MAX);
    (Accepting(tokio::spawn(accept_all(listener, port, limits, finished))), receiver)
}

async fn accept_all(listener: TcpListener, port: Arc<Port>, limits: AcceptLimits, finished: mpsc::Sender<Accepted>) {
    let places = Arc::new(Places::new(limits));
    let handshakes = Arc::new(Semaphore::new(limits.handshakes_max));
    let mut tasks = JoinSet::new();
    let (mut failing, mut refusing) = (Episode::default(), Episode::default());
    loop {
        let Ok(turn) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if failing.begins() {
                    warn!(%error, "accepting connections fails");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        let mut place = match places.take(remote.ip()) {
            Ok(place) => place,
            Err(full) => {
                if refusing.begins() {
                    warn!(%remote, limit = %full, "refusing connections: a limit is reached");
                }
                continue;
            }
        };
        let (port, finished) = (Arc::clone(&port), finished.clone());
        tasks.spawn(async move {
            match handshake(&port, stream, limits.handshake_timeout).await {
                Ok((stream, leaf, registration)) => {
                    place.handshake_is_over();
                    // The receiver is gone when its owner shuts down; the connection then closes with it.
                    let _ = finished.send(Accepted { stream, leaf, registration, place }).await;
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
    port: &Port,
    stream: TcpStream,
    timeout: Duration,
) -> io::Result<(TlsStream<TcpStream>, CertificateDer<'static>, Registration)> {
    stream.set_nodelay(true)?;
    // Read per connection: a reload counts from the next one on.
    let setup = port.setup();
    let acceptor = TlsAcceptor::from(Arc::clone(&setup.server));
    let stream = tokio::time::timeout(timeout, acceptor.accept(stream)).await??;
    let (stream, chain) = finish(stream.into())?;
    let leaf = chain[0].clone();
    let registration = port.register(&setup, chain).ok_or_else(changed_meanwhile)?;
    Ok((stream, leaf, registration))
}

pub(super) fn changed_meanwhile() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the certificates were changed during the handshake")
}

/// The verified chain of the other end, which every configuration here demands; never empty.
pub(super) fn finish(stream: TlsStream<TcpStream>) -> io::Result<(TlsStream<TcpStream>, Vec<CertificateDer<'static>>)> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    if chain.is_empty() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "no certificate was presented"));
    }
    Ok((stream, chain))
}

/// An encrypted stream whose other end is known. It holds its place under the limit of connections until it is dropped.
/// Once it is cut, reading fails: see [`Ending`].
pub struct Connection<Identity> {
    stream: TlsStream<TcpStream>,
    identity: Identity,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    registration: Registration,
    /// None for a connection that this node has dialled.
    _place: Option<Place>,
}

impl<Identity> Connection<Identity> {
    pub(super) fn dialled(stream: TlsStream<TcpStream>, identity: Identity, registration: Registration) -> Self {
        let cut = Box::pin(registration.ending.cut.clone().cancelled_owned());
        Self { stream, identity, cut, registration, _place: None }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How it is told to end, for who serves it.
    pub fn ending(&self) -> Ending {
        self.registration.ending.clone()
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
        let connection = self.get_mut();
        if connection.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "its certificate counts no more",
            )));
        }
        Pin::new(&mut connection.stream).poll_read(context, buffer)
    }
}

impl<Identity: Unpin> AsyncWrite for Connection<Identity> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(context, data)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}
