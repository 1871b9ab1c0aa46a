//! A group's state as a whole, in memory.
//!
//! What openraft's storage suite needs of a snapshot, and no more: nothing takes one in operation, because the log is
//! never purged (see [`super::config`]). Streaming and crash-atomic install come with purging.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use openraft::RaftSnapshotBuilder;

use super::types::TypeConfig;
use crate::ShardId;
use crate::store::state::flusher::StateStore;
use crate::store::state::{StateEngine, StateOp, Table};
use crate::store::table::{after_prefix, applied};

pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, GroupSnapshot>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// The rows of a group. Clones share them.
#[derive(Clone)]
pub struct GroupSnapshot {
    rows: Arc<Vec<(Table, Vec<u8>, Bytes)>>,
}

impl std::fmt::Debug for GroupSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GroupSnapshot({} rows)", self.rows.len())
    }
}

impl GroupSnapshot {
    pub fn read(shard: ShardId, meta: SnapshotMeta, engine: &dyn StateEngine) -> io::Result<Snapshot> {
        let mut rows = Vec::new();
        for (table, from, to) in ranges(shard) {
            let found = engine.scan(table, &from, &to, usize::MAX, usize::MAX)?;
            rows.extend(found.into_iter().map(|(key, value)| (table, key, value)));
        }
        Ok(Snapshot { meta, snapshot: Self { rows: Arc::new(rows) } })
    }

    pub fn install(&self, shard: ShardId, state: &StateStore) -> io::Result<()> {
        let mut ops = Vec::new();
        for (table, from, to) in ranges(shard) {
            let old = state.engine().scan(table, &from, &to, usize::MAX, usize::MAX)?;
            ops.extend(old.into_iter().map(|(key, _)| StateOp::Delete { table, key }));
        }
        let new = self.rows.iter().cloned();
        ops.extend(new.map(|(table, key, value)| StateOp::Put { table, key, value }));
        Ok(state.write(&ops)?)
    }
}

/// Where a group's rows are.
fn ranges(shard: ShardId) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let prefix = |table, prefix: &[u8]| (table, prefix.to_vec(), after_prefix(prefix));
    let mut ranges = vec![prefix(Table::Ledger, &shard.to_be_bytes()), prefix(Table::Applied, &applied::encode(shard))];
    match crate::slots_of(shard) {
        Some((first, last)) => {
            let tables = [Table::Version, Table::Chart, Table::Key, Table::Request, Table::LedgerByChart];
            let (from, to) = (first.to_be_bytes().to_vec(), after_prefix(&last.to_be_bytes()));
            ranges.extend(tables.map(|table| (table, from.clone(), to.clone())));
        }
        None => {
            let tables = [Table::Cluster, Table::Tenant, Table::Grant, Table::DirectoryRequest];
            ranges.extend(tables.map(|table| prefix(table, &[])));
        }
    }
    ranges
}

/// Hands out what was read when it was asked for.
pub struct SnapshotBuilder {
    snapshot: Option<io::Result<Snapshot>>,
}

impl SnapshotBuilder {
    pub fn new(snapshot: io::Result<Snapshot>) -> Self {
        Self { snapshot: Some(snapshot) }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = GroupSnapshot;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.snapshot.take().unwrap_or_else(|| Err(io::Error::other("a snapshot is built once")))
    }
}
