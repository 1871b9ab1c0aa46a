//! The load: callers with one call under way each, or calls at fixed times whether others are answered or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::Store;
use super::servers::used_by;
use super::values::Values;

/// Before it counts.
const WARM_UP: Duration = Duration::from_secs(1);
/// Of calls at fixed times: as fine as tokio's timers are. Those of one step are made together.
const STEP: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Call {
    /// A new key
    Put,
    /// Without what a client's library does for many calls together
    PutAlone,
    /// A key that is known
    Get,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many callers; each calls again when it is answered. For throughput.
    Closed(usize),
    /// So many calls a second. For latency: a call that had to wait for its turn counts from when it was due.
    Open(f64),
}

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub call: Call,
    pub pace: Pace,
    pub time: Duration,
}

impl Case {
    pub fn name(&self) -> String {
        let call = match self.call {
            Call::Put => "put",
            Call::PutAlone => "put alone",
            Call::Get => "get",
        };
        match self.pace {
            Pace::Closed(callers) => format!("{call} {callers}"),
            Pace::Open(per_s) => format!("{call} {per_s:.0}/s"),
        }
    }
}

/// What one run of a case gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    /// Of the servers, for one call, in microseconds.
    pub cpu_us: f64,
    /// Of the servers, for one call.
    pub disk_bytes: f64,
}

/// A store, and the keys that were written there, whatever case wrote them.
pub struct Subject {
    store: Arc<dyn Store>,
    values: Arc<Values>,
    next: AtomicU64,
}

impl Subject {
    pub fn new(store: Arc<dyn Store>, values: Arc<Values>) -> Arc<Self> {
        Arc::new(Self { store, values, next: AtomicU64::new(0) })
    }

    /// Writes this many, so that there is something to read.
    pub async fn fill(self: &Arc<Self>, count: u64) {
        let until = self.next.load(Relaxed) + count;
        let mut writers = JoinSet::new();
        for _ in 0..64 {
            let subject = Arc::clone(self);
            writers.spawn(async move {
                while subject.next.load(Relaxed) < until {
                    subject.call(Call::Put, 0).await;
                }
            });
        }
        writers.join_all().await;
    }

    /// A write has a key of its own, a read the one it is given.
    async fn call(&self, call: Call, known: u64) {
        let new = || {
            let key = self.next.fetch_add(1, Relaxed);
            (key, self.values.of(key))
        };
        let done = match call {
            Call::Put => {
                let (key, value) = new();
                self.store.put(key, value).await
            }
            Call::PutAlone => {
                let (key, value) = new();
                self.store.put_alone(key, value).await
            }
            Call::Get => self.store.get(known).await,
        };
        done.unwrap_or_else(|error| panic!("{call:?}: {error}"));
    }
}

pub async fn run(subject: &Arc<Subject>, case: Case) -> Figures {
    let counted_from = Instant::now() + WARM_UP;
    let until = counted_from + case.time;
    let servers = Arc::clone(&subject.store);
    let used = tokio::spawn(async move {
        sleep_until(counted_from).await;
        let before = used_by(servers.processes());
        sleep_until(until).await;
        used_by(servers.processes()).since(before)
    });
    let answered = match case.pace {
        Pace::Closed(callers) => closed(subject, case.call, callers, until).await,
        Pace::Open(per_s) => open(subject, case.call, per_s, until).await,
    };
    let used = used.await.expect("what the servers used");
    // Whatever was called before, or is answered after: as many, if it keeps up.
    let in_time =
        answered.iter().filter(|(begun, latency)| (counted_from..until).contains(&(*begun + *latency))).count();
    let counted = answered.into_iter().filter(|(begun, _)| *begun >= counted_from);
    let mut latencies = counted.map(|(_, latency)| latency).collect::<Vec<_>>();
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(index).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };
    let calls = in_time as f64;
    Figures {
        per_s: calls / case.time.as_secs_f64(),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        p999_ms: at(0.999),
        cpu_us: used.cpu_s * 1e6 / calls,
        disk_bytes: used.disk_bytes / calls,
    }
}

/// When a call began, or should have, and how long after that it was answered.
type Answered = (Instant, Duration);

async fn closed(subject: &Arc<Subject>, call: Call, callers: usize, until: Instant) -> Vec<Answered> {
    let known = subject.next.load(Relaxed).max(1);
    let mut tasks = JoinSet::new();
    for number in 0..callers as u64 {
        let subject = Arc::clone(subject);
        tasks.spawn(async move {
            let mut random = fastrand::Rng::with_seed(number ^ known);
            let mut answered = Vec::new();
            while Instant::now() < until {
                let begun = Instant::now();
                subject.call(call, random.u64(0..known)).await;
                answered.push((begun, begun.elapsed()));
            }
            answered
        });
    }
    tasks.join_all().await.concat()
}

async fn open(subject: &Arc<Subject>, call: Call, per_s: f64, until: Instant) -> Vec<Answered> {
    let known = subject.next.load(Relaxed).max(1);
    let mut random = fastrand::Rng::with_seed(known);
    let mut steps = interval_at(Instant::now() + STEP, STEP);
    steps.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut tasks, mut due) = (JoinSet::new(), 0.0);
    loop {
        let begun = steps.tick().await;
        if begun >= until {
            return tasks.join_all().await;
        }
        due += per_s * STEP.as_secs_f64();
        while due >= 1.0 {
            due -= 1.0;
            let (subject, key) = (Arc::clone(subject), random.u64(0..known));
            tasks.spawn(async move {
                subject.call(call, key).await;
                (begun, begun.elapsed())
            });
        }
    }
}
