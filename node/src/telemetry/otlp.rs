//! Spans to an OpenTelemetry collector, by OTLP over gRPC.
//!
//! Owns the way out: batches, time limits, what becomes of spans that nobody takes (they are dropped and counted; a
//! request never waits for a collector). Must not know what is traced. Nothing of this runs unless `[telemetry]` names a
//! collector. The endpoint is plain HTTP/2, for an agent on this machine or in this pod; spans hold no secrets.
//!
//! The protocol is stable and small, so that its messages are our own subset of it (`proto/otlp`): a library would bring
//! a second model of spans, in which a field may hold any text.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use charthold_proto::otlp as pb;
use charthold_replica::metrics::METRICS;
use charthold_replica::trace::{Finished, Kind, Value};
use pb::trace_service_client::TraceServiceClient;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

const BATCH_SPANS_MAX: usize = 512;
/// What gathers until a batch goes.
const BATCH_WAIT: Duration = Duration::from_secs(1);
const EXPORT_MAX: Duration = Duration::from_secs(5);
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// For the last batch, at a stop.
const FINISH_MAX: Duration = Duration::from_secs(2);
const SCOPE: &str = "charthold";

/// Exports until it is dropped.
pub struct Exporter {
    task: tokio::task::JoinHandle<()>,
    finish: tokio::sync::oneshot::Sender<()>,
}

impl Exporter {
    /// Needs a tokio runtime. `node` is the node's name.
    pub fn start(
        endpoint: &str,
        node: &str,
        finished: mpsc::Receiver<Finished>,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?.connect_timeout(CONNECT_MAX).timeout(EXPORT_MAX);
        let sender = Sender {
            address: endpoint.uri().to_string(),
            node: node.to_owned(),
            well: true,
            channel: endpoint.connect_lazy(),
        };
        let (finish, told) = tokio::sync::oneshot::channel();
        Ok(Self { task: tokio::spawn(run(sender, finished, told)), finish })
    }

    /// Sends what is left.
    pub async fn finish(self) {
        drop(self.finish);
        if tokio::time::timeout(FINISH_MAX, self.task).await.is_err() {
            tracing::debug!("the last spans were not exported");
        }
    }
}

async fn run(mut sender: Sender, mut finished: mpsc::Receiver<Finished>, mut told: tokio::sync::oneshot::Receiver<()>) {
    let mut batch = Vec::with_capacity(BATCH_SPANS_MAX);
    loop {
        let mut stopping = tokio::select! {
            taken = finished.recv_many(&mut batch, BATCH_SPANS_MAX) => taken == 0,
            _ = &mut told => true,
        };
        if !stopping {
            stopping = tokio::select! {
                () = tokio::time::sleep(BATCH_WAIT) => false,
                _ = &mut told => true,
            };
        }
        while batch.len() < BATCH_SPANS_MAX {
            let Ok(span) = finished.try_recv() else { break };
            batch.push(span);
        }
        if !batch.is_empty() {
            sender.send(std::mem::take(&mut batch)).await;
        }
        if stopping {
            return;
        }
    }
}

struct Sender {
    address: String,
    node: String,
    channel: Channel,
    /// The last batch was taken.
    well: bool,
}

impl Sender {
    async fn send(&mut self, batch: Vec<Finished>) {
        let count = batch.len() as u64;
        let mut client = TraceServiceClient::new(self.channel.clone());
        match client.export(request(&self.node, batch)).await {
            Ok(_) => {
                if !self.well {
                    tracing::info!(collector = self.address, "traces are exported again");
                }
                self.well = true;
            }
            Err(failure) => {
                METRICS.spans_dropped.inc_by(count);
                // Once an episode, not once a batch.
                if self.well {
                    let error = failure.message();
                    tracing::warn!(
                        collector = self.address,
                        error,
                        "traces cannot be exported and are dropped; requests are not affected: check the collector"
                    );
                }
                self.well = false;
            }
        }
    }
}

fn request(node: &str, batch: Vec<Finished>) -> pb::ExportTraceServiceRequest {
    let now = Moment { clock: Instant::now(), wall: SystemTime::now() };
    let resource = pb::Resource {
        attributes: vec![
            text("service.name", SCOPE),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", node),
        ],
    };
    let scope = pb::InstrumentationScope { name: SCOPE.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let spans = batch.into_iter().map(|span| span_to_pb(span, &now)).collect();
    let scope_spans = vec![pb::ScopeSpans { scope: Some(scope), spans }];
    pb::ExportTraceServiceRequest { resource_spans: vec![pb::ResourceSpans { resource: Some(resource), scope_spans }] }
}

/// One moment on both clocks.
struct Moment {
    clock: Instant,
    wall: SystemTime,
}

impl Moment {
    fn unix_nanos(&self, at: Instant) -> u64 {
        let wall = self.wall.checked_sub(self.clock.saturating_duration_since(at)).unwrap_or(UNIX_EPOCH);
        wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
    }
}

fn span_to_pb(span: Finished, now: &Moment) -> pb::Span {
    use pb::span::SpanKind;
    use pb::span_status::StatusCode;
    let kind = match span.kind {
        Kind::Internal => SpanKind::Internal,
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
    };
    let attribute = |(key, value): (&str, Value)| match value {
        Value::Word(word) => text(key, word),
        Value::Number(number) => attribute(key, pb::any_value::Value::IntValue(number as i64)),
    };
    let parent = (span.parent != 0).then(|| span.parent.to_be_bytes().to_vec());
    let status = span.failed.then_some(pb::SpanStatus { code: StatusCode::Error as i32 });
    pb::Span {
        trace_id: span.context.trace.to_vec().into(),
        span_id: span.context.span.to_be_bytes().to_vec().into(),
        parent_span_id: parent.unwrap_or_default().into(),
        name: span.name.to_owned(),
        kind: kind as i32,
        start_time_unix_nano: now.unix_nanos(span.began),
        end_time_unix_nano: now.unix_nanos(span.ended),
        attributes: span.fields.into_iter().map(attribute).collect(),
        status,
    }
}

fn text(key: &str, value: &str) -> pb::KeyValue {
    attribute(key, pb::any_value::Value::StringValue(value.to_owned()))
}

fn attribute(key: &str, value: pb::any_value::Value) -> pb::KeyValue {
    pb::KeyValue { key: key.to_owned(), value: Some(pb::AnyValue { value: Some(value) }) }
}
