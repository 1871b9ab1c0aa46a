//! The way of proposals into openraft: those that come while others are under way gather, and go together.
//!
//! By itself openraft takes each proposal as it comes. What it does for a message, the log for a write, replication for an
//! entry and each replica for a batch that it applies costs ten times as much as a command in it. So a batch goes when it is as
//! large as all that is under way before it: of many callers at once one half waits for the other half's answers. The first
//! goes at once, as does the second beside it; and nobody waits for long, since between far sites answers take their time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::StreamExt;
use futures::stream::BoxStream;
use openraft::errors::{ClientWriteError, Fatal, RaftError};
use openraft::raft::WriteResult;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::group::GroupError;
use super::types::{LogId, Proposal, Raft, TypeConfig};
use crate::trace::Context;

/// What goes to openraft together, and so is one write of the log; what is larger goes by itself. A commit waits no longer for
/// those before it than for the sync of as much.
const BATCH_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 1 << 20;
/// For more to come.
const GATHER_MAX: Duration = Duration::from_millis(5);

/// Where a command was written, and what apply answered.
type Written = Result<(LogId, pb::Outcome), GroupError>;

/// A group's. It ends when this is dropped.
pub struct Proposer {
    raft: Raft,
    under_way: Arc<UnderWay>,
    queue: mpsc::Sender<Waiting>,
}

struct Waiting {
    command: Bytes,
    trace: Option<Context>,
    written: oneshot::Sender<Written>,
}

/// Proposals that went to openraft and are not answered.
#[derive(Default)]
struct UnderWay {
    count: AtomicUsize,
    /// There are fewer.
    fewer: Notify,
}

impl UnderWay {
    /// Until it is dropped.
    fn with(self: &Arc<Self>, count: usize) -> Held {
        self.count.fetch_add(count, SeqCst);
        Held { under_way: Arc::clone(self), count }
    }

    /// The only one, if nothing is under way.
    fn alone(self: &Arc<Self>) -> Option<Held> {
        self.count.compare_exchange(0, 1, SeqCst, SeqCst).ok()?;
        Some(Held { under_way: Arc::clone(self), count: 1 })
    }
}

struct Held {
    under_way: Arc<UnderWay>,
    count: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.under_way.count.fetch_sub(self.count, SeqCst);
        self.under_way.fewer.notify_one();
    }
}

impl Proposer {
    /// `proposals_max`: what is proposed at a time. More would wait in their callers.
    pub fn start(raft: Raft, proposals_max: usize) -> Self {
        let (under_way, (queue, waiting)) = (Arc::<UnderWay>::default(), mpsc::channel(proposals_max));
        tokio::spawn(run(raft.clone(), Arc::clone(&under_way), waiting));
        Self { raft, under_way, queue }
    }

    /// Proposes a command, and answers when it is applied. If the caller goes away it may be written all the same.
    pub async fn propose(&self, command: Bytes, trace: Option<Context>) -> Written {
        if let Some(_held) = self.under_way.alone() {
            return match self.raft.client_write(Proposal(command, trace)).await {
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
}

async fn run(raft: Raft, under_way: Arc<UnderWay>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut left_over = None;
    while let Some(batch) = gather(&mut left_over, &mut waiting, &under_way).await {
        if batch.is_empty() {
            continue;
        }
        let held = under_way.with(batch.len());
        send(&raft, batch, held).await;
    }
}

/// The next that go together: as many as are under way, as far as they fit, or all who came in time. Nothing: there are no more.
async fn gather(
    left_over: &mut Option<Waiting>,
    waiting: &mut mpsc::Receiver<Waiting>,
    under_way: &UnderWay,
) -> Option<Vec<Waiting>> {
    let first = match left_over.take() {
        Some(first) => first,
        None => waiting.recv().await?,
    };
    let until = Instant::now() + GATHER_MAX;
    let (mut batch, mut size_bytes, mut next) = (Vec::new(), 0, Some(first));
    loop {
        while let Some(taken) = next {
            size_bytes += taken.command.len();
            if !batch.is_empty() && (batch.len() == BATCH_MAX || size_bytes > BATCH_BYTES_MAX) {
                *left_over = Some(taken);
                return Some(batch);
            }
            // Who has gone meanwhile has proposed nothing.
            if !taken.written.is_closed() {
                batch.push(taken);
            }
            next = waiting.try_recv().ok();
        }
        let full = batch.len() == BATCH_MAX || size_bytes >= BATCH_BYTES_MAX;
        if full || batch.len() >= under_way.count.load(SeqCst) {
            return Some(batch);
        }
        tokio::select! {
            more = waiting.recv() => next = Some(more?),
            () = under_way.fewer.notified() => {}
            () = tokio::time::sleep_until(until) => return Some(batch),
        }
    }
}

async fn send(raft: &Raft, batch: Vec<Waiting>, held: Held) {
    let (proposals, callers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|Waiting { command, trace, written }| (Proposal(command, trace), written)).unzip();
    // Who waits for a replica that has stopped hears so by the end of his channel.
    if let Ok(results) = raft.client_write_many(proposals).await {
        tokio::spawn(answer(results, callers, held));
    }
}

async fn answer(
    mut results: BoxStream<'static, Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>>,
    callers: Vec<oneshot::Sender<Written>>,
    _held: Held,
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

    /// What commands of these sizes become, some of whose callers have gone, while so many are under way; and how long it takes.
    async fn batches(sizes: &[usize], gone: &[usize], under_way: usize) -> (Vec<Vec<usize>>, Duration) {
        let (queue, mut waiting) = mpsc::channel(sizes.len());
        let mut callers = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            let (written, caller) = oneshot::channel();
            callers.extend((!gone.contains(&at)).then_some(caller));
            let command = vec![0; *size].into();
            assert!(queue.try_send(Waiting { command, trace: None, written }).is_ok());
        }
        let counted = Arc::<UnderWay>::default();
        let _held = counted.with(under_way);
        let (mut batches, mut left_over, began) = (Vec::new(), None, Instant::now());
        while left_over.is_some() || !waiting.is_empty() {
            let batch = gather(&mut left_over, &mut waiting, &counted).await.unwrap_or_default();
            batches.push(batch.into_iter().map(|taken| taken.command.len()).collect());
        }
        (batches, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_goes_together_as_far_as_it_fits() {
        let (small, half, large) = (10, BATCH_BYTES_MAX / 2, 2 * BATCH_BYTES_MAX);
        let batches = async |sizes: &[usize]| batches(sizes, &[], 0).await.0;
        assert_eq!(batches(&[small; 3]).await, [vec![small; 3]]);
        assert_eq!(batches(&[half; 3]).await, [vec![half; 2], vec![half]]);
        assert_eq!(batches(&[small, large, small]).await, [vec![small], vec![large], vec![small]]);
        let many = batches(&[small; BATCH_MAX + 1]).await;
        assert_eq!(many, [vec![small; BATCH_MAX], vec![small]]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_proposes_nothing() {
        assert_eq!(batches(&[1, 2, 3], &[1], 0).await.0, [vec![1, 3]]);
        assert_eq!(batches(&[1, 2], &[0, 1], 0).await.0, [Vec::<usize>::new()]);
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_go_as_are_under_way_and_fewer_after_a_while() {
        assert_eq!(batches(&[1; 3], &[], 3).await, (vec![vec![1; 3]], Duration::ZERO));
        let (sent, took) = batches(&[1; 3], &[], 4).await;
        assert_eq!(sent, [vec![1; 3]]);
        assert!(took >= GATHER_MAX, "{took:?}");
        assert_eq!(batches(&[BATCH_BYTES_MAX], &[], 4).await.1, Duration::ZERO, "nothing fits beside it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_when_those_before_are_answered() {
        let (queue, mut waiting) = mpsc::channel(1);
        let (written, _caller) = oneshot::channel();
        assert!(queue.try_send(Waiting { command: Bytes::new(), trace: None, written }).is_ok());
        let under_way = Arc::<UnderWay>::default();
        let held = under_way.with(7);
        assert!(under_way.alone().is_none());
        let (began, mut left_over) = (Instant::now(), None);
        let gathered = async {
            let batch = gather(&mut left_over, &mut waiting, &under_way).await;
            (batch.map(|batch| batch.len()), began.elapsed())
        };
        let answered = async {
            tokio::time::sleep(GATHER_MAX / 5).await;
            drop(held);
        };
        let ((count, waited), ()) = tokio::join!(gathered, answered);
        assert_eq!(count, Some(1));
        assert!(waited < GATHER_MAX, "{waited:?}");
        assert!(under_way.alone().is_some(), "nothing is under way any more");
    }
}
