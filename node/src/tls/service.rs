//! The port that clients use: TLS under the service authority on both sides, then gRPC over HTTP/2.
//!
//! A certificate of another authority (a peer's, say) fails the handshake. One of the service authority that names no
//! principal connects, and every request says so: [`ClientIdentity::Unrecognized`].
//!
//! Must not know: tenants, grants, methods. Whether the principal is of *this* cluster is the gateway's to compare.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::Stream;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::sync::mpsc;

use super::accept::{self, AcceptLimits, Accepted, Accepting, Connection};
use super::{ClientIdentity, HANDSHAKE_TIMEOUT, PROTOCOL_VERSIONS, TlsError, TlsFiles, provider};

const ALPN: &[u8] = b"h2";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Connections at a time, handshakes among them.
    pub connections_max: usize,
    pub handshakes_max: usize,
    pub handshake_timeout: Duration,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self { connections_max: 1024, handshakes_max: 256, handshake_timeout: HANDSHAKE_TIMEOUT }
    }
}

/// A stream of authenticated connections, for `serve_with_incoming`. Dropping it closes the port, not the connections.
pub struct ServiceListener {
    local: SocketAddr,
    config: Arc<ArcSwap<ServerConfig>>,
    accepted: mpsc::Receiver<Accepted>,
    _accepting: Accepting,
}

impl ServiceListener {
    /// Listens from here on. Needs a tokio runtime.
    pub fn bind(listen: SocketAddr, files: &TlsFiles, limits: ServiceLimits) -> Result<Self, TlsError> {
        let config = Arc::new(ArcSwap::from_pointee(configure(files)?));
        let (listener, local) = accept::listen(listen)?;
        let limits = AcceptLimits {
            connections_max: limits.connections_max,
            handshakes_max: limits.handshakes_max,
            handshake_timeout: limits.handshake_timeout,
        };
        let (accepting, accepted) = accept::start(listener, Arc::clone(&config), limits);
        Ok(Self { local, config, accepted, _accepting: accepting })
    }

    /// Where it listens; of interest when the port was given as 0.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// To be kept for reloading: the listener itself goes to the gRPC server.
    pub fn certificates(&self) -> ServiceCertificates {
        ServiceCertificates(Arc::clone(&self.config))
    }
}

impl Stream for ServiceListener {
    type Item = Result<Connection<ClientIdentity>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = ready!(self.accepted.poll_recv(context));
        Poll::Ready(accepted.map(|accepted| {
            let identity = ClientIdentity::of_certificate(&accepted.leaf);
            Ok(accepted.identified(identity))
        }))
    }
}

/// The certificates that a listener uses.
#[derive(Clone)]
pub struct ServiceCertificates(Arc<ArcSwap<ServerConfig>>);

impl ServiceCertificates {
    /// Reads the files again; counts for connections made from then on. The old ones stay in use if this fails.
    pub fn reload(&self, files: &TlsFiles) -> Result<(), TlsError> {
        self.0.store(Arc::new(configure(files)?));
        Ok(())
    }
}

impl tonic::transport::server::Connected for Connection<ClientIdentity> {
    type ConnectInfo = ClientIdentity;

    fn connect_info(&self) -> ClientIdentity {
        self.identity.clone()
    }
}

fn configure(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let material = files.load()?;
    files.check_server_chain(&material)?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&material.roots), provider())
        .build()
        .map_err(|error| TlsError::Config(error.to_string()))?;
    let config_error = |error: rustls::Error| TlsError::Config(error.to_string());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(PROTOCOL_VERSIONS)
        .map_err(config_error)?
        .with_client_cert_verifier(clients)
        .with_single_cert(material.chain, material.key)
        .map_err(config_error)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}
