//! What a node keeps, open: on its disk, or in memory for a simulation.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::ReplicaConfig;
use crate::peer::registry::Start;
use crate::platform::Platform;
use crate::store::disk::{self, Disk};
use crate::store::identity::DataDirectory;
use crate::store::incoming::Incoming;
use crate::store::log::LogEngine;
use crate::store::log::memory::MemoryLog;
use crate::store::log::rocks::RocksLog;
use crate::store::log::synced_mark::SyncedMark;
use crate::store::log::writer::LogWriter;
use crate::store::opening::{SAY_AFTER, watched};
use crate::store::set_aside::{Mark, SetAside};
use crate::store::state::MemoryLimits;
use crate::store::state::flusher::StateStore;
use crate::store::state::memory::MemoryState;
use crate::store::state::rocks::RocksState;
use crate::store::{EngineError, StoreError};
use crate::{DIRECTORY, SHARD_COUNT, ShardId};

/// The stores of a node, open.
pub struct Stores {
    pub(super) data: DataDirectory,
    pub(super) start: Start,
    pub(super) log_engine: Arc<dyn LogEngine>,
    pub(super) log: LogWriter,
    pub(super) state: StateStore,
    pub(super) incoming: Incoming,
    pub(super) disk: Arc<Disk>,
    pub(super) set_aside: SetAside,
    /// The state is made anew, and why.
    pub(super) refilling: Option<Mark>,
    /// Whose stores these are.
    pub(super) groups: RangeInclusive<ShardId>,
}

impl Stores {
    /// Opens the data directory and its engines, and begins to watch its disk.
    pub fn open(config: &ReplicaConfig, platform: &Platform) -> Result<Self, StoreError> {
        disk::make_room(&config.data, &config.disk);
        let data = DataDirectory::open(&config.data, &config.cluster, &config.member.name, platform)?;
        let log_path = data.log_path();
        let log_engine: Arc<dyn LogEngine> = Arc::new(watched(&log_path, SAY_AFTER, || RocksLog::open(&log_path))?);
        // Before anything is written.
        let recovered = log_engine.write_number();
        let mark = SyncedMark::open(&data.synced_mark_path(), recovered)?;
        let log = LogWriter::start(Arc::clone(&log_engine), Some(mark))?;
        let set_aside = SetAside::at(&config.data);
        let state = open_state(&data.state_path(), config.memory, &set_aside)?;
        let state = StateStore::start(Arc::new(state), log.clone(), config.memory);
        if let Err(EngineError::Damaged { detail, .. }) = &state {
            set_aside.mark_found(detail)?;
        }
        let state = state?;
        let incoming = open_incoming(&data.incoming_path())?;
        data.sync()?;
        let disk = disk::watch(&config.data, config.disk, log.busy())?;
        let start = Start { boot: data.boot, previous: data.previous_boot, recovered };
        let (refilling, groups) = (set_aside.refilling()?, DIRECTORY..=SHARD_COUNT);
        Ok(Self { data, start, log_engine, log, state, incoming, disk, set_aside, refilling, groups })
    }

    /// For a simulation, in the runtime that is to drive it: no thread, engines in memory, a disk that is well and takes
    /// `delay` for a write of the log, and only the first `shards` shards. Identity and received snapshots are files still.
    pub fn simulate(
        config: &ReplicaConfig,
        platform: &Platform,
        (log, state): (Arc<MemoryLog>, Arc<MemoryState>),
        delay: impl Fn() -> Duration + Send + 'static,
        shards: u16,
    ) -> Result<Self, StoreError> {
        let data = DataDirectory::open(&config.data, &config.cluster, &config.member.name, platform)?;
        let start = Start { boot: data.boot, previous: data.previous_boot, recovered: log.write_number() };
        let writer = LogWriter::simulate(Arc::clone(&log) as _, delay);
        let state = StateStore::simulate(state, writer.clone())?;
        let incoming = open_incoming(&data.incoming_path())?;
        let groups = DIRECTORY..=shards.min(SHARD_COUNT);
        let (disk, set_aside) = (Arc::default(), SetAside::at(&config.data));
        Ok(Self {
            data,
            start,
            log_engine: log,
            log: writer,
            state,
            incoming,
            disk,
            set_aside,
            refilling: None,
            groups,
        })
    }
}

/// Opens the state; one that is damaged, or was found to be, is set aside, and an empty one takes its place.
fn open_state(path: &Path, memory: MemoryLimits, set_aside: &SetAside) -> Result<RocksState, StoreError> {
    set_aside.make_way(path)?;
    match watched(path, SAY_AFTER, || RocksState::open(path, memory)) {
        Err(EngineError::Damaged { detail, .. }) => {
            tracing::error!(why = detail, "the state cannot be opened: it is set aside and made anew; check the disk");
            set_aside.mark_found(&detail)?;
            set_aside.make_way(path)?;
            Ok(RocksState::open(path, memory)?)
        }
        opened => Ok(opened?),
    }
}

fn open_incoming(folder: &Path) -> Result<Incoming, StoreError> {
    Incoming::open(folder).map_err(|source| StoreError::Io { path: folder.to_owned(), source })
}
