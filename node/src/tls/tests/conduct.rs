//! How the ports behave: old protocols, limits, reloading; one bad connection is nobody else's problem.

use super::*;

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
    let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap());
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
            if let Ok((Ok(_), Some(connection))) = accepted.await {
                return connection.identity().clone();
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
