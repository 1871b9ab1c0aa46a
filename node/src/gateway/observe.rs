//! Every request of a client, measured and traced: method, code, duration; the stages of a commit.
//!
//! A layer around all services. Of a request it sees the method and the trace it belongs to, never a message. A label
//! or a span's field is a word of the program, also for the method: an unknown one is "other".

use std::cell::Cell;
use std::collections::HashSet;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use charthold_proto::v1::FILE_DESCRIPTOR_SET;
use charthold_replica::metrics::{Counted, counted};
use charthold_replica::trace::{self, Kind, Span, Value};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prometheus_client::metrics::histogram::Histogram;
use prost::Message as _;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::answer::code_of;
use crate::metrics::METRICS;
use crate::telemetry::sampling::{Sampler, parse_traceparent};

const OTHER: &str = "other";

tokio::task_local! {
    static REQUEST: Current;
}

/// What is known of the request that this task serves.
struct Current {
    arrived: Instant,
    reason: Cell<Option<&'static str>>,
}

/// Notes why a request is refused.
pub(super) fn refused(reason: &'static str) {
    METRICS.refused(reason);
    // Outside of a request: while a stream runs.
    let _outside = REQUEST.try_with(|request| request.reason.set(Some(reason)));
}

/// The parts of a commit, one after the other.
pub(super) struct Stages {
    began: Instant,
}

impl Stages {
    /// The first began when the request came.
    pub fn begin() -> Self {
        Self { began: REQUEST.try_with(|request| request.arrived).unwrap_or_else(|_| Instant::now()) }
    }

    /// One is done, the next begins.
    pub fn done(&mut self, stage: &Histogram, name: &'static str) {
        let now = Instant::now();
        stage.observe(now.duration_since(self.began).as_secs_f64());
        if let Some(mut span) = trace::span(name, Kind::Internal) {
            span.began_at(self.began);
        }
        self.began = now;
    }
}

/// All methods, as label and span name them: found by a request's path.
static METHODS: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    let described = [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET].into_iter().flat_map(|bytes| {
        prost_types::FileDescriptorSet::decode(bytes).expect("invariant: descriptors were compiled with the crate").file
    });
    let methods = described.flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().flat_map(move |service| {
            let prefix = format!("{package}.{}", service.name());
            service.method.into_iter().map(move |method| format!("{prefix}/{}", method.name()))
        })
    });
    // Once in a process.
    methods.map(|method| &*Box::leak(method.into_boxed_str())).collect()
});

fn method_of(path: &str) -> &'static str {
    METHODS.get(path.trim_start_matches('/')).copied().unwrap_or(OTHER)
}

/// The layer.
#[derive(Clone)]
pub(super) struct Observe(pub Sampler);

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, sampler: self.0 }
    }
}

#[derive(Clone)]
pub(super) struct Observed<S> {
    inner: S,
    sampler: Sampler,
}

impl<S> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone is not ready yet; the one that was asked is.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let mut call = Call::begin(&request, self.sampler);
        let context = call.span.as_ref().map(Span::context);
        let current = Current { arrived: call.began, reason: Cell::new(None) };
        let served = async move {
            let answered = inner.call(request).await;
            (answered, REQUEST.try_with(|request| request.reason.get()).ok().flatten())
        };
        async move {
            let (answered, reason) = trace::within(context, REQUEST.scope(current, served)).await;
            let response = answered?;
            call.note_reason(reason);
            // An answer without a message has its status in the head.
            call.code = code_of(response.headers());
            Ok(response.map(|body| Body::new(Measured { body, call })))
        }
        .boxed()
    }
}

/// A call under way. It ends with its answer's last byte, or when its caller goes away.
struct Call {
    method: &'static str,
    began: Instant,
    span: Option<Span>,
    code: Option<Code>,
    _in_flight: Counted<'static>,
}

impl Call {
    fn begin(request: &Request<Body>, sampler: Sampler) -> Self {
        let method = method_of(request.uri().path());
        let given = || request.headers().get("traceparent").and_then(|value| parse_traceparent(value.to_str().ok()?));
        let parent = if trace::is_on() { sampler.decide(given()) } else { None };
        let span = parent.and_then(|parent| Span::under(parent, method, Kind::Server));
        let in_flight = counted(&METRICS.in_flight);
        Self { method, began: Instant::now(), span, code: None, _in_flight: in_flight }
    }

    fn note_reason(&mut self, reason: Option<&'static str>) {
        if let (Some(span), Some(reason)) = (&mut self.span, reason) {
            span.note("reason", Value::Word(reason));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        METRICS.answered(self.method, code, self.began.elapsed().as_secs_f64());
        if let Some(span) = &mut self.span {
            span.note("rpc.system", Value::Word("grpc"));
            span.note("rpc.grpc.status_code", Value::Number(code as u64));
            if code != Code::Ok {
                span.fail();
            }
        }
    }
}

/// An answer's body, that tells its call how it ends.
struct Measured {
    body: Body,
    call: Call,
}

impl HttpBody for Measured {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let trailers = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.trailers_ref());
        if let Some(code) = trailers.and_then(code_of) {
            self.call.code = Some(code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_words_of_the_program() {
        assert_eq!(method_of("/charthold.v1.Charts/Commit"), "charthold.v1.Charts/Commit");
        assert_eq!(method_of("/grpc.health.v1.Health/Watch"), "grpc.health.v1.Health/Watch");
        for other in ["/charthold.v1.Charts/Jane-Doe", "", "/", "/charthold.v1.Charts/commit"] {
            assert_eq!(method_of(other), OTHER);
        }
    }
}
