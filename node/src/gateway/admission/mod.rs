//! Who may come in: so many calls at once, of each kind and of each tenant, and so many bytes. What is too much is
//! refused before its message is read, with when to come again; it cost next to nothing then.
//!
//! Owns places, queues and the budget of bytes. Must not know what a call does.
//!
//! | kind | places | why its own |
//! | --- | --- | --- |
//! | commits | 512 | wait for disks and other sites |
//! | gets | 256 | short, and must not wait behind commits or pages; they wait for a barrier, which many share |
//! | opened | 64 | what gets hold after that: a record each, until the answer has left |
//! | pages | 16 | each may hold some MiB |
//! | admin | 32 | an operator must get through at the worst time |
//!
//! Health and reflection are not counted: they hold nothing.

mod layer;
mod queue;
#[cfg(test)]
mod queue_tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use self::layer::{AdmissionLayer, AnswerBytes, InnerDoor, Seat};
use self::queue::{Arrival, FairQueue, Limits, Settled, Waiter};
use crate::seal::Token;

/// What a caller is asked to wait when the bytes are used up.
const RETRY_BYTES: Duration = Duration::from_millis(200);
/// Above it, more calls at once only make each slower; unless that is what a call takes anyway, between far sites.
const SERVICE_TARGET: Duration = Duration::from_millis(250);

/// A kind of call.
#[derive(Clone, Copy)]
pub enum Kind {
    Commit,
    Get,
    /// A get that has passed its barrier.
    Opened,
    Page,
    Admin,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Commit, Self::Get, Self::Opened, Self::Page, Self::Admin];

    /// Of a request's path; nothing: not counted.
    fn of(path: &str) -> Option<Self> {
        match path.strip_prefix("/charthold.v1.")? {
            "Charts/Commit" | "Charts/UploadPart" => Some(Self::Commit),
            "Charts/Get" => Some(Self::Get),
            // Each of its calls is.
            "Charts/Pipeline" => None,
            path if path.starts_with("Charts/") => Some(Self::Page),
            _ => Some(Self::Admin),
        }
    }

    fn limits(self) -> Limits {
        match self {
            Self::Commit => Limits { places: 512, waiting: 2_048, service_target: Some(SERVICE_TARGET) },
            Self::Get => Limits { places: 256, waiting: 2_048, service_target: Some(SERVICE_TARGET) },
            // Who comes here has a place among gets; half of the line is one tenant's.
            Self::Opened => Limits { places: 64, waiting: 512, service_target: None },
            // How long a page takes depends on who reads it.
            Self::Page => Limits { places: 16, waiting: 256, service_target: None },
            Self::Admin => Limits { places: 32, waiting: 64, service_target: None },
        }
    }
}

type Verdict = Result<Ticket, Duration>;

impl Waiter for oneshot::Sender<Verdict> {
    fn is_gone(&self) -> bool {
        self.is_closed()
    }
}

type Line = FairQueue<oneshot::Sender<Verdict>>;

/// A gateway's door.
pub struct Admission {
    lines: [Mutex<Line>; 5],
    budget: Mutex<Budget>,
}

impl Admission {
    /// With room for requests of so many bytes at once.
    fn new(requests_bytes_max: u64) -> Self {
        let now = Instant::now();
        let budget = Mutex::new(Budget::new(requests_bytes_max));
        Self { lines: Kind::ALL.map(|kind| Mutex::new(FairQueue::new(kind.limits(), now))), budget }
    }

    /// Waits for a place, if waiting makes sense; else answers when to come again.
    async fn enter(self: &Arc<Self>, kind: Kind, tenant: Token, deadline: Instant) -> Verdict {
        let (waiter, verdict) = oneshot::channel();
        let now = Instant::now();
        let mut settled = Vec::new();
        let arrival = self.lines[kind as usize].lock().arrive(tenant, now, deadline, || waiter, &mut settled);
        self.settle(kind, settled);
        match arrival {
            Arrival::Admitted => Ok(Ticket::new(self, kind, tenant)),
            Arrival::Refused(delay) => Err(delay),
            Arrival::Waits(allowed) => {
                let until = deadline.min(now + allowed);
                let given_up = || self.lines[kind as usize].lock().give_up(tenant, Instant::now());
                match tokio::time::timeout_at(until.into(), verdict).await {
                    Ok(Ok(verdict)) => verdict,
                    Ok(Err(_)) | Err(_) => Err(given_up()),
                }
            }
        }
    }

    /// Tells those whose wait is over. Who has gone meanwhile drops the ticket, which gives the place on.
    fn settle(self: &Arc<Self>, kind: Kind, settled: Settled<oneshot::Sender<Verdict>>) {
        for (waiter, tenant, refused) in settled {
            let verdict = match refused {
                Some(delay) => Err(delay),
                None => Ok(Ticket::new(self, kind, tenant)),
            };
            let _gone = waiter.send(verdict);
        }
    }
}

/// Bytes of requests that are held. A commit is copied a few times on its way: see ARCHITECTURE.md.
struct Budget {
    bytes_max: u64,
    bytes: u64,
    by_tenant: HashMap<Token, u64>,
}

impl Budget {
    fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: 0, by_tenant: HashMap::new() }
    }

    /// Of one tenant.
    fn tenant_bytes_max(&self) -> u64 {
        self.bytes_max / 4 * 3
    }

    fn take(&mut self, tenant: Token, bytes: u64) -> bool {
        let own = self.by_tenant.get(&tenant).copied().unwrap_or(0);
        if self.bytes + bytes > self.bytes_max || own + bytes > self.tenant_bytes_max() {
            return false;
        }
        self.bytes += bytes;
        self.by_tenant.insert(tenant, own + bytes);
        true
    }

    fn give_back(&mut self, tenant: Token, bytes: u64) {
        self.bytes -= bytes;
        if let Some(own) = self.by_tenant.get_mut(&tenant) {
            *own -= bytes;
            if *own == 0 {
                self.by_tenant.remove(&tenant);
            }
        }
    }
}

/// Room for a request that is here already: it waits for its place with its bytes.
pub struct Hold {
    admission: Arc<Admission>,
    tenant: Token,
    bytes: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.admission.budget.lock().give_back(self.tenant, self.bytes);
    }
}

/// A place, held until the last byte of the answer is gone.
struct Ticket {
    admission: Arc<Admission>,
    kind: Kind,
    tenant: Token,
    /// When the whole request was here, and how long its answer took: how fast a caller sends and reads is not our
    /// speed.
    timing: Mutex<(Option<Instant>, Option<Duration>)>,
    /// Of the request: held in the budget, by this or by a [`Hold`].
    request_bytes: AtomicU64,
    held_bytes: AtomicU64,
    answer_bytes: AtomicU64,
}

impl Ticket {
    fn new(admission: &Arc<Admission>, kind: Kind, tenant: Token) -> Self {
        let (admission, timing) = (Arc::clone(admission), Mutex::default());
        let (request_bytes, held_bytes, answer_bytes) = Default::default();
        Self { admission, kind, tenant, timing, request_bytes, held_bytes, answer_bytes }
    }

    fn request_ended(&self) {
        self.timing.lock().0 = Some(Instant::now());
    }

    fn answer_begins(&self) {
        let mut timing = self.timing.lock();
        timing.1 = timing.0.map(|ended| ended.elapsed());
    }

    /// Bytes of the request have come. Fails when there is no room for them.
    fn take(&self, bytes: u64) -> Result<(), Duration> {
        if !self.admission.budget.lock().take(self.tenant, bytes) {
            return Err(RETRY_BYTES);
        }
        self.request_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The request's bytes are held by somebody else.
    fn is_held(&self, hold: &Hold) {
        self.held_bytes.store(hold.bytes, Ordering::Relaxed);
    }

    fn answered(&self, bytes: u64) {
        self.answer_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let request_bytes = self.request_bytes.load(Ordering::Relaxed);
        if request_bytes > 0 {
            self.admission.budget.lock().give_back(self.tenant, request_bytes);
        }
        let others = self.held_bytes.load(Ordering::Relaxed) + self.answer_bytes.load(Ordering::Relaxed);
        let kib = (request_bytes + others) >> 10;
        let mut settled = Vec::new();
        let line = &self.admission.lines[self.kind as usize];
        let took = self.timing.get_mut().1;
        line.lock().leave(self.tenant, Instant::now(), took, kib, &mut settled);
        self.admission.settle(self.kind, settled);
    }
}
