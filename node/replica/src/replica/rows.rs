//! The charts' rows, for the gateway to open: where they are, see [`super::source`].

use charthold_proto::internal as pb;
use prost::Message;

use super::source::Source;
use crate::metrics::{METRICS, timed};
use crate::store::EngineError;
use crate::store::state::Table;
use crate::store::table::version::{self, Row};
use crate::store::table::{ChartAddress, RecordAddress, chart, key};
use crate::{Slot, Token};

/// What one step of a scan takes from the engine.
const SCAN_ROWS: usize = 512;
const SCAN_BYTES: usize = 1 << 20;

/// One version of a record, sealed.
#[derive(Clone)]
pub struct StoredVersion {
    pub record: RecordAddress,
    pub version: u64,
    pub row: Row,
    /// Where it was found: the key that sealed it is there.
    pub rows: ChartRows,
}

/// A part of a chart, and where the next one starts.
pub struct Page {
    pub versions: Vec<StoredVersion>,
    /// Nothing: the chart is at its end.
    pub next: Option<Vec<u8>>,
}

/// Reads of charts. Rows are as they were applied where they are.
#[derive(Clone)]
pub struct ChartRows {
    source: Source,
}

impl ChartRows {
    pub(super) fn new(source: Source) -> Self {
        Self { source }
    }

    /// A chart's state, current key id and wrapped key.
    pub fn chart_key(&self, address: &ChartAddress) -> Result<Option<pb::ChartKey>, EngineError> {
        let Some(row) = self.source.get(address.slot, Table::Chart, &chart::encode(address))? else { return Ok(None) };
        let row = chart::Row::decode(row).map_err(|_| damaged())?;
        let key_id = key::KeyId::try_from(row.key_id.as_ref()).map_err(|_| damaged())?;
        let wrapped_key = self.wrapped_key(address, key_id)?.ok_or_else(damaged)?;
        Ok(Some(pb::ChartKey { key_id: row.key_id, wrapped_key }))
    }

    /// Whether a chart was erased: nothing of it opens then.
    pub fn is_erased(&self, address: &ChartAddress) -> Result<bool, EngineError> {
        let row = self.source.get(address.slot, Table::Chart, &chart::encode(address))?;
        let row = row.map(chart::Row::decode).transpose().map_err(|_| damaged())?;
        Ok(row.is_some_and(|row| row.state() == pb::chart_row::State::Erased))
    }

    /// A chart key that sealed something, wrapped.
    pub fn wrapped_key(&self, address: &ChartAddress, key_id: key::KeyId) -> Result<Option<bytes::Bytes>, EngineError> {
        self.source.get(address.slot, Table::Key, &key::Key { chart: *address, key_id }.encode())
    }

    /// A record's newest version at a seq.
    pub fn newest(&self, record: &RecordAddress, as_of_seq: u64) -> Result<Option<StoredVersion>, EngineError> {
        let found = self.source.first(record.chart.slot, Table::Version, &version::record_prefix(record))?;
        let Some((key, row)) = found else { return Ok(None) };
        let newest = self.decode(version::Key::decode(&key).ok_or_else(damaged)?, row)?;
        if newest.row.seq <= as_of_seq {
            return Ok(Some(newest));
        }
        // Versions count without a gap, and their seqs grow with them.
        let (mut found, mut visible, mut hidden) = (None, 0, newest.version);
        while visible + 1 < hidden {
            let middle = visible + (hidden - visible) / 2;
            let stored = self.version(record, middle)?.ok_or_else(damaged)?;
            if stored.row.seq <= as_of_seq {
                (found, visible) = (Some(stored), middle);
            } else {
                hidden = middle;
            }
        }
        Ok(found)
    }

    /// One version of a record.
    pub fn version(&self, record: &RecordAddress, version: u64) -> Result<Option<StoredVersion>, EngineError> {
        let _timed = timed(&METRICS.read_rows);
        let key = version::Key { record: *record, version };
        let row = self.source.get(record.chart.slot, Table::Version, &key.encode())?;
        row.map(|row| self.decode(key, row)).transpose()
    }

    /// Goes over a chart's records at a seq, from the start or from another scan's [`ChartScan::next`].
    pub fn scan(
        &self,
        chart: &ChartAddress,
        record_type: Option<&Token>,
        next: Option<Vec<u8>>,
        as_of_seq: u64,
    ) -> ChartScan {
        let (from, to) = version::chart_range(chart, record_type);
        let next = next.unwrap_or(from);
        ChartScan {
            rows_of: self.clone(),
            slot: chart.slot,
            next,
            to,
            as_of_seq,
            seen: None,
            rows: 0,
            step_rows: SCAN_ROWS,
        }
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
        let mut scan = self.scan(chart, record_type, next, as_of_seq);
        let (mut page, mut size_bytes) = (Page { versions: Vec::new(), next: None }, 0);
        while let Some(found) = scan.step()? {
            for stored in found {
                let row_bytes = stored.row.header.len() + stored.row.body.len();
                let full = page.versions.len() == rows_max || size_bytes + row_bytes > bytes_max;
                if full && !page.versions.is_empty() {
                    page.next = Some(stored.place());
                    return Ok(page);
                }
                size_bytes += row_bytes;
                page.versions.push(stored);
            }
        }
        Ok(page)
    }

    fn decode(&self, key: version::Key, row: bytes::Bytes) -> Result<StoredVersion, EngineError> {
        let row = Row::decode(row).map_err(|_| damaged())?;
        Ok(StoredVersion { record: key.record, version: key.version, row, rows: self.clone() })
    }
}

/// A walk over a chart's records, each in its newest version at a seq, deleted ones among them. A step holds as much as
/// one read of the engine, so that who walks decides how far, and holds what it wants to keep only.
pub struct ChartScan {
    rows_of: ChartRows,
    slot: Slot,
    next: Vec<u8>,
    to: Vec<u8>,
    as_of_seq: u64,
    /// The record whose newest version was found last: what follows of it is older.
    seen: Option<RecordAddress>,
    rows: usize,
    step_rows: usize,
}

impl ChartScan {
    /// The records in the next rows, perhaps none; nothing at the chart's end.
    pub fn step(&mut self) -> Result<Option<Vec<StoredVersion>>, EngineError> {
        let _timed = timed(&METRICS.read_rows);
        let range = (self.next.as_slice(), self.to.as_slice());
        let rows = self.rows_of.source.scan(self.slot, Table::Version, range, self.step_rows, SCAN_BYTES)?;
        let Some((last, _)) = rows.last() else { return Ok(None) };
        let last = version::Key::decode(last).ok_or_else(damaged)?;
        self.rows += rows.len();
        let mut found = Vec::new();
        for (key, row) in rows {
            let stored = self.rows_of.decode(version::Key::decode(&key).ok_or_else(damaged)?, row)?;
            if stored.row.seq <= self.as_of_seq && self.seen != Some(stored.record) {
                self.seen = Some(stored.record);
                found.push(stored);
            }
        }
        self.next = match self.seen == Some(last.record) {
            // The rest of it is older.
            true => version::record_range(&last.record).1,
            false => [last.encode().as_slice(), &[0]].concat(),
        };
        Ok(Some(found))
    }

    /// Where the next step begins.
    pub fn next(&self) -> Vec<u8> {
        self.next.clone()
    }

    /// Rows that were looked at so far.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl StoredVersion {
    /// Where a scan begins that finds this one first.
    pub fn place(&self) -> Vec<u8> {
        version::Key { record: self.record, version: self.version }.encode()
    }
}

fn damaged() -> EngineError {
    EngineError::new("state", "a row of a chart cannot be decoded")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::Slots;
    use crate::store::log::memory::MemoryLog;
    use crate::store::log::writer::LogWriter;
    use crate::store::state::MemoryLimits;
    use crate::store::state::StateOp;
    use crate::store::state::flusher::StateStore;
    use crate::store::state::memory::MemoryState;

    const CHART: ChartAddress = ChartAddress { slot: 7, tenant: [1; 16], chart: [2; 16] };

    fn record(number: u8) -> RecordAddress {
        RecordAddress { chart: CHART, record_type: [number % 2; 16], record: [number; 16] }
    }

    /// Each write is a new version of a record; its place in the list is its seq.
    fn rows_of(writes: &[u8]) -> ChartRows {
        let log = LogWriter::start(Arc::new(MemoryLog::default()), None).unwrap();
        let state = StateStore::start(Arc::new(MemoryState::default()), log, MemoryLimits::default()).unwrap();
        state.slots().set(1, Some(Slots { first: 0, last: 9 }));
        let mut versions = BTreeMap::<u8, u64>::new();
        let ops = writes.iter().zip(1..).map(|(number, seq)| {
            let version = versions.entry(*number).or_default();
            *version += 1;
            let key = version::Key { record: record(*number), version: *version }.encode();
            StateOp::Put { table: Table::Version, key, value: Row { seq, ..Row::default() }.encode_to_vec().into() }
        });
        state.write(&ops.collect::<Vec<_>>()).unwrap();
        ChartRows::new(Source::Here(state))
    }

    fn stop(rows: &ChartRows) {
        if let Source::Here(state) = &rows.source {
            state.stop();
        }
    }

    /// Record → version, as of a seq.
    fn expected(writes: &[u8], as_of_seq: u64) -> BTreeMap<RecordAddress, u64> {
        let mut newest = BTreeMap::new();
        for number in writes.iter().take(as_of_seq as usize) {
            *newest.entry(record(*number)).or_default() += 1;
        }
        newest
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn reads_as_of_a_seq(
            writes in prop::collection::vec(0..6_u8, 0..60),
            share in 0.0..=1.0_f64,
            step_rows in 1..9_usize,
            resumed: bool,
        ) {
            let as_of_seq = (writes.len() as f64 * share) as u64;
            let (rows, expected) = (rows_of(&writes), expected(&writes, as_of_seq));
            for number in 0..6 {
                let found = rows.newest(&record(number), as_of_seq).unwrap().map(|stored| stored.version);
                prop_assert_eq!(found, expected.get(&record(number)).copied());
            }
            let (mut found, mut looked_at) = (Vec::new(), 0);
            let mut scan = rows.scan(&CHART, None, None, as_of_seq);
            loop {
                scan.step_rows = step_rows;
                let Some(step) = scan.step().unwrap() else { break };
                found.extend(step.into_iter().map(|stored| (stored.record, stored.version)));
                if resumed {
                    looked_at += scan.rows();
                    scan = rows.scan(&CHART, None, Some(scan.next()), as_of_seq);
                }
            }
            stop(&rows);
            prop_assert!(looked_at + scan.rows() <= writes.len());
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn pages_of_a_chart_go_on_where_they_ended() {
        let rows = rows_of(&[0, 1, 2, 3, 4, 0, 0, 2]);
        let (mut found, mut next) = (Vec::new(), None);
        loop {
            let page = rows.chart(&CHART, None, next, 8, 2, usize::MAX).unwrap();
            found.extend(page.versions.iter().map(|stored| (stored.record, stored.version)));
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        assert_eq!(found, expected(&[0, 1, 2, 3, 4, 0, 0, 2], 8).into_iter().collect::<Vec<_>>());
        let of_type = rows.chart(&CHART, Some(&[1; 16]), None, 8, 100, usize::MAX).unwrap();
        assert_eq!(of_type.versions.len(), 2);
        stop(&rows);
    }
}
