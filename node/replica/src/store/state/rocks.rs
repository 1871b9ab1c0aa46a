//! The state on RocksDB: a column family a table.

use std::ffi::CStr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::perf::{PerfContext, PerfMetric};
use rocksdb::{BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DBCompressionType};
use rocksdb::{CompactionDecision, WriteBatch, WriteOptions};
use rocksdb::{
    DBRawIteratorWithThreadMode, DBWithThreadMode, Direction, ErrorKind, FlushOptions, IteratorMode, LiveFile, Options,
    ReadOptions, SingleThreaded, SliceTransform, SnapshotWithThreadMode,
};

use super::expiry::{self, Cutoffs};
use super::holes::Holes;
use super::{FirstRows, MemoryLimits, StateEngine, StateOp, StateRows, StateView, Table};
use crate::store::figures::EngineFigures;
use crate::store::{EngineError, background, batch_for};
use crate::{ShardId, SlotMap};

/// A memtable's size, in flushes: far above what the flusher lets gather. If RocksDB flushed by itself, the state could get
/// ahead of the synced log.
const MEMTABLE_FLUSHES: usize = 4;
/// A value from this size on is written once, beside the sorted tables, which hold where it is. Compactions then rewrite
/// keys and small rows only, some hundred times less, and an index has an entry for dozens of rows, not for two.
const BLOB_BYTES_MIN: u64 = 1 << 10;
/// Of a memtable's size, for a filter: by default some 20 bits for each of the 100,000 keys that gather between two flushes.
const MEMTABLE_FILTER_RATIO: f64 = 0.001;
/// Of the filter of a file. A ribbon would be a third smaller, and took 1.3 % of a commit's processor time to ask: each commit
/// asks those of all files of the newest level, twice.
const FILTER_BITS_A_KEY: f64 = 10.0;
/// Tables whose larger values lie in blob files.
const WITH_BLOBS: [Table; 2] = [Table::Version, Table::Part];
const FLUSH_POLL: Duration = Duration::from_millis(10);
/// For a full disk to have room again, and RocksDB to notice: it looks every 5 s.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);
const ROOM_POLL: Duration = Duration::from_millis(100);
/// A file of requests is compacted at this age at the latest: by then all its rows are dead, and go.
const REQUESTS_COMPACTED_AFTER: Duration = Duration::from_secs(2 * 60 * 60);
/// What a get reads: their files' indexes and filters are in the cache before anybody asks.
const WARMED_UP: [Table; 2] = [Table::Version, Table::Key];
/// A large state begins with what is in the cache by then, and with half of the cache for what is read.
const WARM_UP_MAX: Duration = Duration::from_secs(1);

thread_local! {
    /// What RocksDB counts of this thread's reads; it counts anyway.
    static COUNTED: PerfContext = PerfContext::default();
}

/// `DATA/state/`.
pub struct RocksState {
    db: Db,
    unlogged: WriteOptions,
    cutoffs: Arc<Cutoffs>,
    holes: [Holes; WITH_BLOBS.len()],
    /// When the flush that is under way began.
    errors_before: AtomicU64,
    damage: OnceLock<String>,
}

/// Families are all made when it is opened: nobody has to wait to find one.
type Db = DBWithThreadMode<SingleThreaded>;

/// How rows of a table are read. A document read once would push all else out of the block cache.
fn read_options(table: Table) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.fill_cache(table != Table::Part);
    // Over all prefixes, in a table that has them.
    options.set_total_order_seek(true);
    options
}

impl RocksState {
    pub fn open(path: &Path, memory: MemoryLimits) -> Result<Self, EngineError> {
        let cache = Cache::new_hyper_clock_cache(memory.cache_bytes, 0);
        let cutoffs = Arc::new(Cutoffs::default());
        let family = |table: Table| {
            let mut options = table_options(table, &cache, &cutoffs);
            options.set_write_buffer_size(MEMTABLE_FLUSHES * memory.flush_bytes);
            ColumnFamilyDescriptor::new(table.name(), options)
        };
        let db = DBWithThreadMode::open_cf_descriptors(&options(path), path, Table::ALL.map(family)).map_err(failed)?;
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        let (holes, errors_before, damage) = Default::default();
        let state = Self { db, unlogged, cutoffs, holes, errors_before, damage };
        state.warm_up(&cache, memory.cache_bytes / 2)?;
        Ok(state)
    }

    /// Reads a row of each file, and so what leads to it. What cannot be read is noted as ever.
    fn warm_up(&self, cache: &Cache, cache_bytes: usize) -> Result<(), EngineError> {
        let begun = Instant::now();
        let files = self.db.live_files().map_err(failed)?;
        let table_of = |file: &LiveFile| WARMED_UP.into_iter().find(|table| table.name() == file.column_family_name);
        for (table, key) in files.iter().filter_map(|file| Some((table_of(file)?, file.start_key.as_deref()?))) {
            if begun.elapsed() > WARM_UP_MAX || cache.get_usage() > cache_bytes {
                break;
            }
            let _noted = match table.family_len() {
                Some(len) => self.first(table, &key[..len.min(key.len())]).map(drop),
                None => self.get(table, key).map(drop),
            };
        }
        Ok(())
    }

    /// Remembers what says that files are damaged.
    fn note<T>(&self, done: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(EngineError::Damaged { detail, .. }) = &done {
            self.note_damage(detail);
        }
        done
    }

    fn family(&self, table: Table) -> Result<&ColumnFamily, EngineError> {
        let missing = || EngineError::new("state", format!("no column family {}", table.name()));
        self.db.cf_handle(table.name()).ok_or_else(missing)
    }

    /// Counted for the whole database, and shown by its default column family only. Those of compactions that found the
    /// disk full are among them, and mean nothing to a flush.
    fn background_errors(&self) -> Result<u64, EngineError> {
        Ok(self.db.property_int_value("rocksdb.background-errors").map_err(failed)?.unwrap_or(0))
    }

    fn batch(&self, ops: &[StateOp]) -> Result<WriteBatch, EngineError> {
        let mut batch = batch_for(ops.iter().map(StateOp::size_bytes));
        for op in ops {
            match op {
                StateOp::Put { table, key, value } => batch.put_cf(self.family(*table)?, key, value),
                StateOp::Delete { table, key } => batch.delete_cf(self.family(*table)?, key),
                StateOp::DeleteRange { table, from, to } => batch.delete_range_cf(self.family(*table)?, from, to),
            }
        }
        Ok(batch)
    }

    /// Why RocksDB takes no writes any more, if so: an empty one tells. One that says that the disk is full it takes back by
    /// itself, and does again what had no room; all others stand.
    fn standing_error(&self) -> Option<rocksdb::Error> {
        self.db.write_opt(WriteBatch::default(), &self.unlogged).err()
    }

    /// Has RocksDB close the holes in blob files, or no longer.
    fn look_for_holes(&self) -> Result<(), EngineError> {
        for (table, holes) in WITH_BLOBS.into_iter().zip(&self.holes) {
            let family = self.family(table)?;
            let bytes = |name: &str| Ok(self.db.property_int_value_cf(family, name).map_err(failed)?.unwrap_or(0));
            let (files, garbage) =
                (bytes("rocksdb.live-blob-file-size")?, bytes("rocksdb.live-blob-file-garbage-size")?);
            if let Some(options) = holes.options(files, garbage) {
                self.db.set_options_cf(family, options).map_err(failed)?;
                holes.are_set();
                match options.len() {
                    1 => tracing::info!(table = table.name(), "few holes are left in the table's files"),
                    _ => tracing::info!(table = table.name(), garbage, "holes in the table's files are closed"),
                }
            }
        }
        Ok(())
    }

    fn immutable_memtables(&self) -> Result<u64, EngineError> {
        Table::ALL.iter().try_fold(0, |sum, table| {
            let count = self.db.property_int_value_cf(self.family(*table)?, "rocksdb.num-immutable-mem-table");
            Ok(sum + count.map_err(failed)?.unwrap_or(0))
        })
    }
}

fn options(folder: &Path) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // One flush covers all tables at one point, so that the applied row never runs ahead of its rows.
    options.set_atomic_flush(true);
    options.set_paranoid_checks(true);
    options.set_max_background_jobs(2);
    background::even_out(&mut options, folder);
    options.set_keep_log_file_num(4);
    options.set_max_open_files(2048);
    options
}

fn table_options(table: Table, cache: &Cache, cutoffs: &Arc<Cutoffs>) -> Options {
    let mut options = Options::default();
    // Sealed bytes do not compress; 11.5 made LZ4 the default.
    options.set_compression_type(DBCompressionType::None);
    options.set_bottommost_compression_type(DBCompressionType::None);
    options.set_max_write_buffer_number(4);
    options.set_level_compaction_dynamic_level_bytes(true);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if matches!(table, Table::Request | Table::Chart | Table::Key | Table::Upload | Table::Part) {
        // Looked up by whole key, mostly in vain (a fresh request id): a filter answers without a read.
        blocks.set_bloom_filter(FILTER_BITS_A_KEY, false);
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER_RATIO);
    }
    if let Some(len) = table.family_len() {
        // Apply looks for a record's newest version before each put, mostly in vain (a new record).
        options.set_prefix_extractor(SliceTransform::create_fixed_prefix(len));
        options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER_RATIO);
        blocks.set_bloom_filter(FILTER_BITS_A_KEY, false);
        blocks.set_whole_key_filtering(false);
    }
    options.set_block_based_table_factory(&blocks);
    if WITH_BLOBS.contains(&table) {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_BYTES_MIN);
        // What is erased, and parts of uploads that were given up, leave holes: see [`super::holes`].
        options.set_enable_blob_gc(false);
        options.set_blob_cache(cache);
    }
    if matches!(table, Table::Request | Table::DirectoryRequest) {
        options.set_compaction_filter_factory(DropDead { table, cutoffs: Arc::clone(cutoffs) });
        options.set_periodic_compaction_seconds(REQUESTS_COMPACTED_AFTER.as_secs());
    }
    options
}

/// Makes the filter of one compaction: what is dead goes. Nothing else may, see [`expiry`].
struct DropDead {
    table: Table,
    cutoffs: Arc<Cutoffs>,
}

impl CompactionFilterFactory for DropDead {
    type Filter = DropDead;

    fn create(&mut self, _: CompactionFilterContext) -> DropDead {
        DropDead { table: self.table, cutoffs: Arc::clone(&self.cutoffs) }
    }

    fn name(&self) -> &CStr {
        c"charthold-expiry"
    }
}

impl CompactionFilter for DropDead {
    fn filter(&mut self, _level: u32, key: &[u8], _value: &[u8]) -> CompactionDecision {
        match expiry::is_dead(self.table, key, &self.cutoffs) {
            true => CompactionDecision::Remove,
            false => CompactionDecision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        c"charthold-expiry"
    }
}

/// What the system calls ENOSPC, as RocksDB tells it of everything that follows from it.
fn is_full(error: &rocksdb::Error) -> bool {
    error.kind() == ErrorKind::IOError && error.as_ref().contains("No space left on device")
}

/// What the system says of a sector that cannot be read, and of a file that has gone: others have what was in it. All else
/// passes (too many open files), or is no matter of this state alone.
const LOST_TO_READERS: [&str; 2] = ["Input/output error", "No such file or directory"];

/// Why a read failed.
fn unreadable(error: rocksdb::Error) -> EngineError {
    let is_lost = LOST_TO_READERS.iter().any(|words| error.as_ref().contains(words));
    match error.kind() {
        ErrorKind::IOError if is_lost => EngineError::Damaged { engine: "state", detail: error.into_string() },
        _ => failed(error),
    }
}

fn failed(error: rocksdb::Error) -> EngineError {
    match error.kind() {
        ErrorKind::Corruption => EngineError::Damaged { engine: "state", detail: error.into_string() },
        _ => EngineError::new("state", error),
    }
}

/// What is read from an iterator until a limit; the first row always.
fn rows_within(
    iterator: impl Iterator<Item = Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>>,
    rows_max: usize,
    bytes_max: usize,
) -> Result<StateRows, EngineError> {
    let mut rows = StateRows::new();
    let mut size_bytes = 0;
    for row in iterator.take(rows_max) {
        let (key, value) = row.map_err(unreadable)?;
        size_bytes += key.len() + value.len();
        if size_bytes > bytes_max && !rows.is_empty() {
            break;
        }
        rows.push((key.into_vec(), Bytes::from(value)));
    }
    Ok(rows)
}

struct RocksView<'a> {
    state: &'a RocksState,
    snapshot: SnapshotWithThreadMode<'a, Db>,
}

impl StateView for RocksView<'_> {
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<StateRows, EngineError> {
        let mut options = read_options(table);
        options.set_iterate_upper_bound(to.to_vec());
        // A snapshot of a whole shard would push out what readers want.
        options.fill_cache(false);
        let mode = IteratorMode::From(from, Direction::Forward);
        let family = self.state.family(table)?;
        let rows = rows_within(self.snapshot.iterator_cf_opt(family, options, mode), rows_max, bytes_max);
        self.state.note(rows)
    }
}

struct RocksFirstRows<'a> {
    state: &'a RocksState,
    rows: DBRawIteratorWithThreadMode<'a, Db>,
}

impl FirstRows for RocksFirstRows<'_> {
    fn first(&mut self, prefix: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, EngineError> {
        self.rows.seek(prefix);
        let found = self.rows.item().filter(|(key, _)| key.starts_with(prefix));
        let found = found.map(|(key, value)| (key.to_vec(), Bytes::copy_from_slice(value)));
        self.state.note(self.rows.status().map_err(unreadable))?;
        Ok(found)
    }
}

impl StateEngine for RocksState {
    fn with_view(&self, read: &mut dyn FnMut(&dyn StateView)) {
        read(&RocksView { state: self, snapshot: self.db.snapshot() });
    }

    fn expire_requests(&self, shard: ShardId, made_before_ms: u64) {
        self.cutoffs.set(shard, made_before_ms);
    }

    fn slots(&self) -> &SlotMap {
        &self.cutoffs.slots
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let row = self.db.get_cf_opt(self.family(table)?, key, &read_options(table));
        Ok(self.note(row.map_err(unreadable))?.map(Bytes::from))
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<StateRows, EngineError> {
        let mut options = read_options(table);
        options.set_iterate_upper_bound(to.to_vec());
        let mode = IteratorMode::From(from, Direction::Forward);
        self.note(rows_within(self.db.iterator_cf_opt(self.family(table)?, options, mode), rows_max, bytes_max))
    }

    fn first_rows(&self, table: Table) -> Result<Box<dyn FirstRows + '_>, EngineError> {
        let mut options = read_options(table);
        options.set_total_order_seek(false);
        options.set_prefix_same_as_start(true);
        let rows = self.db.raw_iterator_cf_opt(self.family(table)?, options);
        Ok(Box::new(RocksFirstRows { state: self, rows }))
    }

    fn write(&self, ops: &[StateOp]) -> Result<(), EngineError> {
        let begun = Instant::now();
        loop {
            match self.db.write_opt(self.batch(ops)?, &self.unlogged) {
                Err(error) if is_full(&error) && begun.elapsed() < ROOM_WAIT_MAX => std::thread::sleep(ROOM_POLL),
                written => return self.note(written.map_err(failed)),
            }
        }
    }

    fn begin_flush(&self) -> Result<(), EngineError> {
        let mut options = FlushOptions::default();
        options.set_wait(false);
        let families = Table::ALL.iter().map(|table| self.family(*table)).collect::<Result<Vec<_>, _>>()?;
        self.errors_before.store(self.background_errors()?, Ordering::Relaxed);
        let begun = Instant::now();
        loop {
            match self.db.flush_cfs_opt(&families, &options) {
                // Writes are stopped until compaction has caught up: no fault of the disk.
                Err(error) if error.kind() == ErrorKind::TryAgain => std::thread::sleep(FLUSH_POLL),
                Err(error) if is_full(&error) && begun.elapsed() < ROOM_WAIT_MAX => std::thread::sleep(ROOM_POLL),
                begun => return self.note(begun.map_err(failed)),
            }
        }
    }

    fn finish_flush(&self) -> Result<(), EngineError> {
        let mut failing_since = None;
        while self.immutable_memtables()? > 0 {
            if self.background_errors()? > self.errors_before.load(Ordering::Relaxed) {
                let since = *failing_since.get_or_insert_with(Instant::now);
                let lasts = since.elapsed() > ROOM_WAIT_MAX;
                match self.standing_error() {
                    Some(error) if lasts || !is_full(&error) => return self.note(Err(failed(error))),
                    None if lasts => return Err(EngineError::new("state", "a flush fails, again and again")),
                    _ => {}
                }
            }
            std::thread::sleep(FLUSH_POLL);
        }
        if let Err(error) = self.look_for_holes() {
            tracing::warn!(%error, "holes in the tables' files were not looked for: the next flush does");
        }
        Ok(())
    }

    fn figures(&self) -> EngineFigures {
        let families = Table::ALL.iter().filter_map(|table| self.family(*table).ok());
        let figures = families
            .map(|family| EngineFigures::of_family(|name| self.db.property_value_cf(family, name).ok()??.parse().ok()));
        figures.fold(EngineFigures::default(), |sum, figures| sum.and(&figures))
    }

    /// Of data, indexes and filters. Blobs are not among them: the binding does not give that number.
    fn block_reads(&self) -> u64 {
        COUNTED.with(|counted| counted.metric(PerfMetric::BlockReadCount))
    }

    fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    fn note_damage(&self, detail: &str) {
        let _first = self.damage.get_or_init(|| detail.to_owned());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::memory::MemoryState;
    use super::*;
    use crate::store::table::version;

    /// A record's place (by number) and version, and whether what was written so far is flushed after it.
    fn written() -> impl Strategy<Value = Vec<(u8, u64, bool)>> {
        prop::collection::vec((0..8_u8, 1..4_u64, prop::bool::weighted(0.2)), 0..40)
    }

    /// Records of two slots: keys that share all but the last byte, or the first.
    fn prefix(record: u8) -> Vec<u8> {
        let mut prefix = vec![0; version::RECORD_LEN];
        prefix[0] = record / 4;
        prefix[version::RECORD_LEN - 1] = record % 4;
        prefix
    }

    fn flush(rocks: &RocksState) {
        rocks.begin_flush().unwrap();
        rocks.finish_flush().unwrap();
    }

    /// RocksDB knows the options, and does with them what they are set for.
    #[test]
    fn holes_stay_until_they_are_closed() {
        let folder = tempfile::tempdir().unwrap();
        let rocks = RocksState::open(folder.path(), MemoryLimits::default()).unwrap();
        let family = rocks.family(Table::Version).unwrap();
        let key = |number: u64| [&prefix(0)[..], &number.to_be_bytes()].concat();
        let value = Bytes::from(vec![7; 4 << 10]);
        let put = |number| StateOp::Put { table: Table::Version, key: key(number), value: value.clone() };
        rocks.write(&(0..1_000).map(put).collect::<Vec<_>>()).unwrap();
        flush(&rocks);
        let delete = |number| StateOp::Delete { table: Table::Version, key: key(number) };
        rocks.write(&(0..1_000).filter(|number| number % 10 > 0).map(delete).collect::<Vec<_>>()).unwrap();
        flush(&rocks);
        let blobs = || rocks.db.property_int_value_cf(family, "rocksdb.live-blob-file-size").unwrap().unwrap();
        rocks.db.compact_range_cf(family, None::<&[u8]>, None::<&[u8]>);
        assert!(blobs() > 4_000_000, "what lives in the file holds it");
        let closing = Holes::default().options(1 << 30, 1 << 30).unwrap();
        rocks.db.set_options_cf(family, closing).unwrap();
        let mut options = rocksdb::CompactOptions::default();
        options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
        rocks.db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
        assert!(blobs() < 500_000, "{} bytes", blobs());
        assert_eq!(rocks.get(Table::Version, &key(10)).unwrap(), Some(value.clone()));
    }

    /// Of files of one row each nothing is left to be read.
    #[test]
    fn what_leads_to_rows_is_in_memory_after_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let keys =
            |record: u8| [(Table::Version, [&prefix(record)[..], &[0; 8]].concat()), (Table::Key, prefix(record))];
        {
            let rocks = RocksState::open(folder.path(), MemoryLimits::default()).unwrap();
            for record in 0..3 {
                let put = |(table, key)| StateOp::Put { table, key, value: vec![record].into() };
                rocks.write(&keys(record).map(put)).unwrap();
                flush(&rocks);
            }
        }
        let rocks = RocksState::open(folder.path(), MemoryLimits::default()).unwrap();
        let before = rocks.block_reads();
        for (table, key) in (0..3).flat_map(keys) {
            assert!(rocks.get(table, &key).unwrap().is_some(), "{table:?}");
        }
        assert_eq!(rocks.block_reads(), before);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// Whatever filters say of what is in memory and in files.
        #[test]
        fn the_first_of_a_record_is_found_as_by_the_twin(rows in written()) {
            let folder = tempfile::tempdir().unwrap();
            let (rocks, twin) = (RocksState::open(folder.path(), MemoryLimits::default()).unwrap(), MemoryState::default());
            for (record, version, flushed) in rows {
                let key = [&prefix(record)[..], &(!version).to_be_bytes()].concat();
                let ops = [StateOp::Put { table: Table::Version, key, value: vec![record].into() }];
                rocks.write(&ops).unwrap();
                twin.write(&ops).unwrap();
                if flushed {
                    flush(&rocks);
                }
            }
            for record in 0..8 {
                let first = |engine: &dyn StateEngine| engine.first(Table::Version, &prefix(record)).unwrap();
                prop_assert_eq!(first(&rocks), first(&twin));
            }
            let all = |engine: &dyn StateEngine| engine.scan(Table::Version, &[0], &[9], 100, usize::MAX).unwrap();
            prop_assert_eq!(all(&rocks), all(&twin));
        }
    }
}
