//! The charts' rows on this node, for the gateway to open.

use charthold_proto::internal as pb;
use prost::Message;

use crate::Token;
use crate::metrics::{METRICS, timed};
use crate::store::EngineError;
use crate::store::state::Table;
use crate::store::state::flusher::StateStore;
use crate::store::table::version::{self, Row};
use crate::store::table::{ChartAddress, RecordAddress, chart, key};

/// What one step of a scan takes from the engine.
const SCAN_ROWS: usize = 512;
const SCAN_BYTES: usize = 1 << 20;

/// One version of a record, sealed.
#[derive(Clone)]
pub struct StoredVersion {
    pub record: RecordAddress,
    pub version: u64,
    pub row: Row,
}

/// A part of a chart, and where the next one starts.
pub struct Page {
    pub versions: Vec<StoredVersion>,
    /// Nothing: the chart is at its end.
    pub next: Option<Vec<u8>>,
}

/// Reads of charts. Rows are as this node has applied them.
#[derive(Clone)]
pub struct ChartRows {
    state: StateStore,
}

impl ChartRows {
    pub(crate) fn new(state: StateStore) -> Self {
        Self { state }
    }

    /// A chart's state, current key id and wrapped key.
    pub fn chart_key(&self, address: &ChartAddress) -> Result<Option<pb::ChartKey>, EngineError> {
        let Some(row) = self.state.engine().get(Table::Chart, &chart::encode(address))? else { return Ok(None) };
        let row = chart::Row::decode(row).map_err(|_| damaged())?;
        let key_id = key::KeyId::try_from(row.key_id.as_ref()).map_err(|_| damaged())?;
        let wrapped_key = self.wrapped_key(address, key_id)?.ok_or_else(damaged)?;
        Ok(Some(pb::ChartKey { key_id: row.key_id, wrapped_key }))
    }

    /// A chart key that sealed something, wrapped.
    pub fn wrapped_key(&self, address: &ChartAddress, key_id: key::KeyId) -> Result<Option<bytes::Bytes>, EngineError> {
        self.state.engine().get(Table::Key, &key::Key { chart: *address, key_id }.encode())
    }

    /// A record's newest version at a seq.
    pub fn newest(&self, record: &RecordAddress, as_of_seq: u64) -> Result<Option<StoredVersion>, EngineError> {
        let (from, to) = version::record_range(record);
        let mut found = None;
        self.walk(from, &to, |_, stored| {
            let visible = stored.row.seq <= as_of_seq;
            found = visible.then_some(stored);
            !visible
        })?;
        Ok(found)
    }

    /// One version of a record.
    pub fn version(&self, record: &RecordAddress, version: u64) -> Result<Option<StoredVersion>, EngineError> {
        let _timed = timed(&METRICS.read_rows);
        let key = version::Key { record: *record, version };
        let row = self.state.engine().get(Table::Version, &key.encode())?;
        row.map(|row| decode(key, row)).transpose()
    }

    /// A record's versions at a seq, newest first, from `next` of the page before.
    pub fn history(
        &self,
        record: &RecordAddress,
        next: Option<Vec<u8>>,
        as_of_seq: u64,
        rows_max: usize,
    ) -> Result<Page, EngineError> {
        let (from, to) = version::record_range(record);
        let mut page = Page { versions: Vec::new(), next: None };
        self.walk(next.unwrap_or(from), &to, |key, stored| {
            if page.versions.len() == rows_max {
                page.next = Some(key.to_vec());
                return false;
            }
            if stored.row.seq <= as_of_seq {
                page.versions.push(stored);
            }
            true
        })?;
        Ok(page)
    }

    /// A chart's records at a seq, each in its newest version. Deleted ones are there too: that they are deleted is for
    /// the gateway to verify. Until the page exceeds a limit; the first always.
    pub fn chart(
        &self,
        chart: &ChartAddress,
        record_type: Option<&Token>,
        next: Option<Vec<u8>>,
        as_of_seq: u64,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Page, EngineError> {
        let (from, to) = version::chart_range(chart, record_type);
        let mut page = Page { versions: Vec::new(), next: None };
        let (mut size_bytes, mut seen) = (0, None);
        self.walk(next.unwrap_or(from), &to, |key, stored| {
            if stored.row.seq > as_of_seq || seen == Some(stored.record) {
                return true;
            }
            let row_bytes = stored.row.header.len() + stored.row.body.len();
            let full = page.versions.len() == rows_max || size_bytes + row_bytes > bytes_max;
            if full && !page.versions.is_empty() {
                page.next = Some(key.to_vec());
                return false;
            }
            seen = Some(stored.record);
            size_bytes += row_bytes;
            page.versions.push(stored);
            true
        })?;
        Ok(page)
    }

    /// Goes over rows in order while `on_row` wants more.
    fn walk(
        &self,
        from: Vec<u8>,
        to: &[u8],
        mut on_row: impl FnMut(&[u8], StoredVersion) -> bool,
    ) -> Result<(), EngineError> {
        let _timed = timed(&METRICS.read_rows);
        let mut from = from;
        loop {
            let rows = self.state.engine().scan(Table::Version, &from, to, SCAN_ROWS, SCAN_BYTES)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = [last.as_slice(), &[0]].concat();
            for (key, row) in rows {
                let decoded = version::Key::decode(&key).ok_or_else(damaged)?;
                if !on_row(&key, decode(decoded, row)?) {
                    return Ok(());
                }
            }
        }
    }
}

fn decode(key: version::Key, row: bytes::Bytes) -> Result<StoredVersion, EngineError> {
    let row = Row::decode(row).map_err(|_| damaged())?;
    Ok(StoredVersion { record: key.record, version: key.version, row })
}

fn damaged() -> EngineError {
    EngineError::new("state", "a row of a chart cannot be decoded")
}
