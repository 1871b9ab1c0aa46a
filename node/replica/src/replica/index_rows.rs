//! The index's rows: where to look for the records that hold a term.

use prost::Message;

use super::Replica;
use super::source::Source;
use crate::store::EngineError;
use crate::store::state::{StateRows, Table};
use crate::store::table::index::{self, Row};
use crate::{ShardId, Slot, Slots, Token};

/// Keys are 82 bytes and values few: this many rows are a small read.
const BYTES_MAX: usize = 1 << 20;

/// One row, as it was applied where it is.
#[derive(Clone, Copy)]
pub struct IndexRow {
    pub key: index::Key,
    pub log_time_ms: u64,
}

/// Reads of the index.
#[derive(Clone)]
pub struct IndexRows {
    source: Source,
}

impl IndexRows {
    pub(super) fn new(source: Source) -> Self {
        Self { source }
    }

    /// Rows of a term, from its first or from [`index::Key::next`] of the last one that was read.
    pub fn of_term(
        &self,
        (slot, tenant, term): (Slot, &Token, &Token),
        next: Option<Vec<u8>>,
        rows_max: usize,
    ) -> Result<Vec<IndexRow>, EngineError> {
        let (from, to) = index::term_range(slot, tenant, term);
        let from = next.unwrap_or(from);
        decode(self.source.scan(slot, Table::Index, (&from, &to), rows_max, BYTES_MAX)?)
    }
}

impl Replica {
    /// Rows of a shard that has a replica here, likewise.
    pub fn index_of_shard(
        &self,
        shard: ShardId,
        next: Option<Vec<u8>>,
        rows_max: usize,
    ) -> Result<Vec<IndexRow>, EngineError> {
        let Some(Slots { first, last }) = self.state.slots().of(shard) else { return Ok(Vec::new()) };
        let (from, to) = index::slots_range(first, last);
        let from = next.unwrap_or(from);
        decode(self.state.reader(shard)?.scan(Table::Index, &from, &to, rows_max, BYTES_MAX)?)
    }
}

fn decode(rows: StateRows) -> Result<Vec<IndexRow>, EngineError> {
    let damaged = || EngineError::new("state", "a row of the index cannot be decoded");
    let decode = |(key, row): (Vec<u8>, bytes::Bytes)| {
        let key = index::Key::decode(&key).ok_or_else(damaged)?;
        let log_time_ms = Row::decode(row).map_err(|_| damaged())?.log_time_ms;
        Ok(IndexRow { key, log_time_ms })
    };
    rows.into_iter().map(decode).collect()
}
