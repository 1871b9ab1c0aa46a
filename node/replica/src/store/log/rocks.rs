//! The log on RocksDB.

use std::path::Path;

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, DB, DBCompressionType, DBRecoveryMode, Direction, IteratorMode, Options, ReadOptions,
    WriteOptions,
};

use super::{LogEngine, LogOp, LogRows};
use crate::planted::{self, Bug};
use crate::store::figures::EngineFigures;
use crate::store::{EngineError, background, batch_for};

const MEMTABLE_BYTES: usize = 64 << 20;
const MEMTABLES_MAX: i32 = 4;
const MEMTABLES_FLUSHED: i32 = 2;
/// Files of the newest level, and bytes in them, that are compacted: twice and four times RocksDB's defaults. The longer that waits,
/// the more has been purged by then, and is not written again.
const FILES_COMPACTED: i32 = 8;
const COMPACTED_BYTES: u64 = 1 << 30;

/// `DATA/log/`.
pub struct RocksLog {
    db: DB,
}

impl RocksLog {
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        Ok(Self { db: DB::open(&options(path), path).map_err(failed)? })
    }
}

fn options(folder: &Path) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    // The default (point in time) silently drops everything after damage in the middle: acknowledged entries, that is.
    // This mode forgives a torn end only, and refuses to open on anything else.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // A whole WAL file that is missing is noticed.
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_paranoid_checks(true);
    // Reused log files could show old records as a tail.
    options.set_recycle_log_file_num(0);
    // Sealed bytes do not compress; 11.5 made LZ4 the default.
    options.set_compression_type(DBCompressionType::None);
    options.set_bottommost_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(MEMTABLES_MAX);
    // As one: what has been purged by then reaches no file.
    options.set_min_write_buffer_number_to_merge(MEMTABLES_FLUSHED);
    options.set_level_zero_file_num_compaction_trigger(FILES_COMPACTED);
    options.set_max_bytes_for_level_base(COMPACTED_BYTES);
    options.set_max_background_jobs(2);
    background::even_out(&mut options, folder);
    options.set_keep_log_file_num(4);
    options.set_max_open_files(512);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_size(32 << 10);
    options.set_block_based_table_factory(&blocks);
    options
}

fn failed(error: rocksdb::Error) -> EngineError {
    EngineError::new("log", error)
}

fn bounded(to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to.to_vec());
    options
}

impl LogEngine for RocksLog {
    fn write(&self, ops: &[LogOp], sync: bool) -> Result<u64, EngineError> {
        let mut batch = batch_for(ops.iter().map(LogOp::size_bytes));
        for op in ops {
            match op {
                LogOp::Put { key, value } => batch.put(key, value),
                LogOp::DeleteRange { from, to } => batch.delete_range(from, to),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync && !planted::has(Bug::SkipSync));
        self.db.write_opt(batch, &options).map_err(failed)?;
        Ok(self.write_number())
    }

    fn write_number(&self) -> u64 {
        self.db.latest_sequence_number()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.db.get(key).map_err(failed)?.map(Bytes::from))
    }

    fn scan(&self, from: &[u8], to: &[u8], bytes_max: usize) -> Result<LogRows, EngineError> {
        let mut rows = LogRows::new();
        let mut size_bytes = 0;
        for row in self.db.iterator_opt(IteratorMode::From(from, Direction::Forward), bounded(to)) {
            let (key, value) = row.map_err(failed)?;
            size_bytes += key.len() + value.len();
            if size_bytes > bytes_max && !rows.is_empty() {
                break;
            }
            rows.push((key.into_vec(), Bytes::from(value)));
        }
        Ok(rows)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, EngineError> {
        let mut options = bounded(to);
        options.set_iterate_lower_bound(from.to_vec());
        let row = self.db.iterator_opt(IteratorMode::End, options).next().transpose().map_err(failed)?;
        Ok(row.map(|(key, value)| (key.into_vec(), Bytes::from(value))))
    }

    fn figures(&self) -> EngineFigures {
        EngineFigures::of_family(|name| self.db.property_value(name).ok()??.parse().ok())
    }
}
