//! The door as a layer of the server: before a request's body is read, until its answer's body is gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Extensions;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::super::answer::Deadline;
use super::super::error::GatewayError;
use super::{Admission, Hold, Kind, RETRY_BYTES, Ticket};
use crate::seal::Token;
use crate::tls::{ClientIdentity, Principal};

/// What is not a service of a tenant: operators, and who has no name at all.
const OTHERS: Token = [0xff; 16];

#[derive(Clone)]
pub struct AdmissionLayer(Arc<Admission>);

impl AdmissionLayer {
    pub fn new(requests_bytes_max: u64) -> Self {
        Self(Arc::new(Admission::new(requests_bytes_max)))
    }

    /// Takes room for a request that came in another one, and notes it in its extensions: so its bytes are not counted
    /// again. To be kept until it is answered.
    pub fn hold(&self, extensions: &mut Extensions, bytes: u64) -> Result<Arc<Hold>, Status> {
        let tenant = tenant_of(extensions);
        if !self.0.budget.lock().take(tenant, bytes) {
            return Err(refusal(RETRY_BYTES));
        }
        let hold = Arc::new(Hold { admission: Arc::clone(&self.0), tenant, bytes });
        extensions.insert(Arc::clone(&hold));
        Ok(hold)
    }

    /// Places of all kinds that are taken.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.0.lines.iter().map(|line| line.lock().running()).sum()
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admitting<S>;

    fn layer(&self, inner: S) -> Admitting<S> {
        Admitting { admission: Arc::clone(&self.0), inner }
    }
}

#[derive(Clone)]
pub struct Admitting<S> {
    admission: Arc<Admission>,
    inner: S,
}

/// In the extensions of an answer that is not in its body.
#[derive(Clone, Copy)]
pub struct AnswerBytes(pub u64);

/// In the extensions of a get: where it waits again, before it holds a record.
#[derive(Clone)]
pub struct InnerDoor {
    admission: Arc<Admission>,
    tenant: Token,
}

/// A place behind the inner door. In the extensions of an answer it is held until that has left.
#[derive(Clone)]
pub struct Seat {
    _ticket: Arc<Ticket>,
}

impl InnerDoor {
    pub(super) fn new(admission: &Arc<Admission>, tenant: Token) -> Self {
        Self { admission: Arc::clone(admission), tenant }
    }

    pub fn of(extensions: &tonic::Extensions) -> Result<Self, GatewayError> {
        extensions.get::<Self>().cloned().ok_or(GatewayError::Internal)
    }

    pub async fn enter(&self, deadline: tokio::time::Instant) -> Result<Seat, GatewayError> {
        let ticket = self.admission.enter(Kind::Opened, self.tenant, deadline.into_std()).await;
        Ok(Seat { _ticket: Arc::new(ticket.map_err(GatewayError::OverloadedFor)?) })
    }
}

type Request = http::Request<Body>;
type Response = http::Response<Body>;

impl<S> Service<Request> for Admitting<S>
where
    S: Service<Request, Response = Response> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        // The clone is not ready yet, this one is.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let Some(kind) = Kind::of(request.uri().path()) else { return Box::pin(inner.call(request)) };
        let admission = Arc::clone(&self.admission);
        Box::pin(async move {
            let deadline = Deadline::of(request.extensions(), request.headers());
            let tenant = tenant_of(request.extensions());
            let ticket = match admission.enter(kind, tenant, deadline.0.into_std()).await {
                Ok(ticket) => Arc::new(ticket),
                Err(delay) => return Ok(refusal(delay).into_http()),
            };
            // What was waited for is gone.
            request.extensions_mut().insert(deadline);
            if let Kind::Get = kind {
                request.extensions_mut().insert(InnerDoor::new(&admission, tenant));
            }
            let asked = Arc::clone(&ticket);
            let request = match request.extensions().get::<Arc<Hold>>() {
                Some(hold) => {
                    ticket.is_held(hold);
                    ticket.request_ended();
                    request
                }
                None => request.map(|body| Body::new(Metered { body, meter: Meter::Request(asked) })),
            };
            // A body that does not come would hold its place for ever: the handler's own deadline begins after it.
            let Ok(answered) = tokio::time::timeout_at(deadline.0, inner.call(request)).await else {
                return Ok(Status::from(GatewayError::OutcomeUnknown).into_http());
            };
            ticket.answer_begins();
            let mut response = answered?;
            if let Some(AnswerBytes(bytes)) = response.extensions().get() {
                ticket.answered(*bytes);
            }
            let seat = response.extensions_mut().remove::<Seat>();
            Ok(response.map(|body| Body::new(Metered { body, meter: Meter::Answer(ticket, seat) })))
        })
    }
}

fn tenant_of(extensions: &Extensions) -> Token {
    match extensions.get::<ClientIdentity>() {
        Some(ClientIdentity::Known(Principal::Service { tenant, .. })) => *tenant,
        _ => OTHERS,
    }
}

fn refusal(delay: Duration) -> Status {
    GatewayError::OverloadedFor(delay).into()
}

/// A body whose bytes are counted, and which holds the place while it lives.
struct Metered {
    body: Body,
    meter: Meter,
}

enum Meter {
    Request(Arc<Ticket>),
    Answer(Arc<Ticket>, #[expect(dead_code, reason = "held")] Option<Seat>),
}

impl Meter {
    fn count(&self, bytes: u64) -> Result<(), Status> {
        match self {
            Self::Request(ticket) => ticket.take(bytes).map_err(refusal),
            Self::Answer(ticket, _) => {
                ticket.answered(bytes);
                Ok(())
            }
        }
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Ready(None), Meter::Request(ticket)) = (&polled, &self.meter) {
            ticket.request_ended();
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(refused) = self.meter.count(data.len() as u64)
        {
            return Poll::Ready(Some(Err(refused)));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
