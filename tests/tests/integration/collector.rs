//! A collector of traces, as an operator runs one beside a node: it keeps what it is sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use charthold_proto::otlp::trace_service_server::{TraceService, TraceServiceServer};
use charthold_proto::otlp::{ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, Span, any_value::Value};
use prost::Message as _;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Serves until it is dropped.
pub struct Collector {
    address: SocketAddr,
    received: Received,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

/// A span, and the node that sent it.
#[derive(Debug, Clone)]
pub struct Sent {
    pub node: String,
    pub name: String,
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub fields: BTreeMap<String, String>,
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse {}))
    }
}

impl Collector {
    pub fn start() -> Self {
        // Held from here on: no node is given the same port.
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
        let received = Received::default();
        let service = TraceServiceServer::new(received.clone());
        let served = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        let server = tokio::spawn(async move { served.await.unwrap() });
        Self { address, received, server }
    }

    /// What a node's configuration says to send spans here.
    pub fn config(&self, sample_ratio: f64) -> String {
        format!("[telemetry]\notlp_endpoint = \"http://{}\"\nsample_ratio = {sample_ratio:?}\n", self.address)
    }

    pub fn spans(&self) -> Vec<Sent> {
        let received = self.received.0.lock().unwrap();
        let resources = received.iter().flat_map(|request| &request.resource_spans);
        resources
            .flat_map(|resource| {
                let attributes = fields(&resource.resource.as_ref().unwrap().attributes);
                let spans = resource.scope_spans.iter().flat_map(|scope| &scope.spans);
                spans.map(move |span| sent(&attributes["service.instance.id"], span))
            })
            .collect()
    }

    /// All that came, byte for byte.
    pub fn bytes(&self) -> Vec<u8> {
        self.received.0.lock().unwrap().iter().flat_map(|request| request.encode_to_vec()).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn sent(node: &str, span: &Span) -> Sent {
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
    Sent {
        node: node.to_owned(),
        name: span.name.clone(),
        trace: hex::encode(&span.trace_id),
        id: hex::encode(&span.span_id),
        parent: hex::encode(&span.parent_span_id),
        fields: fields(&span.attributes),
    }
}

fn fields(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let value = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
    };
    let of = |pair: &KeyValue| (pair.key.clone(), value(pair.value.as_ref().unwrap().value.as_ref().unwrap()));
    attributes.iter().map(of).collect()
}
