//! `Charts.Pipeline`: many calls on one stream.
//!
//! Each request is handed to the services as a call of its own, through the layers that a call passes which comes by
//! itself: so it is measured, admitted, checked, audited and answered like one. What is saved is HTTP/2's work for a
//! stream each, which is most of what a small call costs on the wire.
//!
//! | limit | what is beyond it |
//! | --- | --- |
//! | [`UNDER_WAY_MAX`] unanswered requests on a stream | wait in the sender: they are not read |
//! | the bytes that requests may hold ([`super::admission`]) | answered OVERLOADED, the stream goes on |
//! | the places that there are for calls of a kind | as by themselves: a place is held until its answer has left |
//! | a message that cannot be read | ends the stream: what follows it cannot be told |

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
use prost::Message;
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

use super::admission::AdmissionLayer;
use super::answer;
use super::error::GatewayError;

/// Where a stream of requests is to be expected.
pub const PATH: &str = "/charthold.v1.Charts/Pipeline";
/// As many as a connection may have calls.
const UNDER_WAY_MAX: usize = 256;
/// Answers that wait for the client to take them.
const ANSWERS_MAX: usize = 64;
/// Before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// What a stream's caller takes.
pub type Answers = BoxStream<'static, Result<v1::PipelineResponse, Status>>;

/// An answer, and what holds its call's place.
type Sent = Result<(v1::PipelineResponse, Option<Body>), Status>;

/// Where calls go, and who lets them in.
#[derive(Clone)]
struct Onward {
    calls: BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>,
    admission: AdmissionLayer,
}

/// In the extensions of every request: its connection is to end.
#[derive(Clone)]
pub struct Leaving(pub CancellationToken);

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
    let leaving = extensions.get::<Leaving>().map(|leaving| leaving.0.clone()).unwrap_or_default();
    let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    // Dropped with this task: who goes away does not keep his calls running.
    let mut under_way = JoinSet::new();
    loop {
        while under_way.try_join_next().is_some() {}
        let turn = Arc::clone(&room).acquire_owned();
        let next = async {
            let turn = turn.await;
            (turn, requests.message().await)
        };
        let (turn, next) = tokio::select! {
            next = next => next,
            () = leaving.cancelled() => break,
            () = answers.closed() => return,
        };
        match next {
            Ok(Some(request)) => {
                let (onward, extensions, answers) = (onward.clone(), extensions.clone(), answers.clone());
                under_way.spawn(async move {
                    let id = request.id;
                    let answered = call(onward, extensions, request).await;
                    let (answer, place) = answered
                        .map_or_else(|status| (refusal(&status), None), |(answer, place)| (answer, Some(place)));
                    let answer = v1::PipelineResponse { id, answer: Some(answer) };
                    // The caller may have gone.
                    let _gone = answers.send(Ok((answer, place))).await;
                    drop(turn);
                });
            }
            Ok(None) => break,
            Err(status) => {
                let _gone = answers.send(Err(status)).await;
                return;
            }
        }
    }
    tokio::select! {
        () = async { while under_way.join_next().await.is_some() {} } => {}
        () = answers.closed() => {}
    }
}

/// One request, as if it had come by itself. Its place is held by what is left of its answer's body.
async fn call(
    onward: Onward,
    mut extensions: Extensions,
    request: v1::PipelineRequest,
) -> Result<(Answer, Body), Status> {
    let Onward { calls, admission } = onward;
    let _held = admission.hold(&mut extensions, request.encoded_len() as u64)?;
    let call =
        request.call.ok_or_else(|| GatewayError::field("call", "is missing, or not one that this gateway knows"))?;
    let timeout = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms.into()));
    let answer = |message: Bytes| -> Result<Answer, Status> {
        let answer = match &call {
            Call::Commit(_) => v1::CommitResponse::decode(message).map(Answer::Commit),
            Call::Get(_) => v1::GetResponse::decode(message).map(Answer::Get),
            Call::BatchGet(_) => v1::BatchGetResponse::decode(message).map(Answer::BatchGet),
        };
        answer.map_err(|_| GatewayError::Internal.into())
    };
    let message = match &call {
        Call::Commit(message) => ("Commit", framed(message)),
        Call::Get(message) => ("Get", framed(message)),
        Call::BatchGet(message) => ("BatchGet", framed(message)),
    };
    let request = as_call(message, timeout, &request.traceparent, extensions)?;
    let Ok(response) = calls.oneshot(request).await;
    let (message, place) = message_of(response).await?;
    Ok((answer(message)?, place))
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
    (method, message): (&str, Bytes),
    timeout: Option<Duration>,
    traceparent: &str,
    extensions: Extensions,
) -> Result<Request<Body>, Status> {
    let mut request = Request::new(Body::new(Full::new(message)));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = format!("/charthold.v1.Charts/{method}").parse().expect("invariant: a method is a path");
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
