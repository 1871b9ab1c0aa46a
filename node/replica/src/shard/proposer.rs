//! The way of proposals into openraft: while a write of the group's log is under way, those that come gather for the next one.
//!
//! By itself openraft takes each proposal as it comes. What it does for a message, the log for a write and replication for an
//! entry costs more than the command in it, so under load they go together. The log's thread would let a proposal wait for
//! the sync that is under way anyway: gathering costs no time there. One that finds nothing under way goes at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::StreamExt;
use futures::stream::BoxStream;
use openraft::errors::{ClientWriteError, Fatal, RaftError};
use openraft::raft::WriteResult;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::group::GroupError;
use super::types::{LogId, OnItsWay, Proposal, Raft, Turn, TypeConfig};
use crate::trace::Context;

/// Proposals of one message to openraft: an append of theirs is one write of the log.
const BATCH_MAX: usize = 512;
/// No longer does one batch wait for the one before: a disk that is slower than that makes batches that are large enough.
const TURN_MAX: Duration = Duration::from_millis(20);

/// Where a command was written, and what apply answered.
type Written = Result<(LogId, pb::Outcome), GroupError>;

/// A group's. It ends when this is dropped.
pub struct Proposer {
    raft: Raft,
    turns: Arc<Semaphore>,
    queue: mpsc::Sender<Waiting>,
}

struct Waiting {
    command: Bytes,
    trace: Option<Context>,
    written: oneshot::Sender<Written>,
}

impl Proposer {
    /// `proposals_max`: what is proposed at a time. More would wait in their callers.
    pub fn start(raft: Raft, proposals_max: usize) -> Self {
        let (turns, (queue, waiting)) = (Arc::new(Semaphore::new(1)), mpsc::channel(proposals_max));
        tokio::spawn(run(raft.clone(), Arc::clone(&turns), waiting));
        Self { raft, turns, queue }
    }

    /// Proposes a command, and answers when it is applied. If the caller goes away it may be written all the same.
    pub async fn propose(&self, command: Bytes, trace: Option<Context>) -> Written {
        if let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() {
            let turn = Some(Turn::new(turn));
            return match self.raft.client_write(Proposal(command, OnItsWay { trace, turn })).await {
                Ok(written) => Ok((*written.log_id(), written.response().0.clone())),
                Err(RaftError::APIError(error)) => Err(refused(error)),
                // It may have been replicated before this replica stopped: never "nothing was done".
                Err(RaftError::Fatal(_)) => Err(GroupError::Unknown),
            };
        }
        let (sender, written) = oneshot::channel();
        let stopped = || GroupError::Unknown;
        self.queue.send(Waiting { command, trace, written: sender }).await.map_err(|_| stopped())?;
        written.await.map_err(|_| stopped())?
    }

    /// Keeps all others waiting, as a slow write of the log does.
    #[cfg(test)]
    pub async fn take_turn(&self) -> Turn {
        Turn::new(Arc::clone(&self.turns).acquire_owned().await.unwrap_or_else(|_| panic!("turns do not end")))
    }
}

async fn run(raft: Raft, turns: Arc<Semaphore>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let turn = tokio::time::timeout(TURN_MAX, Arc::clone(&turns).acquire_owned()).await;
        while batch.len() < BATCH_MAX
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        batch.retain(|waiting| !waiting.written.is_closed());
        let (mut proposals, mut callers) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for Waiting { command, trace, written } in batch.drain(..) {
            proposals.push(Proposal(command, OnItsWay { trace, turn: None }));
            callers.push(written);
        }
        // Entries are written in order: when the last one is, all are.
        let Some(Proposal(_, last)) = proposals.last_mut() else { continue };
        last.turn = turn.ok().and_then(Result::ok).map(Turn::new);
        // Who waits for a replica that has stopped hears so by the end of his channel.
        if let Ok(results) = raft.client_write_many(proposals).await {
            tokio::spawn(answer(results, callers));
        }
    }
}

async fn answer(
    mut results: BoxStream<'static, Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>>,
    callers: Vec<oneshot::Sender<Written>>,
) {
    for caller in callers {
        let Some(Ok(result)) = results.next().await else { return };
        // He may have gone.
        let _gone = caller.send(result.map(|written| (written.log_id, written.response.0)).map_err(refused));
    }
}

fn refused(error: ClientWriteError<TypeConfig>) -> GroupError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => GroupError::NotLeader { leader: forward.leader_id },
        _ => GroupError::Unknown,
    }
}
