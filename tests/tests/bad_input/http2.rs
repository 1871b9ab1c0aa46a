//! HTTP/2 by hand: frames that no library would send, over TLS under any certificate.

use charthold_tests::harness::Cluster;
use prost::Message;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::wire::tls;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;

pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A call's headers: literal, no compression.
pub fn headers(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let path = format!("/{method}");
    let own = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "localhost"),
        (":path", &path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in own.iter().chain(more) {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "longer ones need another encoding");
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A message as gRPC sends it.
pub fn message(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

pub struct Http2(TlsStream<TcpStream>);

impl Http2 {
    /// As the owner of a profile; `window` is what each stream may be sent.
    pub async fn connect(cluster: &Cluster, profile: &str, window: u32) -> Self {
        let mut connection = Self::silent(cluster, profile).await;
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let setting = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &window.to_be_bytes()].concat();
        hello.extend(frame(SETTINGS, 0, 0, &setting));
        connection.send(&hello).await.unwrap();
        connection
    }

    /// TLS, and nothing after that.
    pub async fn silent(cluster: &Cluster, profile: &str) -> Self {
        let folder = cluster.folder().join(profile);
        let tls = tls(&folder.join("service-ca.crt"), &folder.join("client.crt"), &folder.join("client.key"), b"h2");
        let stream = TcpStream::connect(cluster.endpoint(0)).await.unwrap();
        Self(tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap())
    }

    pub async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// The next frame, nothing at the end. Pings and settings are answered: this end is alive.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let frame = Frame { kind: head[3], flags: head[4], stream, payload };
            if matches!(frame.kind, PING | SETTINGS) {
                if frame.flags & ACK == 0 {
                    let answer = if frame.kind == PING { frame.payload.as_slice() } else { &[] };
                    self.send(&self::frame(frame.kind, ACK, 0, answer)).await.ok()?;
                }
                continue;
            }
            return Some(frame);
        }
    }

    /// Until the other side has closed the connection.
    pub async fn closed(&mut self) {
        while self.next().await.is_some() {}
    }

    /// The first frame of that kind.
    pub async fn first(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }
}
