//! The load: calls one after the other (closed loop), or at fixed moments (open loop).
//!
//! Owns: what a write and a read are, and that each call that counts is counted exactly once. A write puts a new record
//! of random bytes, a commit of its own, into one of the run's charts (`bench-<run>-…`); a read gets a record that was
//! written before.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use charthold_client::{Chart, Client, Error, Mutation, Put, RecordId};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::figures::{Both, CUT_OFF, Kind, NOT_SENT};
use super::pace::{Due, Pace};
use super::random::Random;
use crate::cli::exit::CliError;

pub(super) const RECORD_TYPE: &str = "Bench";
/// Of a run: enough for all shards to take part, and for no chart to be where writes meet.
const CHARTS: u64 = 256;
/// Reads are of records among the last so many.
const RECENT_MAX: usize = 1 << 16;
/// Written before the run, for the first reads.
const SEEDED: u64 = 16;
/// After a call that failed: no busy loop.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy)]
pub(super) enum Loop {
    Closed { writers: u16, readers: u16 },
    Open { rate: u32, reads_percent: u8, in_flight: u16 },
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { writers, readers } => write!(f, "closed loop: {writers} writers, {readers} readers"),
            Self::Open { rate, reads_percent, in_flight } => {
                write!(f, "open loop: {rate} calls/s, {reads_percent}% reads, up to {in_flight} under way")
            }
        }
    }
}

pub(super) struct Measured {
    pub(super) figures: Both,
    pub(super) time: Duration,
    /// By Ctrl-C.
    pub(super) cut: bool,
}

/// What is called. A fake in tests.
pub(super) trait Target: Send + Sync + 'static {
    fn call(&self, kind: Kind, random: &mut Random) -> impl Future<Output = Result<(), Error>> + Send;
}

pub(super) struct Load {
    client: Client,
    run: Uuid,
    sizes_bytes: Vec<u32>,
    /// How many writes were begun: each is another record.
    begun: AtomicU64,
    /// How many were acknowledged, and the last of them.
    acknowledged: AtomicU64,
    recent: Vec<AtomicU64>,
}

impl Load {
    pub(super) fn new(client: Client, run: Uuid, sizes_bytes: Vec<u32>) -> Self {
        let recent = (0..RECENT_MAX).map(|_| AtomicU64::new(0)).collect();
        Self { client, run, sizes_bytes, begun: AtomicU64::new(0), acknowledged: AtomicU64::new(0), recent }
    }

    pub(super) async fn run(self, the_loop: Loop, warm_up: Duration, time: Duration) -> Result<Measured, CliError> {
        let mut random = Random::new(self.run, 0);
        for _ in 0..SEEDED {
            self.write(&mut random).await?;
        }
        let stop = CancellationToken::new();
        let cut = tokio::spawn(cancel_on_ctrl_c(stop.clone()));
        let (run, begin) = (self.run, Instant::now());
        let span = Span { begin, from: begin + warm_up, until: begin + warm_up + time };
        let figures = run_loop(Arc::new(self), run, the_loop, span, &stop).await?;
        cut.abort();
        let time = span.until.min(Instant::now()).saturating_duration_since(span.from);
        Ok(Measured { figures, time, cut: stop.is_cancelled() })
    }

    fn place(&self, number: u64) -> (Chart, RecordId) {
        let chart = format!("bench-{}-{}", self.run, number % CHARTS);
        (Chart::patient(chart), RecordId::new(RECORD_TYPE, number.to_string()))
    }

    async fn write(&self, random: &mut Random) -> Result<(), Error> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let (chart, id) = self.place(number);
        let size = self.sizes_bytes[random.below(self.sizes_bytes.len() as u64) as usize];
        let put = Put::new("application/octet-stream", random.bytes(size as usize));
        self.client.commit(&chart, vec![Mutation::put(id, put)]).await?;
        let slot = self.acknowledged.fetch_add(1, Ordering::AcqRel) as usize % RECENT_MAX;
        self.recent[slot].store(number, Ordering::Release);
        Ok(())
    }

    async fn read(&self, random: &mut Random) -> Result<(), Error> {
        let filled = self.acknowledged.load(Ordering::Acquire).min(RECENT_MAX as u64);
        let number = self.recent[random.below(filled.max(1)) as usize].load(Ordering::Acquire);
        let (chart, id) = self.place(number);
        self.client.get(&chart, &id).await.map(|_| ())
    }
}

impl Target for Load {
    async fn call(&self, kind: Kind, random: &mut Random) -> Result<(), Error> {
        match kind {
            Kind::Write => self.write(random).await,
            Kind::Read => self.read(random).await,
        }
    }
}

async fn cancel_on_ctrl_c(stop: CancellationToken) {
    if tokio::signal::ctrl_c().await.is_ok() {
        stop.cancel();
    }
}

/// The time of a run; from `from` on it counts.
#[derive(Clone, Copy)]
struct Span {
    begin: Instant,
    from: Instant,
    until: Instant,
}

async fn run_loop<T: Target>(
    target: Arc<T>,
    run: Uuid,
    the_loop: Loop,
    span: Span,
    stop: &CancellationToken,
) -> Result<Both, CliError> {
    let figures = Arc::new(Mutex::new(Both::new()?));
    let caller = |stream: u64| Caller {
        target: Arc::clone(&target),
        span,
        stop: stop.clone(),
        random: Random::new(run, stream),
        figures: Arc::clone(&figures),
    };
    let mut tasks = JoinSet::new();
    match the_loop {
        Loop::Closed { writers, readers } => {
            let kinds = (0..writers).map(|_| Kind::Write).chain((0..readers).map(|_| Kind::Read));
            for (stream, kind) in (1..).zip(kinds) {
                tasks.spawn(caller(stream).one_after_the_other(kind));
            }
        }
        Loop::Open { rate, reads_percent, in_flight } => {
            let (sender, calls) = mpsc::channel(1);
            let calls = Arc::new(tokio::sync::Mutex::new(calls));
            for stream in 1..=in_flight {
                tasks.spawn(caller(stream.into()).when_due(Arc::clone(&calls)));
            }
            // The pacer must notice when all callers have gone.
            drop(calls);
            let (pacer, stop) = (caller(0), stop.clone());
            let pace =
                Pace { begin: span.begin, until: span.until, rate, reads_percent, random: Random::new(run, u64::MAX) };
            tasks.spawn_blocking(move || pace.run(&sender, &stop, |due| pacer.not_sent(&due)));
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|_| CliError::Failed("a task ended unexpectedly".to_owned()))?;
    }
    let empty = Both::new()?;
    Ok(std::mem::replace(&mut *figures.lock(), empty))
}

/// One of those who call, one call at a time.
struct Caller<T> {
    target: Arc<T>,
    span: Span,
    stop: CancellationToken,
    random: Random,
    figures: Arc<Mutex<Both>>,
}

impl<T: Target> Caller<T> {
    async fn one_after_the_other(mut self, kind: Kind) {
        while Instant::now() < self.span.until && !self.stop.is_cancelled() {
            if !self.call(kind, Instant::now()).await {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn when_due(mut self, calls: Arc<tokio::sync::Mutex<mpsc::Receiver<Due>>>) {
        loop {
            let due = calls.lock().await.recv().await;
            let Some(due) = due else { return };
            if Instant::now() < self.span.until && !self.stop.is_cancelled() {
                self.call(due.kind, due.at).await;
            } else {
                self.not_sent(&due);
            }
        }
    }

    /// Whether it was answered well. Its latency begins at `at`.
    async fn call(&mut self, kind: Kind, at: Instant) -> bool {
        let outcome = tokio::select! {
            biased;
            outcome = self.target.call(kind, &mut self.random) => Some(outcome),
            () = self.stop.cancelled() => None,
        };
        let answered = matches!(outcome, Some(Ok(())));
        if at >= self.span.from {
            let now = Instant::now();
            let mut both = self.figures.lock();
            let figures = both.of(kind);
            match outcome {
                Some(Ok(())) => figures.answered(now.saturating_duration_since(at), now <= self.span.until),
                Some(Err(error)) => figures.failed(&error),
                None => figures.missed(CUT_OFF),
            }
        }
        answered
    }

    fn not_sent(&self, due: &Due) {
        if due.at >= self.span.from {
            self.figures.lock().of(due.kind).missed(NOT_SENT);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Takes so long for its first call, and so long for each other.
    struct Fake {
        calls: AtomicU64,
        first: Duration,
        others: Duration,
    }

    impl Target for Fake {
        async fn call(&self, _kind: Kind, _random: &mut Random) -> Result<(), Error> {
            let first = self.calls.fetch_add(1, Ordering::Relaxed) == 0;
            tokio::time::sleep(if first { self.first } else { self.others }).await;
            Ok(())
        }
    }

    const MS: Duration = Duration::from_millis(1);

    async fn run(the_loop: Loop, first: Duration, others: Duration, stop: &CancellationToken) -> Both {
        let begin = Instant::now();
        let span = Span { begin, from: begin + MS * 500, until: begin + MS * 1_500 };
        let fake = Arc::new(Fake { calls: AtomicU64::new(0), first, others });
        run_loop(fake, Uuid::nil(), the_loop, span, stop).await.unwrap()
    }

    fn open(rate: u32, in_flight: u16) -> Loop {
        Loop::Open { rate, reads_percent: 30, in_flight }
    }

    /// Answered calls, and those that were due and not sent.
    fn counts(both: &Both) -> (u64, u64) {
        let count = |figures: &super::super::figures::Figures| {
            (figures.latency_micros.len(), figures.errors.get(NOT_SENT).copied().unwrap_or_default())
        };
        let (writes, reads) = (count(&both.writes), count(&both.reads));
        (writes.0 + reads.0, writes.1 + reads.1)
    }

    /// However slow the machine is: each call that is due in the second that counts is counted once.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_open_loop_counts_every_call_that_was_due() {
        let both = run(open(200, 16), Duration::ZERO, Duration::ZERO, &CancellationToken::new()).await;
        let (answered, not_sent) = counts(&both);
        assert_eq!(answered + not_sent, 200);
        assert!(both.reads.latency_micros.len() < both.writes.latency_micros.len());
        assert!(!both.reads.latency_micros.is_empty());
    }

    /// What waited behind a stalled call shows the stall: no coordinated omission.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_stall_shows_in_every_call_that_it_held_up() {
        let both = run(open(100, 1), MS * 1_000, Duration::ZERO, &CancellationToken::new()).await;
        let slow = |histogram: &hdrhistogram::Histogram<u64>| histogram.count_between(100_000, u64::MAX);
        let slow = slow(&both.writes.latency_micros) + slow(&both.reads.latency_micros);
        // The stall ends half a second after the counting begins: what was due in the first 0.4 s of it waited longer
        // than 0.1 s, or was not sent at all.
        assert!(slow + counts(&both).1 >= 40, "{slow}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_due_and_could_not_be_sent_is_told() {
        let both = run(open(100, 2), MS * 400, MS * 400, &CancellationToken::new()).await;
        let (answered, not_sent) = counts(&both);
        assert_eq!(answered + not_sent, 100);
        // Two at a time, each 0.4 s: no more than 8 fit.
        assert!(not_sent >= 90, "{not_sent}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stop_cuts_calls_off_and_counts_them() {
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let hour = Duration::from_secs(3_600);
        let begin = Instant::now();
        let span = Span { begin, from: begin, until: begin + hour };
        let fake = Arc::new(Fake { calls: AtomicU64::new(0), first: hour, others: hour });
        let called = Arc::clone(&fake);
        tokio::spawn(async move {
            while called.calls.load(Ordering::Relaxed) < 5 {
                tokio::time::sleep(MS).await;
            }
            stopping.cancel();
        });
        let both = run_loop(fake, Uuid::nil(), Loop::Closed { writers: 3, readers: 2 }, span, &stop).await.unwrap();
        assert_eq!((both.writes.errors.get(CUT_OFF), both.reads.errors.get(CUT_OFF)), (Some(&3), Some(&2)));
    }
}
