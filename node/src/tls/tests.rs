//! Handshakes over loopback: who gets in on which port. How a port behaves otherwise is in `conduct`.
#![allow(clippy::unwrap_used)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use charthold_replica::peer::transport::Transport;
use futures::StreamExt;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

mod conduct;
mod renewal;

const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const TENANT: [u8; 16] = [0xab; 16];
/// Ends a test that would hang; no test measures time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Authorities of one cluster, and a folder for each certificate.
struct Cluster {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Cluster {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(name, &folder.path().join("ca")).unwrap();
        Self { folder, authority }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn node_valid(&self, name: &str, valid: Validity) -> PathBuf {
        let (out, ips) = (self.path(name), [Ipv4Addr::LOCALHOST.into()]);
        self.authority.node(name, true, &["localhost".into()], &ips, &out, valid).unwrap();
        out
    }

    fn node(&self, name: &str) -> PathBuf {
        self.node_valid(name, Validity::default())
    }

    fn peer(&self, name: &str) -> PeerTransport {
        PeerTransport::bind(ANY_PORT, &TlsFiles::in_folder(&self.node(name), "peer")).unwrap()
    }

    fn listener(&self, limits: ServiceLimits) -> ServiceListener {
        ServiceListener::bind(ANY_PORT, &TlsFiles::in_folder(&self.node("a1"), "service"), limits).unwrap()
    }

    fn operator(&self, valid: Validity) -> TlsFiles {
        let out = self.path("operator");
        self.authority.operator("ada", &out, valid).unwrap();
        client_files(&out)
    }
}

fn client_files(folder: &Path) -> TlsFiles {
    TlsFiles { ca: folder.join("service-ca.crt"), ..TlsFiles::in_folder(folder, "client") }
}

fn expired() -> Validity {
    let day = Duration::from_secs(86_400);
    Validity { not_before: SystemTime::now() - 2 * day, not_after: SystemTime::now() - day }
}

fn not_yet_valid() -> Validity {
    let day = Duration::from_secs(86_400);
    Validity { not_before: SystemTime::now() + day, not_after: SystemTime::now() + 2 * day }
}

/// A client that looks at nothing: what is tested is the other side.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

async fn connect(address: SocketAddr, files: Option<&TlsFiles>, alpn: &[u8]) -> io::Result<TlsStream<TcpStream>> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(PROTOCOL_VERSIONS)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match files.map(|files| files.read().unwrap()) {
        Some(material) => config.with_client_auth_cert(material.chain, material.key).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// Whether the other side refuses. In TLS 1.3 a client learns that with its first read.
async fn refused(address: SocketAddr, files: Option<&TlsFiles>, alpn: &[u8]) -> bool {
    let attempt = async {
        let mut stream = connect(address, files, alpn).await?;
        stream.read_u8().await
    };
    tokio::time::timeout(PATIENCE, attempt).await.unwrap().is_err()
}

/// A server with any certificate, which demands none, for dialling.
async fn serve_any(files: &TlsFiles) -> SocketAddr {
    let material = files.read().unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(PROTOCOL_VERSIONS)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(material.chain, material.key)
        .unwrap();
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.read_u8().await;
            }
        }
    });
    address
}

/// Both directions of a fresh connection between two transports carry bytes, and each knows the other.
async fn check_meet(dialling: &PeerTransport, listening: &PeerTransport) {
    let address = format!("localhost:{}", listening.local_address().port());
    let both = async { tokio::join!(dialling.dial(address), listening.accept()) };
    let (dialled, accepted) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    let ((mut near, found), (mut far, caller)) = (dialled.unwrap(), accepted.unwrap());
    assert_eq!(identity::peer_uri(&found), identity::peer_uri(listening.identity()));
    assert_eq!(identity::peer_uri(&caller), identity::peer_uri(dialling.identity()));
    near.write_all(b"ping").await.unwrap();
    near.flush().await.unwrap();
    let mut bytes = [0; 4];
    far.read_exact(&mut bytes).await.unwrap();
    far.write_all(&bytes).await.unwrap();
    far.flush().await.unwrap();
    near.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
}

/// A client gets in; what the gateway will know of it.
async fn check_in(listener: &mut ServiceListener, files: &TlsFiles) -> ClientIdentity {
    let address = listener.local_address();
    let both = async { tokio::join!(connect(address, Some(files), b"h2"), listener.next()) };
    let (client, accepted) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap());
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    let mut bytes = [0; 4];
    accepted.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
    accepted.identity().clone()
}

#[tokio::test]
async fn peers_meet_in_both_directions() {
    let cluster = Cluster::new("c1");
    let (a, b) = (cluster.peer("a1"), cluster.peer("b1"));
    check_meet(&a, &b).await;
    check_meet(&b, &a).await;
    let out = cluster.path("k1");
    cluster.authority.node("k1", false, &[], &[], &out, Validity::default()).unwrap();
    let keyless = PeerTransport::bind(ANY_PORT, &TlsFiles::in_folder(&out, "peer")).unwrap();
    assert!(!keyless.identity().keyed && a.identity().keyed);
    check_meet(&keyless, &a).await;
    check_meet(&a, &keyless).await;
}

#[tokio::test]
async fn the_peer_port_refuses_whoever_is_no_peer() {
    let (cluster, foreign) = (Cluster::new("c1"), Cluster::new("c1"));
    let (a, b) = (cluster.peer("a1"), cluster.peer("b1"));
    let address = a.local_address();
    let odd = |name: &str, uris: &[&str], usages| {
        cluster.authority.odd_peer(uris, usages, &cluster.path(name));
        TlsFiles::in_folder(&cluster.path(name), "peer")
    };
    let both = || vec![ServerAuth, ClientAuth];
    let uri = "charthold://c1/node/x1/keyed";
    let cases = [
        ("expired", TlsFiles::in_folder(&cluster.node_valid("old", expired()), "peer")),
        ("not yet valid", TlsFiles::in_folder(&cluster.node_valid("new", not_yet_valid()), "peer")),
        ("foreign authority, same names", TlsFiles::in_folder(&foreign.node("a1"), "peer")),
        ("a client", cluster.operator(Validity::default())),
        ("a gateway", TlsFiles::in_folder(&cluster.path("a1"), "service")),
        ("no URI", odd("odd1", &[], both())),
        ("two URIs", odd("odd2", &[uri, "charthold://c1/node/x2/keyed"], both())),
        ("another cluster", odd("odd3", &["charthold://c2/node/x1/keyed"], both())),
        ("a principal's URI", odd("odd4", &["spiffe://c1/operator/ada"], both())),
        ("no key usage", odd("odd5", &[uri], vec![])),
        ("for servers only", odd("odd6", &[uri], vec![ServerAuth])),
        ("for clients only", odd("odd7", &[uri], vec![ClientAuth])),
    ];
    for (case, files) in &cases {
        assert!(refused(address, Some(files), b"charthold-peer/1").await, "{case}");
    }
    assert!(refused(address, None, b"charthold-peer/1").await, "no certificate");
    let files = TlsFiles::in_folder(&cluster.path("b1"), "peer");
    assert!(refused(address, Some(&files), b"h2").await, "another protocol");
    // None of them came through: the first connection that is handed out is b's.
    check_meet(&b, &a).await;
}

#[tokio::test]
async fn nobody_but_a_peer_is_dialled() {
    let (cluster, foreign) = (Cluster::new("c1"), Cluster::new("c1"));
    let a = cluster.peer("a1");
    let odd = |name: &str, uris: &[&str], usages| {
        cluster.authority.odd_peer(uris, usages, &cluster.path(name));
        TlsFiles::in_folder(&cluster.path(name), "peer")
    };
    let cases = [
        ("expired", TlsFiles::in_folder(&cluster.node_valid("old", expired()), "peer")),
        ("foreign authority, same names", TlsFiles::in_folder(&foreign.node("b1"), "peer")),
        ("a gateway", TlsFiles::in_folder(&cluster.path("a1"), "service")),
        ("a client", cluster.operator(Validity::default())),
        ("another cluster", odd("odd1", &["charthold://c2/node/x1/keyed"], vec![ServerAuth, ClientAuth])),
        ("no key usage", odd("odd2", &["charthold://c1/node/x1/keyed"], vec![])),
    ];
    for (case, files) in &cases {
        let address = serve_any(files).await;
        let dialled = tokio::time::timeout(PATIENCE, a.dial(address.to_string())).await.unwrap();
        assert_eq!(dialled.err().map(|error| error.kind()), Some(io::ErrorKind::InvalidData), "{case}");
    }
    // The helper does get through with a right certificate; else the cases above would prove nothing.
    let address = serve_any(&TlsFiles::in_folder(&cluster.node("b1"), "peer")).await;
    assert_eq!(a.dial(address.to_string()).await.unwrap().1.name, "b1");
    assert!(a.dial("localhost:1".into()).await.is_err());
    assert!(a.dial("not an address".into()).await.is_err());
}

#[tokio::test]
async fn clients_are_known_by_their_uri() {
    let cluster = Cluster::new("c1");
    let mut listener = cluster.listener(ServiceLimits::default());
    let known = check_in(&mut listener, &cluster.operator(Validity::default())).await;
    assert_eq!(known, ClientIdentity::Known(Principal::operator("c1", "ada").unwrap()));
    let out = cluster.path("ehr");
    cluster.authority.service(&TENANT, "ehr", &out, Validity::days(1)).unwrap();
    let known = check_in(&mut listener, &client_files(&out)).await;
    assert_eq!(known, ClientIdentity::Known(Principal::service("c1", &TENANT, "ehr").unwrap()));
    let unrecognized: [&[&str]; 4] = [
        &[],
        &["https://example.org/"],
        &["charthold://c1/node/a1/keyed"],
        &["spiffe://c1/operator/ada", "spiffe://c1/operator/bob"],
    ];
    for (index, uris) in unrecognized.into_iter().enumerate() {
        let out = cluster.path(&format!("odd{index}"));
        cluster.authority.odd_client(uris, vec![ClientAuth], &out);
        assert_eq!(check_in(&mut listener, &client_files(&out)).await, ClientIdentity::Unrecognized, "{uris:?}");
    }
}

#[tokio::test]
async fn the_service_port_refuses_whoever_is_no_client() {
    let (cluster, foreign) = (Cluster::new("c1"), Cluster::new("c1"));
    let mut listener = cluster.listener(ServiceLimits::default());
    let address = listener.local_address();
    let old = cluster.path("old");
    cluster.authority.operator("ada", &old, expired()).unwrap();
    let cases = [
        ("a peer", TlsFiles::in_folder(&cluster.path("a1"), "peer")),
        ("a gateway", TlsFiles::in_folder(&cluster.path("a1"), "service")),
        ("expired", client_files(&old)),
        ("foreign authority, same names", foreign.operator(Validity::default())),
    ];
    for (case, files) in &cases {
        assert!(refused(address, Some(files), b"h2").await, "{case}");
    }
    let right = cluster.operator(Validity::default());
    assert!(refused(address, None, b"h2").await, "no certificate");
    assert!(refused(address, Some(&right), b"http/1.1").await, "another protocol");
    assert!(matches!(check_in(&mut listener, &right).await, ClientIdentity::Known(_)));
}
