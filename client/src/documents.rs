//! Documents: content that is larger than a body may be.
//!
//! Owns the cutting into parts, and going on where a stream was cut. Holds a part or two in memory, never a document.

use bytes::{Bytes, BytesMut};
use charthold_proto::v1;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};
use tonic::{Response, Status, Streaming};
use uuid::Uuid;

use crate::charts::stub;
use crate::error::{Failure, Next};
use crate::retry::{Attempt, Call, Route};
use crate::types::{Chart, Committed, Document, Header, Mutation, Put, RecordId, new_request_id};
use crate::{Client, Error, request};

/// The protocol's: every part but the last.
const PART_BYTES: usize = 256 << 10;
/// How often in a row a stream is taken up again without a byte in between.
const RESUMES_MAX: u32 = 5;
const CUT: &str = "the stream was cut before the document was complete";

impl Client {
    /// Uploads a document into a chart, for a [`Put`] of the same chart to refer to: until then nobody sees it, and
    /// after a day it is dropped.
    ///
    /// Reads the content as fast as the cluster stores it. Each part has the client's whole deadline.
    pub async fn upload(&self, chart: &Chart, content: impl AsyncRead + Unpin) -> Result<Document, Error> {
        self.upload_with_id(new_request_id(), chart, content).await
    }

    /// Like [`Client::upload`], with an id of the caller's, from [`new_request_id`].
    ///
    /// Repeated with the same id and content it goes on where it ended; other content under a used id is refused with
    /// [`Error::RequestIdReused`].
    pub async fn upload_with_id(
        &self,
        upload_id: Uuid,
        chart: &Chart,
        mut content: impl AsyncRead + Unpin,
    ) -> Result<Document, Error> {
        let mut message = v1::UploadPartRequest {
            context: Some(self.context.to_proto()),
            chart: Some(chart.to_proto()),
            upload_id: upload_id.to_string(),
            part: 0,
            data: read_part(&mut content).await?,
            last: false,
        };
        let mut length_bytes = 0;
        loop {
            length_bytes += message.data.len() as u64;
            let full = message.data.len() == PART_BYTES;
            // Only what comes after a full part tells whether it is the last.
            let next = if full { read_part(&mut content).await? } else { Bytes::new() };
            message.last = next.is_empty();
            self.upload_part(chart, &message).await?;
            if message.last {
                return Ok(Document { upload_id, length_bytes });
            }
            message.part += 1;
            message.data = next;
        }
    }

    async fn upload_part(&self, chart: &Chart, message: &v1::UploadPartRequest) -> Result<(), Error> {
        let traceparent = self.traceparent.as_ref();
        let call = Call { route: Route::Chart(chart), deadline: self.deadline, request_id: None, traceparent };
        let send = |attempt: Attempt| {
            let request = request(message, attempt.timeout);
            async move { stub(attempt.channel).upload_part(request).await.map(Response::into_inner) }
        };
        let answer = self.cluster.run(call, send).await?;
        self.learn(chart, answer.answer);
        Ok(())
    }

    /// Uploads a document and stores it as a record's new version, whatever its version is. To guard against that, or to
    /// change other records in the same commit, [`Client::upload`] it and [`Client::commit`] a [`Put`] that refers to it.
    pub async fn put_document(
        &self,
        chart: &Chart,
        record: &RecordId,
        put: Put,
        content: impl AsyncRead + Unpin,
    ) -> Result<Committed, Error> {
        let document = self.upload(chart, content).await?;
        let put = Put { body: Bytes::new(), document: Some(document), ..put };
        self.commit(chart, vec![Mutation::put(record.clone(), put)]).await
    }

    /// Reads the content of a record's newest version, of whatever size, as it comes.
    pub async fn read_document(&self, chart: &Chart, record: &RecordId) -> Result<DocumentStream, Error> {
        self.read_document_version(chart, record, 0).await
    }

    /// The same for a version by its number.
    pub async fn read_document_version(
        &self,
        chart: &Chart,
        record: &RecordId,
        version: u64,
    ) -> Result<DocumentStream, Error> {
        let opened = self.open_document(chart, record, version, 0).await?;
        Ok(DocumentStream {
            client: self.clone(),
            chart: chart.clone(),
            record: record.clone(),
            header: opened.header,
            offset: 0,
            more: opened.more,
            failures: 0,
        })
    }

    async fn open_document(
        &self,
        chart: &Chart,
        record: &RecordId,
        version: u64,
        offset: u64,
    ) -> Result<Opened, Error> {
        let message = v1::ReadDocumentRequest {
            context: Some(self.context.to_proto()),
            chart: Some(chart.to_proto()),
            record: Some(record.to_proto()),
            version,
            offset,
        };
        let open = |attempt: Attempt| {
            let request = request(&message, attempt.deadline.saturating_duration_since(Instant::now()));
            async move {
                let mut chunks = stub(attempt.channel).read_document(request).await?.into_inner();
                let first = chunks.message().await?.ok_or_else(|| Status::unavailable(CUT))?;
                Ok((first, chunks))
            }
        };
        let traceparent = self.traceparent.as_ref();
        let call = Call { route: Route::Chart(chart), deadline: self.deadline, request_id: None, traceparent };
        let (first, chunks) = self.cluster.run(call, open).await?;
        self.learn(chart, first.answer);
        let header = first.header.ok_or_else(|| Error::Internal { message: "ReadDocument gave no header".into() })?;
        let more = Some(Box::new(chunks)).filter(|_| !first.complete);
        Ok(Opened { header: Header::from_proto(header), more })
    }
}

struct Opened {
    header: Header,
    more: Option<Box<Streaming<v1::ReadDocumentResponse>>>,
}

/// Bytes until a part is full or the content ends.
async fn read_part(content: &mut (impl AsyncRead + Unpin)) -> Result<Bytes, Error> {
    let mut part = BytesMut::with_capacity(PART_BYTES);
    let mut limited = content.take(PART_BYTES as u64);
    loop {
        match limited.read_buf(&mut part).await {
            Ok(0) => return Ok(part.freeze()),
            Ok(_) if part.len() == PART_BYTES => return Ok(part.freeze()),
            Ok(_) => {}
            Err(error) => return Err(Error::Content { why: error.to_string() }),
        }
    }
}

/// The content of one version of a record, from [`Client::read_document`].
///
/// A stream that is cut is taken up again where it ended, on another gateway if need be. It ends with `None` only when
/// the content is complete, and every byte is what was committed; an error says that it is not, whatever came before.
pub struct DocumentStream {
    client: Client,
    chart: Chart,
    record: RecordId,
    header: Header,
    offset: u64,
    /// None once the content is complete or an error was given.
    more: Option<Box<Streaming<v1::ReadDocumentResponse>>>,
    failures: u32,
}

impl DocumentStream {
    /// What it is the content of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next bytes; `None` when the content is complete. Each wait is at most the client's deadline.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            let chunks = self.more.as_mut()?;
            let failure = match timeout(self.client.deadline, chunks.message()).await {
                Ok(Ok(Some(chunk))) => {
                    self.offset += chunk.data.len() as u64;
                    self.failures = 0;
                    if chunk.complete {
                        self.more = None;
                    }
                    if chunk.data.is_empty() {
                        continue;
                    }
                    return Some(Ok(chunk.data));
                }
                Ok(Ok(None)) => Failure::from_status(&Status::unavailable(CUT)),
                Ok(Err(status)) => Failure::from_status(&status),
                Err(_) => Failure::from_status(&Status::unavailable("no bytes of the document came in time")),
            };
            if let Err(error) = self.resume(failure).await {
                self.more = None;
                return Some(Err(error));
            }
        }
    }

    /// Writes all of it; answers how many bytes that were.
    pub async fn copy_to(mut self, sink: &mut (impl AsyncWrite + Unpin)) -> Result<u64, Error> {
        let failed = |error: std::io::Error| Error::Content { why: error.to_string() };
        while let Some(chunk) = self.next().await {
            sink.write_all(&chunk?).await.map_err(failed)?;
        }
        sink.flush().await.map_err(failed)?;
        Ok(self.offset)
    }

    async fn resume(&mut self, failure: Failure) -> Result<(), Error> {
        self.failures += 1;
        if self.failures > RESUMES_MAX || matches!(failure.next, Next::Stop { .. }) {
            return Err(failure.error);
        }
        let opened = self.client.open_document(&self.chart, &self.record, self.header.version, self.offset).await?;
        self.more = opened.more;
        Ok(())
    }
}
