//! When the state is flushed, and what holds back apply meanwhile.
//!
//! Before a flush fixes its point, the log is synced while no group applies: so what a flush makes durable was in the
//! local log before, and a crash does not leave the state ahead of the log. (A disk that loses synced writes still can:
//! the start repairs it, see [`crate::shard::repair`].) The pause is one fsync long.
//!
//! Where each group was at the last flush is kept here: a log may be purged up to there, and no further.
//!
//! In a simulation there are no threads: there whoever wants a flush does it ([`StateStore::simulate`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use prost::Message;

use super::expiry::{Expiry, Pin};
use super::reader::{Reader, Replacements, Replacing};
use super::{MemoryLimits, StateEngine, StateOp, Table};
use crate::metrics::METRICS;
use crate::store::log::writer::LogWriter;
use crate::store::table::applied;
use crate::store::{EngineError, abort_on_lost_durability};
use crate::{ShardId, Slot, SlotMap, Slots, all_shards};

const FLUSH_INTERVAL: Duration = Duration::from_secs(30);
/// What may gather while a flush runs, in flushes: then writers wait for it.
const GATHERED_FLUSHES_MAX: usize = 2;

/// How far each group was.
type Positions = BTreeMap<ShardId, applied::Row>;

/// The state engine with its flusher. Clones share it.
#[derive(Clone)]
pub struct StateStore {
    inner: Arc<Inner>,
    flusher: Flusher,
}

/// Who flushes.
#[derive(Clone)]
enum Flusher {
    Thread(Arc<Mutex<Option<JoinHandle<()>>>>),
    Caller(LogWriter),
}

struct Inner {
    engine: Arc<dyn StateEngine>,
    /// What may gather before a flush.
    flush_bytes: usize,
    expiry: Arc<Expiry>,
    /// By group.
    replacements: Vec<Replacements>,
    /// Held for reading while a batch is written, for writing while a flush fixes its point.
    gate: RwLock<()>,
    unflushed_bytes: AtomicUsize,
    /// At the last flush that is done.
    flushed: Mutex<Positions>,
    signal: Mutex<Signal>,
    changed: Condvar,
}

impl Inner {
    /// Blocks while a disk takes less than what is written.
    fn await_room(&self) {
        let full = || self.unflushed_bytes.load(Ordering::Relaxed) >= GATHERED_FLUSHES_MAX * self.flush_bytes;
        if full() {
            let mut signal = self.signal.lock();
            self.changed.wait_while(&mut signal, |signal| full() && !signal.stop && !signal.ended);
        }
    }

    /// Who waits for room looks again; nobody is between a look and the wait.
    fn note_room(&self) {
        let _signal = self.signal.lock();
        self.changed.notify_all();
    }
}

#[derive(Default)]
struct Signal {
    wanted: bool,
    stop: bool,
    /// Flushes, also those that had nothing to do.
    begun: u64,
    done: u64,
    /// The thread is gone: nothing will be done any more.
    ended: bool,
}

impl StateStore {
    /// Starts the flusher's thread. What is in the engine at a start is what was flushed.
    pub fn start(engine: Arc<dyn StateEngine>, log: LogWriter, memory: MemoryLimits) -> Result<Self, EngineError> {
        let inner = Arc::new(Inner::new(engine, memory)?);
        let flusher = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("flush".to_owned())
            .spawn(move || run(&flusher, &log))
            .map_err(|error| EngineError::new("state", error))?;
        Ok(Self { inner, flusher: Flusher::Thread(Arc::new(Mutex::new(Some(thread)))) })
    }

    /// For a simulation: flushes by a task of the runtime that this is called in, and by whoever wants one.
    pub fn simulate(engine: Arc<dyn StateEngine>, log: LogWriter) -> Result<Self, EngineError> {
        let inner = Arc::new(Inner::new(engine, MemoryLimits::default())?);
        let (weak, flusher) = (Arc::downgrade(&inner), Flusher::Caller(log.clone()));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(FLUSH_INTERVAL).await;
                let Some(inner) = weak.upgrade() else { return };
                inner.flush_if_needed(&log);
            }
        });
        Ok(Self { inner, flusher })
    }

    /// Whether long reads are for threads of their own: not in a simulation, which has none.
    pub fn has_threads(&self) -> bool {
        matches!(self.flusher, Flusher::Thread(_))
    }

    /// For apply, which is the only one to write a group's rows. Others read through [`Self::reader`].
    pub fn engine(&self) -> &dyn StateEngine {
        self.inner.engine.as_ref()
    }

    /// The same, for a thread of its own.
    pub fn shared_engine(&self) -> Arc<dyn StateEngine> {
        Arc::clone(&self.inner.engine)
    }

    /// Which shard holds which slots here.
    pub fn slots(&self) -> &SlotMap {
        self.inner.engine.slots()
    }

    /// For reads of the rows of a slot, whichever shard holds it.
    pub fn reader_of(&self, slot: Slot) -> Result<Reader<'_>, EngineError> {
        let shard = self.slots().shard_of(slot).ok_or(EngineError::Unplaced)?;
        let reader = self.reader(shard)?;
        // Looked at again: from here on the reader notices if the slot goes, before it did not.
        (self.slots().shard_of(slot) == Some(shard)).then_some(reader).ok_or(EngineError::Unplaced)
    }

    /// For reads of a group's rows.
    pub fn reader(&self, shard: ShardId) -> Result<Reader<'_>, EngineError> {
        Reader::new(self.engine(), &self.inner.replacements[usize::from(shard)])
    }

    /// A snapshot takes the place of the group's rows, until that is said to be done.
    pub fn begin_replacing(&self, shard: ShardId) -> Replacing<'_> {
        self.inner.replacements[usize::from(shard)].begin()
    }

    /// While held, no row goes by itself that a view of this log time needs.
    pub fn pin(&self, log_time_ms: u64) -> Pin {
        self.inner.expiry.pin(log_time_ms)
    }

    /// Writes a group's batch.
    pub fn write(&self, ops: &[StateOp]) -> Result<(), EngineError> {
        self.inner.await_room();
        let size_bytes = ops.iter().map(StateOp::size_bytes).sum::<usize>();
        {
            let _gate = self.inner.gate.read();
            self.inner.engine.write(ops)?;
        }
        let unflushed = self.inner.unflushed_bytes.fetch_add(size_bytes, Ordering::Relaxed) + size_bytes;
        match &self.flusher {
            _ if unflushed < self.inner.flush_bytes => {}
            Flusher::Thread(_) => {
                self.inner.signal.lock().wanted = true;
                self.inner.changed.notify_all();
            }
            Flusher::Caller(_) => self.flush()?,
        }
        Ok(())
    }

    /// Where a group was at the last flush; nothing if it had applied nothing.
    pub fn flushed(&self, shard: ShardId) -> Option<applied::Row> {
        self.inner.flushed.lock().get(&shard).cloned()
    }

    /// Returns when everything that was written before is durable. Blocks.
    pub fn flush(&self) -> Result<(), EngineError> {
        let ended = || EngineError::new("state", "the flusher has ended");
        if let Flusher::Caller(log) = &self.flusher {
            return self.inner.flush_if_needed(log).then_some(()).ok_or_else(ended);
        }
        let mut signal = self.inner.signal.lock();
        let wanted = signal.begun + 1;
        signal.wanted = true;
        self.inner.changed.notify_all();
        while signal.done < wanted {
            if signal.ended {
                return Err(ended());
            }
            self.inner.changed.wait(&mut signal);
        }
        Ok(())
    }

    /// Flushes what is there and ends the thread, which lets go of the engine. Blocks.
    pub fn stop(&self) {
        match &self.flusher {
            Flusher::Thread(thread) => {
                self.inner.signal.lock().stop = true;
                self.inner.changed.notify_all();
                // Who comes second finds nothing to wait for; a panic has ended the process before.
                let thread = thread.lock().take();
                let _ended = thread.map(JoinHandle::join);
            }
            Flusher::Caller(log) => _ = self.inner.flush_if_needed(log),
        }
    }
}

impl Inner {
    fn new(engine: Arc<dyn StateEngine>, memory: MemoryLimits) -> Result<Self, EngineError> {
        let inner = Self {
            expiry: Expiry::new(Arc::clone(&engine)),
            replacements: all_shards().map(|_| Replacements::default()).collect(),
            gate: RwLock::new(()),
            unflushed_bytes: AtomicUsize::new(0),
            flushed: Mutex::default(),
            signal: Mutex::default(),
            changed: Condvar::new(),
            flush_bytes: memory.flush_bytes,
            engine,
        };
        let positions = positions(inner.engine.as_ref())?;
        for (shard, row) in &positions {
            match row.vacant {
                true => inner.engine.slots().set_vacant(*shard),
                false => inner.engine.slots().set(*shard, row.slots.as_ref().and_then(Slots::from_pb)),
            }
        }
        inner.note_flushed(positions);
        Ok(inner)
    }

    /// Answers whether all is durable that was there.
    fn flush_if_needed(&self, log: &LogWriter) -> bool {
        self.unflushed_bytes.load(Ordering::Relaxed) == 0 || flush(self, log)
    }

    fn note_flushed(&self, positions: Positions) {
        for (shard, row) in &positions {
            self.expiry.note_flushed(*shard, row.log_time_ms);
        }
        *self.flushed.lock() = positions;
    }
}

fn positions(engine: &dyn StateEngine) -> Result<Positions, EngineError> {
    let row_of = |shard| {
        let row = engine.get(Table::Applied, &applied::encode(shard)).transpose()?;
        let decode = |bytes| applied::Row::decode(bytes);
        let damaged = |_| EngineError::new("state", "a row of table applied cannot be decoded");
        Some(row.and_then(|row| decode(row).map_err(damaged)).map(|row| (shard, row)))
    };
    all_shards().filter_map(row_of).collect()
}

fn run(inner: &Inner, log: &LogWriter) {
    loop {
        let stop = wait(inner);
        let flushed = inner.flush_if_needed(log);
        let mut signal = inner.signal.lock();
        signal.ended = stop || !flushed;
        if flushed {
            signal.done = signal.begun;
        }
        inner.changed.notify_all();
        if signal.ended {
            return;
        }
    }
}

/// Waits until there is a reason to flush; answers whether it is the last time.
fn wait(inner: &Inner) -> bool {
    let deadline = Instant::now() + FLUSH_INTERVAL;
    let mut signal = inner.signal.lock();
    while !signal.wanted && !signal.stop {
        if inner.changed.wait_until(&mut signal, deadline).timed_out() {
            break;
        }
    }
    signal.wanted = false;
    signal.begun += 1;
    signal.stop
}

/// Nothing is lost with a state that is damaged: it is made anew, and the log is whole. The engine takes no writes any more.
fn cannot_flush(error: EngineError) -> bool {
    if !matches!(error, EngineError::Damaged { .. }) {
        abort_on_lost_durability("cannot flush the state", &error);
    }
    tracing::error!(%error, "the state is not flushed any more: it is to be made anew");
    false
}

/// Answers whether it was done: without a log it cannot be, nor if files are damaged.
fn flush(inner: &Inner, log: &LogWriter) -> bool {
    let started = Instant::now();
    let (bytes, positions) = {
        let _gate = inner.gate.write();
        if let Err(error) = log.sync_blocking() {
            tracing::warn!(
                %error,
                "the state is not flushed, the log has ended: nothing is lost, it is applied again at the next start"
            );
            return false;
        }
        if let Err(error) = inner.engine.begin_flush() {
            return cannot_flush(error);
        }
        (inner.unflushed_bytes.swap(0, Ordering::Relaxed), positions(inner.engine.as_ref()))
    };
    inner.note_room();
    if let Err(error) = inner.engine.finish_flush() {
        return cannot_flush(error);
    }
    match positions {
        Ok(positions) => inner.note_flushed(positions),
        Err(error) => return cannot_flush(error),
    }
    METRICS.flush.observe(started.elapsed().as_secs_f64());
    METRICS.flush_bytes.observe(bytes as f64);
    tracing::debug!(bytes, elapsed_ms = started.elapsed().as_millis() as u64, "state flushed");
    true
}
