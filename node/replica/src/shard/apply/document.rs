//! Documents: parts come one by one, in order, and a commit takes them over.
//!
//! An upload has a row while it is open; the commit that refers to it takes the row away, and what is left are parts
//! that a version names. Parts are no outcomes: the ledger tells of the commit, and its hash covers all parts.
//!
//! Must not know a clock: how long an upload was idle is a question to the log's time.

use std::collections::BTreeSet;

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::mutation::Op;
use pb::outcome::Result as Answer;
use pb::refused::Reason;
use prost::Message;
use sha2::{Digest, Sha256};

use super::overlay::Overlay;
use super::{ApplyError, chart_refuses, read_row, refused};
use crate::Slot;
use crate::store::state::Table;
use crate::store::table::{ChartAddress, chart, part, upload};

/// Parts of one document: 1 GiB, of 256 KiB each.
pub const PARTS_MAX: u32 = 4_096;
/// Uploads of one chart that no commit has used up.
pub const OPEN_UPLOADS_MAX: u32 = 16;
/// Parts that one command drops: bounds what a batch holds.
const DROP_PARTS: u32 = 256;

/// The chain of no part.
const EMPTY_CHAIN: [u8; 32] = [0; 32];

/// What a part makes of the chain: every part's envelope is in it, in order.
pub fn chain(so_far: &[u8], envelope: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&Sha256::new().chain_update(so_far).chain_update(envelope).finalize())
}

/// The chain that parts are added to.
pub fn chain_start() -> Bytes {
    Bytes::from_static(&EMPTY_CHAIN)
}

pub(super) fn put_part(
    overlay: &mut Overlay,
    slot: Slot,
    put: pb::PutPart,
    log_time_ms: u64,
) -> Result<Answer, ApplyError> {
    let Some(key) = upload_key(slot, &put.tenant, &put.chart, &put.upload_id).filter(|_| put.part < PARTS_MAX) else {
        return Ok(refused(Reason::Malformed));
    };
    if let Some(reason) = chart_refuses(overlay, &key.chart, &put.key_id)? {
        return Ok(refused(reason));
    }
    let open = read_row::<upload::Row>(overlay, Table::Upload, key.encode())?;
    let place = part::Key { chart: key.chart, upload_id: key.upload_id, part: put.part };
    let stored = read_row::<part::Row>(overlay, Table::Part, place.encode())?;
    let mut row = match (open, stored) {
        (Some(row), _) if row.dropped => return Ok(refused(Reason::UploadNotFound)),
        (_, Some(stored)) if stored.fingerprint != put.fingerprint => return Ok(refused(Reason::RequestIdReused)),
        (Some(row), Some(_)) => return Ok(part_stored(row.parts, row.complete)),
        // A commit has used it up: only what repeats a part is still answered.
        (None, Some(_)) => return Ok(part_stored(put.part + 1, put.last)),
        (Some(row), None) if row.complete || put.part != row.parts => return Ok(out_of_order(row.parts)),
        (Some(row), None) => row,
        (None, None) if put.part > 0 => return Ok(refused(Reason::UploadNotFound)),
        (None, None) => match begin(overlay, &key.chart)? {
            Some(reason) => return Ok(refused(reason)),
            None => upload::Row { started_ms: log_time_ms, parts_sha256: chain_start(), ..Default::default() },
        },
    };
    row.parts += 1;
    row.last_ms = log_time_ms;
    row.complete = put.last;
    row.parts_sha256 = chain(&row.parts_sha256, &put.envelope);
    let part = part::Row { fingerprint: put.fingerprint, envelope: put.envelope };
    overlay.put(Table::Part, place.encode(), part.encode_to_vec().into());
    overlay.put(Table::Upload, key.encode(), row.encode_to_vec().into());
    Ok(part_stored(row.parts, row.complete))
}

/// Counts one more open upload; or says why there can't be one.
fn begin(overlay: &mut Overlay, address: &ChartAddress) -> Result<Option<Reason>, ApplyError> {
    let mut row = chart_row(overlay, address)?;
    if row.open_uploads >= OPEN_UPLOADS_MAX {
        return Ok(Some(Reason::TooManyUploads));
    }
    row.open_uploads += 1;
    overlay.put(Table::Chart, chart::encode(address), row.encode_to_vec().into());
    Ok(None)
}

/// Takes the row of an upload away, and counts one open upload less.
fn end(overlay: &mut Overlay, key: &upload::Key) -> Result<(), ApplyError> {
    let mut row = chart_row(overlay, &key.chart)?;
    row.open_uploads = row.open_uploads.saturating_sub(1);
    overlay.put(Table::Chart, chart::encode(&key.chart), row.encode_to_vec().into());
    overlay.delete(Table::Upload, key.encode());
    Ok(())
}

fn chart_row(overlay: &Overlay, address: &ChartAddress) -> Result<chart::Row, ApplyError> {
    let row = read_row::<chart::Row>(overlay, Table::Chart, chart::encode(address))?;
    row.ok_or(ApplyError::Damaged { table: "chart" })
}

/// Why the documents of a commit cannot be taken over, if they can't: each must be an upload of this chart, whole, and
/// the one that the gateway saw.
pub(super) fn commit_refuses(
    overlay: &Overlay,
    chart: &ChartAddress,
    commit: &pb::Commit,
) -> Result<Option<Reason>, ApplyError> {
    let mut seen = BTreeSet::new();
    for mutation in &commit.mutations {
        let Some(document) = &mutation.document else { continue };
        let key = upload_key(chart.slot, &commit.tenant, &commit.chart, &document.upload_id);
        let Some(key) = key.filter(|_| mutation.op() == Op::Put && mutation.body.is_empty()) else {
            return Ok(Some(Reason::Malformed));
        };
        if !seen.insert(key.upload_id) {
            return Ok(Some(Reason::Malformed));
        }
        match read_row::<upload::Row>(overlay, Table::Upload, key.encode())? {
            Some(row) if row.dropped => return Ok(Some(Reason::UploadNotFound)),
            None => return Ok(Some(Reason::UploadNotFound)),
            Some(row) => {
                let same = row.parts == document.parts && row.parts_sha256 == document.parts_sha256;
                if !row.complete || !same {
                    return Ok(Some(Reason::UploadIncomplete));
                }
            }
        }
    }
    Ok(None)
}

/// The uploads of a commit that was executed are open no more.
pub(super) fn use_up(overlay: &mut Overlay, chart: &ChartAddress, commit: &pb::Commit) -> Result<(), ApplyError> {
    for document in commit.mutations.iter().filter_map(|mutation| mutation.document.as_ref()) {
        if let Some(key) = upload_key(chart.slot, &commit.tenant, &commit.chart, &document.upload_id) {
            end(overlay, &key)?;
        }
    }
    Ok(())
}

pub(super) fn drop_upload(
    overlay: &mut Overlay,
    slot: Slot,
    drop: pb::DropUpload,
    log_time_ms: u64,
) -> Result<Answer, ApplyError> {
    let Some(key) = upload_key(slot, &drop.tenant, &drop.chart, &drop.upload_id) else {
        return Ok(refused(Reason::Malformed));
    };
    let Some(mut row) = read_row::<upload::Row>(overlay, Table::Upload, key.encode())? else {
        return Ok(refused(Reason::UploadNotFound));
    };
    // A part may have come since the leader looked.
    if !row.dropped && row.last_ms.saturating_add(drop.idle_ms) > log_time_ms {
        return Ok(refused(Reason::UploadIncomplete));
    }
    let left = row.parts.saturating_sub(DROP_PARTS);
    for part in left..row.parts {
        overlay.delete(Table::Part, part::Key { chart: key.chart, upload_id: key.upload_id, part }.encode());
    }
    if left == 0 {
        end(overlay, &key)?;
    } else {
        row.parts = left;
        row.dropped = true;
        overlay.put(Table::Upload, key.encode(), row.encode_to_vec().into());
    }
    Ok(Answer::PartsDropped(pb::PartsDropped { parts_left: left }))
}

fn upload_key(slot: Slot, tenant: &Bytes, chart: &Bytes, upload_id: &Bytes) -> Option<upload::Key> {
    let chart = ChartAddress { slot, tenant: tenant.as_ref().try_into().ok()?, chart: chart.as_ref().try_into().ok()? };
    Some(upload::Key { chart, upload_id: upload_id.as_ref().try_into().ok()? })
}

fn part_stored(next_part: u32, complete: bool) -> Answer {
    Answer::PartStored(pb::PartStored { next_part, complete })
}

fn out_of_order(next_part: u32) -> Answer {
    Answer::Refused(pb::Refused { reason: Reason::UploadOutOfOrder as i32, next_part })
}
