//! `Charts.Pipeline`: many calls on one stream.
//!
//! Each request is handed to the service as a call of its own, through the layers that a call passes which comes by
//! itself: so it is measured, admitted, checked, audited and answered like one. What is saved is HTTP/2's work for a
//! stream each, which is most of what a small call costs on the wire, and gRPC's: behind the layers the message is handed
//! over as it is ([`Direct`]).
//!
//! | limit | what is beyond it |
//! | --- | --- |
//! | as many unanswered requests on a connection's streams as it may have calls | wait in the sender: they are not read |
//! | the bytes that requests may hold ([`super::admission`]) | answered OVERLOADED, the stream goes on |
//! | the places that there are for calls of a kind | as by themselves: held until the stream takes the answer to send it |
//! | a message that cannot be read | ends the stream, when those before it are answered: what follows it cannot be told |

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::v1;
use charthold_proto::v1::charts_server::Charts;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::{Extensions, HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};
use v1::pipeline_request::Call;
use v1::pipeline_response::Answer;

use super::admission::{AdmissionLayer, AnswerBytes, Hold};
use super::answer::{self, Deadline};
use super::charts::ChartsService;
use super::connections::Activity;
use super::error::GatewayError;

/// Where a stream of requests is to be expected.
pub const PATH: &str = "/charthold.v1.Charts/Pipeline";
/// Answers that wait for the client to take them.
const ANSWERS_MAX: usize = 64;
/// What a stream carries: an answer that is larger would end it for all calls on it.
const ANSWER_BYTES_MAX: usize = super::server::MESSAGE_BYTES_MAX - 1024;

/// What a stream's caller takes.
pub type Answers = BoxStream<'static, Result<v1::PipelineResponse, Status>>;

/// An answer, and what holds its call's place.
type Sent = Result<(v1::PipelineResponse, Option<Body>), Status>;

/// What a call takes until it is answered.
struct Room {
    /// For its bytes, if there was.
    held: Result<Arc<Hold>, Status>,
    /// Of its connection's.
    _turn: Option<OwnedSemaphorePermit>,
}

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
                let room = Room { held, _turn: turn.ok() };
                under_way.spawn(answer_one(onward, extensions, request, room, answers));
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
    room: Room,
    answers: mpsc::Sender<Sent>,
) {
    let id = request.id;
    let answered = match &room.held {
        Ok(_held) => call(onward, extensions, request).await,
        Err(status) => Err(status.clone()),
    };
    let (answer, place) =
        answered.map_or_else(|status| (refusal(&status), None), |(answer, place)| (answer, Some(place)));
    // The caller may have gone.
    let _gone = answers.send(Ok((v1::PipelineResponse { id, answer: Some(answer) }, place))).await;
}

/// One request, as if it had come by itself. Its place is held by its answer's body.
async fn call(onward: Onward, extensions: Extensions, request: v1::PipelineRequest) -> Result<(Answer, Body), Status> {
    let timeout = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms.into()));
    let unknown = || GatewayError::field("call", "is missing, or not one that this gateway knows");
    let call = request.call.ok_or_else(unknown)?;
    let request = as_call(call, timeout, &request.traceparent, extensions)?;
    let Ok(mut response) = onward.calls.oneshot(request).await;
    check(response.headers())?;
    let answer = response.extensions_mut().remove::<Handed<Answer>>().and_then(|answer| answer.take());
    Ok((answer.ok_or(GatewayError::Internal)?, response.into_body()))
}

/// What layers look at of a request that gRPC makes over HTTP/2; the message is in the extensions.
fn as_call(
    call: Call,
    timeout: Option<Duration>,
    traceparent: &str,
    extensions: Extensions,
) -> Result<Request<Body>, Status> {
    let path = match &call {
        Call::Commit(_) => "/charthold.v1.Charts/Commit",
        Call::Get(_) => "/charthold.v1.Charts/Get",
        Call::BatchGet(_) => "/charthold.v1.Charts/BatchGet",
    };
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = http::Uri::from_static(path);
    *request.extensions_mut() = extensions;
    request.extensions_mut().insert(Handed::new(call));
    if let Some(timeout) = timeout {
        request.extensions_mut().insert(Deadline::after(timeout));
    }
    if !traceparent.is_empty() {
        let wrong = |_| GatewayError::field("traceparent", "is no header value");
        request.headers_mut().insert("traceparent", traceparent.try_into().map_err(wrong)?);
    }
    Ok(request)
}

/// The body of an answer that goes beside it. It does not say that it is at its end: tonic drops an empty body when a
/// layer wraps it, and what the layer put around it, which is to live until the answer is taken.
struct Apart;

impl HttpBody for Apart {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(None)
    }
}

/// Something on its way through layers, which may copy what they carry: whoever takes it has it.
struct Handed<T>(Arc<Mutex<Option<T>>>);

impl<T> Handed<T> {
    fn new(content: T) -> Self {
        Self(Arc::new(Mutex::new(Some(content))))
    }

    fn take(&self) -> Option<T> {
        self.0.lock().take()
    }
}

impl<T> Clone for Handed<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The service behind the layers, for calls that are messages already.
#[derive(Clone)]
pub(super) struct Direct(pub ChartsService);

impl Service<Request<Body>> for Direct {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let charts = self.0.clone();
        Box::pin(async move { Ok(charts.answer(request).await.unwrap_or_else(Status::into_http)) })
    }
}

impl ChartsService {
    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (http::request::Parts { headers, extensions, .. }, _) = request.into_parts();
        let call = extensions.get::<Handed<Call>>().and_then(Handed::take).ok_or(GatewayError::Internal)?;
        let metadata = MetadataMap::from_headers(headers);
        let (answer, extensions) = match call {
            Call::Commit(message) => {
                let request = tonic::Request::from_parts(metadata, extensions, message);
                parts(self.commit(request).await?, Answer::Commit)
            }
            Call::Get(message) => {
                let request = tonic::Request::from_parts(metadata, extensions, message);
                parts(self.get(request).await?, Answer::Get)
            }
            Call::BatchGet(message) => {
                let request = tonic::Request::from_parts(metadata, extensions, message);
                parts(self.batch_get(request).await?, Answer::BatchGet)
            }
        };
        let size_bytes = answer.encoded_len();
        if size_bytes > ANSWER_BYTES_MAX {
            // As gRPC says it of a call by itself.
            return Err(Status::out_of_range(format!("an answer of {size_bytes} bytes")));
        }
        let mut response = Response::new(Body::new(Apart));
        *response.extensions_mut() = extensions;
        response.headers_mut().insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
        response.extensions_mut().insert(AnswerBytes(size_bytes as u64));
        response.extensions_mut().insert(Handed::new(answer));
        Ok(response)
    }
}

/// An answer, and what its call left for the layers.
fn parts<T>(response: tonic::Response<T>, answer: impl FnOnce(T) -> Answer) -> (Answer, Extensions) {
    let (_, message, extensions) = response.into_parts();
    (answer(message), extensions)
}

fn check(headers: &HeaderMap) -> Result<(), Status> {
    match answer::code_of(headers) {
        None | Some(Code::Ok) => Ok(()),
        Some(_) => Err(Status::from_header_map(headers).unwrap_or_else(|| GatewayError::Internal.into())),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tower::service_fn;

    use super::super::admission::InnerDoor;
    use super::super::observe::Observe;
    use super::*;
    use crate::telemetry::sampling::Sampler;

    /// As a get does it: with a seat behind the inner door.
    async fn reads(request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let door = request.extensions().get::<InnerDoor>().cloned().unwrap();
        let seat = door.enter(tokio::time::Instant::now() + Duration::from_secs(60)).await.unwrap();
        let mut response = Response::new(Body::new(Apart));
        response.extensions_mut().insert(AnswerBytes(1));
        response.extensions_mut().insert(seat);
        Ok(response)
    }

    #[tokio::test]
    async fn an_answer_keeps_its_places_until_it_is_taken() {
        let admission = AdmissionLayer::new(1 << 20);
        let layers = tower::ServiceBuilder::new().layer(Observe(Sampler::new(0.0))).layer(admission.clone());
        let calls = layers.service(service_fn(reads));
        let get = v1::GetRequest::default();
        let request = as_call(Call::Get(get), None, "", Extensions::new()).unwrap();
        let response = calls.oneshot(request).await.unwrap();
        assert_eq!(admission.taken(), 2, "one of the gets', one behind the inner door");
        let body = response.into_body();
        assert_eq!(admission.taken(), 2, "as `Sent` keeps it");
        drop(body);
        assert_eq!(admission.taken(), 0);
    }
}
