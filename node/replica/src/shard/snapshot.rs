//! A group's state as a whole.
//!
//! What openraft's storage suite needs of a snapshot, and no more: nothing takes one in operation, because the log is
//! never purged (see [`super::config`]). Streaming and crash-atomic install come with purging.

use std::io;

use openraft::RaftSnapshotBuilder;

use super::types::TypeConfig;
use crate::ShardId;
use crate::store::state::flusher::StateStore;
use crate::store::state::{Scope, StateOp, Table};
use crate::store::table::after_prefix;

pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, GroupSnapshot>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// Where the rows of a group can be read: a handle, not a copy. Openraft asks for one at the start of a group whose log
/// was dropped by [`super::repair`], and does nothing with it.
#[derive(Clone)]
pub struct GroupSnapshot {
    shard: ShardId,
    state: StateStore,
}

impl std::fmt::Debug for GroupSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GroupSnapshot(shard {})", self.shard)
    }
}

impl GroupSnapshot {
    pub fn new(shard: ShardId, state: StateStore) -> Self {
        Self { shard, state }
    }

    /// Replaces a group's rows by these.
    pub fn install(&self, state: &StateStore) -> io::Result<()> {
        let mut ops = Vec::new();
        for (table, from, to) in ranges(self.shard) {
            let rows = |of: &StateStore| of.engine().scan(table, &from, &to, usize::MAX, usize::MAX);
            ops.extend(rows(state)?.into_iter().map(|(key, _)| StateOp::Delete { table, key }));
            ops.extend(rows(&self.state)?.into_iter().map(|(key, value)| StateOp::Put { table, key, value }));
        }
        Ok(state.write(&ops)?)
    }
}

/// Where a group's rows are: table, from, to. Nothing of another group is in there.
pub fn ranges(shard: ShardId) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let slots = crate::slots_of(shard);
    let range = |table: Table| match (table.scope(), slots) {
        (Scope::Slot, Some((first, last))) => {
            Some((table, first.to_be_bytes().to_vec(), after_prefix(&last.to_be_bytes())))
        }
        (Scope::Shard, _) => Some((table, shard.to_be_bytes().to_vec(), after_prefix(&shard.to_be_bytes()))),
        (Scope::Directory, None) => Some((table, Vec::new(), after_prefix(&[]))),
        (Scope::Slot, None) | (Scope::Directory, Some(_)) => None,
    };
    Table::ALL.into_iter().filter_map(range).collect()
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
