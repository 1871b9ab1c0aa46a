//! Rows of a slot for a gateway whose node has no replica of the shard: one look at the engine a question.
//!
//! Whoever has applied what the asker's barrier covers may answer, and who leads matters no more then. The rows are sealed,
//! as everywhere below the wall.

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::call_error::Kind as ErrorKind;
use pb::read_rows_request::Rows;
use prost::Message;

use super::group::Group;
use crate::Slot;
use crate::platform::blocking;
use crate::store::EngineError;
use crate::store::state::flusher::StateStore;
use crate::store::state::{Scope, Table};

/// What one answer may hold; its first row always.
pub const ROWS_MAX: usize = 1_024;
pub const BYTES_MAX: usize = 1 << 20;

/// Answers a question, or says why not.
pub(super) fn answer(group: &Group, state: &StateStore, payload: Bytes) -> Result<Bytes, ErrorKind> {
    let request = pb::ReadRowsRequest::decode(payload).map_err(|_| ErrorKind::Malformed)?;
    let slot = Slot::try_from(request.slot).map_err(|_| ErrorKind::Malformed)?;
    let table = Table::named(&request.table).filter(|table| table.scope() == Scope::Slot);
    let (table, wanted) = (table.ok_or(ErrorKind::Malformed)?, request.rows.ok_or(ErrorKind::Malformed)?);
    if !is_within(slot, &wanted) {
        return Err(ErrorKind::Malformed);
    }
    if group.applied_index() < Some(request.applied_index) {
        return Err(ErrorKind::Unavailable);
    }
    // A row that cannot be read is told of where it is found: here.
    let rows = blocking(|| read(group, state, slot, table, wanted)).map_err(|error| {
        tracing::debug!(shard = group.shard, %error, "rows were not read for another node");
        ErrorKind::Unavailable
    })?;
    let row = |(key, value): (Vec<u8>, Bytes)| pb::RowRead { key: key.into(), value };
    Ok(pb::ReadRowsResponse { rows: rows.into_iter().map(row).collect() }.encode_to_vec().into())
}

/// Whether it asks for nothing but rows of the slot.
fn is_within(slot: Slot, wanted: &Rows) -> bool {
    let of_slot = |key: &[u8]| key.starts_with(&slot.to_be_bytes());
    match wanted {
        Rows::Key(key) | Rows::Prefix(key) => of_slot(key),
        // The end is exclusive: the slot's own end is the next one's first key.
        Rows::Scan(scan) => of_slot(&scan.from) && scan.to <= crate::store::table::after_prefix(&slot.to_be_bytes()),
    }
}

fn read(
    group: &Group,
    state: &StateStore,
    slot: Slot,
    table: Table,
    wanted: Rows,
) -> Result<Vec<(Vec<u8>, Bytes)>, EngineError> {
    let reader = state.reader(group.shard)?;
    // After the reader was made, which notices if the slot goes from here on.
    if !state.slots().of(group.shard).is_some_and(|held| held.contains(slot)) {
        return Err(EngineError::Unplaced);
    }
    match wanted {
        Rows::Key(key) => Ok(reader.get(table, &key)?.map(|value| (key.to_vec(), value)).into_iter().collect()),
        Rows::Prefix(prefix) => Ok(reader.first(table, &prefix)?.into_iter().collect()),
        Rows::Scan(scan) => {
            let (rows_max, bytes_max) = (scan.rows_max as usize, scan.bytes_max as usize);
            reader.scan(table, &scan.from, &scan.to, rows_max.min(ROWS_MAX), bytes_max.min(BYTES_MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_of_the_slot_are_given() {
        let scan = |from: &[u8], to: &[u8]| {
            let (from, to) = (Bytes::copy_from_slice(from), Bytes::copy_from_slice(to));
            Rows::Scan(pb::read_rows_request::Scan { from, to, rows_max: 1, bytes_max: 1 })
        };
        let key = |key: &[u8]| Rows::Key(Bytes::copy_from_slice(key));
        assert!(is_within(7, &key(&[0, 7, 1])) && is_within(7, &scan(&[0, 7, 1], &[0, 7, 2])));
        assert!(is_within(7, &scan(&[0, 7], &[0, 8])), "all of them");
        assert!(!is_within(7, &key(&[0, 8])) && !is_within(7, &key(&[0])));
        assert!(!is_within(7, &scan(&[0, 7], &[0, 8, 0])) && !is_within(7, &scan(&[0, 6], &[0, 7, 9])));
    }
}
