//! The state of all groups of a node, in one engine.
//!
//! Writes are not logged (the Raft log is their log): they become durable by a flush of all tables at one point. The
//! applied row of a group is written in the batch that it describes, so what a crash leaves is always a state that some
//! prefix of the group's log leads to.
//!
//! Owns flushing. Must not know what a row means.

pub mod expiry;
pub mod flusher;
mod holes;
pub mod memory;
pub mod reader;
pub mod rocks;

use bytes::Bytes;

use super::EngineError;
use super::figures::EngineFigures;
use super::table::version;
use crate::{ShardId, SlotMap};

/// How much of the state is in memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// What was read and stays: blocks, indexes and filters of tables, bodies.
    pub cache_bytes: usize,
    /// What was written and gathers until it is flushed. As much again may gather meanwhile, and for a moment twice that.
    pub flush_bytes: usize,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20, flush_bytes: 64 << 20 }
    }
}

/// The tables. A file each in [`super::table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    Version,
    Chart,
    Key,
    Request,
    Ledger,
    LedgerByChart,
    Applied,
    Cluster,
    Tenant,
    Grant,
    DirectoryRequest,
    Index,
    Upload,
    Part,
    Handover,
}

impl Table {
    pub const ALL: [Self; 15] = [
        Self::Version,
        Self::Chart,
        Self::Key,
        Self::Request,
        Self::Ledger,
        Self::LedgerByChart,
        Self::Applied,
        Self::Cluster,
        Self::Tenant,
        Self::Grant,
        Self::DirectoryRequest,
        Self::Index,
        Self::Upload,
        Self::Part,
        Self::Handover,
    ];

    /// Whose rows are in it, and how a group's rows are found.
    pub fn scope(self) -> Scope {
        match self {
            Self::Version | Self::Chart | Self::Key | Self::Request | Self::LedgerByChart | Self::Index => Scope::Slot,
            Self::Upload | Self::Part => Scope::Slot,
            Self::Ledger | Self::Applied => Scope::Shard,
            Self::Cluster | Self::Tenant | Self::Grant | Self::DirectoryRequest => Scope::Directory,
            Self::Handover => Scope::Node,
        }
    }

    /// How many bytes of a key say which rows belong together: all versions of a record. Nothing: each is its own.
    pub fn family_len(self) -> Option<usize> {
        (self == Self::Version).then_some(version::RECORD_LEN)
    }

    /// The table with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    /// The name on disk, and in snapshots.
    pub fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Chart => "chart",
            Self::Key => "key",
            Self::Request => "request",
            Self::Ledger => "ledger",
            Self::LedgerByChart => "ledger_by_chart",
            Self::Applied => "applied",
            Self::Cluster => "cluster",
            Self::Tenant => "tenant",
            Self::Grant => "grant",
            Self::DirectoryRequest => "directory_request",
            Self::Index => "index",
            Self::Upload => "upload",
            Self::Part => "part",
            Self::Handover => "handover",
        }
    }
}

/// How a table's keys start, and so which rows are one group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// With the slot: a shard has the rows of its slot range, the directory none.
    Slot,
    /// With the shard: every group has rows.
    Shard,
    /// With anything: all rows are the directory's.
    Directory,
    /// With anything: the rows are this node's, and in no snapshot.
    Node,
}

/// One change of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateOp {
    Put {
        table: Table,
        key: Vec<u8>,
        value: Bytes,
    },
    Delete {
        table: Table,
        key: Vec<u8>,
    },
    /// From inclusive, to exclusive: for a group's rows as a whole, not for single ones.
    DeleteRange {
        table: Table,
        from: Vec<u8>,
        to: Vec<u8>,
    },
}

impl StateOp {
    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key, .. } => key.len(),
            Self::DeleteRange { from, to, .. } => from.len() + to.len(),
        }
    }
}

/// Rows of a scan: key, value.
pub type StateRows = Vec<(Vec<u8>, Bytes)>;

/// Reads rows of one moment, whatever is written meanwhile.
pub trait StateView {
    /// As [`StateEngine::scan`].
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<StateRows, EngineError>;
}

/// Looks for first rows among those of one moment.
pub trait FirstRows {
    /// The first row whose key begins with `prefix`, a whole [`Table::family_len`] of the table. Made for looking in vain.
    fn first(&mut self, prefix: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, EngineError>;
}

/// What the state needs of an engine.
pub trait StateEngine: Send + Sync + 'static {
    /// Calls `read` with the rows as they are now; they stay so until it returns.
    fn with_view(&self, read: &mut dyn FnMut(&dyn StateView));
    /// From now on, rows of `request` of this group whose id was made before this may be dropped at any time: nobody
    /// will ever ask for them.
    fn expire_requests(&self, shard: ShardId, made_before_ms: u64);
    /// Which shard holds which slots here. Kept by whoever writes the groups' rows.
    fn slots(&self) -> &SlotMap;
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// Rows of `from..to` in order, until they exceed a limit; the first always.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<StateRows, EngineError>;
    /// For many looks at the rows as they are now: to begin costs more than to look.
    fn first_rows(&self, table: Table) -> Result<Box<dyn FirstRows + '_>, EngineError>;
    /// As [`FirstRows::first`].
    fn first(&self, table: Table, prefix: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, EngineError> {
        self.first_rows(table)?.first(prefix)
    }
    /// Writes all or nothing, readable on return, durable with the next flush.
    fn write(&self, ops: &[StateOp]) -> Result<(), EngineError>;
    /// Fixes what the next flush holds: everything written until now, of all tables. Returns before it is durable.
    fn begin_flush(&self) -> Result<(), EngineError>;
    /// Waits until what was begun is durable.
    fn finish_flush(&self) -> Result<(), EngineError>;
    fn figures(&self) -> EngineFigures {
        EngineFigures::default()
    }
    /// How many blocks of its files this thread has had read so far, because they were not in memory.
    fn block_reads(&self) -> u64 {
        0
    }
    /// What was found first, if anything ever was read that is not what was written.
    fn damage(&self) -> Option<&str>;
    /// The same as having read such a thing.
    fn note_damage(&self, detail: &str);
}
