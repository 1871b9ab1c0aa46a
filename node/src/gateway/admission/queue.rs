//! Who gets the next place: fair among tenants, and nobody waits longer than is worth it.
//!
//! Owns the arithmetic, with time handed in. Must not know what a place is for, nor how one waits.
//!
//! - *Fair*: start-time fair queueing. Each tenant has a tag, what it has used so far; the lowest tag is served next. A
//!   call costs the same plus its bytes, known when it ends. A tenant that was idle starts where the others are.
//! - *No tenant fills the house*: at most three quarters of the places, half of the queue; when the queue is full, the
//!   longest line's last one makes way for a shorter line.
//! - *No useless wait*: a call that cannot be served before its deadline, as measured, is refused when it comes. A line
//!   that has not been empty for a while is a standing queue: it would add its length to every answer and speed up
//!   none, so only a short wait is allowed then (after CoDel). A tenant that has less than an equal part of the places
//!   may wait longer: its line stands because everything is slow, and goes first as soon as it is not.
//! - *As many places as make sense*: where calls take longer than a target there are fewer, down to a quarter. Fewer
//!   would not make them faster: all gateways feel the same leader's delay and each gives way for itself, so that one
//!   with few callers would be left with too few places for the tenants that ask for little.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::seal::Token;

/// The longest wait, in a standing queue, and of a tenant that has less than its share.
const WAIT_MAX: Duration = Duration::from_secs(1);
const WAIT_STANDING_MAX: Duration = Duration::from_millis(100);
const WAIT_BELOW_SHARE_MAX: Duration = Duration::from_secs(4);
/// A line that was not empty for so long is a standing queue. Also how often the places are adapted.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many times what a call takes without a queue is no sign of one.
const SLOWER: u32 = 3;
/// How fast it is forgotten what a call takes without a queue: by half in ten minutes.
const FORGET: f64 = 1.001;
/// What a refused caller is asked to wait: doubled every second in which its tenant is refused again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_DOUBLINGS_MAX: u32 = 5;
/// What a call costs, in KiB, beside its bytes.
const CALL_COST: u64 = 16;
/// Tenants that are remembered.
const TENANTS_MAX: usize = 4_096;

#[derive(Clone, Copy)]
pub struct Limits {
    pub places: usize,
    pub waiting: usize,
    /// Where calls take longer, and [`SLOWER`] than at the best of times, there are too many at once. Nothing: how long
    /// they take is not ours to say.
    pub service_target: Option<Duration>,
}

/// One who waits. It may have gone away.
pub trait Waiter {
    fn is_gone(&self) -> bool;
}

/// What becomes of a call that comes.
#[derive(PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub enum Arrival {
    Admitted,
    /// For so long, unless it is settled before.
    Waits(Duration),
    /// It may come again after this.
    Refused(Duration),
}

/// Whose wait is over, and of which tenant; with a time, it is refused for so long.
pub type Settled<W> = Vec<(W, Token, Option<Duration>)>;

pub struct FairQueue<W> {
    limits: Limits,
    places: usize,
    running: usize,
    waiting: usize,
    /// The tag that was served last.
    served: u64,
    /// How long a call takes: a moving average; and the least of it lately.
    service: Duration,
    service_min: Option<Duration>,
    adapted_at: Instant,
    tenants: HashMap<Token, Tenant<W>>,
}

struct Tenant<W> {
    running: usize,
    line: VecDeque<(W, Instant, Instant)>,
    tag: u64,
    /// When nobody waited.
    empty_at: Instant,
    refused_at: Option<Instant>,
    doublings: u32,
}

impl<W: Waiter> Tenant<W> {
    fn new(tag: u64, now: Instant) -> Self {
        Self { running: 0, line: VecDeque::new(), tag, empty_at: now, refused_at: None, doublings: 0 }
    }

    fn may_wait(&mut self, now: Instant, share: usize) -> Duration {
        if self.line.is_empty() {
            self.empty_at = now;
        }
        match now - self.empty_at > INTERVAL {
            _ if self.running + 1 < share => WAIT_BELOW_SHARE_MAX,
            true => WAIT_STANDING_MAX,
            false => WAIT_MAX,
        }
    }

    /// Longer the longer it has been refused; forgotten after a while without.
    fn refuse(&mut self, now: Instant) -> Duration {
        match self.refused_at.map(|at| now - at) {
            None => self.refused_at = Some(now),
            Some(ago) if ago > 4 * INTERVAL => (self.refused_at, self.doublings) = (Some(now), 0),
            Some(ago) if ago > INTERVAL => {
                (self.refused_at, self.doublings) = (Some(now), (self.doublings + 1).min(RETRY_DOUBLINGS_MAX));
            }
            Some(_) => {}
        }
        RETRY_MIN * (1 << self.doublings)
    }
}

impl<W: Waiter> FairQueue<W> {
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            places: limits.places,
            running: 0,
            waiting: 0,
            served: 0,
            service: Duration::ZERO,
            service_min: None,
            adapted_at: now,
            tenants: HashMap::new(),
        }
    }

    /// A call comes. `waiter` is taken if it has to wait.
    pub fn arrive(
        &mut self,
        tenant: Token,
        now: Instant,
        deadline: Instant,
        waiter: impl FnOnce() -> W,
        settled: &mut Settled<W>,
    ) -> Arrival {
        self.tidy();
        let (free, tenant_places) = (self.running < self.places, self.tenant_places());
        let served = self.served;
        let found = self.tenants.entry(tenant).or_insert_with(|| Tenant::new(served, now));
        if free && found.line.is_empty() && found.running < tenant_places {
            self.take_place(tenant);
            return Arrival::Admitted;
        }
        if self.is_full(&tenant) {
            self.forget_gone();
        }
        let expected = self.expected_wait(&tenant);
        let share = self.share();
        let allowed = self.tenant(tenant, now).may_wait(now, share);
        let in_time = expected <= allowed && now + expected + self.service <= deadline;
        if !in_time || self.is_full(&tenant) && !self.push_out_for(&tenant, now, settled) {
            return Arrival::Refused(self.tenant(tenant, now).refuse(now).max(expected.min(WAIT_MAX)));
        }
        self.tenant(tenant, now).line.push_back((waiter(), now, deadline));
        self.waiting += 1;
        Arrival::Waits(allowed)
    }

    /// A call that was admitted has ended, with so many bytes; `took` is what it took here, without its caller's time.
    pub fn leave(&mut self, tenant: Token, now: Instant, took: Option<Duration>, kib: u64, settled: &mut Settled<W>) {
        self.running -= 1;
        // Quick to notice, slow enough not to follow a single one: an eighth.
        self.service = match took {
            Some(took) if self.service.is_zero() => took,
            Some(took) => (self.service * 7 + took) / 8,
            None => self.service,
        };
        let left = self.tenant(tenant, now);
        left.running -= 1;
        left.tag += kib;
        self.adapt(now);
        self.serve(now, settled);
    }

    /// A call gives up waiting: what it should be told.
    pub fn give_up(&mut self, tenant: Token, now: Instant) -> Duration {
        self.tenant(tenant, now).refuse(now)
    }

    #[cfg(test)]
    pub fn running(&self) -> usize {
        self.running
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    #[cfg(test)]
    pub fn places(&self) -> usize {
        self.places
    }

    /// Gives free places to those who wait.
    fn serve(&mut self, now: Instant, settled: &mut Settled<W>) {
        let (tenant_places, share) = (self.tenant_places(), self.share());
        while self.running < self.places {
            let eligible = self.tenants.iter().filter(|(_, it)| !it.line.is_empty() && it.running < tenant_places);
            let Some(next) = eligible.min_by_key(|(_, it)| it.tag).map(|(id, _)| *id) else { return };
            let service = self.service;
            let tenant = self.tenant(next, now);
            let allowed = tenant.may_wait(now, share);
            let Some((waiter, since, deadline)) = tenant.line.pop_front() else { return };
            let too_late = now - since > allowed || now + service > deadline;
            let refused = too_late.then(|| tenant.refuse(now));
            self.waiting -= 1;
            if waiter.is_gone() {
                continue;
            }
            if refused.is_none() {
                self.take_place(next);
            }
            settled.push((waiter, next, refused));
        }
    }

    fn take_place(&mut self, tenant: Token) {
        let Some(found) = self.tenants.get_mut(&tenant) else { return };
        found.running += 1;
        // Who was idle does not bring the time along that it did not use.
        found.tag = found.tag.max(self.served);
        self.served = found.tag;
        found.tag += CALL_COST;
        self.running += 1;
    }

    fn tenant(&mut self, tenant: Token, now: Instant) -> &mut Tenant<W> {
        let served = self.served;
        self.tenants.entry(tenant).or_insert_with(|| Tenant::new(served, now))
    }

    fn tenant_places(&self) -> usize {
        (self.places * 3 / 4).max(1)
    }

    /// An equal part of the places, for each tenant that has something here.
    fn share(&self) -> usize {
        let here = self.tenants.values().filter(|it| it.running > 0 || !it.line.is_empty()).count();
        (self.places / here.max(1)).min(self.tenant_places())
    }

    /// Each line gets an equal part of the places; but a tenant that has less than its share gets all that come free,
    /// until it has it.
    fn expected_wait(&self, tenant: &Token) -> Duration {
        let (ahead, running) = self.tenants.get(tenant).map_or((1, 0), |it| (it.line.len() + 1, it.running));
        let others = self.tenants.iter().filter(|(id, it)| *id != tenant && !it.line.is_empty()).count();
        let part = match running + ahead <= self.share() {
            true => self.places,
            false => (self.places / (1 + others)).min(self.tenant_places()),
        };
        self.service.mul_f64(ahead as f64 / part.max(1) as f64)
    }

    fn is_full(&self, tenant: &Token) -> bool {
        self.waiting >= self.limits.waiting || self.line_length(tenant) >= self.limits.waiting / 2
    }

    fn line_length(&self, tenant: &Token) -> usize {
        self.tenants.get(tenant).map_or(0, |it| it.line.len())
    }

    /// The last of the longest line makes way, if this tenant's is shorter by more than the one who comes.
    fn push_out_for(&mut self, tenant: &Token, now: Instant, settled: &mut Settled<W>) -> bool {
        let own = self.line_length(tenant);
        let longest = self.tenants.iter().max_by_key(|(_, it)| it.line.len()).map(|(id, _)| *id);
        let Some(longest) = longest.filter(|id| self.line_length(id) > own + 1) else { return false };
        let pushed = self.tenant(longest, now);
        let refused = pushed.refuse(now);
        let Some((waiter, _, _)) = pushed.line.pop_back() else { return false };
        self.waiting -= 1;
        settled.push((waiter, longest, Some(refused)));
        true
    }

    fn forget_gone(&mut self) {
        for tenant in self.tenants.values_mut() {
            let before = tenant.line.len();
            tenant.line.retain(|(waiter, _, _)| !waiter.is_gone());
            self.waiting -= before - tenant.line.len();
        }
    }

    /// Fewer places while calls take too long, more while all are taken.
    fn adapt(&mut self, now: Instant) {
        let Some(target) = self.limits.service_target else { return };
        if now - self.adapted_at < INTERVAL {
            return;
        }
        self.adapted_at = now;
        let min = self.service_min.map_or(self.service, |min| min.mul_f64(FORGET).min(self.service));
        self.service_min = Some(min);
        let (least, most) = ((self.limits.places / 4).max(1), self.limits.places);
        let wanted = match self.service > target.max(min * SLOWER) {
            true => self.places * 4 / 5,
            false => self.places + self.places / 8 + 1,
        };
        self.places = wanted.clamp(least, most);
    }

    /// Forgets tenants that have nothing here; all, when nobody has.
    fn tidy(&mut self) {
        if self.running == 0 && self.waiting == 0 && self.tenants.len() > TENANTS_MAX / 2
            || self.tenants.len() >= TENANTS_MAX
        {
            self.tenants.retain(|_, it| it.running > 0 || !it.line.is_empty());
        }
    }
}
