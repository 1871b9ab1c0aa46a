//! Clients of the simulated cluster, on a host of their own, so that one clock tells when each asked and was answered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use charthold_replica::replica::Freshness;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::digest::Digest;
use super::gateway::{Answer, Call, PARTS, What, Write, part_of, place};
use super::node::{Node, now_ms};
use super::operator::Operator;
use super::{EPOCH_MS, TICK};
use crate::chaos::{Choice, Function, Operation, Status, Wish};

const CLIENTS: u64 = 6;
/// Records that all clients use all the time, one in each of so many charts; of the rest, spread over as many.
const HOT: u64 = PARTS as u64;
const COLD: u64 = 500;
/// Less than most faults last, so that some outcomes stay unknown.
const DEADLINE: Duration = Duration::from_secs(4);
/// A gateway gets so long of it.
const TRY_MAX: Duration = Duration::from_secs(2);
const STALE_MAX: Duration = Duration::from_millis(2_000);
/// Between two operations of a client, at most.
const PAUSE_MAX_MS: u64 = 1_500;
/// How often a client asks another gateway than before, though that one answered: else nobody stays at one that is cut off.
const WANDER_PERCENT: u64 = 40;

/// What the clients share.
pub struct Workload {
    pub nodes: Vec<Arc<Node>>,
    pub digest: Digest,
    pub operator: Operator,
    seed: u64,
    operations: Mutex<Vec<Operation>>,
    /// Numbers of clients, and of requests, that were given out.
    numbers: AtomicU64,
    requests: AtomicU64,
    stopping: AtomicBool,
    stopped: AtomicBool,
    /// By part of the slots, when the newest write that was acknowledged was asked for.
    written_ns: [AtomicU64; PARTS as usize],
}

impl Workload {
    pub fn new(nodes: Vec<Arc<Node>>, digest: Digest, seed: u64) -> Arc<Self> {
        let (operator, operations, requests, stopping, stopped, written_ns) = Default::default();
        let numbers = AtomicU64::new(CLIENTS);
        Arc::new(Self { nodes, digest, operator, seed, operations, numbers, requests, stopping, stopped, written_ns })
    }

    /// All clients, until they are told to stop.
    pub async fn run(self: Arc<Self>) -> turmoil::Result {
        while !self.nodes[0].formed.load(SeqCst) {
            sleep(Duration::from_millis(100)).await;
        }
        let clients = (0..CLIENTS).map(|number| tokio::spawn(Client::new(&self, number).run()));
        let operating = self.operator.work(&self.nodes, &self.stopping);
        let (ended, ()) = futures::future::join(futures::future::try_join_all(clients), operating).await;
        ended?;
        self.stopped.store(true, SeqCst);
        Ok(())
    }

    pub fn stop(&self) {
        self.stopping.store(true, SeqCst);
    }

    /// Whether all of them have.
    pub fn has_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    /// Whether in every part, and so in every shard, a write was acknowledged that was asked for since then.
    pub fn writes_since(&self, time: Duration) -> bool {
        self.written_ns.iter().all(|asked_ns| asked_ns.load(SeqCst) > time.as_nanos() as u64)
    }

    /// What they saw until now.
    pub fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut self.operations.lock().unwrap())
    }
}

pub struct Client {
    shared: Arc<Workload>,
    number: u64,
    /// Values so far; each carries its writer's number, so that no two are the same.
    written: u64,
    choice: Choice,
    /// The gateway that it asks.
    at: usize,
}

impl Client {
    pub fn new(shared: &Arc<Workload>, number: u64) -> Self {
        let random = fastrand::Rng::with_seed(shared.seed.wrapping_mul(1_000).wrapping_add(number));
        // A chart's number says its shard: no two have the same.
        let choice = Choice { random, hot: HOT, cold: HOT..HOT + COLD };
        Self { shared: Arc::clone(shared), number, written: 0, choice, at: number as usize % shared.nodes.len() }
    }

    async fn run(mut self) {
        let mut seen = BTreeMap::new();
        while !self.shared.stopping.load(SeqCst) {
            if self.choice.random.u64(0..100) < WANDER_PERCENT {
                self.at = self.choice.random.usize(0..self.shared.nodes.len());
            }
            let key = self.choice.key();
            let function = self.choice.function(seen.contains_key(&key));
            let expected = matches!(function, Function::Cas | Function::Del).then(|| seen[&key]);
            match self.operate(&key, function, expected).await {
                Some(version) => seen.insert(key, version),
                None => seen.remove(&key),
            };
            sleep(Duration::from_millis(self.choice.random.u64(0..PAUSE_MAX_MS))).await;
        }
    }

    /// Gives the version that it left or found.
    async fn operate(&mut self, key: &str, function: Function, expected: Option<u64>) -> Option<u64> {
        self.written += 1;
        let value = match function {
            Function::Put | Function::Cas => format!("{}-{}", self.number, self.written),
            Function::Get | Function::Del => String::new(),
        };
        let mut called_ns = now_ns();
        let what = match function {
            Function::Get => {
                let freshness = match self.choice.wish() {
                    Wish::Linearizable => Freshness::Linearizable,
                    Wish::Lease => Freshness::Lease,
                    Wish::Stale => Freshness::Stale(STALE_MAX),
                };
                if let Freshness::Stale(age_max) = freshness {
                    // A node's clock and the clients' may be a tick apart, at either end.
                    called_ns = called_ns.saturating_sub((age_max + 2 * TICK).as_nanos() as u64);
                }
                What::Read { key: key.to_owned(), freshness }
            }
            _ => What::Write(Write {
                request_id: self.request_id(),
                key: key.to_owned(),
                value: (function != Function::Del).then(|| value.clone()),
                expected,
            }),
        };
        let mut answer = self.call(&what, DEADLINE).await;
        if function == Function::Get && answer.status == Status::Info {
            // A read that is not answered is as if it had not been.
            answer = Answer::FAILED;
        }
        let known = answer.status != Status::Info;
        let operation = Operation {
            client: self.number,
            key: key.to_owned(),
            function,
            value,
            expected,
            status: answer.status,
            output: answer.output,
            hit: answer.hit,
            version: answer.version,
            called_ns,
            returned_ns: known.then(now_ns),
        };
        self.shared.digest.add(&operation);
        if operation.wrote() {
            let part = part_of(place(key).chart.slot);
            self.shared.written_ns[part].fetch_max(called_ns, SeqCst);
        }
        self.shared.operations.lock().unwrap().push(operation);
        if !known {
            (self.number, self.written) = (self.shared.numbers.fetch_add(1, SeqCst), 0);
        }
        (answer.status == Status::Ok && answer.hit && function != Function::Del).then_some(answer.version)
    }

    /// As a UUIDv7: when it was made, then what no other has.
    fn request_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..6].copy_from_slice(&(EPOCH_MS + now_ms()).to_be_bytes()[2..]);
        id[8..].copy_from_slice(&self.shared.requests.fetch_add(1, SeqCst).to_be_bytes());
        id
    }

    /// Asks one gateway after the other, with the same request, until it is answered or the time is over.
    pub async fn call(&mut self, what: &What, within: Duration) -> Answer {
        let deadline = Instant::now() + within;
        let mut maybe_done = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return if maybe_done { Answer::UNKNOWN } else { Answer::FAILED };
            }
            let answer = ask(&self.shared.nodes[self.at], what, left.min(TRY_MAX)).await;
            match answer.status {
                Status::Ok => return answer,
                Status::Info => maybe_done = true,
                Status::Fail => {}
            }
            self.at = (self.at + 1) % self.shared.nodes.len();
            sleep(Duration::from_millis(self.choice.random.u64(20..200))).await;
        }
    }
}

/// Asks a node once.
pub async fn ask(node: &Node, what: &What, within: Duration) -> Answer {
    let Some(calls) = node.calls() else { return Answer::FAILED };
    let (reply, answered) = oneshot::channel();
    if calls.send(Call { what: what.clone(), within, reply }).await.is_err() {
        return Answer::FAILED;
    }
    match timeout(within, answered).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Answer::UNKNOWN,
    }
}

fn now_ns() -> u64 {
    turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_nanos() as u64)
}
