//! One connection to one gateway: TCP, TLS 1.3 with both sides' certificates, HTTP/2.
//!
//! Owns the dialing, its time limits, and the knowledge of whether a connection was there at all ([`Wire`]), which is
//! what makes "certainly nothing was sent" possible. Which gateway to use is `endpoints.rs`'s business.
//!
//! The URI given to tonic says `http`: tonic refuses `https` unless its own TLS is built in, and its own would not let
//! us choose TLS 1.3 only and say which certificate was refused.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tonic::transport::{Channel, Endpoint};

use crate::gathered::Gathered;
use crate::{Error, Profile, lock};

/// TCP and TLS together.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Calls that queue for the same dead gateway share its failure for this long, else each would dial in turn.
pub(crate) const DIAL_FAILURE_SHARED: Duration = Duration::from_millis(250);
/// How long the gateway's first bytes are waited for; see [`Dialer::secure`].
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection whose other end has vanished is found out within the sum of these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Calls that may wait for their turn on one connection; more are held back in the caller.
const WAITING_CALLS_MAX: usize = 1_024;

/// How connections are secured.
#[derive(Clone)]
pub(crate) enum Security {
    Tls(Arc<Certificates>),
    #[cfg(test)]
    Plaintext,
}

impl Security {
    pub(crate) fn from_profile(profile: &Profile) -> Result<Self, Error> {
        Certificates::read(profile).map(|certificates| Self::Tls(Arc::new(certificates))).map_err(Error::Config)
    }
}

/// A profile's files. They are read again for each connection: a service runs for months, its certificate is renewed
/// meanwhile, and authorities are replaced.
pub(crate) struct Certificates {
    profile: Profile,
    /// Used while the files cannot be: they are replaced one after the other.
    last: Mutex<TlsConnector>,
}

impl Certificates {
    fn read(profile: &Profile) -> Result<Self, String> {
        let connector = TlsConnector::from(Arc::new(tls_config(profile)?));
        Ok(Self { profile: profile.clone(), last: Mutex::new(connector) })
    }

    async fn connector(self: &Arc<Self>) -> TlsConnector {
        let certificates = Arc::clone(self);
        // Files are no work for a thread that others wait for.
        let read = tokio::task::spawn_blocking(move || tls_config(&certificates.profile)).await;
        let mut last = lock(&self.last);
        if let Ok(Ok(config)) = read {
            *last = TlsConnector::from(Arc::new(config));
        }
        last.clone()
    }
}

fn tls_config(profile: &Profile) -> Result<ClientConfig, String> {
    let certificates = |path: &std::path::Path| -> Result<Vec<CertificateDer<'static>>, String> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match read {
            Ok(list) if list.is_empty() => Err(format!("{} holds no certificate", path.display())),
            Ok(list) => Ok(list),
            Err(error) => Err(format!("cannot read certificate {}: {error}", path.display())),
        }
    };
    let mut authorities = RootCertStore::empty();
    for certificate in certificates(&profile.authority)? {
        authorities.add(certificate).map_err(|error| format!("{}: {error}", profile.authority.display()))?;
    }
    let key = PrivateKeyDer::from_pem_file(&profile.key)
        .map_err(|error| format!("cannot read key {}: {error}", profile.key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_root_certificates(authorities)
        .with_client_auth_cert(certificates(&profile.certificate)?, key)
        .map_err(|error| format!("certificate {}: {error}", profile.certificate.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The host of `host:port`, without the brackets of an IPv6 address; none when it is something else.
pub(crate) fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    ServerName::try_from(host).ok().map(|_| host)
}

/// Makes the channel to one gateway. Nothing is dialed before the first call.
pub(crate) fn channel(address: &str, security: &Security) -> Result<(Channel, Arc<Wire>), Error> {
    let bad = || Error::Config(format!("endpoint {address:?} is not host:port"));
    let host = ServerName::try_from(host_of(address).ok_or_else(bad)?.to_owned()).map_err(|_| bad())?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent(concat!("charthold-client/", env!("CARGO_PKG_VERSION"))))
        .map_err(|_| bad())?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .buffer_size(WAITING_CALLS_MAX);
    let wire = Arc::new(Wire::default());
    let dialer =
        Arc::new(Dialer { address: address.to_owned(), host, security: security.clone(), wire: Arc::clone(&wire) });
    let connector = tower::service_fn(move |_: http::Uri| {
        let dialer = Arc::clone(&dialer);
        async move { dialer.dial().await.map(|io| TokioIo::new(Gathered::new(io))) }
    });
    Ok((endpoint.connect_with_connector_lazy(connector), wire))
}

/// Why there is no connection. Nothing of a request was sent.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{0}")]
    Failed(String),
    /// TLS failed: a certificate that one side does not accept, above all.
    #[error("{0}")]
    Untrusted(String),
}

/// What is known of the connections to one gateway.
#[derive(Default)]
pub(crate) struct Wire {
    /// Ever opened, and closed again. A request can only have left over one that was open when it was made, or
    /// was opened since.
    opened: AtomicU64,
    closed: AtomicU64,
    last_failure: Mutex<Option<(Instant, DialError)>>,
}

/// A moment in the life of a [`Wire`].
#[derive(Clone, Copy)]
pub(crate) struct WireMark {
    opened: u64,
    any_open: bool,
}

impl Wire {
    pub(crate) fn mark(&self) -> WireMark {
        // Closed first: a connection that closes in between counts as open, which errs on the safe side.
        let closed = self.closed.load(Ordering::SeqCst);
        let opened = self.opened.load(Ordering::SeqCst);
        WireMark { opened, any_open: opened != closed }
    }

    /// Whether it is certain that nothing was sent since.
    pub(crate) fn silent_since(&self, mark: WireMark) -> bool {
        !mark.any_open && self.opened.load(Ordering::SeqCst) == mark.opened
    }
}

struct Dialer {
    address: String,
    host: ServerName<'static>,
    security: Security,
    wire: Arc<Wire>,
}

impl Dialer {
    async fn dial(&self) -> Result<Tracked, DialError> {
        if let Some((at, error)) = lock(&self.wire.last_failure).as_ref()
            && at.elapsed() < DIAL_FAILURE_SHARED
        {
            return Err(error.clone());
        }
        let dialed = timeout(DIAL_TIMEOUT, self.connect()).await;
        let error = match dialed {
            Ok(Ok(io)) => {
                self.wire.opened.fetch_add(1, Ordering::SeqCst);
                return Ok(Tracked { io, wire: Arc::clone(&self.wire) });
            }
            Ok(Err(error)) => self.explain(&error),
            Err(_) => DialError::Failed(format!("{}: no connection in time", self.address)),
        };
        *lock(&self.wire.last_failure) = Some((Instant::now(), error.clone()));
        Err(error)
    }

    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let tcp = TcpStream::connect(&self.address).await?;
        tcp.set_nodelay(true)?;
        match &self.security {
            Security::Tls(certificates) => self.secure(&certificates.connector().await, tcp).await,
            #[cfg(test)]
            Security::Plaintext => Ok(Box::new(tcp)),
        }
    }

    /// In TLS 1.3 the client is done before the gateway has judged the client's certificate. A gateway that accepts it
    /// greets at once (HTTP/2 SETTINGS), one that refuses sends an alert: waiting for either tells which, before any
    /// request is on its way. A gateway that says nothing gets the benefit of the doubt.
    async fn secure(&self, connector: &TlsConnector, tcp: TcpStream) -> io::Result<Box<dyn Io>> {
        let mut tls = connector.connect(self.host.clone(), tcp).await?;
        match timeout(GREETING_TIMEOUT, tls.fill_buf()).await {
            Ok(Ok([])) => return Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) | Err(_) => {}
        }
        Ok(Box::new(tls))
    }

    fn explain(&self, error: &io::Error) -> DialError {
        use rustls::Error::AlertReceived;
        let address = &self.address;
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(AlertReceived(alert)) => {
                DialError::Untrusted(format!("{address}: the gateway refused this client's certificate: {alert:?}"))
            }
            Some(error) => DialError::Untrusted(format!("{address}: the gateway is not trusted: {error}")),
            None => DialError::Failed(format!("{address}: {error}")),
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that tells its [`Wire`] when it is gone.
struct Tracked {
    io: Box<dyn Io>,
    wire: Arc<Wire>,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.wire.closed.fetch_add(1, Ordering::SeqCst);
    }
}

impl AsyncRead for Tracked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_taken_from_addresses() {
        let check = |address, expected| assert_eq!(host_of(address), expected, "{address}");
        check("a1.example:7400", Some("a1.example"));
        check("127.0.0.1:7400", Some("127.0.0.1"));
        check("[::1]:7400", Some("::1"));
        check("::1:7400", None);
        check("a1.example", None);
        check("a1.example:", None);
        check("a1.example:0", None);
        check("http://a1.example:7400", None);
        check(":7400", None);
    }

    #[test]
    fn silence_is_only_claimed_when_no_connection_could_carry_a_request() {
        let wire = Wire::default();
        let none = wire.mark();
        assert!(wire.silent_since(none));
        wire.opened.fetch_add(1, Ordering::SeqCst);
        assert!(!wire.silent_since(none));
        let open = wire.mark();
        assert!(!wire.silent_since(open));
        wire.closed.fetch_add(1, Ordering::SeqCst);
        assert!(!wire.silent_since(open), "it was open when the request was made");
        assert!(wire.silent_since(wire.mark()));
    }
}
