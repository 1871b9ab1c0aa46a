//! What a request's body and an answer's body must do: make progress, and hold no more memory than there is for them.
//!
//! | limit | what is beyond it |
//! | --- | --- |
//! | [`ARRIVAL_MAX`] waiting for each [`ARRIVAL_BYTES`] of a request, or its end; of a stream of requests, for each | answered REQUEST_INCOMPLETE |
//! | [`CONNECTION_KIB_MAX`] of half-received messages on a connection | answered OVERLOADED |
//! | [`GATEWAY_KIB_MAX`] of them in all | answered OVERLOADED |
//! | [`EMPTY_FRAMES_MAX`] empty frames in a row | answered INVALID_FIELD |
//! | [`READER_STALLS_MAX`] without taking a piece of an answer that is there | the stream is reset |
//!
//! A piece of an answer that a client does not take is seen from the outside only: HTTP/2 asks the body for the next
//! piece when the one before has left. So beside each stream runs a watch that looks when it asked last.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use super::connections::Running;
use super::error::GatewayError;

/// Time spent waiting, not the time a call takes.
pub const ARRIVAL_MAX: Duration = Duration::from_secs(30);
pub const ARRIVAL_BYTES: usize = 64 << 10;
pub const EMPTY_FRAMES_MAX: u32 = 100;
/// A body counts with what it has brought of a message that is not whole yet. No message may be larger than this.
const MESSAGE_KIB_MAX: u32 = 8 << 10;
/// HTTP/2's frames are no larger.
const FRAME_KIB_MAX: u32 = 16;
pub const CONNECTION_KIB_MAX: usize = 64 << 10;
pub const GATEWAY_KIB_MAX: usize = 256 << 10;
pub const READER_STALLS_MAX: Duration = Duration::from_secs(60);
const STALLS_LOOK: Duration = Duration::from_secs(5);

/// Room for half-received messages.
#[derive(Clone)]
pub(super) struct Room {
    gateway: Arc<Semaphore>,
    connection: Arc<Semaphore>,
}

impl Room {
    pub fn of_gateway() -> Self {
        let gateway = Arc::new(Semaphore::new(GATEWAY_KIB_MAX));
        Self { connection: Arc::clone(&gateway), gateway }
    }

    pub fn of_connection(&self) -> Self {
        Self { gateway: Arc::clone(&self.gateway), connection: Arc::new(Semaphore::new(CONNECTION_KIB_MAX)) }
    }

    fn take(&self, kib: u32) -> Result<[OwnedSemaphorePermit; 2], Status> {
        let take = |from: &Arc<Semaphore>| Arc::clone(from).try_acquire_many_owned(kib);
        match (take(&self.connection), take(&self.gateway)) {
            (Ok(connection), Ok(gateway)) => Ok([connection, gateway]),
            _ => Err(GatewayError::Overloaded.into()),
        }
    }
}

/// A request's body on its way in.
pub(super) struct RequestBody {
    inner: Incoming,
    room: Room,
    held: Option<[OwnedSemaphorePermit; 2]>,
    message: HalfMessage,
    /// A stream of requests: between two of them nothing is waited for.
    many: bool,
    empty_frames: u32,
    /// Since the last progress: bytes, and the time that was spent waiting for them.
    recent_bytes: usize,
    waited: Duration,
    waiting_since: Option<Instant>,
    alarm: Pin<Box<Sleep>>,
}

impl RequestBody {
    pub fn new(inner: Incoming, room: Room, many: bool) -> Self {
        Self {
            inner,
            room,
            held: None,
            message: HalfMessage::default(),
            many,
            empty_frames: 0,
            recent_bytes: 0,
            waited: Duration::ZERO,
            waiting_since: None,
            alarm: Box::pin(sleep(ARRIVAL_MAX)),
        }
    }

    /// Room for what has come and one more frame.
    fn make_room(&mut self) -> Result<(), Status> {
        let received_kib = u32::try_from(self.message.received_bytes.div_ceil(1 << 10)).unwrap_or(MESSAGE_KIB_MAX);
        let needed = received_kib.saturating_add(FRAME_KIB_MAX).min(MESSAGE_KIB_MAX);
        let held = self.held.as_ref().map_or(0, |[permit, _]| permit.num_permits() as u32);
        if needed <= held {
            return Ok(());
        }
        let [connection, gateway] = self.room.take(needed - held)?;
        match &mut self.held {
            Some(held) => {
                held[0].merge(connection);
                held[1].merge(gateway);
            }
            None => self.held = Some([connection, gateway]),
        }
        Ok(())
    }

    fn waits(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        if self.many && self.message.received_bytes == 0 {
            // A stream that rests holds nothing.
            self.held = None;
            return Poll::Pending;
        }
        if self.waiting_since.is_none() {
            let now = Instant::now();
            self.waiting_since = Some(now);
            self.alarm.as_mut().reset(now + ARRIVAL_MAX.saturating_sub(self.waited));
        }
        self.alarm.as_mut().poll(context).map(|()| GatewayError::Incomplete.into())
    }

    fn came(&mut self, data: &[u8]) -> Result<(), Status> {
        self.waited += self.waiting_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.message.grow(data);
        if self.message.received_bytes == 0 {
            self.held = None;
            self.waited = if self.many { Duration::ZERO } else { self.waited };
        }
        self.recent_bytes += data.len();
        if self.recent_bytes >= ARRIVAL_BYTES {
            (self.recent_bytes, self.waited) = (0, Duration::ZERO);
        }
        self.empty_frames = if data.is_empty() { self.empty_frames + 1 } else { 0 };
        if self.empty_frames > EMPTY_FRAMES_MAX {
            return Err(GatewayError::field("message", "comes as empty frames").into());
        }
        Ok(())
    }
}

/// How much of a message has come: a prefix of 5 bytes, the last four its length, then the message.
#[derive(Default)]
struct HalfMessage {
    received_bytes: usize,
    prefix: [u8; 5],
}

impl HalfMessage {
    fn grow(&mut self, mut data: &[u8]) {
        while let Some(first) = data.first() {
            if let Some(byte) = self.prefix.get_mut(self.received_bytes) {
                *byte = *first;
                self.received_bytes += 1;
                data = &data[1..];
            } else {
                let came = data.len().min(self.whole_bytes() - self.received_bytes);
                self.received_bytes += came;
                data = &data[came..];
            }
            if self.received_bytes >= self.prefix.len() && self.received_bytes == self.whole_bytes() {
                self.received_bytes = 0;
            }
        }
    }

    /// Once the prefix is there.
    fn whole_bytes(&self) -> usize {
        let [_compressed, length @ ..] = self.prefix;
        self.prefix.len() + u32::from_be_bytes(length) as usize
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let body = self.get_mut();
        if let Err(full) = body.make_room() {
            return Poll::Ready(Some(Err(full.into())));
        }
        let frame = match Pin::new(&mut body.inner).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => return Poll::Ready(Some(Err(ready!(body.waits(context)).into()))),
        };
        if let Some(Ok(frame)) = &frame
            && let Err(refused) = body.came(frame.data_ref().map_or(&[], Bytes::as_ref))
        {
            return Poll::Ready(Some(Err(refused.into())));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body on its way out.
pub(super) struct ResponseBody {
    inner: Body,
    running: Running,
    offer: Arc<Offer>,
}

impl ResponseBody {
    /// Within the task of its stream: see [`Streams`].
    pub fn new(inner: Body, mut running: Running) -> Self {
        let offer = OFFER.try_with(Arc::clone).unwrap_or_default();
        match inner.is_end_stream() {
            true => running.finish(),
            false => offer.is_made(),
        }
        Self { inner, running, offer }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let body = self.get_mut();
        body.offer.is_taken();
        let frame = ready!(Pin::new(&mut body.inner).poll_frame(context));
        body.offer.is_made();
        if frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers)) {
            body.running.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

tokio::task_local! {
    static OFFER: Arc<Offer>;
}

/// The piece of an answer that waits to be taken.
struct Offer {
    base: Instant,
    /// Milliseconds from the base, and 0 while none waits.
    made_at_ms: AtomicU64,
}

impl Default for Offer {
    fn default() -> Self {
        Self { base: Instant::now(), made_at_ms: AtomicU64::new(0) }
    }
}

impl Offer {
    fn is_made(&self) {
        let elapsed = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.made_at_ms.store(elapsed.max(1), Ordering::Relaxed);
    }

    fn is_taken(&self) {
        self.made_at_ms.store(0, Ordering::Relaxed);
    }

    async fn stays(&self) {
        let mut look_at = self.base + READER_STALLS_MAX;
        loop {
            sleep_until(look_at).await;
            let made_at = self.made_at_ms.load(Ordering::Relaxed);
            if made_at > 0 && (self.base + Duration::from_millis(made_at)).elapsed() >= READER_STALLS_MAX {
                return;
            }
            look_at = Instant::now() + STALLS_LOOK;
        }
    }
}

/// Runs a connection's streams, each as long as its client takes what is there.
#[derive(Clone, Copy)]
pub(super) struct Streams;

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let offer = Arc::<Offer>::default();
        tokio::spawn(OFFER.scope(Arc::clone(&offer), async move {
            tokio::select! {
                _ended = stream => {}
                () = offer.stays() => {}
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_half_a_message_takes_room() {
        let stream = [&[0, 0, 0, 0, 3, 7, 7, 7][..], &[0, 0, 0, 0, 0], &[0, 0, 0, 1, 0], &[1; 200]].concat();
        // However it is cut into pieces, the same is left of it.
        for size in 1..stream.len() {
            let mut message = HalfMessage::default();
            stream.chunks(size).for_each(|piece| message.grow(piece));
            assert_eq!(message.received_bytes, 205, "pieces of {size}");
            message.grow(&[1; 56]);
            assert_eq!(message.received_bytes, 0);
        }
    }
}
