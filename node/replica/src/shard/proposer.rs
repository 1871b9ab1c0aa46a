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

/// What goes to openraft together, and so is one write of the log; what is larger goes by itself. A commit waits no longer for
/// those before it than for the sync of as much.
const BATCH_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 1 << 20;
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
    let mut next = waiting.recv().await;
    while let Some(first) = next {
        let turn = tokio::time::timeout(TURN_MAX, Arc::clone(&turns).acquire_owned()).await;
        let (batch, left_over) = gather(first, &mut waiting);
        send(&raft, batch, turn.ok().and_then(Result::ok).map(Turn::new)).await;
        next = match left_over {
            Some(left_over) => Some(left_over),
            None => waiting.recv().await,
        };
    }
}

/// All who wait, as far as they fit; and who came after these.
fn gather(first: Waiting, waiting: &mut mpsc::Receiver<Waiting>) -> (Vec<Waiting>, Option<Waiting>) {
    let (mut batch, mut size_bytes, mut next) = (Vec::new(), 0, Some(first));
    while let Some(taken) = next {
        size_bytes += taken.command.len();
        if !batch.is_empty() && (batch.len() == BATCH_MAX || size_bytes > BATCH_BYTES_MAX) {
            return (batch, Some(taken));
        }
        // Who has gone meanwhile has proposed nothing.
        if !taken.written.is_closed() {
            batch.push(taken);
        }
        next = waiting.try_recv().ok();
    }
    (batch, None)
}

async fn send(raft: &Raft, batch: Vec<Waiting>, turn: Option<Turn>) {
    let on_its_way = |Waiting { command, trace, written }| (Proposal(command, OnItsWay { trace, turn: None }), written);
    let (mut proposals, callers): (Vec<_>, Vec<_>) = batch.into_iter().map(on_its_way).unzip();
    // Entries are written in order: when the last one is, all are.
    let Some(Proposal(_, last)) = proposals.last_mut() else { return };
    last.turn = turn;
    // Who waits for a replica that has stopped hears so by the end of his channel.
    if let Ok(results) = raft.client_write_many(proposals).await {
        tokio::spawn(answer(results, callers));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What commands of these sizes become, some of whose callers have gone.
    fn batches(sizes: &[usize], gone: &[usize]) -> Vec<Vec<usize>> {
        let (queue, mut waiting) = mpsc::channel(sizes.len());
        let mut callers = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            let (written, caller) = oneshot::channel();
            callers.extend((!gone.contains(&at)).then_some(caller));
            let command = vec![0; *size].into();
            assert!(queue.try_send(Waiting { command, trace: None, written }).is_ok());
        }
        let (mut batches, mut next) = (Vec::new(), waiting.try_recv().ok());
        while let Some(first) = next {
            let (batch, left_over) = gather(first, &mut waiting);
            batches.push(batch.into_iter().map(|taken| taken.command.len()).collect());
            next = left_over;
        }
        batches
    }

    #[test]
    fn what_waits_goes_together_as_far_as_it_fits() {
        let (small, half, large) = (10, BATCH_BYTES_MAX / 2, 2 * BATCH_BYTES_MAX);
        assert_eq!(batches(&[small; 3], &[]), [vec![small; 3]]);
        assert_eq!(batches(&[half; 3], &[]), [vec![half; 2], vec![half]]);
        assert_eq!(batches(&[small, large, small], &[]), [vec![small], vec![large], vec![small]]);
        let many = batches(&[small; BATCH_MAX + 1], &[]);
        assert_eq!(many, [vec![small; BATCH_MAX], vec![small]]);
    }

    #[test]
    fn who_has_gone_proposes_nothing() {
        assert_eq!(batches(&[1, 2, 3], &[1]), [vec![1, 3]]);
        assert_eq!(batches(&[1, 2], &[0, 1]), [Vec::<usize>::new()]);
    }
}
