//! When the state is flushed, and what holds back apply meanwhile.
//!
//! Before a flush fixes its point, the log is synced while no group applies: so what a flush makes durable was in the
//! local log before, and a crash does not leave the state ahead of the log. (A disk that loses synced writes still can:
//! the start repairs it, see [`crate::shard::repair`].) The pause is one fsync long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use super::{StateEngine, StateOp};
use crate::metrics::METRICS;
use crate::store::log::writer::LogWriter;
use crate::store::{EngineError, abort_on_lost_durability};

/// What may gather before a flush.
const FLUSH_BYTES: usize = 64 << 20;
const FLUSH_INTERVAL: Duration = Duration::from_secs(30);

/// The state engine with its flusher. Clones share it.
#[derive(Clone)]
pub struct StateStore {
    inner: Arc<Inner>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

struct Inner {
    engine: Arc<dyn StateEngine>,
    /// Held for reading while a batch is written, for writing while a flush fixes its point.
    gate: RwLock<()>,
    unflushed_bytes: AtomicUsize,
    signal: Mutex<Signal>,
    wake: Condvar,
}

#[derive(Default)]
struct Signal {
    full: bool,
    stop: bool,
}

impl StateStore {
    /// Starts the flusher's thread.
    pub fn start(engine: Arc<dyn StateEngine>, log: LogWriter) -> Result<Self, EngineError> {
        let inner = Arc::new(Inner {
            engine,
            gate: RwLock::new(()),
            unflushed_bytes: AtomicUsize::new(0),
            signal: Mutex::new(Signal::default()),
            wake: Condvar::new(),
        });
        let flusher = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("flush".to_owned())
            .spawn(move || run(&flusher, &log))
            .map_err(|error| EngineError::new("state", error))?;
        Ok(Self { inner, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// For reads.
    pub fn engine(&self) -> &dyn StateEngine {
        self.inner.engine.as_ref()
    }

    /// Writes a group's batch.
    pub fn write(&self, ops: &[StateOp]) -> Result<(), EngineError> {
        let size_bytes = ops.iter().map(StateOp::size_bytes).sum::<usize>();
        {
            let _gate = self.inner.gate.read();
            self.inner.engine.write(ops)?;
        }
        let unflushed = self.inner.unflushed_bytes.fetch_add(size_bytes, Ordering::Relaxed) + size_bytes;
        if unflushed >= FLUSH_BYTES {
            self.inner.signal.lock().full = true;
            self.inner.wake.notify_all();
        }
        Ok(())
    }

    /// Flushes what is there and ends the thread, which lets go of the engine. Blocks.
    pub fn stop(&self) {
        self.inner.signal.lock().stop = true;
        self.inner.wake.notify_all();
        // Who comes second finds nothing to wait for; a panic has ended the process before.
        let thread = self.thread.lock().take();
        let _ended = thread.map(JoinHandle::join);
    }
}

fn run(inner: &Inner, log: &LogWriter) {
    loop {
        let stop = wait(inner);
        if inner.unflushed_bytes.load(Ordering::Relaxed) > 0 {
            flush(inner, log);
        }
        if stop {
            return;
        }
    }
}

/// Waits until there is a reason to flush; answers whether it is the last time.
fn wait(inner: &Inner) -> bool {
    let deadline = Instant::now() + FLUSH_INTERVAL;
    let mut signal = inner.signal.lock();
    while !signal.full && !signal.stop {
        if inner.wake.wait_until(&mut signal, deadline).timed_out() {
            break;
        }
    }
    signal.full = false;
    signal.stop
}

fn flush(inner: &Inner, log: &LogWriter) {
    let started = Instant::now();
    let bytes = {
        let _gate = inner.gate.write();
        if let Err(error) = log.sync_blocking() {
            tracing::warn!(%error, "the state is not flushed, the log has ended: nothing is lost, it is applied again at the next start");
            return;
        }
        if let Err(error) = inner.engine.begin_flush() {
            abort_on_lost_durability("cannot flush the state", &error);
        }
        inner.unflushed_bytes.swap(0, Ordering::Relaxed)
    };
    if let Err(error) = inner.engine.finish_flush() {
        abort_on_lost_durability("cannot flush the state", &error);
    }
    METRICS.flush.observe(started.elapsed().as_secs_f64());
    METRICS.flush_bytes.observe(bytes as f64);
    tracing::debug!(bytes, elapsed_ms = started.elapsed().as_millis() as u64, "state flushed");
}
