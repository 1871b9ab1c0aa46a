//! Documents: what is larger than a body may be. Parts in, sealed one by one; a stream out, opened one by one.
//!
//! No document is ever in memory: a part is proposed when it comes, and the caller's next waits for the answer. What
//! parts may take is bounded apart from commits, so that these always find room, and in each shard so that no commit
//! queues behind many parts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_proto::v1::mutation::Operation;
use charthold_proto::v1::{
    CommitRequest, DocumentRef, Mutation, ReadDocumentRequest, ReadDocumentResponse, RecordHeader, UploadPartRequest,
    UploadPartResponse,
};
use charthold_replica::ShardId;
use charthold_replica::replica::documents::{PARTS_MAX, add_to_chain, chain_start};
use charthold_replica::replica::{Moment, ReplicaError};
use charthold_replica::shard::command::Command;
use charthold_replica::store::table::ChartAddress;
use charthold_replica::store::table::upload::UploadId;
use pb::outcome::Result as Answer;
use pb::refused::Reason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::Gateway;
use super::access::Caller;
use super::commit::STALE_KEY_TRIES;
use super::error::GatewayError;
use super::record::{Chart, refusal};
use super::validate::{self, Violations};
use crate::seal::{Address, Clear, Compression, Kind, key_id_of, open, seal, write_id};

/// Clear bytes of every part but a document's last. An entry of this size is soon replicated: the small commits behind
/// it hardly wait.
pub const PART_BYTES: usize = 256 << 10;
/// Parts under way at once, all shards together; more are answered as overload.
const PARTS_UNDER_WAY_MAX: usize = 32;
/// Parts being replicated at once in one shard; more wait, so that commits don't wait behind them.
const PARTS_PER_SHARD_MAX: usize = 2;
/// Documents read at once; more are answered as overload. Each holds a few parts.
const READERS_MAX: usize = 64;
/// A reader that takes no chunk for this long is cut.
const READER_STALLS_MAX: Duration = Duration::from_secs(60);
/// `op` of a part's address.
const OP_PUT: u8 = 1;

const _: () = assert!(PARTS_MAX as u64 * PART_BYTES as u64 == crate::config::DOCUMENT_BYTES_LIMIT as u64);

/// The limits of documents.
pub struct Documents {
    bytes_max: u64,
    under_way: Semaphore,
    shards: Vec<Semaphore>,
    readers: Arc<Semaphore>,
}

impl Documents {
    pub fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            under_way: Semaphore::new(PARTS_UNDER_WAY_MAX),
            shards: charthold_replica::all_shards().map(|_| Semaphore::new(PARTS_PER_SHARD_MAX)).collect(),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
        }
    }

    /// Waits until a shard takes a part.
    async fn turn(&self, shard: ShardId, deadline: Instant) -> Result<tokio::sync::SemaphorePermit<'_>, GatewayError> {
        let turn = tokio::time::timeout_at(deadline, self.shards[usize::from(shard)].acquire()).await;
        turn.ok().and_then(Result::ok).ok_or(GatewayError::Overloaded)
    }
}

/// An upload that a commit refers to.
pub struct FoundDocument {
    pub place: pb::Document,
    pub length_bytes: u64,
}

impl FoundDocument {
    pub fn to_header(&self) -> pb::ClearDocument {
        let pb::Document { upload_id, parts, parts_sha256 } = self.place.clone();
        pb::ClearDocument { upload_id, parts, parts_sha256 }
    }
}

impl Gateway {
    pub(super) async fn upload_part(
        &self,
        caller: &Caller,
        request: UploadPartRequest,
        deadline: Instant,
    ) -> Result<UploadPartResponse, GatewayError> {
        let upload_id = validate::upload_part(&request, PART_BYTES, self.documents.bytes_max)?;
        let _room = self.documents.under_way.try_acquire().map_err(|_| GatewayError::Overloaded)?;
        let chart = Chart::new(Arc::clone(&caller.tenant), request.chart.clone().unwrap_or_default());
        let fingerprint = fingerprint(caller, &chart, &upload_id, &request);
        let slot = chart.address.slot;
        let shard = self.replica.shard_of(slot).ok_or(ReplicaError::NoLeader)?;
        let _turn = self.documents.turn(shard, deadline).await?;
        for attempt in 0..STALE_KEY_TRIES {
            let current = self.keyring.current_key(&caller.tenant, &chart.address, attempt > 0, deadline).await?;
            let address = part_address(&chart.address, &upload_id, request.part, request.last);
            let envelope = seal(&current.key, &current.id, &address, &request.data, Compression::Zstd)?;
            let command = Command::PutPart(pb::PutPart {
                tenant: Bytes::copy_from_slice(&chart.address.tenant),
                chart: Bytes::copy_from_slice(&chart.address.chart),
                upload_id: Bytes::copy_from_slice(&upload_id),
                part: request.part,
                last: request.last,
                key_id: Bytes::copy_from_slice(&current.id),
                fingerprint: Bytes::copy_from_slice(&fingerprint),
                envelope: envelope.into_bytes(),
            });
            let proposed = self.replica.propose_at(slot, command.encode(slot), deadline).await?;
            match proposed.outcome.result.ok_or(GatewayError::Internal)? {
                Answer::PartStored(pb::PartStored { next_part, complete }) => {
                    let answer = self.answer(proposed.shard, self.replica.seq(proposed.shard));
                    return Ok(UploadPartResponse { answer, next_part, complete });
                }
                Answer::Refused(refused) if refused.reason() == Reason::StaleChartKey => {}
                Answer::Refused(refused) => return Err(refusal(&refused)),
                _ => return Err(GatewayError::Internal),
            }
        }
        Err(GatewayError::Overloaded)
    }

    /// What a commit's documents are, one a mutation.
    pub(super) async fn find_documents(
        &self,
        chart: &Chart,
        request: &CommitRequest,
        deadline: Instant,
    ) -> Result<Vec<Option<FoundDocument>>, GatewayError> {
        if request.mutations.iter().all(|mutation| document_of(mutation).is_none()) {
            return Ok(request.mutations.iter().map(|_| None).collect());
        }
        let moment = self.replica.barrier_of(chart.address.slot, deadline).await?;
        let find =
            |mutation| document_of(mutation).map(|document| self.find_document(chart, document, &moment)).transpose();
        request.mutations.iter().map(find).collect()
    }

    /// That it opens as the last part says how many there are; no replica's word is taken for the length.
    fn find_document(
        &self,
        chart: &Chart,
        document: &DocumentRef,
        moment: &Moment,
    ) -> Result<FoundDocument, GatewayError> {
        let upload_id = validate::upload_id(&document.upload_id)?;
        let mut place = pb::Document { upload_id: Bytes::copy_from_slice(&upload_id), ..Default::default() };
        let rows = self.replica.documents(moment);
        let row = rows.upload(&chart.address, upload_id)?.filter(|row| row.complete);
        let Some((row, last)) = row.and_then(|row| row.parts.checked_sub(1).map(|last| (row, last))) else {
            // A commit that is repeated finds its upload used up. Apply knows, and refuses what was never whole.
            return Ok(FoundDocument { place, length_bytes: 0 });
        };
        let envelope = rows.part(&chart.address, upload_id, last)?.ok_or(GatewayError::Damaged)?;
        let length = self.open_part(chart, moment, (&upload_id, last, true), &envelope)?.expose().len();
        (place.parts, place.parts_sha256) = (row.parts, row.parts_sha256);
        Ok(FoundDocument { place, length_bytes: u64::from(last) * PART_BYTES as u64 + length as u64 })
    }

    fn open_part(
        &self,
        chart: &Chart,
        moment: &Moment,
        (upload_id, part, last): (&UploadId, u32, bool),
        envelope: &[u8],
    ) -> Result<Clear, GatewayError> {
        let rows = self.replica.rows(moment);
        let key = self.keyring.chart_key(&chart.tenant, &rows, &chart.address, &key_id_of(envelope)?)?;
        Ok(open(&key, &part_address(&chart.address, upload_id, part, last), envelope)?)
    }

    /// Starts a stream: the record is found when this returns, chunks follow as the reader takes them.
    pub(super) async fn read_document(
        self: &Arc<Self>,
        caller: &Caller,
        request: ReadDocumentRequest,
        deadline: Instant,
    ) -> Result<mpsc::Receiver<Result<ReadDocumentResponse, tonic::Status>>, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.chart(request.chart.as_ref());
        violations.record("record", request.record.as_ref());
        violations.into_result()?;
        let room = Arc::clone(&self.documents.readers).try_acquire_owned().map_err(|_| GatewayError::Overloaded)?;
        let chart = Chart::new(Arc::clone(&caller.tenant), request.chart.unwrap_or_default());
        let record = request.record.unwrap_or_default();
        let moment = self.replica.barrier_of(chart.address.slot, deadline).await?;
        let stored = self.find_version(&chart, &record, request.version, &moment)?;
        let (header, document) = self.open_headers(&chart, Some(&record), &stored)?;
        if request.offset > header.length_bytes {
            return Err(GatewayError::field("offset", "is behind the end of the content"));
        }
        let content = match document {
            Some(document) => Chunks::of_document(moment, document, &header, request.offset)?,
            None => Chunks::of_body(self.open_record(&chart, Some(&record), &stored)?.body, request.offset),
        };
        let first = ReadDocumentResponse {
            answer: self.answer_from(moment),
            complete: request.offset == header.length_bytes || header.deleted,
            header: Some(header),
            data: Bytes::new(),
        };
        let (chunks, taken) = mpsc::channel(1);
        tokio::spawn(Arc::clone(self).send_document(room, chart, first, content, chunks));
        Ok(taken)
    }

    async fn send_document(
        self: Arc<Self>,
        _room: OwnedSemaphorePermit,
        chart: Chart,
        first: ReadDocumentResponse,
        mut content: Chunks,
        chunks: mpsc::Sender<Result<ReadDocumentResponse, tonic::Status>>,
    ) {
        let mut next = Ok(first);
        loop {
            let more = matches!(&next, Ok(message) if !message.complete);
            let taken = tokio::time::timeout(READER_STALLS_MAX, chunks.send(next.map_err(Into::into))).await;
            // A reader that went away or stalls gets no more.
            let (Ok(Ok(())), true) = (taken, more) else { return };
            next = content.next(&self, &chart).await;
        }
    }
}

/// What of a record's content is still to be sent.
enum Chunks {
    Body(Bytes),
    Document(Parts),
}

/// A document under way. Parts before the offset are not opened, but the chain is over all of them.
struct Parts {
    moment: Moment,
    upload_id: UploadId,
    parts: u32,
    length_bytes: u64,
    parts_sha256: Bytes,
    offset: u64,
    next: u32,
    chain: Bytes,
}

impl Chunks {
    fn of_body(mut body: Bytes, offset: u64) -> Self {
        Self::Body(body.split_off(offset as usize))
    }

    fn of_document(
        moment: Moment,
        document: pb::ClearDocument,
        header: &RecordHeader,
        offset: u64,
    ) -> Result<Self, GatewayError> {
        let upload_id = UploadId::try_from(document.upload_id.as_ref()).map_err(|_| GatewayError::Damaged)?;
        Ok(Self::Document(Parts {
            moment,
            upload_id,
            parts: document.parts,
            length_bytes: header.length_bytes,
            parts_sha256: document.parts_sha256,
            offset,
            next: 0,
            chain: chain_start(),
        }))
    }

    async fn next(&mut self, gateway: &Gateway, chart: &Chart) -> Result<ReadDocumentResponse, GatewayError> {
        let (data, complete) = match self {
            Self::Body(body) => {
                let data = body.split_to(body.len().min(PART_BYTES));
                (data, body.is_empty())
            }
            Self::Document(parts) => loop {
                if let Some(data) = parts.step(gateway, chart)? {
                    break (data, parts.next == parts.parts);
                }
                // Many parts may come before the first that is wanted.
                tokio::task::yield_now().await;
            },
        };
        Ok(ReadDocumentResponse { data, complete, ..Default::default() })
    }
}

impl Parts {
    /// Takes the next part; its bytes, if any of them are wanted. The last part's are given only if all parts were the
    /// ones that were committed.
    fn step(&mut self, gateway: &Gateway, chart: &Chart) -> Result<Option<Bytes>, GatewayError> {
        let part = self.next;
        let last = part + 1 == self.parts;
        let envelope = gateway.replica.documents(&self.moment).part(&chart.address, self.upload_id, part)?;
        let envelope = envelope.ok_or_else(|| damaged("is missing"))?;
        self.chain = add_to_chain(&self.chain, &envelope);
        self.next += 1;
        if last && self.chain != self.parts_sha256 {
            return Err(damaged("is another than was committed"));
        }
        let begin = u64::from(part) * PART_BYTES as u64;
        if begin + PART_BYTES as u64 <= self.offset && !last {
            return Ok(None);
        }
        let mut data = Bytes::from(gateway.open_part(chart, &self.moment, (&self.upload_id, part, last), &envelope)?);
        let expected = if last { self.length_bytes - begin.min(self.length_bytes) } else { PART_BYTES as u64 };
        if data.len() as u64 != expected {
            return Err(damaged("has another length than was committed"));
        }
        let skipped = self.offset.saturating_sub(begin).min(expected);
        Ok(Some(data.split_off(skipped as usize)))
    }
}

fn damaged(what: &str) -> GatewayError {
    tracing::error!("a part of a document {what}");
    GatewayError::Damaged
}

fn document_of(mutation: &Mutation) -> Option<&DocumentRef> {
    match &mutation.operation {
        Some(Operation::Put(put)) => put.document.as_ref(),
        _ => None,
    }
}

fn part_address(chart: &ChartAddress, upload_id: &UploadId, part: u32, last: bool) -> Address {
    Address {
        op: OP_PUT,
        tenant: chart.tenant,
        chart: chart.chart,
        write_id: write_id(upload_id, 0),
        part,
        last,
        ..Address::of(Kind::Part)
    }
}

/// Over what the part is. Not over who sends it: another service may go on where one ended.
fn fingerprint(caller: &Caller, chart: &Chart, upload_id: &UploadId, request: &UploadPartRequest) -> [u8; 16] {
    let place = [&chart.address.chart[..], upload_id, &request.part.to_be_bytes(), &[u8::from(request.last)]];
    let canonical = [&b"part"[..], &place.concat(), &request.data].concat();
    caller.tenant.fingerprint(&canonical)
}
