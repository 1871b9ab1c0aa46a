//! The state on RocksDB: a column family a table.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rocksdb::{BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBCompressionType};
use rocksdb::{
    DBWithThreadMode, Direction, ErrorKind, FlushOptions, IteratorMode, MultiThreaded, Options, ReadOptions,
};
use rocksdb::{WriteBatch, WriteOptions};

use super::{StateEngine, StateOp, StateRows, Table};
use crate::store::EngineError;

/// Far above what the flusher lets gather: if RocksDB flushed by itself, the state could get ahead of the synced log.
const MEMTABLE_BYTES: usize = 256 << 20;
const CACHE_BYTES: usize = 256 << 20;
const FLUSH_POLL: Duration = Duration::from_millis(10);

/// `DATA/state/`.
pub struct RocksState {
    db: DBWithThreadMode<MultiThreaded>,
    unlogged: WriteOptions,
}

/// How rows of a table are read. A document read once would push all else out of the block cache.
fn read_options(table: Table) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.fill_cache(table != Table::Part);
    options
}

impl RocksState {
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let cache = Cache::new_hyper_clock_cache(CACHE_BYTES, 0);
        let families = Table::ALL.map(|table| ColumnFamilyDescriptor::new(table.name(), table_options(table, &cache)));
        let db = DBWithThreadMode::open_cf_descriptors(&options(), path, families).map_err(failed)?;
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        Ok(Self { db, unlogged })
    }

    fn family(&self, table: Table) -> Result<Arc<BoundColumnFamily<'_>>, EngineError> {
        self.db.cf_handle(table.name()).ok_or_else(|| failed(format!("no column family {}", table.name())))
    }

    fn immutable_memtables(&self) -> Result<u64, EngineError> {
        Table::ALL.iter().try_fold(0, |sum, table| {
            let count = self.db.property_int_value_cf(&self.family(*table)?, "rocksdb.num-immutable-mem-table");
            Ok(sum + count.map_err(failed)?.unwrap_or(0))
        })
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // One flush covers all tables at one point, so that the applied row never runs ahead of its rows.
    options.set_atomic_flush(true);
    options.set_paranoid_checks(true);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(4);
    options.set_max_open_files(2048);
    options
}

fn table_options(table: Table, cache: &Cache) -> Options {
    let mut options = Options::default();
    // Sealed bytes do not compress; 11.5 made LZ4 the default.
    options.set_compression_type(DBCompressionType::None);
    options.set_bottommost_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(4);
    options.set_level_compaction_dynamic_level_bytes(true);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if matches!(table, Table::Request | Table::Chart | Table::Key | Table::Upload | Table::Part) {
        // Looked up by whole key, mostly in vain (a fresh request id): a filter answers without a read.
        blocks.set_ribbon_filter(10.0);
    }
    options.set_block_based_table_factory(&blocks);
    options
}

fn failed(error: impl ToString) -> EngineError {
    EngineError::new("state", error)
}

impl StateEngine for RocksState {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.db.get_cf_opt(&self.family(table)?, key, &read_options(table)).map_err(failed)?.map(Bytes::from))
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
        let mut rows = StateRows::new();
        let mut size_bytes = 0;
        for row in self.db.iterator_cf_opt(&self.family(table)?, options, mode).take(rows_max) {
            let (key, value) = row.map_err(failed)?;
            size_bytes += key.len() + value.len();
            if size_bytes > bytes_max && !rows.is_empty() {
                break;
            }
            rows.push((key.into_vec(), Bytes::from(value)));
        }
        Ok(rows)
    }

    fn write(&self, ops: &[StateOp]) -> Result<(), EngineError> {
        let mut batch = WriteBatch::default();
        for op in ops {
            match op {
                StateOp::Put { table, key, value } => batch.put_cf(&self.family(*table)?, key, value),
                StateOp::Delete { table, key } => batch.delete_cf(&self.family(*table)?, key),
            }
        }
        self.db.write_opt(batch, &self.unlogged).map_err(failed)
    }

    fn begin_flush(&self) -> Result<(), EngineError> {
        let mut options = FlushOptions::default();
        options.set_wait(false);
        let families = Table::ALL.iter().map(|table| self.family(*table)).collect::<Result<Vec<_>, _>>()?;
        let families = families.iter().collect::<Vec<_>>();
        loop {
            match self.db.flush_cfs_opt(&families, &options) {
                // Writes are stopped until compaction has caught up: no fault of the disk.
                Err(error) if error.kind() == ErrorKind::TryAgain => std::thread::sleep(FLUSH_POLL),
                begun => return begun.map_err(failed),
            }
        }
    }

    fn finish_flush(&self) -> Result<(), EngineError> {
        while self.immutable_memtables()? > 0 {
            // Counted for the whole database, and shown by its default column family only.
            let errors = self.db.property_int_value("rocksdb.background-errors").map_err(failed)?;
            if errors.unwrap_or(0) > 0 {
                return Err(failed("a flush failed in the background"));
            }
            std::thread::sleep(FLUSH_POLL);
        }
        Ok(())
    }
}
