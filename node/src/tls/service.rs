//! The port that clients use: TLS under the service authority on both sides, then gRPC over HTTP/2.
//!
//! A certificate of another authority (a peer's, say) fails the handshake. One of the service authority that names no
//! principal connects, and every request says so: [`ClientIdentity::Unrecognized`].
//!
//! Must not know: tenants, grants, methods. Whether the principal is of *this* cluster is the gateway's to compare.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use rustls::ServerConfig;
use tokio::sync::mpsc;

use super::accept::{self, AcceptLimits, Accepted, Accepting, Connection};
use super::port::{Condition, Port, Reloaded, Setup};
use super::{ClientIdentity, HANDSHAKE_TIMEOUT, PROTOCOL_VERSIONS, TlsError, TlsFiles, provider};

const ALPN: &[u8] = b"h2";
/// Between two connections that are told to end: a thousand clients must not shake hands at the same moment.
const RENEWAL_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Connections at a time, handshakes among them.
    pub connections_max: usize,
    /// Of one address: nobody may take all the places.
    pub connections_per_address_max: usize,
    pub handshakes_max: usize,
    pub handshakes_per_address_max: usize,
    pub handshake_timeout: Duration,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            connections_per_address_max: 512,
            handshakes_max: 256,
            handshakes_per_address_max: 64,
            handshake_timeout: HANDSHAKE_TIMEOUT,
        }
    }
}

/// A stream of authenticated connections. Dropping it closes the port, not the connections.
pub struct ServiceListener {
    local: SocketAddr,
    port: Arc<Port>,
    accepted: mpsc::Receiver<Accepted>,
    _accepting: Accepting,
}

impl ServiceListener {
    /// Listens from here on. Needs a tokio runtime.
    pub fn bind(listen: SocketAddr, files: &TlsFiles, limits: ServiceLimits) -> Result<Self, TlsError> {
        let port = Port::new(configure(files)?);
        let (listener, local) = accept::listen(listen)?;
        let limits = AcceptLimits {
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            handshakes_max: limits.handshakes_max,
            handshakes_per_address_max: limits.handshakes_per_address_max,
            handshake_timeout: limits.handshake_timeout,
        };
        let (accepting, accepted) = accept::start(listener, Arc::clone(&port), limits);
        Ok(Self { local, port, accepted, _accepting: accepting })
    }

    /// Where it listens; of interest when the port was given as 0.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// To be kept for reloading: the listener itself goes to the gRPC server.
    pub fn certificates(&self) -> ServiceCertificates {
        ServiceCertificates(Arc::clone(&self.port))
    }
}

impl Stream for ServiceListener {
    type Item = Connection<ClientIdentity>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = ready!(self.accepted.poll_recv(context));
        Poll::Ready(accepted.map(|accepted| {
            let identity = ClientIdentity::of_certificate(accepted.leaf());
            accepted.identified(identity)
        }))
    }
}

/// The certificates that a listener uses.
#[derive(Clone)]
pub struct ServiceCertificates(Arc<Port>);

impl ServiceCertificates {
    /// Reads the files again, for connections made from then on; the old ones stay in use if this fails. Connections
    /// whose client is not let in any more are cut. If the own certificate is another one, all others are told to end, one
    /// after the other: [`Ending::outdated`](super::Ending::outdated).
    pub fn reload(&self, files: &TlsFiles) -> Result<Reloaded, TlsError> {
        let (reloaded, outdated) = self.0.replace(configure(files)?);
        tokio::spawn(async move {
            for connection in outdated {
                tokio::time::sleep(RENEWAL_PAUSE).await;
                connection.outdated.cancel();
            }
        });
        Ok(reloaded)
    }

    /// Cuts connections of clients whose certificates have expired; tells how many.
    pub fn recheck(&self) -> usize {
        self.0.recheck()
    }

    pub fn condition(&self) -> Condition {
        self.0.condition()
    }
}

fn configure(files: &TlsFiles) -> Result<Setup, TlsError> {
    let material = files.load()?;
    let verifier = material.verifier()?;
    let config_error = |error: rustls::Error| TlsError::Config(error.to_string());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(PROTOCOL_VERSIONS)
        .map_err(config_error)?
        .with_client_cert_verifier(Arc::clone(&verifier))
        .with_single_cert(material.chain.clone(), material.key.clone_key())
        .map_err(config_error)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Setup::new(config, verifier, &material))
}
