//! A site that turned on the others: it has a node's certificate and the start of its data directory, and says what no
//! node says. What is no message ends its connection, what makes no sense is refused; the others serve on.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use charthold_client::{Chart, Put, RecordId};
use charthold_proto::internal as pb;
use charthold_replica::format;
use charthold_replica::peer::frame::{Assembler, Kind, Message, PAYLOAD_BYTES_MAX};
use charthold_tests::harness::{CLUSTER, Cluster, resident_mib};
use prost::Message as _;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::wire::tls_trusting_all;

const ENDED_MAX: Duration = Duration::from_secs(30);
/// Above what the node needs anyway: what is half-received from one peer, its calls, and what waits to be sent to it.
const GROWTH_MIB_MAX: u64 = 256;
/// No shard has this number.
const NO_SHARD: u16 = 999;

/// A connection that was let in, as the third node.
struct Impostor {
    stream: TlsStream<TcpStream>,
    input: BytesMut,
    assembler: Assembler,
}

impl Impostor {
    async fn connect(cluster: &Cluster) -> Self {
        let certs = cluster.node_folder(2).join("certs");
        let connector = tls_trusting_all(&certs.join("peer.crt"), &certs.join("peer.key"), b"charthold-peer/1");
        let stream = TcpStream::connect(cluster.peer_endpoint(0)).await.unwrap();
        let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        let mut impostor = Self { stream, input: BytesMut::new(), assembler: Assembler::default() };
        impostor.send(Kind::Hello, 0, 0, hello(&cluster.data_dir(2)).encode_to_vec()).await;
        let answer = impostor.message().await.expect("an answer to the hello");
        let answer = pb::Hello::decode(answer.payload).unwrap();
        assert_eq!(answer.refused, "", "the impostor is to be let in");
        impostor
    }

    async fn send(&mut self, kind: Kind, shard: u16, id: u64, payload: impl Into<Bytes>) {
        let mut message = Message { kind, shard, id, payload: payload.into() };
        let mut bytes = BytesMut::new();
        while !message.write_frame(&mut bytes) {}
        // It may have been thrown out already: that shows in the next read.
        let _thrown_out = self.stream.write_all(&bytes).await;
    }

    /// The next message that is not the other end's own business; nothing: it has closed the connection.
    async fn message(&mut self) -> Option<Message> {
        let deadline = Instant::now() + ENDED_MAX;
        loop {
            match self.assembler.next(&mut self.input).expect("frames") {
                Some(message) if message.kind == Kind::Ping => {}
                Some(message) => return Some(message),
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let read = tokio::time::timeout(left, self.stream.read_buf(&mut self.input)).await;
                    match read.expect("an answer, or the end of the connection") {
                        Ok(0) | Err(_) => return None,
                        Ok(_) => {}
                    }
                }
            }
        }
    }

    /// Until the other end closes the connection.
    async fn until_thrown_out(mut self, why: &str) {
        let end = async { while self.message().await.is_some() {} };
        tokio::time::timeout(ENDED_MAX, end).await.unwrap_or_else(|_| panic!("{why}: the connection lives on"));
    }
}

/// As the node said it at its last start.
fn hello(data: &Path) -> pb::Hello {
    let identity = std::fs::read_to_string(data.join("IDENTITY")).unwrap();
    let id = identity.lines().find_map(|line| line.strip_prefix("id ")).unwrap();
    let boot = std::fs::read_to_string(data.join("BOOT")).unwrap();
    let (counter, nonce) = boot.trim().split_once(' ').unwrap();
    let boot = pb::Boot { counter: counter.parse().unwrap(), nonce: u64::from_str_radix(nonce, 16).unwrap() };
    pb::Hello {
        format_min: format::OLDEST,
        format_max: format::NEWEST,
        cluster: CLUSTER.to_owned(),
        member: Some(pb::Member {
            id: u64::from_str_radix(id, 16).unwrap(),
            name: "c1".to_owned(),
            site: "c".to_owned(),
            keyed: true,
            ..pb::Member::default()
        }),
        boot: Some(boot),
        lane: pb::hello::Lane::Bulk as i32,
        ..pb::Hello::default()
    }
}

fn frame(kind: u8, more: u8, id: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32(12 + payload.len() as u32);
    bytes.put_u8(kind);
    bytes.put_u8(more);
    bytes.put_u16(1);
    bytes.put_u64(id);
    bytes.put_slice(payload);
    bytes
}

async fn serves_on(cluster: &mut Cluster, number: u64) {
    assert!(cluster.is_running(0), "the node has ended:\n{}", cluster.last_words());
    let (client, chart) = (cluster.client_at(0), Chart::patient(format!("p{number}")));
    client.put(&chart, &RecordId::new("Note", "n"), Put::new("text/plain", "kept")).await.unwrap();
    for earlier in 0..=number {
        let record = client.get(&Chart::patient(format!("p{earlier}")), &RecordId::new("Note", "n")).await.unwrap();
        assert_eq!((record.version(), record.body.as_ref()), (1, &b"kept"[..]));
    }
}

/// Three nodes, the third of them dead: the impostor speaks in its name.
async fn start() -> Cluster {
    let mut cluster = Cluster::start(3).await;
    cluster.kill(2);
    cluster.wait_ready().await;
    cluster
}

/// The node comes back as if nothing had been said in its name, and agrees with the others.
async fn and_comes_back(mut cluster: Cluster) {
    let log = std::fs::read_to_string(cluster.log(0)).unwrap();
    assert!(!log.contains("panicked"), "{}", cluster.last_words());
    cluster.restart(2);
    cluster.wait_ready().await;
    cluster.wait_roots_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_frame_ends_the_connection() {
    let mut cluster = start().await;
    let long = vec![7; PAYLOAD_BYTES_MAX];
    let cases: [(&str, Vec<u8>); 8] = [
        ("a frame of no bytes", vec![0, 0, 0, 0]),
        ("a frame without a header", vec![0, 0, 0, 11, 22, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
        ("a frame of 4 GiB", vec![0xff; 64]),
        ("a frame a byte too long", frame(Kind::Echo as u8, 0, 1, &[long.as_slice(), &[7]].concat())),
        ("a kind that is not known", frame(99, 0, 1, b"")),
        ("a message without an end", (0..80).flat_map(|_| frame(Kind::Append as u8, 1, 1, &long)).collect()),
        ("many messages without an end", (0..64).flat_map(|id| frame(Kind::Append as u8, 1, id, b"x")).collect()),
        ("an answer to nothing", frame(Kind::Reply as u8, 0, 1, b"")),
    ];
    for (number, (what, bytes)) in (0..).zip(cases) {
        let mut impostor = Impostor::connect(&cluster).await;
        let _thrown_out = impostor.stream.write_all(&bytes).await;
        impostor.until_thrown_out(what).await;
        serves_on(&mut cluster, number).await;
    }
    let mut impostor = Impostor::connect(&cluster).await;
    impostor.send(Kind::Hello, 0, 0, hello(&cluster.data_dir(2)).encode_to_vec()).await;
    impostor.until_thrown_out("a second hello").await;
    // Half a frame, and then nothing more.
    let mut impostor = Impostor::connect(&cluster).await;
    let _thrown_out = impostor.stream.write_all(&frame(Kind::Echo as u8, 0, 1, b"half")[..14]).await;
    impostor.until_thrown_out("half a frame").await;
    and_comes_back(cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let mut cluster = start().await;
    let requests =
        [Kind::Vote, Kind::PreVote, Kind::TransferLeader, Kind::ReadIndex, Kind::Forward, Kind::Append, Kind::Snapshot];
    let garbage: [&[u8]; 4] = [&[], &[0xff; 40], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], &[0x12, 0x02, 0x08]];
    for (number, kind) in (0..).zip(requests) {
        for shard in [1, NO_SHARD] {
            // By itself, since some of it ends the connection.
            for payload in garbage {
                let mut impostor = Impostor::connect(&cluster).await;
                impostor.send(kind, shard, 5, payload).await;
                let answer = impostor.message().await;
                // A question without content may be answered, if its shard is one.
                let refused = answer.as_ref().is_none_or(|answer| answer.kind == Kind::ReplyError);
                assert!(refused || (shard != NO_SHARD && payload.is_empty()), "{kind:?} {payload:?}: {answer:?}");
            }
        }
        serves_on(&mut cluster, number).await;
    }
    and_comes_back(cluster).await;
}

/// Calls by the thousand whose answers it never reads; streams by the thousand that it never ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_floods_costs_a_bounded_amount() {
    let mut cluster = start().await;
    let before = resident_mib(cluster.process(0).id());
    let mut highest = before;
    for (number, kind) in (0..).zip([Kind::NodeStatus, Kind::Echo, Kind::Forward, Kind::Append, Kind::Snapshot]) {
        let mut impostor = Impostor::connect(&cluster).await;
        let payload = vec![0x7f; 1 << 10];
        let flood = async {
            for id in 0..50_000 {
                let bytes = frame(kind as u8, 0, id, &payload);
                if impostor.stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        // It is thrown out, or held up because nobody reads what it says.
        let _held_up = tokio::time::timeout(Duration::from_secs(3), flood).await;
        highest = highest.max(resident_mib(cluster.process(0).id()));
        serves_on(&mut cluster, number).await;
    }
    assert!(highest < before + GROWTH_MIB_MAX, "{before} MiB before, up to {highest} MiB");
    and_comes_back(cluster).await;
}
