//! Exactly once: which request ids are refused, remembered, and how an outcome is recorded.
//!
//! An outcome that is recorded takes the next seq, becomes a ledger row and a Merkle leaf, and answers every repetition
//! of its request until the id expires.

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::outcome::Result as Answer;
use pb::refused::Reason;
use prost::Message;
use sha2::{Digest, Sha256};

use super::merkle::leaf_hash;
use super::overlay::Overlay;
use super::{Applier, ApplyError, read_row, refused};
use crate::ShardId;
use crate::planted::{self, Bug};
use crate::store::state::Table;
use crate::store::table::request::{AGE_MS_MAX, RequestId, made_at_ms};
use crate::store::table::{ChartAddress, ledger, ledger_by_chart, request};

/// How far ahead of the log a client's clock may be.
pub const REQUEST_AHEAD_MS_MAX: u64 = 5 * 60 * 1_000;

/// Where a request's row is.
pub struct RequestPlace {
    pub table: Table,
    pub key: Vec<u8>,
}

impl Applier {
    /// Answers a request that must not be executed (again): expired, seen, or reused.
    pub(crate) fn answer_without_executing(
        &self,
        overlay: &Overlay,
        place: &RequestPlace,
        request_id: &RequestId,
        fingerprint: &Bytes,
    ) -> Result<Option<Answer>, ApplyError> {
        let (made_at, now) = (made_at_ms(request_id), self.progress.log_time_ms);
        if made_at.saturating_add(AGE_MS_MAX) < now || made_at > now.saturating_add(REQUEST_AHEAD_MS_MAX) {
            return Ok(Some(refused(Reason::RequestExpired)));
        }
        let Some(row) = read_row::<request::Row>(overlay, place.table, place.key.clone())? else {
            return Ok(None);
        };
        if planted::has(Bug::RequestIdIgnored) {
            return Ok(None);
        }
        if row.fingerprint != *fingerprint {
            return Ok(Some(refused(Reason::RequestIdReused)));
        }
        let answer = row.outcome.and_then(|outcome| outcome.result);
        Ok(Some(answer.ok_or(ApplyError::Damaged { table: place.table.name() })?))
    }

    /// The seq that the next recorded outcome gets.
    pub(crate) fn next_seq(&self) -> u64 {
        self.progress.seq + 1
    }

    /// Records an outcome under [`Self::next_seq`].
    pub(crate) fn record(
        &mut self,
        overlay: &mut Overlay,
        place: RequestPlace,
        fingerprint: Bytes,
        chart: Option<ChartAddress>,
        mut row: ledger::Row,
    ) {
        let seq = self.next_seq();
        row.log_time_ms = self.progress.log_time_ms;
        let leaf = leaf_of(&row);
        row.leaf_hash = Bytes::copy_from_slice(&leaf);
        let request = request::Row { fingerprint, outcome: row.outcome.clone() };
        overlay.put(place.table, place.key, request.encode_to_vec().into());
        overlay.put(Table::Ledger, ledger_key(self.shard, seq), row.encode_to_vec().into());
        if let Some(chart) = chart {
            let key = ledger_by_chart::Key { chart, shard: self.shard, seq };
            overlay.put(Table::LedgerByChart, key.encode(), Bytes::new());
        }
        self.progress.push(leaf);
    }
}

fn ledger_key(shard: ShardId, seq: u64) -> Vec<u8> {
    ledger::Key { shard, seq }.encode()
}

/// The leaf covers the row with the event replaced by its hash, and without the leaf.
pub fn leaf_of(row: &ledger::Row) -> super::merkle::Hash {
    let mut covered = row.clone();
    covered.audit_event = Bytes::copy_from_slice(&Sha256::digest(&row.audit_event));
    covered.leaf_hash = Bytes::new();
    leaf_hash(&covered.encode_to_vec())
}
