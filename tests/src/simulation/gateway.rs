//! What a node does for clients: the commands and reads that a real gateway would make, without sealing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_replica::directory::plan;
use charthold_replica::replica::members::{ChangeError, MemberChange};
use charthold_replica::replica::{Freshness, Replica, ReplicaError};
use charthold_replica::shard::command::Command;
use charthold_replica::shard::types::Member;
use charthold_replica::store::EngineError;
use charthold_replica::store::table::{ChartAddress, RecordAddress};
use charthold_replica::{DIRECTORY, NodeId, Slot, Token};
use pb::outcome::Result as Outcome;
use pb::precondition::Condition;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{EPOCH_MS, SHARDS};
use crate::chaos::Status;

const TENANT: &str = "tenant";

/// What a client asks, and until when it waits.
pub struct Call {
    pub what: What,
    pub within: Duration,
    pub reply: oneshot::Sender<Answer>,
}

#[derive(Clone)]
pub enum What {
    Read {
        key: String,
        freshness: Freshness,
    },
    Write(Write),
    /// Leadership of all shards goes to others.
    HandOver,
    /// A node is no member any more.
    Remove(NodeId),
    /// Who listens there becomes a member.
    Add {
        address: String,
    },
    /// A shard gives the upper half of its slots to another one.
    Split {
        shard: u16,
        request_id: [u8; 16],
    },
    /// A shard is on these nodes from now on; none: on all.
    Place {
        shard: u16,
        nodes: Vec<NodeId>,
        request_id: [u8; 16],
    },
    /// Who listens there has a vote in all groups, as far as this node knows.
    Votes {
        address: String,
    },
}

/// A put, or without a value a delete.
#[derive(Clone)]
pub struct Write {
    pub request_id: [u8; 16],
    pub key: String,
    pub value: Option<String>,
    pub expected: Option<u64>,
}

/// What a client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: Status,
    pub hit: bool,
    pub version: u64,
    pub output: String,
}

impl Answer {
    pub const UNKNOWN: Self = Self { status: Status::Info, hit: false, version: 0, output: String::new() };
    pub const FAILED: Self = Self { status: Status::Fail, hit: false, version: 0, output: String::new() };

    fn known(hit: bool, version: u64, output: String) -> Self {
        Self { status: Status::Ok, hit, version, output }
    }
}

impl From<ReplicaError> for Answer {
    fn from(error: ReplicaError) -> Self {
        match error {
            ReplicaError::Unknown | ReplicaError::Stopped(_) => Self::UNKNOWN,
            ReplicaError::NoLeader | ReplicaError::NoQuorum | ReplicaError::Overloaded => Self::FAILED,
            error => panic!("a node: {error}"),
        }
    }
}

/// A name, padded.
pub fn token(name: &str) -> Token {
    let mut token = [0; 16];
    token[..name.len()].copy_from_slice(name.as_bytes());
    token
}

/// The name back.
pub fn name_of(token: &Token) -> String {
    String::from_utf8_lossy(token).trim_end_matches('\0').to_owned()
}

/// Of all slots, one chart after the other is in the next one: whatever shards there are, each has some charts.
pub const PARTS: u16 = 4;

/// The part that a slot is in.
pub fn part_of(slot: Slot) -> usize {
    usize::from(slot / (Slot::MAX / PARTS + 1))
}

/// The place of a record that is called `chart/record`.
pub fn place(key: &str) -> RecordAddress {
    let (chart, record) = key.split_once('/').expect("chart/record");
    let number = chart.trim_start_matches(char::is_alphabetic).parse::<u16>().expect("a chart has a number");
    let slot = number % PARTS * (Slot::MAX / PARTS + 1) + number;
    RecordAddress {
        chart: ChartAddress { slot, tenant: token(TENANT), chart: token(chart) },
        record_type: token("Register"),
        record: token(record),
    }
}

pub async fn serve(replica: Arc<Replica>, call: Call) {
    let deadline = Instant::now() + call.within;
    let answer = match call.what {
        What::Read { key, freshness } => read(&replica, &key, freshness, deadline).await,
        What::Write(wanted) => write(&replica, &wanted, deadline).await.unwrap_or_else(Answer::from),
        What::HandOver => {
            replica.hand_over().await;
            Answer::known(true, 0, String::new())
        }
        What::Remove(id) => changed(replica.change_member(MemberChange::Remove(id), deadline).await),
        What::Add { address } => changed(add(&replica, &address, deadline).await),
        What::Split { shard, request_id } => split(&replica, shard, request_id, deadline).await,
        What::Place { shard, nodes, request_id } => place_shard(&replica, shard, nodes, request_id, deadline).await,
        What::Votes { address } if votes(&replica, &address) => Answer::known(true, 0, String::new()),
        What::Votes { .. } => Answer::FAILED,
    };
    // The client's time may be over.
    let _gone = call.reply.send(answer);
}

async fn add(replica: &Replica, address: &str, deadline: Instant) -> Result<(), ChangeError> {
    let (id, member) = replica.find_candidate(address).await?;
    replica.change_member(MemberChange::Add(id, member), deadline).await
}

/// A request id of the operator's.
pub fn made_at(ms: u64) -> [u8; 16] {
    let mut request_id = [1; 16];
    request_id[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    request_id
}

/// What `cluster init` does once the groups are formed; answers whether the shards are there.
pub async fn begin(replica: &Replica) -> bool {
    let init = pb::InitCluster {
        request_id: Bytes::copy_from_slice(&made_at(EPOCH_MS)),
        cluster: "simulated".to_owned(),
        shards: plan::begin(SHARDS),
        grant: Some(pb::Grant {
            tenant: Bytes::copy_from_slice(&token(TENANT)),
            principal: Bytes::copy_from_slice(&token("operator")),
            sealed_grant: Bytes::new(),
        }),
        ..Default::default()
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    let begun = replica.propose(DIRECTORY, Command::InitCluster(init).encode(0), deadline).await;
    begun.is_ok() && replica.barrier_of(Slot::MAX, deadline).await.is_ok()
}

async fn split(replica: &Replica, shard: u16, request_id: [u8; 16], deadline: Instant) -> Answer {
    let split =
        pb::SplitShard { request_id: Bytes::copy_from_slice(&request_id), shard: shard.into(), ..Default::default() };
    let split = replica.propose(DIRECTORY, Command::SplitShard(split).encode(0), deadline).await;
    split.map_or(Answer::FAILED, |_| Answer::known(true, 0, String::new()))
}

async fn place_shard(
    replica: &Replica,
    shard: u16,
    nodes: Vec<NodeId>,
    request_id: [u8; 16],
    deadline: Instant,
) -> Answer {
    let place = pb::PlaceShards {
        request_id: Bytes::copy_from_slice(&request_id),
        placements: vec![pb::ShardPlacement { shard: shard.into(), nodes }],
        ..Default::default()
    };
    let placed = replica.propose(DIRECTORY, Command::PlaceShards(place).encode(0), deadline).await;
    placed.map_or(Answer::FAILED, |_| Answer::known(true, 0, String::new()))
}

fn votes(replica: &Replica, address: &str) -> bool {
    replica.status().into_iter().all(|group| {
        let is_it =
            |(id, member): (&NodeId, &Member)| member.peer_address == address && group.composition.voters.contains(id);
        !group.composition.changing && group.composition.members.iter().any(is_it)
    })
}

/// What was not done is asked for again: either way it is fine to.
fn changed(result: Result<(), ChangeError>) -> Answer {
    result.map_or(Answer::FAILED, |()| Answer::known(true, 0, String::new()))
}

async fn read(replica: &Replica, key: &str, freshness: Freshness, deadline: Instant) -> Answer {
    let record = place(key);
    let moment = match replica.moment_of(record.chart.slot, freshness, deadline).await {
        Ok(moment) => moment,
        // A read that is not answered is as if it had not been.
        Err(_) => return Answer::FAILED,
    };
    match replica.rows(&moment).newest(&record, moment.seq) {
        Ok(None) => Answer::known(false, 0, String::new()),
        Ok(Some(found)) if found.row.tombstone => Answer::known(false, found.version, String::new()),
        Ok(Some(found)) => Answer::known(true, found.version, String::from_utf8_lossy(&found.row.body).into_owned()),
        // A snapshot takes the place of the rows, or they are on other nodes, which a simulation does not ask.
        Err(EngineError::Replaced | EngineError::Unplaced | EngineError::Unreachable) => Answer::FAILED,
        Err(error) => panic!("the rows of {key}: {error}"),
    }
}

async fn write(replica: &Replica, wanted: &Write, deadline: Instant) -> Result<Answer, ReplicaError> {
    let record = place(&wanted.key);
    let slot = record.chart.slot;
    let bytes = |token: &Token| Bytes::copy_from_slice(token);
    let (tenant, chart) = (bytes(&record.chart.tenant), bytes(&record.chart.chart));
    // The first one to come makes the chart's key.
    let key_id = Bytes::copy_from_slice(&wanted.request_id[8..]);
    let wrapped_key = Bytes::from_static(b"wrapped");
    let ensure = pb::EnsureChartKey { tenant: tenant.clone(), chart: chart.clone(), key_id, wrapped_key };
    let key = replica.propose_at(slot, Command::EnsureChartKey(ensure).encode(slot), deadline).await;
    // Without the key nothing has been written.
    let key = key.map_err(|error| if let ReplicaError::Unknown = error { ReplicaError::NoLeader } else { error })?;
    let Some(Outcome::ChartKey(key)) = key.outcome.result else { panic!("no key of a chart") };
    let value = wanted.value.clone().unwrap_or_default();
    let mutation = pb::Mutation {
        op: if wanted.value.is_some() { pb::mutation::Op::Put } else { pb::mutation::Op::Delete }.into(),
        r#type: bytes(&record.record_type),
        record: bytes(&record.record),
        precondition: wanted.expected.map(|version| pb::Precondition { condition: Some(Condition::Version(version)) }),
        header: Bytes::from(value.clone()),
        body: Bytes::from(value),
        document: None,
    };
    let commit = pb::Commit {
        tenant,
        chart,
        request_id: Bytes::copy_from_slice(&wanted.request_id),
        fingerprint: Bytes::from_static(b"fingerprint of it"),
        key_id: key.key_id,
        mutations: vec![mutation],
        audit_event: Bytes::from_static(b"event"),
    };
    let proposed = replica.propose_at(slot, Command::Commit(commit).encode(slot), deadline).await?;
    Ok(match proposed.outcome.result {
        Some(Outcome::Committed(committed)) => Answer::known(true, committed.versions[0], String::new()),
        Some(Outcome::PreconditionFailed(failed)) => {
            // Of a record that is deleted no version can be expected.
            Answer::known(false, if failed.deleted { 0 } else { failed.version }, String::new())
        }
        _ => panic!("a commit was refused"),
    })
}
