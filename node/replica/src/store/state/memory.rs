//! The state engine's twin in memory, for differential tests and simulation: a crash leaves what was flushed.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;

use super::expiry::{self, Cutoffs};
use super::{StateEngine, StateOp, StateRows, StateView, Table};
use crate::ShardId;
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

/// Rows in memory, as a view of one moment.
struct MemoryView(Rows);

impl StateView for MemoryView {
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<StateRows, EngineError> {
        Ok(scan(&self.0, table, from, to, rows_max, bytes_max))
    }
}

fn scan(rows: &Rows, table: Table, from: &[u8], to: &[u8], rows_max: usize, bytes_max: usize) -> StateRows {
    let mut size_bytes = 0;
    let range = rows.range((table, from.to_vec())..(table, to.to_vec()));
    let fitting = range.take(rows_max).enumerate().take_while(|(i, ((_, key), value))| {
        size_bytes += key.len() + value.len();
        *i == 0 || size_bytes <= bytes_max
    });
    fitting.map(|(_, ((_, key), value))| (key.clone(), value.clone())).collect()
}

impl StateEngine for MemoryState {
    fn with_view(&self, read: &mut dyn FnMut(&dyn StateView)) {
        let view = MemoryView(self.rows.lock().visible.clone());
        read(&view);
    }

    /// Drops at once: what may happen at any time must be harmless at the earliest.
    fn expire_requests(&self, shard: ShardId, made_before_ms: u64) {
        let cutoffs = Cutoffs::default();
        cutoffs.set(shard, made_before_ms);
        let mut maps = self.rows.lock();
        let expired = |(table, key): &(Table, Vec<u8>)| expiry::is_dead(*table, key, &cutoffs);
        maps.visible.retain(|place, _| !expired(place));
        maps.durable.retain(|place, _| !expired(place));
        if let Some(begun) = &mut maps.begun {
            begun.retain(|place, _| !expired(place));
        }
    }

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
        Ok(scan(&self.rows.lock().visible, table, from, to, rows_max, bytes_max))
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
                StateOp::DeleteRange { table, from, to } => {
                    let inside = |place: &(Table, Vec<u8>)| place.0 == *table && *from <= place.1 && place.1 < *to;
                    maps.visible.retain(|place, _| !inside(place));
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
