//! Writes of an HTTP/2 connection, gathered: what a task writes in one turn leaves as one TLS record and one system call.
//!
//! HTTP/2 flushes after each message of some hundred bytes (h2, `codec/framed_write.rs`), and TLS makes a record and a
//! system call of each. Beside hundreds of calls under way that is most of what a small answer costs. Here a flush asks
//! for the task's next turn, which comes after those of all tasks that are ready by now: their messages go along. Where
//! nothing else is to be done, that is at once.
//!
//! Owns what is written and has not left, some 32 KiB a connection. Must not know what it is.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Two TLS records: what is more leaves at once.
const GATHERED_BYTES_MAX: usize = 32 << 10;

/// A connection whose reader and writer are one task, which reads first in each of its turns: as h2's does.
pub struct Gathered<S> {
    io: S,
    written: Vec<u8>,
    /// How much of it has left.
    left: usize,
    /// In the task's next turn all is to leave.
    due: bool,
}

impl<S> Gathered<S> {
    /// Nothing was written to it yet.
    pub fn new(io: S) -> Self {
        Self { io, written: Vec::new(), left: 0, due: false }
    }

    fn room(&self) -> usize {
        GATHERED_BYTES_MAX - self.written.len()
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left < self.written.len() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.written[self.left..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.left += count;
        }
        self.written.clear();
        self.left = 0;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.due = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // What cannot leave yet has noted the task, as has the read.
        let left = if self.due { self.poll_leave(cx) } else { Poll::Pending };
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        match left {
            // What the other end said before it went is still to be heard.
            Poll::Ready(Err(error)) if buf.filled().len() == before => Poll::Ready(Err(error)),
            _ => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.room() == 0 {
            ready!(self.poll_leave(cx))?;
        }
        let mut count = 0;
        for buf in bufs {
            let taken = buf.len().min(self.room());
            self.written.extend_from_slice(&buf[..taken]);
            count += taken;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.written.is_empty() && !self.due {
            self.due = true;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_leave(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    /// The other end: takes so many bytes at a time, every so often nothing.
    #[derive(Default)]
    struct Wire {
        taken: Vec<u8>,
        writes: usize,
        bytes_max: Option<usize>,
        /// Each second write has to wait.
        busy: bool,
        polls: usize,
        shut: bool,
        /// Said before it went: no write succeeds any more.
        last_words: Option<Vec<u8>>,
    }

    impl AsyncRead for Wire {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let Some(words) = &mut self.last_words else { return Poll::Pending };
            buf.put_slice(&std::mem::take(words));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.polls += 1;
            if self.last_words.is_some() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if self.busy && self.polls.is_multiple_of(2) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let count = buf.len().min(self.bytes_max.unwrap_or(usize::MAX));
            self.taken.extend_from_slice(&buf[..count]);
            self.writes += 1;
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut = true;
            Poll::Ready(Ok(()))
        }
    }

    /// A task that counts how often it is to be polled.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Bench {
        task: Arc<Task>,
        connection: Gathered<Wire>,
        said: Vec<u8>,
    }

    impl Bench {
        fn new(wire: Wire) -> Self {
            Self { task: Arc::default(), connection: Gathered::new(wire), said: Vec::new() }
        }

        fn with<T>(&mut self, poll: impl FnOnce(Pin<&mut Gathered<Wire>>, &mut Context<'_>) -> T) -> T {
            let waker = Waker::from(Arc::clone(&self.task));
            poll(Pin::new(&mut self.connection), &mut Context::from_waker(&waker))
        }

        /// As a task's turn begins.
        fn read(&mut self) {
            let read = self.with(|connection, cx| connection.poll_read(cx, &mut ReadBuf::new(&mut [0; 16])));
            assert!(read.is_pending());
        }

        /// What is taken of a message is told.
        fn write(&mut self, message: &[u8]) -> Poll<usize> {
            let (head, body) = message.split_at(message.len() / 2);
            let slices = [IoSlice::new(head), IoSlice::new(body)];
            let written = self.with(|connection, cx| connection.poll_write_vectored(cx, &slices));
            let count = written.map(Result::unwrap);
            if let Poll::Ready(count) = count {
                self.said.extend_from_slice(&message[..count]);
            }
            count
        }

        fn flush(&mut self) {
            assert!(matches!(self.with(|connection, cx| connection.poll_flush(cx)), Poll::Ready(Ok(()))));
        }

        fn woken(&self) -> usize {
            self.task.0.load(Ordering::SeqCst)
        }

        fn wire(&self) -> &Wire {
            &self.connection.io
        }
    }

    #[test]
    fn what_is_flushed_in_one_turn_leaves_as_one_in_the_next() {
        let mut bench = Bench::new(Wire::default());
        bench.flush();
        assert_eq!(bench.woken(), 0, "nothing is to leave");
        for message in [b"one", b"two"] {
            assert_eq!(bench.write(message), Poll::Ready(3));
            bench.flush();
        }
        assert_eq!((bench.wire().writes, bench.woken()), (0, 1), "gathered, and asked for one turn");
        bench.read();
        assert_eq!((bench.wire().writes, bench.wire().taken.as_slice()), (1, b"onetwo".as_slice()));
        bench.read();
        assert_eq!((bench.wire().writes, bench.woken()), (1, 1));
    }

    #[test]
    fn what_is_not_flushed_waits() {
        let mut bench = Bench::new(Wire::default());
        assert_eq!(bench.write(b"half"), Poll::Ready(4));
        bench.read();
        assert_eq!((bench.wire().writes, bench.woken()), (0, 0));
    }

    #[test]
    fn more_than_is_gathered_leaves_at_once() {
        let mut bench = Bench::new(Wire::default());
        let message = vec![7; GATHERED_BYTES_MAX + 1];
        assert_eq!(bench.write(&message), Poll::Ready(GATHERED_BYTES_MAX));
        assert_eq!(bench.write(&message[GATHERED_BYTES_MAX..]), Poll::Ready(1));
        assert_eq!(bench.wire().taken.len(), GATHERED_BYTES_MAX);
    }

    #[test]
    fn the_end_takes_all_along() {
        let mut bench = Bench::new(Wire::default());
        assert_eq!(bench.write(b"last words"), Poll::Ready(10));
        assert!(matches!(bench.with(|connection, cx| connection.poll_shutdown(cx)), Poll::Ready(Ok(()))));
        assert!(bench.wire().shut);
        assert_eq!(bench.wire().taken, b"last words");
    }

    #[test]
    fn last_words_are_heard_before_it_is_told_that_nothing_leaves_any_more() {
        let mut bench = Bench::new(Wire { last_words: Some(b"done".to_vec()), ..Wire::default() });
        assert_eq!(bench.write(b"more"), Poll::Ready(4));
        bench.flush();
        let mut bytes = [0; 16];
        let mut buf = ReadBuf::new(&mut bytes);
        assert!(matches!(bench.with(|connection, cx| connection.poll_read(cx, &mut buf)), Poll::Ready(Ok(()))));
        assert_eq!(buf.filled(), b"done");
        let nothing_more = bench.with(|connection, cx| connection.poll_read(cx, &mut buf));
        assert!(matches!(nothing_more, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe));
    }

    /// A wire that takes 5,000 bytes at a time and is busy every other time: all arrives, in order.
    #[test]
    fn a_slow_wire_gets_everything_in_order() {
        let mut bench = Bench::new(Wire { bytes_max: Some(5_000), busy: true, ..Wire::default() });
        for round in 0..200_usize {
            let message = vec![round as u8; 37 * round + 1];
            let mut rest = message.as_slice();
            while !rest.is_empty() {
                if let Poll::Ready(count) = bench.write(rest) {
                    rest = &rest[count..];
                }
            }
            bench.flush();
            if round.is_multiple_of(3) {
                bench.read();
            }
        }
        while bench.wire().taken.len() < bench.said.len() {
            let before = bench.woken();
            bench.read();
            assert!(bench.wire().taken.len() == bench.said.len() || bench.woken() > before, "it would stand still");
        }
        assert_eq!(bench.wire().taken, bench.said);
    }
}
