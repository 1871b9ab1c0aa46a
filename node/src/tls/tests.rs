//! Handshakes over loopback: who gets in on which port, and that one bad connection is nobody else's problem.
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
use tonic::transport::server::Connected;

use super::*;

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
    let mut config = match files.map(|files| files.load().unwrap()) {
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
    let material = files.load().unwrap();
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
    let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap().unwrap());
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    let mut bytes = [0; 4];
    accepted.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
    accepted.connect_info()
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

/// A ClientHello as a TLS 1.2 client sends it: without the extension that offers 1.3.
fn tls12_hello() -> Vec<u8> {
    let extensions: &[u8] = &[
        0x00, 0x0a, 0x00, 0x06, 0x00, 0x04, 0x00, 0x1d, 0x00, 0x17, // groups: x25519, secp256r1
        0x00, 0x0b, 0x00, 0x02, 0x01, 0x00, // uncompressed points
        0x00, 0x0d, 0x00, 0x06, 0x00, 0x04, 0x04, 0x03, 0x08, 0x04, // ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256
    ];
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]);
    // No session; ECDHE-ECDSA-AES128-GCM and -AES256-GCM; no compression.
    body.extend([0x00, 0x00, 0x04, 0xc0, 0x2b, 0xc0, 0x2c, 0x01, 0x00, 0x00, extensions.len() as u8]);
    body.extend(extensions);
    let mut hello = vec![0x16, 0x03, 0x01, 0x00, body.len() as u8 + 4, 0x01, 0x00, 0x00, body.len() as u8];
    hello.extend(body);
    hello
}

async fn answer_to(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the alert is as good an end as any.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn older_tls_and_no_tls_get_an_alert_and_nothing_else() {
    let cluster = Cluster::new("c1");
    let mut listener = cluster.listener(ServiceLimits::default());
    let (a, b) = (cluster.peer("n1"), cluster.peer("n2"));
    for address in [listener.local_address(), a.local_address()] {
        // Fatal (2) alert protocol_version (70).
        assert_eq!(answer_to(address, &tls12_hello()).await, [0x15, 0x03, 0x03, 0, 2, 2, 70]);
        for plain in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[0; 64]] {
            let answer = answer_to(address, plain).await;
            assert!(answer.len() == 7 && answer[0] == 0x15, "{answer:?}");
        }
    }
    check_meet(&b, &a).await;
    check_in(&mut listener, &cluster.operator(Validity::default())).await;
}

#[tokio::test]
async fn connections_are_tls_13_with_a_hybrid_key_exchange_and_no_resumption() {
    let cluster = Cluster::new("c1");
    let mut listener = cluster.listener(ServiceLimits::default());
    let (address, files) = (listener.local_address(), cluster.operator(Validity::default()));
    let (client, accepted) = tokio::join!(connect(address, Some(&files), b"h2"), listener.next());
    let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap().unwrap());
    let connection = client.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
    let group = connection.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    check_no_tickets(&mut client, &mut accepted).await;

    let (a, files) = (cluster.peer("n1"), TlsFiles::in_folder(&cluster.node("n2"), "peer"));
    let (client, accepted) = tokio::join!(connect(a.local_address(), Some(&files), b"charthold-peer/1"), a.accept());
    check_no_tickets(&mut client.unwrap(), &mut accepted.unwrap().0).await;
}

/// Tickets would come right behind the handshake, before the first byte.
async fn check_no_tickets(client: &mut TlsStream<TcpStream>, server: &mut (impl AsyncWrite + Unpin)) {
    server.write_all(b"x").await.unwrap();
    server.flush().await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
}

#[tokio::test]
async fn a_handshake_that_never_finishes_delays_nobody() {
    let cluster = Cluster::new("c1");
    let mut listener = cluster.listener(ServiceLimits::default());
    let (a, b) = (cluster.peer("n1"), cluster.peer("n2"));
    let mut silent = Vec::new();
    for address in [listener.local_address(), a.local_address()] {
        for bytes in [&b""[..], &tls12_hello()[..9]] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            silent.push(stream);
        }
    }
    check_meet(&b, &a).await;
    check_in(&mut listener, &cluster.operator(Validity::default())).await;
    drop(silent);
}

#[tokio::test]
async fn a_handshake_that_never_finishes_is_closed_and_frees_its_turn() {
    let cluster = Cluster::new("c1");
    let limits =
        ServiceLimits { handshakes_max: 1, handshake_timeout: Duration::from_millis(200), ..Default::default() };
    let mut listener = cluster.listener(limits);
    let mut silent = TcpStream::connect(listener.local_address()).await.unwrap();
    let mut silent_too = TcpStream::connect(listener.local_address()).await.unwrap();
    let files = cluster.operator(Validity::default());
    for stream in [&mut silent, &mut silent_too] {
        let end = tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap();
        assert!(end.is_err());
    }
    // With one turn and a short limit, the machine's own slowness may cost an attempt.
    let attempts = async {
        loop {
            let client = connect(listener.local_address(), Some(&files), b"h2");
            let accepted =
                tokio::time::timeout(Duration::from_secs(1), async { tokio::join!(client, listener.next()) });
            if let Ok((Ok(_), Some(Ok(connection)))) = accepted.await {
                return connection.connect_info();
            }
        }
    };
    assert!(matches!(tokio::time::timeout(PATIENCE, attempts).await.unwrap(), ClientIdentity::Known(_)));
}

#[tokio::test]
async fn a_connection_over_the_limit_is_closed_and_a_freed_place_is_used() {
    let cluster = Cluster::new("c1");
    let mut listener = cluster.listener(ServiceLimits { connections_max: 1, ..Default::default() });
    let (address, files) = (listener.local_address(), cluster.operator(Validity::default()));
    let (client, first) = tokio::join!(connect(address, Some(&files), b"h2"), listener.next());
    assert!(client.is_ok());
    assert!(refused(address, Some(&files), b"h2").await);
    drop(first);
    assert!(matches!(check_in(&mut listener, &files).await, ClientIdentity::Known(_)));
}

#[tokio::test]
async fn a_dropped_listener_closes_its_port() {
    let cluster = Cluster::new("c1");
    let (transport, listener) = (cluster.peer("n1"), cluster.listener(ServiceLimits::default()));
    let addresses = [transport.local_address(), listener.local_address()];
    drop((transport, listener));
    for address in addresses {
        let closed = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.unwrap();
    }
}

#[tokio::test]
async fn reloaded_certificates_count_from_the_next_connection() {
    let cluster = Cluster::new("c1");
    let (a, b) = (cluster.peer("a1"), cluster.peer("b1"));
    let renewed =
        Cluster { folder: tempfile::tempdir().unwrap(), authority: Authority::load(&cluster.path("ca")).unwrap() };
    let fresh = TlsFiles::in_folder(&renewed.node("a1"), "peer");
    a.reload(&fresh).unwrap();
    check_meet(&a, &b).await;
    check_meet(&b, &a).await;

    let other = a.reload(&TlsFiles::in_folder(&cluster.path("b1"), "peer"));
    assert!(matches!(other, Err(TlsError::IdentityChanged { .. })));
    std::fs::write(&fresh.cert, "").unwrap();
    assert!(a.reload(&fresh).is_err());
    check_meet(&a, &b).await;

    let service = TlsFiles::in_folder(&cluster.path("a1"), "service");
    let mut listener = ServiceListener::bind(ANY_PORT, &service, ServiceLimits::default()).unwrap();
    let certificates = listener.certificates();
    certificates.reload(&TlsFiles::in_folder(&renewed.path("a1"), "service")).unwrap();
    let files = cluster.operator(Validity::default());
    let address = listener.local_address();
    let (client, accepted) = tokio::join!(connect(address, Some(&files), b"h2"), listener.next());
    let shown = client.unwrap().get_ref().1.peer_certificates().unwrap()[0].clone();
    assert!(
        accepted.is_some() && shown == TlsFiles::in_folder(&renewed.path("a1"), "service").load().unwrap().chain[0]
    );
}

#[tokio::test]
async fn files_that_others_would_refuse_are_refused_at_the_start() {
    let (cluster, foreign) = (Cluster::new("c1"), Cluster::new("c1"));
    let good = TlsFiles::in_folder(&cluster.node("a1"), "peer");
    let other = TlsFiles::in_folder(&foreign.node("a1"), "peer");
    let service = TlsFiles::in_folder(&cluster.path("a1"), "service");
    let bind = |files: &TlsFiles| PeerTransport::bind(ANY_PORT, files).map(|_| ()).unwrap_err();

    assert!(matches!(bind(&TlsFiles { key: other.key.clone(), ..good.clone() }), TlsError::KeyMismatch { .. }));
    assert!(matches!(bind(&TlsFiles { ca: other.ca.clone(), ..good.clone() }), TlsError::Refused { .. }));
    assert!(matches!(bind(&TlsFiles { cert: good.key.clone(), ..good.clone() }), TlsError::Malformed { .. }));
    assert!(matches!(bind(&TlsFiles { ca: good.key.clone(), ..good.clone() }), TlsError::Malformed { .. }));
    assert!(matches!(bind(&TlsFiles { ca: cluster.path("none"), ..good.clone() }), TlsError::Read { .. }));
    assert!(matches!(bind(&service), TlsError::Identity { source: IdentityError::NoUri, .. }));
    let old = TlsFiles::in_folder(&cluster.node_valid("old", expired()), "peer");
    let error = bind(&old);
    assert!(matches!(error, TlsError::Refused { .. }) && error.to_string().contains("expired"), "{error}");
    let client = cluster.operator(Validity::default());
    let error = ServiceListener::bind(ANY_PORT, &client, ServiceLimits::default()).map(|_| ()).unwrap_err();
    assert!(matches!(error, TlsError::Refused { .. }));

    let taken = PeerTransport::bind(ANY_PORT, &good).unwrap();
    let error = PeerTransport::bind(taken.local_address(), &good).map(|_| ()).unwrap_err();
    assert!(matches!(error, TlsError::Listen { .. }));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let cluster = Cluster::new("c1");
    let files = TlsFiles::in_folder(&cluster.node("a1"), "peer");
    let load = |mode: u32| {
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(mode)).unwrap();
        files.load().map(|_| ())
    };
    for mode in [0o640, 0o604, 0o644, 0o620, 0o610, 0o601] {
        assert!(matches!(load(mode), Err(TlsError::KeyExposed { mode: found, .. }) if found == mode), "{mode:o}");
    }
    for mode in [0o600, 0o400] {
        load(mode).unwrap();
    }
    // What is refused says which file, and nothing of its content.
    let error = load(0o644).unwrap_err().to_string();
    assert!(error.contains("peer.key") && error.contains("0644") && !error.contains("BEGIN"), "{error}");
}

#[test]
fn no_file_is_read_without_end() {
    let cluster = Cluster::new("c1");
    let files = TlsFiles::in_folder(&cluster.node("a1"), "peer");
    std::fs::write(&files.ca, vec![b'\n'; (1 << 20) + 1]).unwrap();
    assert!(matches!(files.load().map(|_| ()), Err(TlsError::TooLarge { .. })));
}

/// The stream is what tonic's server takes.
#[tokio::test]
async fn the_listener_serves_grpc() {
    let cluster = Cluster::new("c1");
    let listener = cluster.listener(ServiceLimits::default());
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().add_service(health);
    server.serve_with_incoming_shutdown(listener, std::future::ready(())).await.unwrap();
}
