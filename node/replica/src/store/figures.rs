//! What an engine says about itself.

/// Levels that RocksDB has.
pub const LEVELS: [&str; 7] = ["0", "1", "2", "3", "4", "5", "6"];

/// All 0 where an engine does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineFigures {
    pub live_bytes: u64,
    pub files_bytes: u64,
    pub memtable_bytes: u64,
    pub cache_bytes: u64,
    pub compaction_pending_bytes: u64,
    pub compactions_running: u64,
    pub writes_stopped: bool,
    pub level_tables: [u64; LEVELS.len()],
}

impl EngineFigures {
    /// Of one column family, by the names of RocksDB's properties.
    pub(super) fn of_family(property: impl Fn(&str) -> Option<u64>) -> Self {
        let of = |name: &str| property(&format!("rocksdb.{name}")).unwrap_or(0);
        Self {
            live_bytes: of("estimate-live-data-size") + of("live-blob-file-size"),
            files_bytes: of("total-sst-files-size") + of("total-blob-file-size"),
            memtable_bytes: of("cur-size-all-mem-tables"),
            cache_bytes: of("block-cache-usage"),
            compaction_pending_bytes: of("estimate-pending-compaction-bytes"),
            compactions_running: of("num-running-compactions"),
            writes_stopped: of("is-write-stopped") > 0,
            level_tables: LEVELS.map(|level| of(&format!("num-files-at-level{level}"))),
        }
    }

    /// Of families of one database, which share their cache and their compactions.
    pub(super) fn and(mut self, other: &Self) -> Self {
        self.live_bytes += other.live_bytes;
        self.files_bytes += other.files_bytes;
        self.memtable_bytes += other.memtable_bytes;
        self.cache_bytes = self.cache_bytes.max(other.cache_bytes);
        self.compaction_pending_bytes += other.compaction_pending_bytes;
        self.compactions_running = self.compactions_running.max(other.compactions_running);
        self.writes_stopped |= other.writes_stopped;
        for (own, others) in self.level_tables.iter_mut().zip(other.level_tables) {
            *own += others;
        }
        self
    }
}
