//! The state as a batch sees it: the engine's rows under the batch's own changes.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::store::EngineError;
use crate::store::state::{FirstRows, StateEngine, StateOp, Table};

/// Rows that are kept from batch to batch; then all go.
const REMEMBERED_MAX: usize = 4_096;

/// The newest rows of `chart`: each commit asks for one, and they hardly ever change. Copies of what the engine has: only
/// apply changes a group's rows, and whoever changes whose they are forgets all.
#[derive(Default)]
pub struct Remembered(BTreeMap<Vec<u8>, Bytes>);

/// Reads through, gathers changes.
pub struct Overlay<'a> {
    engine: &'a dyn StateEngine,
    changes: BTreeMap<(Table, Vec<u8>), Option<Bytes>>,
    remembered: Remembered,
    /// Of `version`; made for the first look.
    first_versions: Option<Box<dyn FirstRows + 'a>>,
}

impl<'a> Overlay<'a> {
    pub fn new(engine: &'a dyn StateEngine, remembered: Remembered) -> Self {
        Self { engine, changes: BTreeMap::new(), remembered, first_versions: None }
    }

    pub fn get(&self, table: Table, key: Vec<u8>) -> Result<Option<Bytes>, EngineError> {
        let place = (table, key);
        match self.changes.get(&place) {
            Some(change) => Ok(change.clone()),
            None => self.engine.get(table, &place.1),
        }
    }

    /// A row of `chart`.
    pub fn chart(&mut self, key: Vec<u8>) -> Result<Option<Bytes>, EngineError> {
        if let Some(row) = self.remembered.0.get(&key) {
            return Ok(Some(row.clone()));
        }
        let row = self.get(Table::Chart, key.clone())?;
        if let Some(row) = &row {
            if self.remembered.0.len() == REMEMBERED_MAX {
                self.forget_charts();
            }
            self.remembered.0.insert(key, row.clone());
        }
        Ok(row)
    }

    /// The group holds other slots from here on.
    pub fn forget_charts(&mut self) {
        self.remembered.0.clear();
    }

    /// A record's newest version: the first row whose key begins with `prefix`. Rows are only ever added in front.
    pub fn newest_version(&mut self, prefix: Vec<u8>) -> Result<Option<(Vec<u8>, Bytes)>, EngineError> {
        let from = (Table::Version, prefix);
        if let Some(((Table::Version, key), Some(value))) = self.changes.range(&from..).next()
            && key.starts_with(&from.1)
        {
            return Ok(Some((key.clone(), value.clone())));
        }
        let first_versions = match &mut self.first_versions {
            Some(begun) => begun,
            none => none.insert(self.engine.first_rows(Table::Version)?),
        };
        first_versions.first(&from.1)
    }

    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Bytes) {
        self.forget(table, &key);
        self.changes.insert((table, key), Some(value));
    }

    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.forget(table, &key);
        self.changes.insert((table, key), None);
    }

    fn forget(&mut self, table: Table, key: &[u8]) {
        if table == Table::Chart {
            self.remembered.0.remove(key);
        }
    }

    /// The changes, in order of table and key; and what the next batch may know.
    pub fn into_ops(self) -> (Vec<StateOp>, Remembered) {
        let op = |((table, key), change): ((Table, Vec<u8>), Option<Bytes>)| match change {
            Some(value) => StateOp::Put { table, key, value },
            None => StateOp::Delete { table, key },
        };
        (self.changes.into_iter().map(op).collect(), self.remembered)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::state::memory::MemoryState;

    const CHART: &[u8] = b"chart";

    fn chart(overlay: &mut Overlay) -> Option<Bytes> {
        overlay.chart(CHART.to_vec()).unwrap()
    }

    /// Ends the batch as apply does.
    fn next<'a>(engine: &'a MemoryState, overlay: Overlay) -> Overlay<'a> {
        let (ops, remembered) = overlay.into_ops();
        engine.write(&ops).unwrap();
        Overlay::new(engine, remembered)
    }

    #[test]
    fn a_charts_row_is_remembered_until_it_changes() {
        let engine = MemoryState::default();
        let mut overlay = Overlay::new(&engine, Remembered::default());
        assert_eq!(chart(&mut overlay), None, "not one that is not there yet");
        overlay.put(Table::Chart, CHART.to_vec(), "1".into());
        assert_eq!(chart(&mut overlay), Some("1".into()));
        let mut overlay = next(&engine, overlay);
        // Behind its back, to see that the engine is not asked.
        engine.write(&[StateOp::Delete { table: Table::Chart, key: CHART.to_vec() }]).unwrap();
        assert_eq!(chart(&mut overlay), Some("1".into()));
        overlay.put(Table::Chart, CHART.to_vec(), "2".into());
        assert_eq!(chart(&mut overlay), Some("2".into()));
        let mut overlay = next(&engine, overlay);
        assert_eq!(chart(&mut overlay), Some("2".into()));
        overlay.delete(Table::Chart, CHART.to_vec());
        assert_eq!(chart(&mut overlay), None);
        assert_eq!(chart(&mut next(&engine, overlay)), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_can_be_forgotten() {
        let engine = MemoryState::default();
        let mut overlay = Overlay::new(&engine, Remembered::default());
        for number in 0..2 * REMEMBERED_MAX {
            let key = number.to_be_bytes().to_vec();
            overlay.put(Table::Chart, key.clone(), "row".into());
            overlay.chart(key).unwrap();
            assert!(overlay.remembered.0.len() <= REMEMBERED_MAX);
        }
        let mut overlay = next(&engine, overlay);
        let first = 0_usize.to_be_bytes().to_vec();
        assert_eq!(overlay.chart(first.clone()).unwrap(), Some("row".into()));
        engine.write(&[StateOp::Delete { table: Table::Chart, key: first.clone() }]).unwrap();
        overlay.forget_charts();
        assert_eq!(overlay.chart(first).unwrap(), None, "as for a shard that holds other slots now");
    }
}
