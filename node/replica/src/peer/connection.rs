//! One connection after its handshake: bytes to messages and back, for either end.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{Assembler, Kind, Message};
use super::outbox::Outbox;
use super::transport::Stream;
use super::{IDLE_MAX, PING_AFTER};

const READ_BYTES: usize = 64 << 10;

/// Moves messages until the connection breaks, idles too long, or `on_message` refuses one. Closes the outbox.
pub async fn run(
    stream: Box<dyn Stream>,
    outbox: &Outbox,
    on_message: impl FnMut(Message) -> io::Result<()>,
) -> io::Error {
    let (reader, writer) = tokio::io::split(stream);
    let ended = tokio::select! {
        ended = read(reader, on_message) => ended,
        ended = write(writer, outbox) => ended,
    };
    outbox.close();
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
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
            if message.kind != Kind::Ping {
                on_message(message)?;
            }
        }
    }
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
