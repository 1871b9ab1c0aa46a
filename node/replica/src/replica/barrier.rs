//! Read barriers: after one, this node's rows hold every write that was answered before the read came in.
//!
//! The leader confirms with a majority that it still leads (no clock is trusted); then this replica applies up to where
//! the leader was. Reads that wait together share a barrier, but never one that began before they came.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use charthold_proto::internal as pb;
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use super::Replica;
use super::peers::Peers;
use super::propose::{ReplicaError, group_error};
use crate::ShardId;
use crate::metrics::{METRICS, counted, timed};
use crate::peer::Lane;
use crate::peer::frame::Kind;
use crate::planted::{self, Bug};
use crate::shard::codec;
use crate::shard::group::{Group, GroupError};
use crate::trace;

/// Reads that may wait for a shard's next barrier.
const WAITING_MAX: usize = 8_192;
/// One try: the quorum's answer, then apply.
const TRY_MAX: Duration = Duration::from_secs(2);
const RETRY_AFTER: Duration = Duration::from_millis(50);

type Waiter = oneshot::Sender<Result<(), GroupError>>;

pub struct Barriers {
    queues: Vec<mpsc::Sender<Waiter>>,
}

impl Barriers {
    /// Starts a task a shard. They end when this is dropped.
    pub fn start(groups: &[Arc<Group>], peers: &Arc<Peers>) -> Self {
        let start = |group: &Arc<Group>| {
            let (queue, waiters) = mpsc::channel(WAITING_MAX);
            tokio::spawn(run(Arc::clone(group), Arc::clone(peers), waiters));
            queue
        };
        Self { queues: groups.iter().map(start).collect() }
    }
}

async fn run(group: Arc<Group>, peers: Arc<Peers>, mut waiters: mpsc::Receiver<Waiter>) {
    while let Some(first) = waiters.recv().await {
        let mut batch = vec![first];
        while let Ok(waiter) = waiters.try_recv() {
            batch.push(waiter);
        }
        let passed = match tokio::time::timeout(TRY_MAX, pass(&group, &peers)).await {
            Ok(passed) => passed,
            Err(_) => Err(GroupError::NoQuorum),
        };
        for waiter in batch {
            // A reader whose deadline passed has gone.
            let _gone = waiter.send(passed.clone());
        }
    }
}

async fn pass(group: &Group, peers: &Peers) -> Result<(), GroupError> {
    let Some((leader, member)) = group.leader() else {
        return Err(GroupError::NotLeader { leader: None });
    };
    if planted::has(Bug::StaleFollowerRead) && leader != group.node {
        return Ok(());
    }
    let log_id = if leader == group.node {
        group.read_index_here().await?
    } else {
        let client = peers.client(leader, &member.peer_address);
        let answer = client.call(Lane::Control, Kind::ReadIndex, group.shard, Bytes::new(), TRY_MAX).await;
        let answer = pb::ReadIndexResponse::decode(answer.map_err(group_error)?);
        let log_id = answer.ok().and_then(|answer| answer.log_id).ok_or(GroupError::Unknown)?;
        codec::log_id_from_pb(&log_id)
    };
    group.await_applied(log_id, TRY_MAX).await
}

impl Replica {
    /// Waits until this node's rows of a shard are current. Answers the shard's seq then.
    pub async fn barrier(&self, shard: ShardId, deadline: Instant) -> Result<u64, ReplicaError> {
        let _timed = timed(&METRICS.read_barrier);
        let _queued = counted(&METRICS.barrier_queued);
        let mut span = trace::span("barrier", trace::Kind::Internal);
        if let Some(span) = &mut span {
            span.note("shard", trace::Value::Number(shard.into()));
        }
        self.check_barrier(shard, deadline).await
    }

    /// A barrier that no read waits for: it passes if the shard serves. Not measured.
    pub async fn check_barrier(&self, shard: ShardId, deadline: Instant) -> Result<u64, ReplicaError> {
        loop {
            if self.leads_in_vain(shard) {
                return Err(ReplicaError::NoLeader);
            }
            let (waiter, passed) = oneshot::channel();
            let queue = &self.barriers.queues[usize::from(shard)];
            let passed = async {
                let stopped = || GroupError::Stopped("the node is stopping".to_owned());
                queue.send(waiter).await.map_err(|_| stopped())?;
                passed.await.map_err(|_| stopped())?
            };
            let failure = match tokio::time::timeout_at(deadline.into(), passed).await {
                Ok(Ok(())) => return Ok(self.seq(shard)),
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
