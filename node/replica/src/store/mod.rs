//! What a node keeps on disk: the log (`log/`), the state (`state/`), and who it is.
//!
//! Owns the two engines, the tables, the rules that tie them together after a crash. Must not know what an entry
//! means, nor Raft's types: entries, votes and commands are bytes here. The only place that names `rocksdb`.
//!
//! ```text
//! DATA/IDENTITY   cluster, node name and id; made once           identity.rs
//! DATA/BOOT       which start of this directory is the last      identity.rs
//! DATA/LOCK       held while a process uses the directory        identity.rs
//! DATA/log/       RocksDB, synced for every write                log/
//! DATA/SYNCED     how much of log/ is known to be synced         log/synced_mark.rs
//! DATA/state/     RocksDB, flushed by bytes, or every 30 s       state/
//! DATA/DAMAGED    state/ is to be made anew, and why             set_aside.rs
//! DATA/REFILLING  it is being made anew, and why                 set_aside.rs
//! DATA/incoming/  snapshots on their way into the state          incoming.rs
//! DATA/BALLAST    room that is held for bad days                 disk/ballast.rs
//! DATA/PROBE      written again and again, to see if it hangs    disk/watchdog.rs
//! ```

mod background;
pub mod disk;
pub mod figures;
pub mod identity;
pub mod incoming;
pub mod log;
pub mod opening;
pub mod set_aside;
pub mod state;
pub mod table;

use std::path::PathBuf;

use crate::format;

/// What a batch holds of a change beside its bytes, at most: its kind, its table, two lengths.
const CHANGE_BYTES_MORE: usize = 16;

/// An empty batch with room for changes of these sizes. One that grows is copied again and again.
fn batch_for(sizes_bytes: impl Iterator<Item = usize>) -> rocksdb::WriteBatch {
    rocksdb::WriteBatch::with_capacity_bytes(sizes_bytes.map(|size_bytes| size_bytes + CHANGE_BYTES_MORE).sum())
}

/// What can go wrong on the way to an open store. Every text names the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{0}: another process uses this data directory")]
    InUse(PathBuf),
    #[error("{path} belongs to {found}, this node is {expected}: give every node its own data directory")]
    Foreign { path: PathBuf, found: String, expected: String },
    #[error("{path} is damaged: {detail}")]
    Damaged { path: PathBuf, detail: String },
    #[error(
        "{path}: the log ends at write {recovered}, but write {synced} was synced before: the disk lost acknowledged \
         data. This node must not vote again: remove it and join a new node with an empty data directory"
    )]
    RolledBack { path: PathBuf, recovered: u64, synced: u64 },
    #[error(
        "the cluster uses format {0}, this version knows {oldest} to {newest}: start the version that was here last, or a \
         newer one, in steps",
        oldest = format::OLDEST,
        newest = format::NEWEST
    )]
    Format(u32),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Why rows cannot be read or written. Nothing of a row is in the text.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    #[error("{engine}: {detail}")]
    Failed { engine: &'static str, detail: String },
    /// What is on disk is not what was written.
    #[error("{engine} is damaged: {detail}")]
    Damaged { engine: &'static str, detail: String },
    /// A snapshot takes the place of a group's rows: until it has, what can be read of them means nothing.
    #[error("the shard's rows are being replaced by a snapshot")]
    Replaced,
    /// They go from one shard to another at this moment, or the cluster has no shards yet.
    #[error("no shard holds these rows here")]
    Unplaced,
    /// They are on other nodes, and the one that was asked does not give them.
    #[error("the node that has these rows does not give them")]
    Unreachable,
}

impl EngineError {
    pub(crate) fn new(engine: &'static str, detail: impl ToString) -> Self {
        Self::Failed { engine, detail: detail.to_string() }
    }
}

impl From<EngineError> for std::io::Error {
    fn from(error: EngineError) -> Self {
        std::io::Error::other(error)
    }
}

/// Ends the process: durability can no longer be promised. A retried fsync would lie (after a failure the kernel drops
/// the dirty pages and the next call succeeds), so there is nothing to go on with.
pub(crate) fn abort_on_lost_durability(what: &str, error: &dyn std::fmt::Display) -> ! {
    tracing::error!(%error, "{what}: durability is lost, ending this process; check the disk, then start it again");
    std::process::abort()
}
