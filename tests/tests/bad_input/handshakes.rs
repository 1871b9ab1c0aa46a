//! Handshakes that are broken off, and one in small pieces.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use charthold_client::{Chart, Put, RecordId};
use charthold_tests::harness::{Cluster, until};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::wire::tls_trusting_all;

/// As many as brought other servers down (CVE-2024-47609 of tonic).
const RESETS: usize = 10_000;
const AT_ONCE: usize = 50;
/// The least that rustls makes.
const FRAGMENT_BYTES: usize = 32;
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Address, certificate and protocol of each port, with a caller who is welcome there.
fn ports(cluster: &Cluster) -> [(String, TlsConnector); 2] {
    let connector = |folder: PathBuf, file: &str, protocol: &[u8]| {
        tls_trusting_all(&folder.join(format!("{file}.crt")), &folder.join(format!("{file}.key")), protocol)
    };
    let (client, peer) = (cluster.folder().join("client"), cluster.node_folder(0).join("certs"));
    [
        (cluster.endpoint(0), connector(client, "client", b"h2")),
        (cluster.peer_endpoint(0), connector(peer, "peer", b"charthold-peer/1")),
    ]
}

async fn write(cluster: &Cluster, patient: &str) {
    let (chart, record) = (Chart::patient(patient), RecordId::new("Note", "n"));
    let written = cluster.client().put(&chart, &record, Put::new("text/plain", "kept")).await.unwrap();
    assert_eq!(written.versions, [1]);
}

fn open_files(id: u32) -> usize {
    std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_broken_handshakes_leave_nothing_behind() {
    let mut cluster = Cluster::start(1).await;
    write(&cluster, "before").await;
    let id = cluster.process(0).id();
    let before = open_files(id);
    for (address, connector) in ports(&cluster) {
        let mut hello = Vec::new();
        let mut client = rustls::ClientConnection::new(Arc::clone(connector.config()), name()).unwrap();
        client.write_tls(&mut hello).unwrap();
        for round in 0..RESETS / 2 / AT_ONCE {
            let resets = (0..AT_ONCE).map(|number| reset(&address, &hello[..(round * AT_ONCE + number) % hello.len()]));
            futures::future::join_all(resets).await;
        }
    }
    write(&cluster, "after").await;
    assert!(cluster.is_running(0));
    until("nothing of them is open", || async {
        let now = open_files(id);
        if now <= before + 8 { Ok(()) } else { Err(format!("{before} files, now {now}")) }
    })
    .await;
}

/// Says a part of a hello, then breaks the connection off without a word.
async fn reset(address: &str, bytes: &[u8]) {
    // The node may refuse some of so many: that is as good.
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    let _refused = stream.write_all(bytes).await;
    let _refused = stream.set_zero_linger();
}

/// A ClientHello over many records (CVE-2024-11738 of rustls): legal, if odd.
#[tokio::test(flavor = "multi_thread")]
async fn a_hello_in_pieces_is_a_hello() {
    let mut cluster = Cluster::start(1).await;
    for (address, connector) in ports(&cluster) {
        let mut config = rustls::ClientConfig::clone(connector.config());
        config.max_fragment_size = Some(FRAGMENT_BYTES);
        let connector = TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(&address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut stream = connector.connect(name(), stream).await.unwrap();
        stream.write_all(HTTP2).await.unwrap();
        if address == cluster.endpoint(0) {
            let first = tokio::time::timeout(Duration::from_secs(30), stream.read_u8()).await.expect("an answer");
            assert!(first.is_ok(), "{address}: {first:?}");
        }
    }
    write(&cluster, "after").await;
    assert!(cluster.is_running(0));
}
