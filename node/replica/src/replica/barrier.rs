//! Read barriers: after one, this node's rows hold every write that was answered before the read came in.
//!
//! The leader confirms with a majority that it still leads (no clock is trusted); then this replica applies up to where
//! the leader was. Reads that wait together share a barrier, but never one that began before they came.
//!
//! Who asks for less gets it sooner. A *lease* spares the leader the question while a majority has confirmed it a moment
//! ago. A *stale* read shares a barrier that was passed before it came, if that one did not begin too long ago: what a
//! barrier says holds for the moment at which it began, whatever became of the leader since, and age is measured on this
//! node's monotonic clock alone.
//!
//! Of a shard that is on other nodes, it is the leader that applies up to there; the rows are then read from it, or whoever has
//! come as far.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use charthold_proto::internal as pb;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Replica;
use super::propose::{ReplicaError, group_error};
use super::whereabouts::Whereabouts;
use crate::metrics::{METRICS, counted, timed};
use crate::peer::Lane;
use crate::peer::frame::Kind;
use crate::planted::{self, Bug};
use crate::shard::codec;
use crate::shard::group::{Confirmed, GroupError};
use crate::trace;
use crate::{NodeId, ShardId, Slot, Slots, all_shards};

/// Reads that may wait for a shard's next barrier.
const WAITING_MAX: usize = 8_192;
/// One try: the quorum's answer, then apply.
const TRY_MAX: Duration = Duration::from_secs(2);
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// A barrier that so many reads shared: the next one waits for more of them. What one costs, on all replicas, is shared by them.
const SHARED_FROM: usize = 8;
const GATHER_MAX: Duration = Duration::from_millis(1);

/// How current a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It shows all that was answered before it came in.
    Linearizable,
    /// The same, while clocks run evenly: see [`crate::shard::config::Timing::lease_read_max`].
    Lease,
    /// It may lack what was written so long before it came in.
    Stale(Duration),
}

/// What a read may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub shard: ShardId,
    /// Of the shard.
    pub seq: u64,
    /// What was written so long before the read came in may be missing.
    pub age: Duration,
    pub place: Place,
}

/// Where rows are to be read after a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Here,
    /// At a node, once it has applied so far.
    There {
        node: NodeId,
        applied_index: u64,
    },
}

/// A barrier that was passed.
#[derive(Clone, Copy)]
struct Passed {
    place: Place,
    /// Elsewhere: where the shard was then, and what it held. Here that is known when somebody looks.
    seq: u64,
    slots: Option<Slots>,
}

struct Waiter {
    confirmed: Confirmed,
    passed: oneshot::Sender<Result<Passed, GroupError>>,
}

/// A shard's barriers.
struct Gate {
    queue: mpsc::Sender<Waiter>,
    /// When the newest barrier that a majority let pass began.
    current_at: Mutex<Option<Instant>>,
    /// Somebody has asked for the next one, so that stale reads find a young one.
    refreshing: AtomicBool,
    /// Where a shard that is on other nodes has its slots from, as its leader said last.
    origins: Mutex<Vec<pb::Origin>>,
}

pub struct Barriers {
    gates: Vec<Arc<Gate>>,
}

impl Barriers {
    /// Starts a task a shard. They end when this is dropped.
    pub(super) fn start(whereabouts: &Whereabouts) -> Self {
        let start = |shard| {
            let (queue, waiters) = mpsc::channel(WAITING_MAX);
            let (current_at, refreshing, origins) = Default::default();
            let gate = Arc::new(Gate { queue, current_at, refreshing, origins });
            tokio::spawn(run(shard, whereabouts.clone(), Arc::downgrade(&gate), waiters));
            gate
        };
        Self { gates: all_shards().map(start).collect() }
    }

    fn gate(&self, shard: ShardId) -> &Gate {
        &self.gates[usize::from(shard)]
    }
}

impl Gate {
    /// How old the rows are at most, if a barrier was ever passed.
    fn age(&self) -> Option<Duration> {
        self.current_at.lock().map(|at| at.elapsed())
    }

    /// Has a barrier passed that nobody waits for.
    fn refresh(&self) {
        if !self.refreshing.swap(true, SeqCst) {
            let (passed, _nobody) = oneshot::channel();
            // A full queue is about to have one passed anyway.
            let _full = self.queue.try_send(Waiter { confirmed: Confirmed::Now, passed });
        }
    }
}

/// Waits until somebody wants a barrier, and takes all who do. Where many shared the last one, most of them are about to come
/// again: it waits a moment for half as many. Answers whether there will be any more.
async fn gather(waiters: &mut mpsc::Receiver<Waiter>, batch: &mut Vec<Waiter>, shared_by: usize) -> bool {
    if waiters.recv_many(batch, WAITING_MAX).await == 0 {
        return false;
    }
    if shared_by >= SHARED_FROM {
        let more = async { while batch.len() < shared_by / 2 && waiters.recv_many(batch, WAITING_MAX).await > 0 {} };
        let _no_longer = tokio::time::timeout(GATHER_MAX, more).await;
    }
    true
}

async fn run(
    shard: ShardId,
    whereabouts: Whereabouts,
    gate: std::sync::Weak<Gate>,
    mut waiters: mpsc::Receiver<Waiter>,
) {
    let (mut batch, mut shared_by) = (Vec::new(), 0);
    while gather(&mut waiters, &mut batch, shared_by).await {
        shared_by = batch.len();
        let began = Instant::now();
        let by_lease = batch.iter().all(|waiter| waiter.confirmed == Confirmed::ByLease);
        let confirmed = if by_lease { Confirmed::ByLease } else { Confirmed::Now };
        let pass = async {
            match whereabouts.is_here(shard) {
                true => pass_here(shard, &whereabouts, confirmed).await.map(|passed| (passed, Vec::new())),
                false => pass_there(shard, &whereabouts, confirmed).await,
            }
        };
        let passed = tokio::time::timeout(TRY_MAX, pass).await.unwrap_or(Err(GroupError::NoQuorum));
        let Some(gate) = gate.upgrade() else { return };
        let passed = passed.map(|(passed, origins)| {
            *gate.origins.lock() = origins;
            passed
        });
        gate.refreshing.store(false, SeqCst);
        if confirmed == Confirmed::Now
            && let Ok(passed) = passed
        {
            *gate.current_at.lock() = (passed.place == Place::Here).then_some(began);
        }
        for waiter in batch.drain(..) {
            // A reader whose deadline passed has gone.
            let _gone = waiter.passed.send(passed.clone());
        }
    }
}

async fn pass_here(shard: ShardId, whereabouts: &Whereabouts, confirmed: Confirmed) -> Result<Passed, GroupError> {
    let here = Passed { place: Place::Here, seq: 0, slots: None };
    let group = whereabouts.group(shard);
    let (leader, member) = group.keyed_leader()?;
    if planted::has(Bug::StaleFollowerRead) && leader != group.node {
        return Ok(here);
    }
    let log_id = if leader == group.node {
        group.read_index_here(confirmed).await?
    } else {
        let client = whereabouts.peers.client(leader, &member.peer_address);
        let request = pb::ReadIndexRequest { lease: confirmed == Confirmed::ByLease, applied: false }.encode_to_vec();
        let answer = client.call(Lane::Control, Kind::ReadIndex, group.shard, request.into(), TRY_MAX).await;
        let answer = pb::ReadIndexResponse::decode(answer.map_err(group_error)?);
        let log_id = answer.ok().and_then(|answer| answer.log_id).ok_or(GroupError::Unknown)?;
        codec::log_id_from_pb(&log_id)
    };
    group.await_applied(log_id, TRY_MAX).await.map(|()| here)
}

async fn pass_there(
    shard: ShardId,
    whereabouts: &Whereabouts,
    confirmed: Confirmed,
) -> Result<(Passed, Vec<pb::Origin>), GroupError> {
    let (node, answer) = whereabouts.ask_leader(shard, confirmed, TRY_MAX).await?;
    let applied_index = answer.log_id.ok_or(GroupError::Unknown)?.index;
    let slots = answer.slots.as_ref().and_then(Slots::from_pb);
    let passed = Passed { place: Place::There { node, applied_index }, seq: answer.seq, slots };
    Ok((passed, answer.origins))
}

impl Replica {
    /// Waits until this node's rows of a shard are current. Answers the shard's seq then.
    pub async fn barrier(&self, shard: ShardId, deadline: Instant) -> Result<u64, ReplicaError> {
        Ok(self.moment(shard, Freshness::Linearizable, deadline).await?.0.seq)
    }

    /// Waits until this node's rows of a slot are current.
    pub async fn barrier_of(&self, slot: Slot, deadline: Instant) -> Result<Moment, ReplicaError> {
        self.moment_of(slot, Freshness::Linearizable, deadline).await
    }

    /// Waits until this node's rows of a slot are as current as asked for.
    ///
    /// A slot may go to another shard meanwhile: then the barrier that was passed says nothing of what that one did.
    pub async fn moment_of(&self, slot: Slot, freshness: Freshness, deadline: Instant) -> Result<Moment, ReplicaError> {
        loop {
            if let Some(shard) = self.shard_of(slot) {
                let (moment, held) = self.moment(shard, freshness, deadline).await?;
                let holds = match moment.place {
                    Place::Here => self.shard_of(slot) == Some(shard),
                    Place::There { .. } => held.is_some_and(|held| held.contains(slot)),
                };
                if holds {
                    return Ok(moment);
                }
            }
            if Instant::now() + RETRY_AFTER >= deadline {
                return Err(ReplicaError::NoLeader);
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// Waits until this node's rows of a shard are as current as asked for. With the moment, what the shard holds elsewhere.
    async fn moment(
        &self,
        shard: ShardId,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<(Moment, Option<Slots>), ReplicaError> {
        let _timed = timed(&METRICS.read_barrier);
        let _queued = counted(&METRICS.barrier_queued);
        let mut span = trace::span("barrier", trace::Kind::Internal);
        if let Some(span) = &mut span {
            span.note("shard", trace::Value::Number(shard.into()));
        }
        let confirmed = match freshness {
            Freshness::Linearizable => Confirmed::Now,
            Freshness::Lease => Confirmed::ByLease,
            Freshness::Stale(age_max) => match self.moment_before(shard, age_max) {
                Some(moment) => return Ok((moment, None)),
                None => Confirmed::Now,
            },
        };
        let Passed { place, seq, slots } = self.pass_barrier(shard, confirmed, deadline).await?;
        Ok((Moment { shard, seq, age: Duration::ZERO, place }, slots))
    }

    /// Whether a position of another shard is one of this shard, too: it was split from that one later.
    pub fn had(&self, moment: &Moment, other: ShardId, seq: u64) -> bool {
        match moment.place {
            Place::Here => self.group(moment.shard).had(other, seq),
            Place::There { .. } => {
                let origins = self.barriers.gate(moment.shard).origins.lock();
                origins.iter().any(|origin| origin.shard == u32::from(other) && seq <= origin.seq)
            }
        }
    }

    /// What the newest barrier that was passed says, if it is young enough. Has the next one passed before it is not.
    fn moment_before(&self, shard: ShardId, age_max: Duration) -> Option<Moment> {
        let gate = self.barriers.gate(shard);
        // First the age, then the seq: rows grow meanwhile, and age is what they are at least as young as.
        let age = gate.age().filter(|age| *age <= age_max || planted::has(Bug::AgeUnchecked))?;
        if age > age_max / 2 {
            gate.refresh();
        }
        self.whereabouts.is_here(shard).then(|| Moment { shard, seq: self.seq(shard), age, place: Place::Here })
    }

    /// A barrier that no read waits for: it passes if the shard serves. Not measured.
    pub async fn check_barrier(&self, shard: ShardId, deadline: Instant) -> Result<(), ReplicaError> {
        self.pass_barrier(shard, Confirmed::Now, deadline).await.map(drop)
    }

    async fn pass_barrier(
        &self,
        shard: ShardId,
        confirmed: Confirmed,
        deadline: Instant,
    ) -> Result<Passed, ReplicaError> {
        loop {
            if self.serves_in_vain(shard) {
                return Err(ReplicaError::NoLeader);
            }
            let (sender, passed) = oneshot::channel();
            let queue = &self.barriers.gate(shard).queue;
            let passed = async {
                let stopped = || GroupError::Stopped("the node is stopping".to_owned());
                queue.send(Waiter { confirmed, passed: sender }).await.map_err(|_| stopped())?;
                passed.await.map_err(|_| stopped())?
            };
            let failure = match tokio::time::timeout_at(deadline, passed).await {
                Ok(Ok(passed)) if passed.place == Place::Here => return Ok(Passed { seq: self.seq(shard), ..passed }),
                Ok(Ok(passed)) => return Ok(passed),
                Ok(Err(GroupError::Stopped(why))) => return Err(ReplicaError::Stopped(why)),
                Ok(Err(failure)) => failure,
                Err(_) => GroupError::NoQuorum,
            };
            if Instant::now() + RETRY_AFTER >= deadline {
                return Err(match failure {
                    GroupError::NotLeader { .. } => ReplicaError::NoLeader,
                    _ => ReplicaError::NoQuorum,
                });
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn waiter() -> Waiter {
        Waiter { confirmed: Confirmed::Now, passed: oneshot::channel().0 }
    }

    /// How many share a barrier, and how long it waited for them, where `shared_by` shared the last one, `first` are there
    /// already, and some more come one after the other, in no time.
    async fn gathered(shared_by: usize, first: usize, more: usize) -> (usize, Duration) {
        let (queue, mut waiters) = mpsc::channel(64);
        for _ in 0..first {
            queue.send(waiter()).await.unwrap();
        }
        let coming = tokio::spawn(async move {
            for _ in 0..more {
                tokio::task::yield_now().await;
                let _ended = queue.send(waiter()).await;
            }
            // Not closed: others may come at any time.
            std::future::pending::<()>().await;
        });
        let (began, mut batch) = (Instant::now(), Vec::new());
        assert!(gather(&mut waiters, &mut batch, shared_by).await);
        coming.abort();
        (batch.len(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_barrier_waits_for_those_who_shared_the_last_one() {
        assert_eq!(gathered(SHARED_FROM - 1, 1, 9).await, (1, Duration::ZERO), "few: nobody waits for anybody");
        assert_eq!(gathered(20, 10, 9).await, (10, Duration::ZERO), "half of them are here");
        assert_eq!(gathered(8, 1, 9).await, (4, Duration::ZERO), "until half of them are");
        let (count, waited) = gathered(40, 1, 3).await;
        assert_eq!(count, 4, "those who came");
        // The clock of a test has steps of a millisecond.
        assert!((GATHER_MAX..=2 * GATHER_MAX).contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn barriers_end_with_those_who_ask() {
        let (queue, mut waiters) = mpsc::channel(4);
        queue.send(waiter()).await.unwrap();
        drop(queue);
        let mut batch = Vec::new();
        assert!(gather(&mut waiters, &mut batch, 100).await, "who asked last is answered");
        assert_eq!(batch.len(), 1);
        batch.clear();
        assert!(!gather(&mut waiters, &mut batch, 100).await);
    }
}
