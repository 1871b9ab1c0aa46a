//! What waits to be written to a connection: a queue a shard, taken in turn, so that no shard holds up another.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::frame::{MESSAGE_BYTES_MAX, Message};

/// Bytes that may wait, in units of 1 KiB; whoever would exceed them waits.
const WAITING_KIB_MAX: usize = 16 << 10;
/// What is gathered for one write.
const WRITE_BYTES: usize = 512 << 10;

struct Waiting {
    message: Message,
    _room: OwnedSemaphorePermit,
}

/// The connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

pub struct Outbox {
    queues: Mutex<Queues>,
    room: Arc<Semaphore>,
    filled: Notify,
}

struct Queues {
    by_shard: Vec<VecDeque<Waiting>>,
    /// Whose turn it is.
    turn: usize,
    closed: bool,
}

impl Outbox {
    pub fn new() -> Self {
        let by_shard = crate::all_shards().map(|_| VecDeque::new()).collect();
        Self {
            queues: Mutex::new(Queues { by_shard, turn: 0, closed: false }),
            room: Arc::new(Semaphore::new(WAITING_KIB_MAX)),
            filled: Notify::new(),
        }
    }

    /// Queues a message; waits while too much waits.
    pub async fn send(&self, message: Message) -> Result<(), Closed> {
        debug_assert!(message.payload.len() <= MESSAGE_BYTES_MAX, "checked by who makes messages");
        let kib = (message.payload.len() >> 10).clamp(1, WAITING_KIB_MAX) as u32;
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await.map_err(|_| Closed)?;
        let mut queues = self.queues.lock();
        if queues.closed {
            return Err(Closed);
        }
        let count = queues.by_shard.len();
        queues.by_shard[usize::from(message.shard) % count].push_back(Waiting { message, _room: room });
        drop(queues);
        self.filled.notify_one();
        Ok(())
    }

    /// Takes what the next write carries, frame by frame in turn. Waits while nothing does. Not for two at once.
    pub async fn take(&self, out: &mut BytesMut) -> Result<(), Closed> {
        loop {
            let filled = self.filled.notified();
            {
                let mut queues = self.queues.lock();
                if queues.closed {
                    return Err(Closed);
                }
                while out.len() < WRITE_BYTES && queues.take_frame(out) {}
            }
            if !out.is_empty() {
                return Ok(());
            }
            filled.await;
        }
    }

    /// Drops what waits; nothing more is taken.
    pub fn close(&self) {
        let mut queues = self.queues.lock();
        queues.closed = true;
        queues.by_shard.iter_mut().for_each(VecDeque::clear);
        drop(queues);
        self.room.close();
        self.filled.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.queues.lock().closed
    }
}

impl Queues {
    fn take_frame(&mut self, out: &mut BytesMut) -> bool {
        let count = self.by_shard.len();
        let next = (0..count).map(|step| (self.turn + step) % count).find(|at| !self.by_shard[*at].is_empty());
        let Some(at) = next else { return false };
        self.turn = (at + 1) % count;
        let queue = &mut self.by_shard[at];
        if let Some(first) = queue.front_mut()
            && first.message.write_frame(out)
        {
            queue.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::frame::{Assembler, Kind};
    use super::*;

    fn message(shard: u16, id: u64, length: usize) -> Message {
        Message { kind: Kind::Append, shard, id, payload: vec![0; length].into() }
    }

    #[tokio::test]
    async fn a_small_message_overtakes_a_large_one_of_another_shard() {
        let outbox = Outbox::new();
        outbox.send(message(1, 1, 4 << 20)).await.unwrap();
        outbox.send(message(2, 2, 10)).await.unwrap();
        let (mut input, mut assembler) = (BytesMut::new(), Assembler::default());
        outbox.take(&mut input).await.unwrap();
        assert_eq!(assembler.next(&mut input).unwrap().unwrap().id, 2);
    }

    #[tokio::test]
    async fn closing_frees_who_waits() {
        let outbox = Arc::new(Outbox::new());
        let waiting = tokio::spawn({
            let outbox = Arc::clone(&outbox);
            async move {
                loop {
                    if let Err(closed) = outbox.send(message(1, 1, 8 << 20)).await {
                        return closed;
                    }
                }
            }
        });
        tokio::task::yield_now().await;
        outbox.close();
        assert_eq!(waiting.await.unwrap(), Closed);
        assert_eq!(outbox.take(&mut BytesMut::new()).await, Err(Closed));
    }
}
