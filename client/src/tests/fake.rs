//! Gateways for tests: one that answers by a script, and some that don't answer.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::v1;
use charthold_proto::v1::charts_server::{Charts, ChartsServer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Server, TcpIncoming};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};
use v1::pipeline_request::Call;
use v1::pipeline_response::Answer;

use crate::{MESSAGE_BYTES_MAX, lock};

/// What a scripted gateway does with the next call. After the script it answers as if all were well.
pub enum Reply {
    Refuse(Status),
    Done {
        leader: String,
    },
    /// Takes the call (a stream: sends its first page) and says no more.
    Hang,
    /// Ends a stream after its first page.
    Cut,
    /// Finds damage after the first page, or after the third byte of a document.
    CutByError,
}

/// A status as gateways give them.
pub fn refusal(code: Code, reason: &str, retry_after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::new();
    if !reason.is_empty() {
        details.set_error_info(reason, "charthold", HashMap::new());
    }
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(code, "as the script says", details)
}

/// An address that refuses connections.
pub async fn dead_address() -> String {
    listen("127.0.0.1:0").await.1
}

/// Accepts connections and never says a word.
pub async fn silent_gateway() -> String {
    let (listener, address) = listen("127.0.0.1:0").await;
    tokio::spawn(async move {
        let mut held: Vec<TcpStream> = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    address
}

/// Reads something of each connection, then closes it.
pub async fn hanging_up_gateway() -> String {
    let (listener, address) = listen("127.0.0.1:0").await;
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let _ = connection.readable().await;
        }
    });
    address
}

pub async fn listen(address: &str) -> (TcpListener, String) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// A real server on the loopback; stops when dropped.
pub struct Gateway {
    pub address: String,
    state: Arc<State>,
    /// Of its own, so that stopping it also cuts the connections.
    runtime: Option<Runtime>,
}

#[derive(Default)]
struct State {
    script: Mutex<VecDeque<Reply>>,
    commits: Mutex<Vec<v1::CommitRequest>>,
    traceparents: Mutex<Vec<String>>,
    parts: Mutex<Vec<v1::UploadPartRequest>>,
    /// Calls that came on a stream.
    pipelined: AtomicUsize,
    /// The next call on a stream ends it with an error.
    breaks_stream: AtomicBool,
    /// As a gateway that is older than the client.
    without_pipeline: bool,
}

impl Gateway {
    pub async fn start(script: impl IntoIterator<Item = Reply>) -> Self {
        Self::start_with(State { script: Mutex::new(script.into_iter().collect()), ..State::default() }).await
    }

    /// One that does not know streams of calls.
    pub async fn start_old() -> Self {
        Self::start_with(State { without_pipeline: true, ..State::default() }).await
    }

    async fn start_with(state: State) -> Self {
        let (listener, address) = listen("127.0.0.1:0").await;
        let state = Arc::new(state);
        let mut gateway = Self { address, state, runtime: None };
        gateway.serve(listener.into_std().unwrap());
        gateway
    }

    fn serve(&mut self, listener: std::net::TcpListener) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = ChartsServer::new(Service(Arc::clone(&self.state))).max_decoding_message_size(MESSAGE_BYTES_MAX);
        runtime.spawn(async move {
            let incoming = TcpIncoming::from(TcpListener::from_std(listener).unwrap());
            Server::builder().add_service(service).serve_with_incoming(incoming).await
        });
        self.runtime = Some(runtime);
    }

    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// The old listener may take a moment to be gone.
    pub async fn restart(&mut self) {
        let listener = loop {
            match TcpListener::bind(&self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        self.serve(listener.into_std().unwrap());
    }

    /// The commits that arrived, in order.
    pub fn commits(&self) -> Vec<v1::CommitRequest> {
        lock(&self.state.commits).clone()
    }

    /// What it does with the next calls.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        lock(&self.state.script).extend(replies);
    }

    pub fn break_stream(&self) {
        self.state.breaks_stream.store(true, SeqCst);
    }

    /// How many calls came on a stream.
    pub fn pipelined(&self) -> usize {
        self.state.pipelined.load(SeqCst)
    }

    /// Of the commits.
    pub fn traceparents(&self) -> Vec<String> {
        lock(&self.state.traceparents).clone()
    }
}

impl Gateway {
    /// The parts that arrived, in order.
    pub fn parts(&self) -> Vec<v1::UploadPartRequest> {
        lock(&self.state.parts).clone()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Clone)]
struct Service(Arc<State>);

impl Service {
    fn next(&self) -> Reply {
        lock(&self.0.script).pop_front().unwrap_or(Reply::Done { leader: String::new() })
    }

    async fn one(&self, request: v1::PipelineRequest) -> Result<Answer, Status> {
        let traced = |mut call: Request<v1::CommitRequest>| {
            call.metadata_mut().insert("traceparent", request.traceparent.parse().unwrap());
            call
        };
        Ok(match request.call.unwrap() {
            Call::Commit(call) => Answer::Commit(self.commit(traced(Request::new(call))).await?.into_inner()),
            Call::Get(call) => Answer::Get(self.get(Request::new(call)).await?.into_inner()),
            Call::BatchGet(call) => Answer::BatchGet(self.batch_get(Request::new(call)).await?.into_inner()),
        })
    }

    async fn answer(&self) -> Result<Option<v1::AnswerContext>, Status> {
        match self.next() {
            Reply::Refuse(status) => Err(status),
            Reply::Done { leader } => Ok(answer(leader)),
            Reply::Hang | Reply::Cut | Reply::CutByError => std::future::pending().await,
        }
    }
}

fn answer(leader: String) -> Option<v1::AnswerContext> {
    let leader = Some(v1::LeaderHint { endpoint: leader, site: String::new() });
    Some(v1::AnswerContext { position: "position".into(), leader, ..Default::default() })
}

fn record(record: v1::RecordRef) -> v1::Record {
    let header = v1::RecordHeader { record: Some(record), version: 1, ..Default::default() };
    v1::Record { header: Some(header), body: "{}".into() }
}

#[tonic::async_trait]
impl Charts for Service {
    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let traceparent = request.metadata().get("traceparent").map(|value| value.to_str().unwrap().to_owned());
        lock(&self.0.traceparents).extend(traceparent);
        let message = request.into_inner();
        let versions = vec![1; message.mutations.len()];
        lock(&self.0.commits).push(message);
        let answer = self.answer().await?;
        Ok(Response::new(v1::CommitResponse { answer, versions, committed_at: None }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let answer = self.answer().await?;
        let record = request.into_inner().record.map(record);
        Ok(Response::new(v1::GetResponse { answer, record }))
    }

    /// At most 300 at a time; ids that end in 7 are absent.
    async fn batch_get(&self, request: Request<v1::BatchGetRequest>) -> Result<Response<v1::BatchGetResponse>, Status> {
        let answer = self.answer().await?;
        let records = request.into_inner().records;
        assert!(records.len() <= 1_000);
        let present = |id: v1::RecordRef| Some(id).filter(|id| !id.id.ends_with('7')).map(record);
        let results = records.into_iter().take(300).map(|id| v1::BatchGetResult { record: present(id) }).collect();
        Ok(Response::new(v1::BatchGetResponse { answer, results }))
    }

    /// Five records, two a page.
    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let answer = self.answer().await?;
        let message = request.into_inner();
        let from: u32 = message.page_token.parse().unwrap_or(0);
        let header =
            |n: u32| record(v1::RecordRef { r#type: message.r#type.clone(), id: n.to_string() }).header.unwrap();
        let headers = (from..(from + 2).min(5)).map(header).collect();
        let next_page_token = if from + 2 < 5 { (from + 2).to_string() } else { String::new() };
        Ok(Response::new(v1::ListResponse { answer, headers, next_page_token }))
    }

    async fn history(&self, _: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    type PipelineStream = Pin<Box<dyn Stream<Item = Result<v1::PipelineResponse, Status>> + Send>>;

    /// Each call as if it came by itself, all at once.
    async fn pipeline(
        &self,
        requests: Request<Streaming<v1::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        if self.0.without_pipeline {
            return Err(Status::unimplemented("an old gateway"));
        }
        let (answers, stream) = mpsc::channel(64);
        let (service, mut requests) = (self.clone(), requests.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                service.0.pipelined.fetch_add(1, SeqCst);
                if service.0.breaks_stream.swap(false, SeqCst) {
                    let _ = answers.send(Err(Status::invalid_argument("of a stream, not of a call"))).await;
                    return;
                }
                let (service, answers) = (service.clone(), answers.clone());
                tokio::spawn(async move {
                    let (id, answer) = (request.id, service.one(request).await);
                    let error = |status: Status| Answer::Error(Bytes::copy_from_slice(status.details()));
                    let answer = Some(answer.unwrap_or_else(error));
                    let _ = answers.send(Ok(v1::PipelineResponse { id, answer })).await;
                });
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    /// One match: the term's value names its chart.
    async fn find_charts(
        &self,
        request: Request<v1::FindChartsRequest>,
    ) -> Result<Response<v1::FindChartsResponse>, Status> {
        let answer = self.answer().await?;
        let message = request.into_inner();
        let id = message.term.unwrap_or_default().value;
        let chart = Some(v1::ChartRef { kind: v1::chart_ref::Kind::Patient as i32, id: id.clone() });
        let found = v1::ChartMatch { chart, record: Some(v1::RecordRef { r#type: message.r#type, id }), version: 3 };
        Ok(Response::new(v1::FindChartsResponse { answer, matches: vec![found], ..Default::default() }))
    }

    async fn upload_part(
        &self,
        request: Request<v1::UploadPartRequest>,
    ) -> Result<Response<v1::UploadPartResponse>, Status> {
        let message = request.into_inner();
        let (next_part, complete) = (message.part + 1, message.last);
        lock(&self.0.parts).push(message);
        let answer = self.answer().await?;
        Ok(Response::new(v1::UploadPartResponse { answer, next_part, complete }))
    }

    type ReadDocumentStream = Pin<Box<dyn Stream<Item = Result<v1::ReadDocumentResponse, Status>> + Send>>;

    /// The digits from 0 to 9, one a chunk, from the offset on; a reply that cuts does so after the third.
    async fn read_document(
        &self,
        request: Request<v1::ReadDocumentRequest>,
    ) -> Result<Response<Self::ReadDocumentStream>, Status> {
        let reply = self.next();
        if let Reply::Refuse(status) = reply {
            return Err(status);
        }
        let message = request.into_inner();
        let header = record(message.record.unwrap()).header;
        let first = v1::ReadDocumentResponse { header, answer: answer(String::new()), ..Default::default() };
        let digits = (message.offset..10).map(|digit| v1::ReadDocumentResponse {
            data: digit.to_string().into(),
            complete: digit == 9,
            ..Default::default()
        });
        let mut sent: Vec<_> = [first].into_iter().chain(digits).map(Ok).collect();
        match reply {
            Reply::Cut => sent.truncate(4),
            Reply::CutByError => {
                sent.truncate(4_usize.saturating_sub(message.offset as usize).max(1));
                sent.push(Err(refusal(Code::DataLoss, "DAMAGED", None)));
            }
            _ => {}
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(sent))))
    }

    type ReadChartStream = Pin<Box<dyn Stream<Item = Result<v1::ReadChartResponse, Status>> + Send>>;

    /// Three pages of two records.
    async fn read_chart(&self, _: Request<v1::ReadChartRequest>) -> Result<Response<Self::ReadChartStream>, Status> {
        let reply = self.next();
        if let Reply::Refuse(status) = reply {
            return Err(status);
        }
        let (pages, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            for number in 0..3 {
                let records =
                    (0..2).map(|n| record(v1::RecordRef { r#type: "A".into(), id: (2 * number + n).to_string() }));
                let page = v1::ReadChartResponse {
                    answer: answer(String::new()),
                    records: records.collect(),
                    complete: number == 2,
                };
                let _ = pages.send(Ok(page)).await;
                match reply {
                    Reply::Hang => pages.closed().await,
                    Reply::Cut => return,
                    Reply::CutByError => {
                        let _ = pages.send(Err(Status::unavailable("shutting down"))).await;
                        return;
                    }
                    Reply::Done { .. } | Reply::Refuse(_) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
