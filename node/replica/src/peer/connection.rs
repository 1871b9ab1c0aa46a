//! One connection after its handshake: bytes to messages and back, for either end.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{Assembler, Kind, Message};
use super::outbox::Outbox;
use super::registry::Presence;
use super::transport::Stream;
use super::{IDLE_MAX, PING_AFTER};

const READ_BYTES: usize = 64 << 10;

/// Moves messages until the connection breaks, idles too long, `on_message` refuses one, or a newer start of the peer is
/// seen: two lives of one node are never listened to. Closes the outbox.
pub async fn run(
    stream: Box<dyn Stream>,
    outbox: &Outbox,
    mut peer: Presence,
    on_message: impl FnMut(Message) -> io::Result<()>,
) -> io::Error {
    let (reader, writer) = tokio::io::split(stream);
    let ended = tokio::select! {
        ended = read(reader, peer.clone(), on_message) => ended,
        ended = write(writer, outbox) => ended,
        () = peer.superseded() => Err(superseded()),
    };
    outbox.close();
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    peer: Presence,
    mut on_message: impl FnMut(Message) -> io::Result<()>,
) -> io::Result<std::convert::Infallible> {
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let mut assembler = Assembler::default();
    loop {
        input.reserve(READ_BYTES);
        if within(IDLE_MAX, reader.read_buf(&mut input)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some(message) = assembler.next(&mut input)? {
            if !peer.is_current() {
                return Err(superseded());
            }
            if message.kind != Kind::Ping {
                on_message(message)?;
            }
        }
    }
}

fn superseded() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the peer has started again")
}

async fn write(mut writer: impl AsyncWrite + Unpin, outbox: &Outbox) -> io::Result<std::convert::Infallible> {
    let mut out = BytesMut::new();
    loop {
        match tokio::time::timeout(PING_AFTER, outbox.take(&mut out)).await {
            Ok(taken) => taken.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?,
            Err(_) => {
                Message { kind: Kind::Ping, shard: 0, id: 0, payload: Bytes::new() }.write_frame(&mut out);
            }
        }
        writer.write_all(&out).await?;
        writer.flush().await?;
        out.clear();
    }
}

async fn within<T>(limit: Duration, io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, io).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
