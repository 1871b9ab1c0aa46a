//! openraft's own test suite of storage, on both pairs of engines.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::log::LogStorage;
use super::machine::GroupMachine;
use super::transfer::Outgoing;
use super::types::TypeConfig;
use crate::store::incoming::Incoming;
use crate::store::log::LogEngine;
use crate::store::log::group::GroupLog;
use crate::store::log::memory::MemoryLog;
use crate::store::log::rocks::RocksLog;
use crate::store::log::writer::LogWriter;
use crate::store::state::flusher::StateStore;
use crate::store::state::memory::MemoryState;
use crate::store::state::rocks::RocksState;
use crate::store::state::{MemoryLimits, StateEngine};

const SHARD: crate::ShardId = 1;

type Built = (Guard, LogStorage, GroupMachine);

/// Lets the threads come to rest, so that the engines close; then the folder goes.
struct Guard {
    log: LogWriter,
    state: StateStore,
    _folder: tempfile::TempDir,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let log = self.log.clone();
        // It blocks, which a task must not.
        std::thread::spawn(move || log.sync_blocking()).join().unwrap().unwrap();
        self.state.stop();
    }
}

fn build(log: Arc<dyn LogEngine>, state: Arc<dyn StateEngine>, folder: tempfile::TempDir) -> Built {
    let writer = LogWriter::start(Arc::clone(&log), None).unwrap();
    let state = StateStore::start(state, writer.clone(), MemoryLimits::default()).unwrap();
    let incoming = Incoming::open(&folder.path().join("incoming")).unwrap();
    let machine = GroupMachine::open(SHARD, state.clone(), incoming, Arc::new(Outgoing::new(1 << 30))).unwrap();
    let log = LogStorage::new(GroupLog::open(SHARD, log, writer.clone()).unwrap(), true, None);
    (Guard { log: writer, state, _folder: folder }, log, machine)
}

struct Memory;

impl StoreBuilder<TypeConfig, LogStorage, GroupMachine, Guard> for Memory {
    async fn build(&self) -> Result<Built, StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        Ok(build(Arc::new(MemoryLog::default()), Arc::new(MemoryState::default()), folder))
    }
}

struct Rocks;

impl StoreBuilder<TypeConfig, LogStorage, GroupMachine, Guard> for Rocks {
    async fn build(&self) -> Result<Built, StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let log = RocksLog::open(&folder.path().join("log")).unwrap();
        let state = RocksState::open(&folder.path().join("state"), MemoryLimits::default()).unwrap();
        Ok(build(Arc::new(log), Arc::new(state), folder))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_passes_openrafts_suite() {
    Suite::test_all(Memory).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rocksdb_passes_openrafts_suite() {
    Suite::test_all(Rocks).await.unwrap();
}
