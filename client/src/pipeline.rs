//! Many calls to one gateway on one stream, `Charts.Pipeline`: what a client uses by itself while it has many under way.
//!
//! Owns the stream and who waits for which answer. A stream that ends leaves them without one: `retry.rs` judges that as
//! it judges a connection that broke. A gateway that does not know the call gets calls by themselves.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use charthold_proto::v1;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};
use v1::pipeline_request::Call;
use v1::pipeline_response::Answer;

use crate::charts::stub;
use crate::retry::Attempt;
use crate::{lock, request, trace};

/// With so many calls under way at a gateway, the next goes onto the stream.
const CALLS_FROM: usize = 4;
/// A larger message goes by itself: it would hold up the others, and be more than the stream takes.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Unanswered ones, those whose callers have gone among them: with so many, calls go by themselves.
const UNANSWERED_MAX: usize = 192;
/// A gateway that does not know streams is asked again.
const UNKNOWN_FOR: Duration = Duration::from_secs(600);
/// Requests that wait for the stream to take them; more wait in their callers.
const QUEUED_MAX: usize = 256;

/// The calls to one gateway, and their stream when there is one.
#[derive(Default)]
pub(crate) struct Pipeline {
    under_way: AtomicUsize,
    stream: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    None,
    /// Somebody is at it; others make calls by themselves meanwhile.
    Opening,
    Open(Arc<Stream>),
    /// The gateway is older than this client; it may be upgraded.
    Unknown {
        until: Instant,
    },
}

/// Counts a call while it lives.
struct UnderWay(Arc<Pipeline>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One call of a kind that a stream can carry.
macro_rules! call {
    ($name:ident, $variant:ident, $request:ty, $response:ty) => {
        pub(crate) fn $name(
            attempt: Attempt,
            message: &$request,
            streams: bool,
        ) -> impl Future<Output = Result<$response, Status>> + use<> {
            let (request, traceparent) = (request(message, attempt.timeout), trace::current());
            let fits = streams && message.encoded_len() <= MESSAGE_BYTES_MAX;
            async move {
                let (stream, _under_way) = attempt.pipeline.join(&attempt.channel, fits);
                let Some(stream) = stream else {
                    // Apart: gRPC's part of it is several KiB, which every call would carry along.
                    let mut stub = stub(attempt.channel);
                    return Box::pin(stub.$name(request)).await.map(Response::into_inner);
                };
                match stream.call(Call::$variant(request.into_inner()), attempt.timeout, traceparent).await? {
                    Answer::$variant(answer) => Ok(answer),
                    _ => Err(Status::internal("an answer to another call")),
                }
            }
        }
    };
}

call!(commit, Commit, v1::CommitRequest, v1::CommitResponse);
call!(get, Get, v1::GetRequest, v1::GetResponse);
call!(batch_get, BatchGet, v1::BatchGetRequest, v1::BatchGetResponse);

impl Pipeline {
    /// One more call: on the stream, or by itself.
    fn join(self: &Arc<Self>, channel: &Channel, fits: bool) -> (Option<Arc<Stream>>, UnderWay) {
        let others = self.under_way.fetch_add(1, Ordering::Relaxed);
        let under_way = UnderWay(Arc::clone(self));
        (if fits && others >= CALLS_FROM { self.stream(channel) } else { None }, under_way)
    }

    /// The stream, if there is one; else has it opened.
    fn stream(self: &Arc<Self>, channel: &Channel) -> Option<Arc<Stream>> {
        let mut state = lock(&self.stream);
        match &*state {
            State::Open(stream) if !stream.has_ended() => {
                return Some(Arc::clone(stream)).filter(|stream| stream.has_room());
            }
            State::Opening => return None,
            State::Unknown { until } if Instant::now() < *until => return None,
            State::Open(_) | State::None | State::Unknown { .. } => {}
        }
        *state = State::Opening;
        let (opening, channel) = (Opening(Arc::downgrade(self)), channel.clone());
        tokio::spawn(async move {
            opening.becomes(match Stream::open(channel).await {
                Ok(stream) => State::Open(Arc::new(stream)),
                Err(status) if status.code() == Code::Unimplemented => {
                    State::Unknown { until: Instant::now() + UNKNOWN_FOR }
                }
                // Whatever it is, the calls by themselves find out.
                Err(_) => State::None,
            });
        });
        None
    }
}

/// Somebody's try to open a stream. If he goes away, the next one may.
struct Opening(Weak<Pipeline>);

impl Opening {
    fn becomes(&self, state: State) {
        if let Some(pipeline) = self.0.upgrade() {
            *lock(&pipeline.stream) = state;
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(pipeline) = self.0.upgrade() {
            let mut state = lock(&pipeline.stream);
            if let State::Opening = *state {
                *state = State::None;
            }
        }
    }
}

type Waiting = Mutex<HashMap<u64, oneshot::Sender<Result<Answer, Status>>>>;

/// One stream. Dropping it ends it.
struct Stream {
    requests: mpsc::Sender<v1::PipelineRequest>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Shared {
    waiting: Waiting,
    unanswered: AtomicUsize,
    ended: AtomicBool,
}

/// Forgets a call whose caller went away.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).remove(&self.id);
    }
}

impl Stream {
    async fn open(channel: Channel) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(QUEUED_MAX);
        let answers = stub(channel).pipeline(ReceiverStream::new(queue)).await?.into_inner();
        let shared = Arc::<Shared>::default();
        tokio::spawn(Arc::clone(&shared).take_answers(answers));
        Ok(Self { requests, shared, next_id: AtomicU64::new(1) })
    }

    fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::SeqCst) || self.requests.is_closed()
    }

    fn has_room(&self) -> bool {
        self.shared.unanswered.load(Ordering::Relaxed) < UNANSWERED_MAX
    }

    async fn call(&self, call: Call, timeout: Duration, traceparent: String) -> Result<Answer, Status> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.shared.waiting).insert(id, answer);
        let forget = Forget { waiting: &self.shared.waiting, id };
        // After the insertion: who ends the stream either sees it, or is seen here.
        if self.has_ended() {
            return Err(ended());
        }
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        let request = v1::PipelineRequest { id, timeout_ms, traceparent, call: Some(call) };
        let place = self.requests.reserve().await.map_err(|_| ended())?;
        self.shared.unanswered.fetch_add(1, Ordering::Relaxed);
        place.send(request);
        let answer = answered.await.unwrap_or_else(|_| Err(ended()));
        drop(forget);
        match answer? {
            Answer::Error(error) => Err(status(error)),
            answer => Ok(answer),
        }
    }
}

impl Shared {
    async fn take_answers(self: Arc<Self>, mut answers: Streaming<v1::PipelineResponse>) {
        let _end = End(&self);
        // What a stream ends with says nothing of any call on it: they are made again, and told by themselves.
        while let Ok(Some(v1::PipelineResponse { id, answer })) = answers.message().await {
            self.unanswered.fetch_sub(1, Ordering::Relaxed);
            let answer = answer.ok_or_else(|| Status::internal("an answer without content"));
            if let Some(waiting) = lock(&self.waiting).remove(&id) {
                // Its caller may have gone.
                let _gone = waiting.send(answer);
            }
        }
    }
}

/// However it comes: who waits hears that the stream has ended.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
        lock(&self.0.waiting).clear();
    }
}

/// Why a call on a stream has no answer. Its gateway may be well: if the connection broke, the next call finds out.
#[derive(Debug, thiserror::Error)]
#[error("the stream of calls has ended")]
pub(crate) struct StreamEnded;

pub(crate) fn ended() -> Status {
    let mut status = Status::unavailable(StreamEnded.to_string());
    status.set_source(Arc::new(StreamEnded));
    status
}

fn status(encoded: bytes::Bytes) -> Status {
    match tonic_types::pb::Status::decode(encoded.clone()) {
        Ok(status) => Status::with_details(Code::from(status.code), status.message, encoded),
        Err(_) => Status::internal("an error that cannot be read"),
    }
}
