//! Clients on few hot and many cold records, who note what they see.
//!
//! A client keeps at an operation until it is answered or its time is over, then goes on: after an unknown outcome under
//! another number, since the operation may still be under way.
//!
//! Reads ask for all kinds of freshness. What may be stale is noted as if it had been called that much earlier: it is as
//! good as a read that was called then and took that long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use charthold_client::{Chart, Client, Committed, Error, Freshness, Mutation, Put, RecordId};

use super::choice::{Choice, Wish};
use super::history::{Function, Operation, Recorder, Status};
use super::traces::CANARY;
use crate::harness::Cluster;

const CLIENTS: u64 = 12;
/// Hot records, one in each of so many charts: as good as surely in all shards.
const HOT: u64 = 16;
/// Of the rest, spread over as many charts.
const COLD: u64 = 4_000;
/// Shorter than most faults last, so that it is too short now and then.
const STALE_MAX: Duration = Duration::from_millis(700);
/// Between two operations of a client, so that the machine has time for the nodes.
const PAUSE: Duration = Duration::from_millis(2);

pub struct Workload {
    clients: Vec<tokio::task::JoinHandle<()>>,
    done: Arc<AtomicBool>,
}

impl Workload {
    /// `deadline`: how long a client keeps at an operation.
    pub fn start(cluster: &Cluster, seed: u64, deadline: Duration, recorder: &Arc<Recorder>) -> Self {
        let (done, numbers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(CLIENTS)));
        let start = |number| {
            let worker = Worker {
                // Half of them know one gateway until an answer names the leader, the others all.
                client: match number % 2 {
                    0 => cluster.client(),
                    _ => cluster.client_number(number as usize),
                }
                .with_deadline(deadline),
                number,
                numbers: Arc::clone(&numbers),
                written: 0,
                choice: Choice {
                    random: fastrand::Rng::with_seed(seed.wrapping_mul(1_000).wrapping_add(number)),
                    hot: HOT,
                    cold: 0..COLD,
                },
                recorder: Arc::clone(recorder),
            };
            tokio::spawn(worker.work(Arc::clone(&done)))
        };
        Self { clients: (0..CLIENTS).map(start).collect(), done }
    }

    pub async fn stop(self) {
        self.done.store(true, SeqCst);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

/// A record's name in the history; and back.
pub fn place(key: &str) -> (Chart, RecordId) {
    let (chart, record) = key.split_once('/').expect("chart/record");
    (Chart::patient(chart), RecordId::new("Register", record))
}

struct Worker {
    client: Client,
    number: u64,
    /// The next that is free.
    numbers: Arc<AtomicU64>,
    /// Values so far; each carries its writer's number, so that no two are the same.
    written: u64,
    choice: Choice,
    recorder: Arc<Recorder>,
}

/// What a call said.
struct Answer {
    status: Status,
    hit: bool,
    version: u64,
    output: String,
}

impl Worker {
    async fn work(mut self, done: Arc<AtomicBool>) {
        let mut seen = std::collections::HashMap::new();
        while !done.load(SeqCst) {
            let key = self.choice.key();
            let function = self.choice.function(seen.contains_key(&key));
            let expected = matches!(function, Function::Cas | Function::Del).then(|| seen[&key]);
            let version = self.operate(&key, function, expected).await;
            // A version to expect later: not always the newest by then, which is the point.
            match version {
                Some(version) => seen.insert(key, version),
                None => seen.remove(&key),
            };
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Gives the version that it left or found.
    async fn operate(&mut self, key: &str, function: Function, expected: Option<u64>) -> Option<u64> {
        let value = match function {
            Function::Put | Function::Cas => {
                self.written += 1;
                format!("{}-{}", self.number, self.written)
            }
            Function::Get | Function::Del => String::new(),
        };
        let freshness = match self.choice.wish() {
            Wish::Linearizable => Freshness::Linearizable,
            Wish::Lease => Freshness::Lease,
            Wish::Stale => Freshness::Stale(STALE_MAX),
        };
        let mut called_ns = self.recorder.now_ns();
        if let (Function::Get, Freshness::Stale(age_max)) = (function, freshness) {
            called_ns = called_ns.saturating_sub(age_max.as_nanos() as u64);
        }
        let client = self.client.with_freshness(freshness);
        let answer = call(&client, key, function, &value, expected).await;
        let known = answer.status != Status::Info;
        self.recorder.add(Operation {
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
            returned_ns: known.then(|| self.recorder.now_ns()),
        });
        if !known {
            (self.number, self.written) = (self.numbers.fetch_add(1, SeqCst), 0);
        }
        (answer.status == Status::Ok && answer.hit && function != Function::Del).then_some(answer.version)
    }
}

async fn call(client: &Client, key: &str, function: Function, value: &str, expected: Option<u64>) -> Answer {
    let (chart, record) = place(key);
    // The author is in the header: at the end a page of history tells a thousand values.
    let put = || Put { author: value.to_owned(), ..Put::new("text/plain", format!("{CANARY} {value}")) };
    let mutation = match (function, expected) {
        (Function::Get, _) => return read(client.get(&chart, &record).await),
        (Function::Del, _) => Mutation::delete(record),
        (Function::Put | Function::Cas, _) => Mutation::put(record, put()),
    };
    let mutation = match expected {
        Some(version) => mutation.if_version(version),
        None => mutation,
    };
    written(client.commit(&chart, vec![mutation]).await)
}

fn read(answer: Result<charthold_client::Record, Error>) -> Answer {
    match answer {
        Ok(record) => {
            let body = String::from_utf8_lossy(&record.body);
            let output = body.strip_prefix(CANARY).map_or(&*body, str::trim_start).to_owned();
            Answer { status: Status::Ok, hit: true, version: record.version(), output }
        }
        Err(Error::NotFound { deleted_version, .. }) => {
            Answer { status: Status::Ok, hit: false, version: deleted_version.unwrap_or(0), output: String::new() }
        }
        Err(error) => failed(&error),
    }
}

fn written(answer: Result<Committed, Error>) -> Answer {
    match answer {
        Ok(committed) => {
            Answer { status: Status::Ok, hit: true, version: committed.versions[0], output: String::new() }
        }
        // The version of a record that is deleted is told as 0: none to expect.
        Err(Error::VersionMismatch { current, .. }) => {
            Answer { status: Status::Ok, hit: false, version: current.unwrap_or(0), output: String::new() }
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> Answer {
    let status = match error {
        Error::OutcomeUnknown { .. } => Status::Info,
        // A read that is not answered is as if it had not been.
        Error::Unavailable { .. } | Error::Overloaded { .. } => Status::Fail,
        error => panic!("a client: {error}"),
    };
    Answer { status, hit: false, version: 0, output: String::new() }
}
