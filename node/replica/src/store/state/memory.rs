//! The state engine's twin in memory, for differential tests and simulation: a crash leaves what was flushed.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{StateEngine, StateOp, StateRows, Table};
use crate::store::EngineError;

type Rows = BTreeMap<(Table, Vec<u8>), Bytes>;

#[derive(Default)]
pub struct MemoryState {
    rows: Mutex<Maps>,
}

#[derive(Default)]
struct Maps {
    visible: Rows,
    begun: Option<Rows>,
    durable: Rows,
}

impl MemoryState {
    /// What a disk would hold after a power loss.
    pub fn after_crash(&self) -> Self {
        let durable = self.rows.lock().durable.clone();
        Self { rows: Mutex::new(Maps { visible: durable.clone(), begun: None, durable }) }
    }

    /// All rows, to compare states.
    pub fn dump(&self) -> Rows {
        self.rows.lock().visible.clone()
    }
}

impl StateEngine for MemoryState {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.rows.lock().visible.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<StateRows, EngineError> {
        let maps = self.rows.lock();
        let mut size_bytes = 0;
        let range = maps.visible.range((table, from.to_vec())..(table, to.to_vec()));
        let fitting = range.take(rows_max).enumerate().take_while(|(i, ((_, key), value))| {
            size_bytes += key.len() + value.len();
            *i == 0 || size_bytes <= bytes_max
        });
        Ok(fitting.map(|(_, ((_, key), value))| (key.clone(), value.clone())).collect())
    }

    fn write(&self, ops: &[StateOp]) -> Result<(), EngineError> {
        let mut maps = self.rows.lock();
        for op in ops {
            match op {
                StateOp::Put { table, key, value } => {
                    maps.visible.insert((*table, key.clone()), value.clone());
                }
                StateOp::Delete { table, key } => {
                    maps.visible.remove(&(*table, key.clone()));
                }
            }
        }
        Ok(())
    }

    fn begin_flush(&self) -> Result<(), EngineError> {
        let mut maps = self.rows.lock();
        maps.begun = Some(maps.visible.clone());
        Ok(())
    }

    fn finish_flush(&self) -> Result<(), EngineError> {
        let mut maps = self.rows.lock();
        if let Some(begun) = maps.begun.take() {
            maps.durable = begun;
        }
        Ok(())
    }
}
