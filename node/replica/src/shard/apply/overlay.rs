//! The state as a batch sees it: the engine's rows under the batch's own changes.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::store::EngineError;
use crate::store::state::{FirstRows, StateEngine, StateOp, Table};

/// Reads through, gathers changes.
pub struct Overlay<'a> {
    engine: &'a dyn StateEngine,
    changes: BTreeMap<(Table, Vec<u8>), Option<Bytes>>,
    /// Of `version`; made for the first look.
    first_versions: Option<Box<dyn FirstRows + 'a>>,
}

impl<'a> Overlay<'a> {
    pub fn new(engine: &'a dyn StateEngine) -> Self {
        Self { engine, changes: BTreeMap::new(), first_versions: None }
    }

    pub fn get(&self, table: Table, key: Vec<u8>) -> Result<Option<Bytes>, EngineError> {
        let place = (table, key);
        match self.changes.get(&place) {
            Some(change) => Ok(change.clone()),
            None => self.engine.get(table, &place.1),
        }
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
        self.changes.insert((table, key), Some(value));
    }

    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.changes.insert((table, key), None);
    }

    /// The changes, in order of table and key.
    pub fn into_ops(self) -> Vec<StateOp> {
        let op = |((table, key), change): ((Table, Vec<u8>), Option<Bytes>)| match change {
            Some(value) => StateOp::Put { table, key, value },
            None => StateOp::Delete { table, key },
        };
        self.changes.into_iter().map(op).collect()
    }
}
