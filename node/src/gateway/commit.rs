//! Commit: from a clear request to a sealed command, and its outcome back.

use std::sync::Arc;

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_proto::v1::mutation::Operation;
use charthold_proto::v1::precondition::Condition;
use charthold_proto::v1::{CommitRequest, CommitResponse, IndexTerm, Mutation, RecordRef};
use charthold_replica::replica::Proposed;
use charthold_replica::shard::command::Command;
use pb::outcome::Result as Answer;
use pb::refused::Reason;
use prost::Message;
use tokio::time::Instant;

use super::Gateway;
use super::access::Caller;
use super::audit::clear_context;
use super::documents::FoundDocument;
use super::error::GatewayError;
use super::keyring::CurrentKey;
use super::observe::Stages;
use super::record::{Chart, Content, ToSeal, refusal, timestamp};
use super::validate;
use crate::metrics::METRICS;
use crate::seal::{WriteId, write_id};

/// A chart's key changes rarely, and once at a time.
pub const STALE_KEY_TRIES: usize = 3;

/// What all tries of a commit share.
struct Prepared {
    request_id: [u8; 16],
    fingerprint: [u8; 16],
    /// One a mutation.
    documents: Vec<Option<FoundDocument>>,
}

impl Gateway {
    pub(super) async fn commit(
        &self,
        caller: &Caller,
        mut request: CommitRequest,
        deadline: Instant,
    ) -> Result<CommitResponse, GatewayError> {
        let mut stages = Stages::begin();
        validate::commit(&request, self.body_bytes_max())?;
        let request_id = validate::request_id(&request.request_id)?;
        let chart = Chart::new(Arc::clone(&caller.tenant), request.chart.clone().unwrap_or_default());
        let fingerprint = fingerprint(caller, &mut request);
        // Before the commit: once it is answered, whoever looks for one of its terms finds it.
        self.put_index(&chart, &request.mutations, deadline).await?;
        let documents = self.find_documents(&chart, &request, deadline).await?;
        let prepared = Prepared { request_id, fingerprint, documents };
        stages.done(&METRICS.commit_admit, "admit");
        for attempt in 0..STALE_KEY_TRIES {
            let current = self.keyring.current_key(&caller.tenant, &chart.address, attempt > 0, deadline).await?;
            stages.done(&METRICS.commit_key, "key");
            let command = self.seal_commit(caller, &chart, &request, &prepared, &current)?;
            stages.done(&METRICS.commit_seal, "seal");
            let Proposed { shard, outcome, durability } =
                self.replica.propose_at(chart.address.slot, command, deadline).await?;
            stages.done(&METRICS.commit_propose, "propose");
            match outcome.result.ok_or(GatewayError::Internal)? {
                Answer::Committed(committed) => {
                    let answer = CommitResponse {
                        answer: self.answer_to_commit(shard, committed.seq, durability),
                        versions: committed.versions,
                        committed_at: Some(timestamp(committed.log_time_ms)),
                    };
                    stages.done(&METRICS.commit_answer, "answer");
                    return Ok(answer);
                }
                Answer::PreconditionFailed(failed) => return Err(precondition_failed(caller, &failed)),
                Answer::Refused(refused) if refused.reason() == Reason::StaleChartKey => {}
                Answer::Refused(refused) => return Err(refusal(&refused)),
                _ => return Err(GatewayError::Internal),
            }
        }
        Err(GatewayError::Overloaded)
    }

    fn seal_commit(
        &self,
        caller: &Caller,
        chart: &Chart,
        request: &CommitRequest,
        prepared: &Prepared,
        current: &CurrentKey,
    ) -> Result<Bytes, GatewayError> {
        let Prepared { request_id, fingerprint, documents } = prepared;
        let mutations = request.mutations.iter().zip(documents).enumerate().map(|(index, (mutation, document))| {
            let write_id = write_id(request_id, index as u16);
            seal_mutation(caller, chart, request, (mutation, document.as_ref()), write_id, current)
        });
        let mutations = mutations.collect::<Result<Vec<_>, _>>()?;
        let event = self.commit_event(caller, request);
        let audit_event =
            caller.tenant.seal_audit(&chart.address.chart, &write_id(request_id, 0), &event.encode_to_vec())?;
        let command = Command::Commit(pb::Commit {
            tenant: Bytes::copy_from_slice(&chart.address.tenant),
            chart: Bytes::copy_from_slice(&chart.address.chart),
            request_id: Bytes::copy_from_slice(request_id),
            fingerprint: Bytes::copy_from_slice(fingerprint),
            key_id: Bytes::copy_from_slice(&current.id),
            mutations,
            audit_event: audit_event.into_bytes(),
        });
        Ok(command.encode(chart.address.slot))
    }

    fn commit_event(&self, caller: &Caller, request: &CommitRequest) -> pb::AuditEvent {
        let context = request.context.clone().unwrap_or_default();
        let chart = request.chart.clone().unwrap_or_default();
        let audited = |mutation: &Mutation| {
            let record = mutation.record.clone().unwrap_or_default();
            pb::AuditedMutation { op: op(mutation) as u32, r#type: record.r#type, id: record.id }
        };
        pb::AuditEvent {
            chart_kind: chart.kind as u32,
            chart_id: chart.id,
            mutations: request.mutations.iter().map(audited).collect(),
            ..self.audit_event("Commit", &caller.principal, &context)
        }
    }
}

fn op(mutation: &Mutation) -> pb::mutation::Op {
    match mutation.operation {
        Some(Operation::Put(_)) => pb::mutation::Op::Put,
        Some(Operation::Delete(_)) => pb::mutation::Op::Delete,
        Some(Operation::Check(_)) => pb::mutation::Op::Check,
        None => pb::mutation::Op::Unspecified,
    }
}

fn seal_mutation(
    caller: &Caller,
    chart: &Chart,
    request: &CommitRequest,
    (mutation, document): (&Mutation, Option<&FoundDocument>),
    write_id: WriteId,
    current: &CurrentKey,
) -> Result<pb::Mutation, GatewayError> {
    let record = mutation.record.clone().unwrap_or_default();
    let address = chart.record(&record);
    let (header, body) = match &mutation.operation {
        None | Some(Operation::Check(_)) => (Bytes::new(), Bytes::new()),
        Some(operation) => {
            let mut header = clear_header(caller, request, &record, operation);
            let content = match (operation, document) {
                (Operation::Put(_), Some(document)) => {
                    header.length_bytes = document.length_bytes;
                    header.document = Some(document.to_header());
                    Content::Document
                }
                (Operation::Put(put), None) => Content::Body(&put.body),
                _ => Content::Deleted,
            };
            ToSeal { record: address, header, content, write_id }.seal(current)?
        }
    };
    let condition = mutation.precondition.as_ref().and_then(|precondition| precondition.condition);
    let condition = condition.map(|condition| match condition {
        Condition::MustNotExist(wanted) => pb::precondition::Condition::MustNotExist(wanted),
        Condition::Version(version) => pb::precondition::Condition::Version(version),
    });
    Ok(pb::Mutation {
        op: op(mutation) as i32,
        r#type: Bytes::copy_from_slice(&address.record_type),
        record: Bytes::copy_from_slice(&address.record),
        precondition: condition.map(|condition| pb::Precondition { condition: Some(condition) }),
        header,
        body,
        document: document.map(|document| document.place.clone()),
    })
}

fn clear_header(
    caller: &Caller,
    request: &CommitRequest,
    record: &RecordRef,
    operation: &Operation,
) -> pb::ClearHeader {
    let chart = request.chart.clone().unwrap_or_default();
    let mut header = pb::ClearHeader {
        chart_kind: chart.kind as u32,
        chart_id: chart.id,
        r#type: record.r#type.clone(),
        id: record.id.clone(),
        context: request.context.as_ref().map(clear_context),
        principal: caller.principal.clone(),
        ..Default::default()
    };
    if let Operation::Put(put) = operation {
        header.content_type = put.content_type.clone();
        header.clinical_date = put.clinical_date.clone();
        header.status = put.status.clone();
        header.author = put.author.clone();
        header.labels = put.labels.clone();
        let clear = |term: &IndexTerm| pb::ClearIndexTerm { system: term.system.clone(), value: term.value.clone() };
        header.index_terms = put.index_terms.iter().map(clear).collect();
        header.length_bytes = put.body.len() as u64;
    }
    header
}

/// Over what the commit says and who says it: not the context, which may differ when a request is repeated.
fn fingerprint(caller: &Caller, request: &mut CommitRequest) -> [u8; 16] {
    let left_out = (request.context.take(), std::mem::take(&mut request.request_id));
    let mut canonical = Vec::with_capacity(4 + caller.principal.len() + request.encoded_len());
    canonical.extend((caller.principal.len() as u32).to_be_bytes());
    canonical.extend(caller.principal.as_bytes());
    request.encode(&mut canonical).expect("invariant: a growing buffer has room");
    (request.context, request.request_id) = left_out;
    caller.tenant.fingerprint(&canonical)
}

/// What a record's newest version is, only readers are told.
fn precondition_failed(caller: &Caller, failed: &pb::PreconditionFailed) -> GatewayError {
    let index = failed.index;
    match failed.wanted() {
        pb::Wanted::Absent => GatewayError::AlreadyExists { index },
        pb::Wanted::Present => {
            let deleted_version = (failed.deleted && caller.reads()).then_some(failed.version);
            GatewayError::NotFound { index: Some(index), deleted_version }
        }
        pb::Wanted::Version | pb::Wanted::Unspecified => {
            let version = if failed.deleted { 0 } else { failed.version };
            GatewayError::VersionMismatch { index, current: caller.reads().then_some(version) }
        }
    }
}
