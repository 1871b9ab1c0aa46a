//! Node-to-node connections: TLS under the peer authority on both sides.
//!
//! A node is who its certificate's URI says, wherever it was reached: DNS names and addresses are not compared, so that
//! a node may move, and an address taken over by somebody else is of no use to them. A certificate without such a URI,
//! or with that of another cluster, fails the handshake.
//!
//! Must not know: which node was meant to be at an address, or whether a node is a member. The caller compares the
//! [`PeerIdentity`] it gets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use charthold_replica::peer::transport::{PeerIdentity, Stream, Transport};
use futures::FutureExt;
use futures::future::BoxFuture;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio_rustls::TlsConnector;

use super::accept::{self, AcceptLimits, Accepted, Accepting, Connection};
use super::files::Material;
use super::identity::{peer_of_certificate, peer_uri};
use super::port::{Condition, Port, Reloaded, Setup};
use super::{HANDSHAKE_TIMEOUT, IdentityError, PROTOCOL_VERSIONS, TlsError, TlsFiles, provider};

const ALPN: &[u8] = b"charthold-peer/1";
/// Peers are the other nodes, with a few connections each way.
const LIMITS: AcceptLimits = AcceptLimits {
    connections_max: 512,
    connections_per_address_max: 256,
    handshakes_max: 64,
    handshakes_per_address_max: 16,
    handshake_timeout: HANDSHAKE_TIMEOUT,
};
/// Between two connections that are made anew under another certificate.
const RENEWAL_PAUSE: Duration = Duration::from_millis(500);

/// Dials peers and accepts them; the implementation of [`Transport`] that nodes run with.
pub struct PeerTransport {
    identity: PeerIdentity,
    local: SocketAddr,
    port: Arc<Port>,
    client: Arc<ArcSwap<ClientConfig>>,
    accepted: Mutex<mpsc::Receiver<Accepted>>,
    _accepting: Accepting,
}

impl PeerTransport {
    /// Listens from here on. Needs a tokio runtime.
    pub fn bind(listen: SocketAddr, files: &TlsFiles) -> Result<Self, TlsError> {
        let (identity, setup, client) = configure(files)?;
        let (listener, local) = accept::listen(listen)?;
        let port = Port::new(setup);
        let (accepting, accepted) = accept::start(listener, Arc::clone(&port), LIMITS);
        Ok(Self {
            identity,
            local,
            port,
            client: Arc::new(ArcSwap::from_pointee(client)),
            accepted: Mutex::new(accepted),
            _accepting: accepting,
        })
    }

    /// This node, as its own certificate names it.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// Where it listens; of interest when the port was given as 0.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Reads the files again, for connections made from then on; the old ones stay in use if this fails. Connections
    /// whose peer is not let in any more are cut. If the own certificate is another one, all others are made anew, one
    /// after the other: a peer dials again within a tenth of an election's time, and never loses both of its lanes.
    pub fn reload(&self, files: &TlsFiles) -> Result<Reloaded, TlsError> {
        let (identity, setup, client) = configure(files)?;
        if peer_uri(&identity) != peer_uri(&self.identity) {
            return Err(TlsError::IdentityChanged {
                certificate: files.cert.clone(),
                found: peer_uri(&identity),
                running: peer_uri(&self.identity),
            });
        }
        // First: what is dialled from here on shows the new certificate.
        self.client.store(Arc::new(client));
        let (reloaded, outdated) = self.port.replace(setup);
        tokio::spawn(async move {
            for connection in outdated {
                tokio::time::sleep(RENEWAL_PAUSE).await;
                connection.cut.cancel();
            }
        });
        Ok(reloaded)
    }

    /// Cuts connections to peers whose certificates have expired; tells how many.
    pub fn recheck(&self) -> usize {
        self.port.recheck()
    }

    pub fn condition(&self) -> Condition {
        self.port.condition()
    }
}

type Incoming = io::Result<(Box<dyn Stream>, PeerIdentity)>;

impl Transport for PeerTransport {
    fn dial(&self, address: String) -> BoxFuture<'static, Incoming> {
        // The port's setup first: if the files change in between, the connection does not count.
        let (port, setup) = (Arc::clone(&self.port), self.port.setup());
        let connector = TlsConnector::from(self.client.load_full());
        let connect = async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            // The client demands a name; the verifier compares it with nothing, and an address is sent to nobody.
            let stream = connector.connect(ServerName::from(Ipv4Addr::LOCALHOST), stream).await?;
            let (stream, chain) = accept::finish(stream.into())?;
            let identity = identify(&chain[0])?;
            let registration = port.register(&setup, chain).ok_or_else(accept::changed_meanwhile)?;
            let stream: Box<dyn Stream> = Box::new(Connection::dialled(stream, (), registration));
            Ok((stream, identity))
        };
        async move { tokio::time::timeout(HANDSHAKE_TIMEOUT, connect).await? }.boxed()
    }

    fn accept(&self) -> BoxFuture<'_, Incoming> {
        async {
            let closed = || io::Error::new(io::ErrorKind::NotConnected, "the peer port is closed");
            let accepted = self.accepted.lock().await.recv().await.ok_or_else(closed)?;
            let identity = identify(accepted.leaf())?;
            let stream: Box<dyn Stream> = Box::new(accepted.identified(()));
            Ok((stream, identity))
        }
        .boxed()
    }
}

/// The verifier has let the certificate pass already.
fn identify(leaf: &CertificateDer<'_>) -> io::Result<PeerIdentity> {
    peer_of_certificate(leaf).map_err(|error| io::Error::new(io::ErrorKind::PermissionDenied, error))
}

fn configure(files: &TlsFiles) -> Result<(PeerIdentity, Setup, ClientConfig), TlsError> {
    let material = files.load()?;
    let identity = peer_of_certificate(material.leaf())
        .map_err(|source| TlsError::Identity { certificate: files.cert.clone(), source })?;
    let verifier = Arc::new(PeerVerifier::new(&material, identity.cluster.clone())?);
    let server = server_config(&material, Arc::clone(&verifier)).map_err(config_error)?;
    let setup = Setup::new(server, Arc::clone(&verifier) as _, &material);
    let client = client_config(material, verifier).map_err(config_error)?;
    Ok((identity, setup, client))
}

fn server_config(material: &Material, verifier: Arc<PeerVerifier>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(PROTOCOL_VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(material.chain.clone(), material.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(material: Material, verifier: Arc<PeerVerifier>) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(PROTOCOL_VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(material.chain, material.key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn config_error(error: rustls::Error) -> TlsError {
    TlsError::Config(error.to_string())
}

/// Chain, validity, revocation and key usage as webpki checks them, then the URI in place of a host name; both
/// directions alike: whoever is dialled must be let in as a caller too. The identity demands both usages.
#[derive(Debug)]
struct PeerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    cluster: String,
}

impl PeerVerifier {
    fn new(material: &Material, cluster: String) -> Result<Self, TlsError> {
        let algorithms = provider().signature_verification_algorithms;
        Ok(Self { chain: material.verifier()?, algorithms, cluster })
    }

    fn check_identity(&self, leaf: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let identity = peer_of_certificate(leaf)
            .and_then(|peer| if peer.cluster == self.cluster { Ok(peer) } else { Err(IdentityError::OtherCluster) });
        identity.map(drop).map_err(|error| CertificateError::Other(OtherError(Arc::new(error))).into())
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_client_cert(leaf, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_is_off())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        self.check_identity(leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_is_off())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn tls12_is_off() -> rustls::Error {
    rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into()
}
