//! Disks that lose power: what a crash leaves of a log and a state.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::store::EngineError;
use crate::store::log::memory::MemoryLog;
use crate::store::log::rocks::RocksLog;
use crate::store::log::{LogEngine, LogOp, LogRows};
use crate::store::state::memory::MemoryState;
use crate::store::state::rocks::RocksState;
use crate::store::state::{MemoryLimits, StateEngine};

pub trait Disk: Sized {
    fn empty() -> Self;
    fn log(&self) -> Arc<dyn LogEngine>;
    fn state(&self) -> Arc<dyn StateEngine>;
    fn syncs(&self) -> &Gate;
    /// What a power loss leaves: all that was synced or flushed, and of the log's rest a part, none (0) to all (255).
    fn after_crash(&self, kept: u8) -> Self;
}

/// While held, no sync of the log completes: writes gather that a crash may take.
#[derive(Default)]
pub struct Gate {
    held: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub fn hold(&self) {
        *self.held.lock() = true;
    }

    pub fn release(&self) {
        *self.held.lock() = false;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut held = self.held.lock();
        while *held {
            self.changed.wait(&mut held);
        }
    }
}

/// A log whose writes and syncs are two steps.
struct HeldLog<E> {
    engine: E,
    gate: Gate,
    on_synced: Box<dyn Fn() + Send + Sync>,
}

impl<E: LogEngine> LogEngine for HeldLog<E> {
    fn write(&self, ops: &[LogOp], sync: bool) -> Result<u64, EngineError> {
        let number = self.engine.write(ops, false)?;
        if !sync {
            return Ok(number);
        }
        self.gate.pass();
        let number = self.engine.write(&[], true)?;
        (self.on_synced)();
        Ok(number)
    }

    fn write_number(&self) -> u64 {
        self.engine.write_number()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.engine.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], bytes_max: usize) -> Result<LogRows, EngineError> {
        self.engine.scan(from, to, bytes_max)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, EngineError> {
        self.engine.last(from, to)
    }
}

/// The twins.
pub struct MemoryDisk {
    log: Arc<HeldLog<MemoryLog>>,
    state: Arc<MemoryState>,
}

impl MemoryDisk {
    fn new(engine: MemoryLog, state: MemoryState) -> Self {
        let log = HeldLog { engine, gate: Gate::default(), on_synced: Box::new(|| ()) };
        Self { log: Arc::new(log), state: Arc::new(state) }
    }
}

impl Disk for MemoryDisk {
    fn empty() -> Self {
        Self::new(MemoryLog::default(), MemoryState::default())
    }

    fn log(&self) -> Arc<dyn LogEngine> {
        Arc::clone(&self.log) as _
    }

    fn state(&self) -> Arc<dyn StateEngine> {
        Arc::clone(&self.state) as _
    }

    fn syncs(&self) -> &Gate {
        &self.log.gate
    }

    fn after_crash(&self, kept: u8) -> Self {
        let pending = self.log.engine.pending_writes();
        let kept = (usize::from(kept) * (pending + 1)) / 256;
        Self::new(self.log.engine.after_crash(kept), self.state.after_crash())
    }
}

/// RocksDB in a folder. A crash is a copy of its files, with the log's file cut anywhere after its last sync.
pub struct RocksDisk {
    log: Arc<HeldLog<RocksLog>>,
    state: Arc<RocksState>,
    synced_bytes: Arc<AtomicU64>,
    folder: tempfile::TempDir,
}

impl RocksDisk {
    fn open(folder: tempfile::TempDir) -> Self {
        let path = folder.path().join("log");
        let engine = RocksLog::open(&path).unwrap();
        let synced_bytes = Arc::new(AtomicU64::new(length(&newest_log_file(&path).unwrap())));
        let note = Arc::clone(&synced_bytes);
        let on_synced = Box::new(move || {
            // After a crash the folder may be gone before its log thread is.
            if let Some(file) = newest_log_file(&path) {
                note.store(length(&file), Ordering::SeqCst);
            }
        });
        let log = Arc::new(HeldLog { engine, gate: Gate::default(), on_synced });
        let state = Arc::new(RocksState::open(&folder.path().join("state"), MemoryLimits::default()).unwrap());
        Self { log, state, synced_bytes, folder }
    }
}

impl Disk for RocksDisk {
    fn empty() -> Self {
        Self::open(tempfile::tempdir().unwrap())
    }

    fn log(&self) -> Arc<dyn LogEngine> {
        Arc::clone(&self.log) as _
    }

    fn state(&self) -> Arc<dyn StateEngine> {
        Arc::clone(&self.state) as _
    }

    fn syncs(&self) -> &Gate {
        &self.log.gate
    }

    fn after_crash(&self, kept: u8) -> Self {
        let copy = tempfile::tempdir().unwrap();
        let synced = self.synced_bytes.load(Ordering::SeqCst);
        for part in ["log", "state"] {
            copy_files(&self.folder.path().join(part), &copy.path().join(part));
        }
        let log_file = newest_log_file(&copy.path().join("log")).unwrap();
        let unsynced = length(&log_file).saturating_sub(synced);
        let kept = synced + unsynced * u64::from(kept) / 255;
        fs::OpenOptions::new().write(true).open(log_file).unwrap().set_len(kept).unwrap();
        Self::open(copy)
    }
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |metadata| metadata.len())
}

fn newest_log_file(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.filter_map(|file| Some(file.ok()?.path()));
    files.filter(|file| file.extension().is_some_and(|extension| extension == "log")).max()
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
