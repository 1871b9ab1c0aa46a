//! The load: so many callers, each with one call under way, for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::Store;

/// Before it counts.
const WARM_UP: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Put,
    Get,
}

impl Call {
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub call: Call,
    pub in_flight: usize,
    pub value_bytes: usize,
    pub time: Duration,
}

/// What one run of a case gave.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub per_s: f64,
    pub p99_ms: f64,
    /// Of the servers, for one call, in microseconds.
    pub cpu_us: f64,
}

/// Keys that were written, whatever case wrote them.
#[derive(Default)]
pub struct Keys {
    next: AtomicU64,
}

impl Keys {
    /// Writes this many, so that there is something to read.
    pub async fn fill(self: &Arc<Self>, store: &Arc<dyn Store>, count: u64, value_bytes: usize) {
        let until = self.next.load(Relaxed) + count;
        let writers = (0..64).map(|_| {
            let (keys, store) = (Arc::clone(self), Arc::clone(store));
            tokio::spawn(async move {
                while keys.next.load(Relaxed) < until {
                    let key = keys.next.fetch_add(1, Relaxed);
                    store.put(key, value(key, value_bytes)).await.expect("a write before the measurement");
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("a writer");
        }
    }
}

/// Closed loop: a caller calls again when it is answered.
pub async fn run(store: &Arc<dyn Store>, keys: &Arc<Keys>, case: Case) -> Figures {
    let (begin, counted_from) = (Instant::now(), Instant::now() + WARM_UP);
    let until = counted_from + case.time;
    let known = keys.next.load(Relaxed).max(1);
    let callers = (0..case.in_flight as u64).map(|number| {
        let (keys, store) = (Arc::clone(keys), Arc::clone(store));
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(number ^ known);
            let mut latencies = Vec::new();
            while Instant::now() < until {
                let called = Instant::now();
                match case.call {
                    Call::Put => {
                        let key = keys.next.fetch_add(1, Relaxed);
                        store.put(key, value(key, case.value_bytes)).await
                    }
                    Call::Get => store.get(random.u64(0..known)).await,
                }
                .unwrap_or_else(|error| panic!("{}: {error}", case.call.name()));
                if called >= counted_from {
                    latencies.push(called.elapsed());
                }
            }
            latencies
        })
    });
    let callers = callers.collect::<Vec<_>>();
    tokio::time::sleep_until((begin + WARM_UP).into()).await;
    let cpu_before_s = store.cpu_s();
    tokio::time::sleep_until(until.into()).await;
    let cpu_s = store.cpu_s() - cpu_before_s;
    let mut latencies = Vec::new();
    for caller in callers {
        latencies.extend(caller.await.expect("a caller"));
    }
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(index).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };
    let calls = latencies.len() as f64;
    Figures { per_s: calls / case.time.as_secs_f64(), p99_ms: at(0.99), cpu_us: cpu_s * 1e6 / calls }
}

/// Bytes that do not compress, another ones for each key.
fn value(key: u64, bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(key);
    let mut value = vec![0; bytes];
    random.fill(&mut value);
    value
}
