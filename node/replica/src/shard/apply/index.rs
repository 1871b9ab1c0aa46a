//! PutIndex, DropIndex: rows that say which records may be found by a term.
//!
//! They are no outcomes: the ledger does not know them. What a record can be found by is in its sealed header, and so in
//! the ledger already; a row only leads there, may be written again at any time, and is verified by whoever reads it.

use charthold_proto::internal as pb;
use pb::outcome::Result as Answer;
use pb::refused::Reason;
use prost::Message;

use super::overlay::Overlay;
use super::{Applier, ApplyError, read_row, refused};
use crate::Slot;
use crate::store::state::Table;
use crate::store::table::index;

impl Applier {
    /// Written anew when it is there: it is as young as the commit that needs it.
    pub(super) fn put_index(&self, overlay: &mut Overlay, slot: Slot, put: &pb::PutIndex) -> Answer {
        let Some(key) = key_of(slot, put) else { return refused(Reason::Malformed) };
        let row = index::Row { log_time_ms: self.progress.log_time_ms };
        overlay.put(Table::Index, key.encode(), row.encode_to_vec().into());
        self.done()
    }

    /// Only the row that was seen: one that was written since may be needed.
    pub(super) fn drop_index(
        &self,
        overlay: &mut Overlay,
        slot: Slot,
        seen: &pb::DropIndex,
    ) -> Result<Answer, ApplyError> {
        let Some(key) = seen.row.as_ref().and_then(|row| key_of(slot, row)) else {
            return Ok(refused(Reason::Malformed));
        };
        let row = read_row::<index::Row>(overlay, Table::Index, key.encode())?;
        if row.is_some_and(|row| row.log_time_ms == seen.log_time_ms) {
            overlay.delete(Table::Index, key.encode());
        }
        Ok(self.done())
    }

    pub(super) fn done(&self) -> Answer {
        Answer::Done(pb::Done { seq: self.progress.seq, log_time_ms: self.progress.log_time_ms })
    }
}

fn key_of(slot: Slot, row: &pb::PutIndex) -> Option<index::Key> {
    Some(index::Key {
        slot,
        tenant: row.tenant.as_ref().try_into().ok()?,
        term: row.term.as_ref().try_into().ok()?,
        chart: row.chart.as_ref().try_into().ok()?,
        record_type: row.r#type.as_ref().try_into().ok()?,
        record: row.record.as_ref().try_into().ok()?,
    })
}
