//! The one thread that writes the log of all groups.
//!
//! It takes what is queued, makes one batch of it, syncs once, and calls back in order. So the fsyncs of a node do not
//! multiply with its groups. A failed write or sync ends the process: see [`abort_on_lost_durability`].
//!
//! In a simulation there are no threads: there it is a task ([`LogWriter::simulate`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::future::poll_fn;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::synced_mark::SyncedMark;
use super::{LogEngine, LogOp};
use crate::metrics::{METRICS, timed};
use crate::planted::{self, Bug};
use crate::store::disk::watchdog::Busy;
use crate::store::{EngineError, abort_on_lost_durability};

/// Jobs that may wait; a further one waits to be queued.
const QUEUE_JOBS_MAX: usize = 4_096;
/// Bytes that may wait, in units of 1 KiB.
const QUEUE_KIB_MAX: usize = 64 << 10;
/// What one batch takes from the queue.
const BATCH_JOBS_MAX: usize = 1_024;
const BATCH_BYTES_MAX: usize = 8 << 20;

/// As on a disk that is not fast, so that what was acknowledged too early is seen to be.
const PLANTED_DELAY: Duration = Duration::from_millis(20);

type Done = Box<dyn FnOnce() + Send>;

struct Job {
    ops: Vec<LogOp>,
    sync: bool,
    size_bytes: usize,
    done: Done,
    queued: Instant,
    /// The synced mark must say so before `done` is called.
    marked: bool,
    _room: Option<OwnedSemaphorePermit>,
}

/// The queue to the thread. The thread has ended, and let go of the engine, when the last clone has been dropped.
#[derive(Clone)]
pub struct LogWriter {
    // In this order: the queue must be closed before its thread is waited for.
    queue: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    synced: Arc<AtomicU64>,
    busy: Busy,
    worker: Worker,
}

/// Who writes.
#[derive(Clone)]
enum Worker {
    Thread { _joined: Arc<Joined> },
    Task(Arc<Mutex<Desk>>),
}

/// A thread that is waited for when this is dropped: an engine that is closed while the process ends may find parts of
/// itself gone already.
struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        let thread = self.0.take().filter(|thread| thread.thread().id() != std::thread::current().id());
        // A panic has ended the process before.
        let _ended = thread.map(JoinHandle::join);
    }
}

impl LogWriter {
    /// Starts the thread.
    pub fn start(engine: Arc<dyn LogEngine>, mark: Option<SyncedMark>) -> Result<Self, EngineError> {
        let (desk, queue) = Desk::new(engine, mark);
        let (synced, busy) = (Arc::clone(&desk.synced), desk.busy.clone());
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || run(desk))
            .map_err(|error| EngineError::new("log", error))?;
        let worker = Worker::Thread { _joined: Arc::new(Joined(Some(thread))) };
        Ok(Self { queue, room: Arc::new(Semaphore::new(QUEUE_KIB_MAX)), synced, busy, worker })
    }

    /// For a simulation: a task of the runtime that this is called in. A batch takes as long as `delay` says, and is not
    /// written if the runtime ends meanwhile.
    pub fn simulate(engine: Arc<dyn LogEngine>, delay: impl Fn() -> Duration + Send + 'static) -> Self {
        let (desk, queue) = Desk::new(engine, None);
        let (synced, busy) = (Arc::clone(&desk.synced), desk.busy.clone());
        let desk = Arc::new(Mutex::new(desk));
        let worker = Worker::Task(Arc::clone(&desk));
        tokio::spawn(async move {
            while let Some(first) = poll_fn(|context| desk.lock().jobs.poll_recv(context)).await {
                desk.lock().taken = Some(first);
                tokio::time::sleep(delay()).await;
                desk.lock().write_queued();
            }
        });
        Self { queue, room: Arc::new(Semaphore::new(QUEUE_KIB_MAX)), synced, busy, worker }
    }

    /// The engine's number of the last write that was synced here; whatever was called back as durable is not after it.
    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Whether the thread is at a batch.
    pub fn busy(&self) -> Busy {
        self.busy.clone()
    }

    /// Queues a write; `done` is called from the thread, in order, once it is durable (with `sync`) or written.
    ///
    /// Waits while the queue is full. If the caller goes away while it waits, nothing is queued.
    pub async fn write(&self, ops: Vec<LogOp>, sync: bool, done: Done) -> Result<(), EngineError> {
        let size_bytes = ops.iter().map(LogOp::size_bytes).sum::<usize>();
        let kib = (size_bytes >> 10).clamp(1, QUEUE_KIB_MAX) as u32;
        let stopped = || EngineError::new("log", "the log thread has ended");
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await.map_err(|_| stopped())?;
        let job = Job { ops, sync, size_bytes, done, queued: Instant::now(), marked: false, _room: Some(room) };
        self.queue.send(job).await.map_err(|_| stopped())?;
        METRICS.log_queued.set(self.queued());
        Ok(())
    }

    fn queued(&self) -> i64 {
        (self.queue.max_capacity() - self.queue.capacity()) as i64
    }

    /// Queues a write and waits for it.
    pub async fn write_and_wait(&self, ops: Vec<LogOp>, sync: bool) -> Result<(), EngineError> {
        let (done, waiting) = oneshot::channel();
        self.write(
            ops,
            sync,
            Box::new(move || {
                let _waiter_gone = done.send(());
            }),
        )
        .await?;
        waiting.await.map_err(|_| EngineError::new("log", "the log thread has ended"))
    }

    /// Blocks until everything queued before is durable and the synced mark says so. Not for async code. Takes no room:
    /// writers that wait for room would starve it, while it holds up every group.
    pub fn sync_blocking(&self) -> Result<(), EngineError> {
        let stopped = || EngineError::new("log", "the log thread has ended");
        let (done, waiting) = oneshot::channel();
        let done: Done = Box::new(move || {
            let _waiter_gone = done.send(());
        });
        let (ops, queued) = (Vec::new(), Instant::now());
        let job = Job { ops, sync: true, size_bytes: 0, done, queued, marked: true, _room: None };
        match &self.worker {
            Worker::Thread { .. } => {
                self.queue.blocking_send(job).map_err(|_| stopped())?;
                waiting.blocking_recv().map_err(|_| stopped())
            }
            Worker::Task(desk) => {
                let mut desk = desk.lock();
                desk.write_queued();
                desk.write_batch(job);
                Ok(())
            }
        }
    }
}

/// What the worker works with.
struct Desk {
    engine: Arc<dyn LogEngine>,
    mark: Option<SyncedMark>,
    synced: Arc<AtomicU64>,
    busy: Busy,
    jobs: mpsc::Receiver<Job>,
    /// No longer in the queue, not yet written.
    taken: Option<Job>,
}

impl Desk {
    fn new(engine: Arc<dyn LogEngine>, mark: Option<SyncedMark>) -> (Self, mpsc::Sender<Job>) {
        let (queue, jobs) = mpsc::channel(QUEUE_JOBS_MAX);
        let (synced, busy) = (Arc::default(), Busy::default());
        (Self { engine, mark, synced, busy, jobs, taken: None }, queue)
    }

    /// With what else fits of the queue.
    fn write_batch(&mut self, first: Job) {
        let mut size_bytes = first.size_bytes;
        let mut batch = vec![first];
        while batch.len() < BATCH_JOBS_MAX && size_bytes < BATCH_BYTES_MAX {
            let Ok(job) = self.jobs.try_recv() else { break };
            size_bytes += job.size_bytes;
            batch.push(job);
        }
        measure(&batch, size_bytes, self.jobs.len());
        let Self { engine, mark, synced, busy, .. } = self;
        busy.during(|| write(engine.as_ref(), mark, synced, batch));
    }

    fn write_queued(&mut self) {
        while let Some(job) = self.taken.take().or_else(|| self.jobs.try_recv().ok()) {
            self.write_batch(job);
        }
    }
}

fn run(mut desk: Desk) {
    while let Some(first) = desk.jobs.blocking_recv() {
        desk.write_batch(first);
    }
}

/// Writes a batch, and calls back.
fn write(engine: &dyn LogEngine, mark: &mut Option<SyncedMark>, synced: &AtomicU64, mut batch: Vec<Job>) {
    let sync = batch.iter().any(|job| job.sync);
    let timed = sync.then(|| timed(&METRICS.log_sync));
    let ops = batch.iter_mut().flat_map(|job| std::mem::take(&mut job.ops)).collect::<Vec<_>>();
    if planted::has(Bug::AckBeforeWrite) {
        batch.iter_mut().for_each(|job| std::mem::replace(&mut job.done, Box::new(|| ()))());
        std::thread::sleep(PLANTED_DELAY);
    }
    let write_number = match engine.write(&ops, sync) {
        Ok(number) => number,
        Err(_) if planted::has(Bug::FailedSyncIgnored) => engine.write_number(),
        Err(error) => abort_on_lost_durability("cannot write the log", &error),
    };
    drop(timed);
    if sync {
        synced.store(write_number, Ordering::Release);
    }
    let marked = batch.iter().any(|job| job.marked);
    if marked {
        note(mark, write_number, true);
    }
    for job in batch {
        (job.done)();
    }
    if sync && !marked {
        note(mark, write_number, false);
    }
}

fn measure(batch: &[Job], size_bytes: usize, left: usize) {
    METRICS.log_queued.set(left as i64);
    METRICS.log_batch_jobs.observe(batch.len() as f64);
    METRICS.log_batch.observe(size_bytes as f64);
    batch.iter().for_each(|job| METRICS.log_queue.observe(job.queued.elapsed().as_secs_f64()));
}

fn note(mark: &mut Option<SyncedMark>, write_number: u64, now: bool) {
    if let Some(mark) = mark
        && let Err(error) = mark.note(write_number, now)
    {
        abort_on_lost_durability("cannot write the synced mark", &error);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::super::memory::MemoryLog;
    use super::*;

    const DELAY: Duration = Duration::from_millis(10);

    async fn put(writer: &LogWriter, key: u8, done: &Arc<AtomicU64>) {
        let ops = vec![LogOp::Put { key: vec![key], value: Bytes::new() }];
        let done = Arc::clone(done);
        writer.write(ops, true, Box::new(move || _ = done.fetch_add(1, Ordering::SeqCst))).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_thread_a_write_takes_its_time_unless_somebody_needs_it_now() {
        let (engine, done) = (Arc::new(MemoryLog::default()), Arc::default());
        let writer = LogWriter::simulate(Arc::clone(&engine) as _, || DELAY);
        let has = |key: u8| engine.get(&[key]).unwrap().is_some();
        put(&writer, 1, &done).await;
        tokio::time::sleep(DELAY / 2).await;
        put(&writer, 2, &done).await;
        assert!(!has(1) && done.load(Ordering::SeqCst) == 0);
        tokio::time::sleep(DELAY).await;
        assert!(has(1) && has(2), "what came meanwhile is in the same batch");
        assert_eq!((done.load(Ordering::SeqCst), engine.pending_writes()), (2, 0));
        put(&writer, 3, &done).await;
        tokio::task::yield_now().await;
        writer.sync_blocking().unwrap();
        assert!(has(3) && done.load(Ordering::SeqCst) == 3);
        assert_eq!(writer.synced(), engine.write_number());
    }
}
