//! `Charts.Pipeline`: many calls on one stream.
//!
//! Each request is handed to the services as a call of its own, through the layers that a call passes which comes by
//! itself: so it is measured, admitted, checked, audited and answered like one. What is saved is HTTP/2's work for a
//! stream each, which is most of what a small call costs on the wire.
//!
//! | limit | what is beyond it |
//! | --- | --- |
//! | as many unanswered requests on a connection's streams as it may have calls | wait in the sender: they are not read |
//! | the bytes that requests may hold ([`super::admission`]) | answered OVERLOADED, the stream goes on |
//! | the places that there are for calls of a kind | as by themselves: a place is held until its answer has left |
//! | a message that cannot be read | ends the stream, when those before it are answered: what follows it cannot be told |

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use charthold_proto::v1;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::{Extensions, HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use prost::{DecodeError, Message};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status, Streaming};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};
use v1::pipeline_request::Call;
use v1::pipeline_response::Answer;

use super::admission::{AdmissionLayer, Hold};
use super::answer;
use super::connections::Activity;
use super::error::GatewayError;

/// Where a stream of requests is to be expected.
pub const PATH: &str = "/charthold.v1.Charts/Pipeline";
/// Answers that wait for the client to take them.
const ANSWERS_MAX: usize = 64;
/// Before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// What a stream's caller takes.
pub type Answers = BoxStream<'static, Result<v1::PipelineResponse, Status>>;

/// An answer, and what holds its call's place.
type Sent = Result<(v1::PipelineResponse, Option<Body>), Status>;

/// Reads the answer to a call.
type Take = fn(Bytes) -> Result<Answer, DecodeError>;

/// Where calls go, and who lets them in.
#[derive(Clone)]
struct Onward {
    calls: BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>,
    admission: AdmissionLayer,
}

/// In the extensions of every request: what its connection has for all its streams.
#[derive(Clone)]
pub(super) struct OfConnection {
    /// It is to end.
    pub leaving: CancellationToken,
    /// For calls on streams.
    pub turns: Arc<Semaphore>,
    pub activity: Arc<Activity>,
}

/// The services are what a pipeline's calls go to, and the pipeline is one of them: so this is set when they are there,
/// and cleared when they have ended. Else they would hold each other for ever, and the stores of their node with them.
#[derive(Clone, Default)]
pub struct Pipelines(Arc<Mutex<Option<Onward>>>);

impl Pipelines {
    pub fn lead_to<S>(&self, calls: &S, admission: AdmissionLayer)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        *self.0.lock() = Some(Onward { calls: BoxCloneSyncService::new(calls.clone()), admission });
    }

    /// Nothing is served any more.
    pub fn end(&self) {
        self.0.lock().take();
    }

    /// Serves a stream until its caller ends it, or its connection is to end; what came until then is answered.
    pub fn run(
        &self,
        extensions: Extensions,
        requests: Streaming<v1::PipelineRequest>,
    ) -> Result<Answers, GatewayError> {
        // Nothing: this node has stopped to serve.
        let onward = self.0.lock().clone().ok_or(GatewayError::NoQuorum)?;
        let (answers, receiver) = mpsc::channel(ANSWERS_MAX);
        tokio::spawn(serve(onward, extensions, requests, answers));
        Ok(ReceiverStream::new(receiver).map_ok(|(answer, _place)| answer).boxed())
    }
}

async fn serve(
    onward: Onward,
    extensions: Extensions,
    mut requests: Streaming<v1::PipelineRequest>,
    answers: mpsc::Sender<Sent>,
) {
    let Some(OfConnection { leaving, turns, activity }) = extensions.get::<OfConnection>().cloned() else { return };
    // Dropped with this task: who goes away does not keep his calls running.
    let (mut under_way, mut leaves) = (JoinSet::new(), false);
    let ended = loop {
        if leaves && under_way.is_empty() {
            break None;
        }
        let next = tokio::select! {
            next = requests.message() => next,
            Some(_) = under_way.join_next() => continue,
            () = leaving.cancelled(), if !leaves => {
                leaves = true;
                continue;
            }
            () = answers.closed() => return activity.are_abandoned(under_way.len()),
        };
        match next {
            // What comes until the last one is answered learns that nothing was done: it goes elsewhere.
            Ok(Some(request)) if leaves => {
                let answer = Some(refusal(&GatewayError::NoQuorum.into()));
                let _gone = answers.send(Ok((v1::PipelineResponse { id: request.id, answer }, None))).await;
            }
            Ok(Some(request)) => {
                let (onward, mut extensions, answers) = (onward.clone(), extensions.clone(), answers.clone());
                // Its bytes are counted before it waits, and no other is read meanwhile.
                let held = onward.admission.hold(&mut extensions, request.encoded_len() as u64);
                let turn = tokio::select! {
                    turn = Arc::clone(&turns).acquire_owned() => turn,
                    () = answers.closed() => return activity.are_abandoned(under_way.len()),
                };
                under_way.spawn(async move {
                    answer_one(onward, extensions, request, held, answers).await;
                    drop(turn);
                });
            }
            Ok(None) => break None,
            Err(status) => break Some(status),
        }
    };
    tokio::select! {
        () = async { while under_way.join_next().await.is_some() {} } => {}
        () = answers.closed() => activity.are_abandoned(under_way.len()),
    }
    if let Some(status) = ended {
        let _gone = answers.send(Err(explained(status))).await;
    }
}

/// What cannot be read is the caller's mistake.
fn explained(status: Status) -> Status {
    match status.code() {
        Code::Internal | Code::OutOfRange => {
            GatewayError::field("message", "cannot be read, or is larger than 8 MiB").into()
        }
        _ => status,
    }
}

async fn answer_one(
    onward: Onward,
    extensions: Extensions,
    request: v1::PipelineRequest,
    held: Result<Arc<Hold>, Status>,
    answers: mpsc::Sender<Sent>,
) {
    let id = request.id;
    let answered = match &held {
        Ok(_held) => call(onward, extensions, request).await,
        Err(status) => Err(status.clone()),
    };
    let (answer, place) =
        answered.map_or_else(|status| (refusal(&status), None), |(answer, place)| (answer, Some(place)));
    // The caller may have gone.
    let _gone = answers.send(Ok((v1::PipelineResponse { id, answer: Some(answer) }, place))).await;
}

/// One request, as if it had come by itself. Its place is held by what is left of its answer's body.
async fn call(onward: Onward, extensions: Extensions, request: v1::PipelineRequest) -> Result<(Answer, Body), Status> {
    let timeout = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms.into()));
    let unknown = || GatewayError::field("call", "is missing, or not one that this gateway knows");
    // The message is in memory once from here on: framed.
    let (path, message, take): (_, _, Take) = match request.call.ok_or_else(unknown)? {
        Call::Commit(call) => {
            ("/charthold.v1.Charts/Commit", framed(&call), |m| v1::CommitResponse::decode(m).map(Answer::Commit))
        }
        Call::Get(call) => ("/charthold.v1.Charts/Get", framed(&call), |m| v1::GetResponse::decode(m).map(Answer::Get)),
        Call::BatchGet(call) => {
            ("/charthold.v1.Charts/BatchGet", framed(&call), |m| v1::BatchGetResponse::decode(m).map(Answer::BatchGet))
        }
    };
    let request = as_call((path, message), timeout, &request.traceparent, extensions)?;
    let Ok(response) = onward.calls.oneshot(request).await;
    let (message, place) = message_of(response).await?;
    let answer = take(message).map_err(|_| Status::from(GatewayError::Internal))?;
    Ok((answer, place))
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    message.encode(&mut bytes).expect("invariant: a growing buffer has room");
    bytes.freeze()
}

/// The request that gRPC over HTTP/2 makes of it.
fn as_call(
    (path, message): (&'static str, Bytes),
    timeout: Option<Duration>,
    traceparent: &str,
    extensions: Extensions,
) -> Result<Request<Body>, Status> {
    let mut request = Request::new(Body::new(Full::new(message)));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(path);
    *request.extensions_mut() = extensions;
    let headers = request.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/grpc"));
    headers.insert("te", http::HeaderValue::from_static("trailers"));
    if let Some(timeout) = timeout {
        answer::set_timeout(headers, timeout);
    }
    if !traceparent.is_empty() {
        let wrong = |_| GatewayError::field("traceparent", "is no header value");
        headers.insert("traceparent", traceparent.try_into().map_err(wrong)?);
    }
    Ok(request)
}

/// The one message of an answer, or the status that there is instead.
async fn message_of(response: Response<Body>) -> Result<(Bytes, Body), Status> {
    check(response.headers())?;
    let (mut body, mut message) = (response.into_body(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        frame.trailers_ref().map_or(Ok(()), check)?;
        message.extend_from_slice(frame.data_ref().map_or(&[], Bytes::as_ref));
    }
    let Some(length) = message.len().checked_sub(PREFIX_BYTES) else { return Err(GatewayError::Internal.into()) };
    let prefix = message.split_to(PREFIX_BYTES);
    match prefix[0] == 0 && prefix[1..] == (length as u32).to_be_bytes() {
        true => Ok((message.freeze(), body)),
        false => Err(GatewayError::Internal.into()),
    }
}

fn check(headers: &HeaderMap) -> Result<(), Status> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(()),
    }
}

/// A status as the message of type google.rpc.Status that gRPC sends in its trailers.
fn refusal(status: &Status) -> Answer {
    let error = match status.details() {
        // What did not come from this gateway's errors has no details.
        [] => tonic_types::pb::Status {
            code: status.code().into(),
            message: status.message().to_owned(),
            details: Vec::new(),
        }
        .encode_to_vec()
        .into(),
        details => Bytes::copy_from_slice(details),
    };
    Answer::Error(error)
}
