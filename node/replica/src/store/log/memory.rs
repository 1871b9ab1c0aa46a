//! The log engine's twin in memory, for differential tests and simulation: it knows which writes a crash may take.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{LogEngine, LogOp, LogRows};
use crate::store::EngineError;

/// Writes are pending until a sync. A crash keeps a prefix of the pending ones.
#[derive(Default)]
pub struct MemoryLog {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    visible: BTreeMap<Vec<u8>, Bytes>,
    durable: BTreeMap<Vec<u8>, Bytes>,
    pending: Vec<Vec<LogOp>>,
    writes: u64,
}

impl MemoryLog {
    /// What a disk would hold after a power loss that the first `kept` unsynced writes survived.
    pub fn after_crash(&self, kept: usize) -> Self {
        let state = self.state.lock();
        let mut durable = state.durable.clone();
        let kept = kept.min(state.pending.len());
        state.pending[..kept].iter().flatten().for_each(|op| apply(&mut durable, op));
        let writes = state.writes - (state.pending.len() - kept) as u64;
        Self { state: Mutex::new(State { visible: durable.clone(), durable, pending: Vec::new(), writes }) }
    }

    /// How many writes a crash could take.
    pub fn pending_writes(&self) -> usize {
        self.state.lock().pending.len()
    }
}

fn apply(map: &mut BTreeMap<Vec<u8>, Bytes>, op: &LogOp) {
    match op {
        LogOp::Put { key, value } => {
            map.insert(key.clone(), value.clone());
        }
        LogOp::DeleteRange { from, to } => map.retain(|key, _| key < from || key >= to),
    }
}

impl LogEngine for MemoryLog {
    fn write(&self, ops: &[LogOp], sync: bool) -> Result<u64, EngineError> {
        let mut state = self.state.lock();
        ops.iter().for_each(|op| apply(&mut state.visible, op));
        state.pending.push(ops.to_vec());
        state.writes += 1;
        if sync {
            let pending = std::mem::take(&mut state.pending);
            pending.iter().flatten().for_each(|op| apply(&mut state.durable, op));
        }
        Ok(state.writes)
    }

    fn write_number(&self) -> u64 {
        self.state.lock().writes
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.state.lock().visible.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], bytes_max: usize) -> Result<LogRows, EngineError> {
        let state = self.state.lock();
        let mut size_bytes = 0;
        let rows = state.visible.range(from.to_vec()..to.to_vec()).enumerate();
        let fitting = rows.take_while(|(i, (key, value))| {
            size_bytes += key.len() + value.len();
            *i == 0 || size_bytes <= bytes_max
        });
        Ok(fitting.map(|(_, (key, value))| (key.clone(), value.clone())).collect())
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, EngineError> {
        let state = self.state.lock();
        let last = state.visible.range(from.to_vec()..to.to_vec()).next_back();
        Ok(last.map(|(key, value)| (key.clone(), value.clone())))
    }
}
