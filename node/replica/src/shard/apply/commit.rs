//! Commit: an atomic change of one chart.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use charthold_proto::internal as pb;
use pb::mutation::Op;
use pb::outcome::Result as Answer;
use pb::precondition::Condition;
use pb::refused::Reason;
use prost::Message;
use sha2::{Digest, Sha256};

use super::overlay::Overlay;
use super::recorder::RequestPlace;
use super::{Applier, ApplyError, chart_refuses, document, refused};
use crate::Slot;
use crate::planted::{self, Bug};
use crate::store::state::Table;
use crate::store::table::request::RequestId;
use crate::store::table::{ChartAddress, RecordAddress, ledger, request, version};

/// A record's newest version, as preconditions see it.
#[derive(Clone, Copy)]
struct Newest {
    /// 0: there never was one.
    version: u64,
    deleted: bool,
}

/// A commit whose fields have the right shape.
struct Checked {
    address: ChartAddress,
    request_id: RequestId,
    commit: pb::Commit,
    records: Vec<RecordAddress>,
}

impl Applier {
    pub(super) fn commit(
        &mut self,
        overlay: &mut Overlay,
        slot: Slot,
        commit: pb::Commit,
    ) -> Result<Answer, ApplyError> {
        let Some(checked) = check_shape(slot, commit) else {
            return Ok(refused(Reason::Malformed));
        };
        if let Some(reason) = chart_refuses(overlay, &checked.address, &checked.commit.key_id)? {
            return Ok(refused(reason));
        }
        let place = request_place(&checked);
        let fingerprint = checked.commit.fingerprint.clone();
        if let Some(answer) = self.answer_without_executing(overlay, &place, &checked.request_id, &fingerprint)? {
            return Ok(answer);
        }
        // After the question whether it was executed before: what it refers to is used up since.
        if let Some(reason) = document::commit_refuses(overlay, &checked.address, &checked.commit)? {
            return Ok(refused(reason));
        }
        let newest = checked.records.iter().map(|record| newest_version(overlay, record));
        let newest = newest.collect::<Result<Vec<_>, _>>()?;
        let (seq, log_time_ms) = (self.next_seq(), self.progress.log_time_ms);
        let failed =
            checked.commit.mutations.iter().zip(&newest).enumerate().find_map(|(index, (mutation, newest))| {
                let wanted = unmet(mutation, *newest)?;
                Some(pb::PreconditionFailed {
                    seq,
                    log_time_ms,
                    index: index as u32,
                    version: newest.version,
                    deleted: newest.deleted,
                    wanted: wanted as i32,
                })
            });
        let (answer, written) = match failed {
            Some(failed) => (Answer::PreconditionFailed(failed), Vec::new()),
            None => {
                let versions = write_versions(overlay, &checked, &newest, seq, log_time_ms);
                document::use_up(overlay, &checked.address, &checked.commit)?;
                (Answer::Committed(pb::Committed { seq, log_time_ms, versions: versions.clone() }), versions)
            }
        };
        let row = ledger_row(&checked, answer.clone(), &written);
        self.record(overlay, place, fingerprint, Some(checked.address), row);
        Ok(answer)
    }
}

fn check_shape(slot: Slot, commit: pb::Commit) -> Option<Checked> {
    let address = ChartAddress {
        slot,
        tenant: commit.tenant.as_ref().try_into().ok()?,
        chart: commit.chart.as_ref().try_into().ok()?,
    };
    let request_id = commit.request_id.as_ref().try_into().ok()?;
    let record = |mutation: &pb::Mutation| {
        Some(RecordAddress {
            chart: address,
            record_type: mutation.r#type.as_ref().try_into().ok()?,
            record: mutation.record.as_ref().try_into().ok()?,
        })
    };
    let records = commit.mutations.iter().map(record).collect::<Option<Vec<_>>>()?;
    let distinct = records.iter().collect::<BTreeSet<_>>().len() == records.len();
    let known = commit.mutations.iter().all(|mutation| mutation.op() != Op::Unspecified);
    (distinct && known && !records.is_empty()).then_some(Checked { address, request_id, commit, records })
}

fn request_place(checked: &Checked) -> RequestPlace {
    let ChartAddress { slot, tenant, .. } = checked.address;
    let key = request::Key { slot, tenant, request_id: checked.request_id };
    RequestPlace { table: Table::Request, key: key.encode() }
}

fn newest_version(overlay: &mut Overlay, record: &RecordAddress) -> Result<Newest, ApplyError> {
    let prefix = version::record_prefix(record);
    let Some((key, row)) = overlay.newest_version(prefix)? else {
        return Ok(Newest { version: 0, deleted: false });
    };
    let damaged = ApplyError::Damaged { table: "version" };
    let key = version::Key::decode(&key).ok_or(damaged.clone())?;
    let row = version::Row::decode(row).map_err(|_| damaged)?;
    Ok(Newest { version: key.version, deleted: row.tombstone })
}

/// What a mutation wants of its record and does not find.
fn unmet(mutation: &pb::Mutation, newest: Newest) -> Option<pb::Wanted> {
    if planted::has(Bug::PreconditionIgnored) {
        return None;
    }
    let present = newest.version > 0 && !newest.deleted;
    let condition = mutation.precondition.as_ref().and_then(|precondition| precondition.condition.as_ref());
    match condition {
        Some(Condition::MustNotExist(_)) if present => Some(pb::Wanted::Absent),
        Some(Condition::Version(wanted)) if !present || newest.version != *wanted => Some(pb::Wanted::Version),
        // Nothing to delete: said, not passed over in silence.
        None if mutation.op() == Op::Delete && !present => Some(pb::Wanted::Present),
        Some(Condition::MustNotExist(_)) if mutation.op() == Op::Delete => Some(pb::Wanted::Present),
        _ => None,
    }
}

/// Writes the rows; answers each record's version after the commit.
fn write_versions(overlay: &mut Overlay, checked: &Checked, newest: &[Newest], seq: u64, log_time_ms: u64) -> Vec<u64> {
    let commit = &checked.commit;
    let mut versions = Vec::with_capacity(newest.len());
    for (index, (mutation, newest)) in commit.mutations.iter().zip(newest).enumerate() {
        if mutation.op() == Op::Check {
            versions.push(if newest.deleted { 0 } else { newest.version });
            continue;
        }
        let version = newest.version + 1;
        if planted::has(Bug::HalfCommit) && index == 1 {
            versions.push(version);
            continue;
        }
        let row = version::Row {
            seq,
            log_time_ms,
            tombstone: mutation.op() == Op::Delete,
            write_id: write_id(&checked.request_id, index),
            key_id: commit.key_id.clone(),
            header: mutation.header.clone(),
            body: mutation.body.clone(),
            document: mutation.document.clone(),
        };
        let key = version::Key { record: checked.records[index], version };
        overlay.put(Table::Version, key.encode(), row.encode_to_vec().into());
        versions.push(version);
    }
    versions
}

/// Names one mutation of one request; part of what its envelopes are bound to. request id 16 | index 2
fn write_id(request_id: &RequestId, index: usize) -> Bytes {
    let mut id = BytesMut::with_capacity(18);
    id.put_slice(request_id);
    id.put_u16(index as u16);
    id.freeze()
}

fn ledger_row(checked: &Checked, answer: Answer, versions: &[u64]) -> ledger::Row {
    let mutation = |(index, mutation): (usize, &pb::Mutation)| pb::LedgerMutation {
        op: mutation.op as u32,
        r#type: mutation.r#type.clone(),
        record: mutation.record.clone(),
        version: if mutation.op() == Op::Check { 0 } else { versions.get(index).copied().unwrap_or(0) },
        envelopes_sha256: match mutation.op() {
            Op::Check => Bytes::new(),
            _ => {
                let content = mutation.document.as_ref().map_or(&mutation.body, |document| &document.parts_sha256);
                Bytes::copy_from_slice(&Sha256::new().chain_update(&mutation.header).chain_update(content).finalize())
            }
        },
    };
    let commit = &checked.commit;
    ledger::Row {
        log_time_ms: 0,
        tenant: commit.tenant.clone(),
        slot: u32::from(checked.address.slot),
        chart: commit.chart.clone(),
        request_id: commit.request_id.clone(),
        outcome: Some(pb::Outcome { result: Some(answer) }),
        mutations: commit.mutations.iter().enumerate().map(mutation).collect(),
        audit_event: commit.audit_event.clone(),
        leaf_hash: Bytes::new(),
    }
}
