//! The state engine's twin in memory, for differential tests and simulation: a crash leaves what was flushed.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;

use super::expiry::{self, Cutoffs};
use super::{FirstRows, StateEngine, StateOp, StateRows, StateView, Table};
use crate::store::EngineError;
use crate::store::table::after_prefix;
use crate::{ShardId, SlotMap};

type Rows = BTreeMap<(Table, Vec<u8>), Bytes>;

#[derive(Default)]
pub struct MemoryState {
    rows: Mutex<Maps>,
    cutoffs: Cutoffs,
    damage: OnceLock<String>,
}

#[derive(Default)]
struct Maps {
    /// Shared with views: who writes while there is one copies it.
    visible: Arc<Rows>,
    durable: Rows,
    /// Batches that are not durable.
    pending: Vec<Vec<StateOp>>,
    /// Of them, those that the flush under way holds.
    begun: usize,
    /// No request of a row was made before: most times that tells that there is nothing to expire.
    oldest_request_ms: u64,
}

impl MemoryState {
    /// What a disk would hold after a power loss.
    pub fn after_crash(&self) -> Self {
        let durable = self.rows.lock().durable.clone();
        let maps = Maps { visible: Arc::new(durable.clone()), durable, ..Maps::default() };
        Self { rows: Mutex::new(maps), ..Self::default() }
    }

    /// All rows, to compare states.
    pub fn dump(&self) -> Rows {
        Rows::clone(&self.rows.lock().visible)
    }
}

fn apply(rows: &mut Rows, op: &StateOp) {
    match op {
        StateOp::Put { table, key, value } => {
            rows.insert((*table, key.clone()), value.clone());
        }
        StateOp::Delete { table, key } => {
            rows.remove(&(*table, key.clone()));
        }
        StateOp::DeleteRange { table, from, to } => {
            let inside = rows.range((*table, from.clone())..(*table, to.clone()));
            let inside = inside.map(|(place, _)| place.clone()).collect::<Vec<_>>();
            inside.iter().for_each(|place| _ = rows.remove(place));
        }
    }
}

impl Maps {
    fn note_oldest(&mut self, ops: &[StateOp]) {
        for op in ops {
            if let StateOp::Put { table, key, .. } = op
                && let Some(made_at_ms) = expiry::made_at_ms(*table, key)
            {
                self.oldest_request_ms = self.oldest_request_ms.min(made_at_ms);
            }
        }
    }

    fn expire(&mut self, cutoffs: &Cutoffs) {
        if cutoffs.latest() > self.oldest_request_ms {
            let visible = expire(Arc::make_mut(&mut self.visible), cutoffs);
            self.oldest_request_ms = visible.min(expire(&mut self.durable, cutoffs));
        }
    }
}

/// Drops what is dead, of those tables that have such rows; answers when the oldest request of those that stay was made.
fn expire(rows: &mut Rows, cutoffs: &Cutoffs) -> u64 {
    let mut oldest_ms = u64::MAX;
    for table in [Table::Request, Table::DirectoryRequest] {
        let all = rows.range((table, Vec::new())..).take_while(|((of, _), _)| *of == table);
        let (dead, alive) = all.partition::<Vec<_>, _>(|((_, key), _)| expiry::is_dead(table, key, cutoffs));
        let made_at = alive.into_iter().filter_map(|((_, key), _)| expiry::made_at_ms(table, key));
        oldest_ms = made_at.fold(oldest_ms, u64::min);
        let dead = dead.into_iter().map(|(place, _)| place.clone()).collect::<Vec<_>>();
        dead.iter().for_each(|place| _ = rows.remove(place));
    }
    oldest_ms
}

/// Rows in memory, as a view of one moment.
struct MemoryView(Arc<Rows>);

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

struct MemoryFirstRows {
    rows: Arc<Rows>,
    table: Table,
}

impl FirstRows for MemoryFirstRows {
    fn first(&mut self, prefix: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, EngineError> {
        Ok(scan(&self.rows, self.table, prefix, &after_prefix(prefix), 1, usize::MAX).pop())
    }
}

impl StateEngine for MemoryState {
    fn with_view(&self, read: &mut dyn FnMut(&dyn StateView)) {
        let view = MemoryView(Arc::clone(&self.rows.lock().visible));
        read(&view);
    }

    /// Drops at once: what may happen at any time must be harmless at the earliest.
    fn expire_requests(&self, shard: ShardId, made_before_ms: u64) {
        if !self.cutoffs.set(shard, made_before_ms) {
            return;
        }
        self.rows.lock().expire(&self.cutoffs);
    }

    fn slots(&self) -> &SlotMap {
        &self.cutoffs.slots
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

    fn first_rows(&self, table: Table) -> Result<Box<dyn FirstRows + '_>, EngineError> {
        let rows = Arc::clone(&self.rows.lock().visible);
        Ok(Box::new(MemoryFirstRows { rows, table }))
    }

    fn write(&self, ops: &[StateOp]) -> Result<(), EngineError> {
        let mut maps = self.rows.lock();
        let visible = Arc::make_mut(&mut maps.visible);
        ops.iter().for_each(|op| apply(visible, op));
        maps.note_oldest(ops);
        maps.pending.push(ops.to_vec());
        Ok(())
    }

    fn begin_flush(&self) -> Result<(), EngineError> {
        let mut maps = self.rows.lock();
        maps.begun = maps.pending.len();
        Ok(())
    }

    fn finish_flush(&self) -> Result<(), EngineError> {
        let mut maps = self.rows.lock();
        let begun = std::mem::take(&mut maps.begun);
        let flushed = maps.pending.drain(..begun).collect::<Vec<_>>();
        flushed.iter().flatten().for_each(|op| apply(&mut maps.durable, op));
        flushed.iter().for_each(|ops| maps.note_oldest(ops));
        maps.expire(&self.cutoffs);
        Ok(())
    }

    fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    fn note_damage(&self, detail: &str) {
        let _first = self.damage.get_or_init(|| detail.to_owned());
    }
}
