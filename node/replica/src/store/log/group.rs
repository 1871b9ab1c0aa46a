//! One group's part of the log: what openraft's log storage is made of, in bytes.
//!
//! New entries are readable at once from a tail cache, while they wait for the disk; apply and every replication stream
//! read the same entries again a moment later, so the cache also keeps the newest durable ones.
//!
//! Calls that write come from one task (the group's core), one after the other; readers are many.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::sizes::Sizes;
use super::writer::LogWriter;
use super::{LogEngine, LogOp, LogRows, Mark, entry_key, index_of, mark_key};
use crate::ShardId;
use crate::planted::{self, Bug};
use crate::store::EngineError;

/// Durable entries kept in memory, a group.
const CACHE_BYTES_MAX: usize = 8 << 20;

/// A group's log. Clones share it.
#[derive(Clone)]
pub struct GroupLog {
    shard: ShardId,
    engine: Arc<dyn LogEngine>,
    writer: LogWriter,
    tail: Arc<Mutex<Tail>>,
}

/// What is in memory: entries `first..first + entries.len()`, which always reach to the log's end.
struct Tail {
    first: u64,
    entries: VecDeque<Bytes>,
    size_bytes: usize,
    /// Of all that was appended since the start.
    sizes: Sizes,
    /// All entries below are in the engine and durable.
    durable_before: u64,
    /// What this process has purged: what is deleted again and again costs every time.
    purged_before: u64,
    /// Counts truncations, so that a late callback cannot mark new entries durable.
    epoch: u64,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    /// The same, while it is newer than what was handed to the writer.
    committed_unwritten: Option<Bytes>,
    purged: Option<Bytes>,
}

impl Tail {
    fn next_index(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn push(&mut self, entry: Bytes) {
        self.sizes.append(self.next_index(), entry.len());
        self.size_bytes += entry.len();
        self.entries.push_back(entry);
    }

    fn truncate(&mut self, from: u64) {
        self.epoch += 1;
        self.sizes.truncate(from);
        while self.next_index() > from {
            match self.entries.pop_back() {
                Some(entry) => self.size_bytes -= entry.len(),
                None => self.first = from,
            }
        }
        self.durable_before = self.durable_before.min(from);
    }

    fn evict(&mut self) {
        while self.size_bytes > CACHE_BYTES_MAX && self.first < self.durable_before {
            let Some(entry) = self.entries.pop_front() else { break };
            self.size_bytes -= entry.len();
            self.first += 1;
        }
    }
}

impl GroupLog {
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Opens a group's part of the engine.
    pub fn open(shard: ShardId, engine: Arc<dyn LogEngine>, writer: LogWriter) -> Result<Self, EngineError> {
        let last = engine.last(&entry_key(shard, 0), &entry_key(shard, u64::MAX))?;
        let read = |mark| engine.get(&mark_key(shard, mark));
        let (vote, committed, purged) = (read(Mark::Vote)?, read(Mark::Committed)?, read(Mark::Purged)?);
        let next = match last {
            Some((key, _)) => index_of(&key)? + 1,
            None => 0,
        };
        let tail = Tail {
            first: next,
            entries: VecDeque::new(),
            size_bytes: 0,
            sizes: Sizes::default(),
            durable_before: next,
            purged_before: 0,
            epoch: 0,
            vote,
            committed,
            committed_unwritten: None,
            purged,
        };
        Ok(Self { shard, engine, writer, tail: Arc::new(Mutex::new(tail)) })
    }

    pub fn mark(&self, mark: Mark) -> Option<Bytes> {
        let tail = self.tail.lock();
        match mark {
            Mark::Vote => tail.vote.clone(),
            Mark::Committed => tail.committed.clone(),
            Mark::Purged => tail.purged.clone(),
        }
    }

    /// The newest entry, if any is left.
    pub fn last_entry(&self) -> Result<Option<Bytes>, EngineError> {
        let end = {
            let tail = self.tail.lock();
            if let Some(entry) = tail.entries.back() {
                return Ok(Some(entry.clone()));
            }
            // What the engine still has from here on is truncated, only not written yet.
            tail.first
        };
        let last = self.engine.last(&entry_key(self.shard, 0), &entry_key(self.shard, end))?;
        Ok(last.map(|(_, entry)| entry))
    }

    /// Appends entries from `first` on. Readable on return; `done` is called when they are durable.
    ///
    /// Overwrites nothing: what stood at `first` and after must have been truncated before.
    pub async fn append(
        &self,
        first: u64,
        entries: Vec<Bytes>,
        done: impl FnOnce() + Send + 'static,
    ) -> Result<(), EngineError> {
        let keys = (first..).map(|index| entry_key(self.shard, index));
        let mut ops =
            keys.zip(&entries).map(|(key, entry)| LogOp::Put { key, value: entry.clone() }).collect::<Vec<_>>();
        let end = first + entries.len() as u64;
        let epoch = {
            let mut tail = self.tail.lock();
            if tail.next_index() == 0 {
                // The first entry of an empty log may have any index.
                tail.first = first;
            }
            if tail.next_index() != first {
                let detail = format!("append at {first}, but the log ends before {}", tail.next_index());
                return Err(EngineError::new("log", detail));
            }
            entries.into_iter().for_each(|entry| tail.push(entry));
            ops.extend(tail.committed_unwritten.take().map(|committed| self.put_committed(committed)));
            tail.epoch
        };
        let shared = Arc::clone(&self.tail);
        let durable = move || {
            let mut tail = shared.lock();
            if tail.epoch == epoch {
                tail.durable_before = tail.durable_before.max(end);
                tail.evict();
            }
            drop(tail);
            done();
        };
        self.writer.write(ops, true, Box::new(durable)).await
    }

    /// Removes the entries from `from` on. Gone for readers on return, on disk in order with what follows.
    pub async fn truncate(&self, from: u64) -> Result<(), EngineError> {
        self.tail.lock().truncate(from);
        if planted::has(Bug::TruncateSkipped) {
            return Ok(());
        }
        let ops = vec![self.delete_entries(from, u64::MAX)];
        self.writer.write(ops, true, Box::new(|| ())).await
    }

    /// Removes the entries before `before` and keeps `purged` in their place.
    pub async fn purge(&self, before: u64, purged: Bytes) -> Result<(), EngineError> {
        let ops = {
            let mut tail = self.tail.lock();
            let ops = self.purge_ops(tail.purged_before, before, &purged);
            tail.purged_before = before;
            tail.sizes.purge(before);
            while tail.first < before {
                match tail.entries.pop_front() {
                    Some(entry) => {
                        tail.size_bytes -= entry.len();
                        tail.first += 1;
                    }
                    None => tail.first = before,
                }
            }
            tail.durable_before = tail.durable_before.max(before);
            tail.purged = Some(purged);
            ops
        };
        self.writer.write(ops, false, Box::new(|| ())).await
    }

    /// Drops all entries in favour of a state that is ahead of them, before the group starts. Durable on return.
    pub async fn reset(&self, before: u64, purged: Bytes) -> Result<(), EngineError> {
        let mut ops = self.purge_ops(0, before, &purged);
        ops.push(self.delete_entries(0, u64::MAX));
        ops.push(self.put_committed(purged.clone()));
        self.writer.write_and_wait(ops, true).await?;
        let mut tail = self.tail.lock();
        tail.truncate(0);
        tail.first = before;
        tail.durable_before = before;
        tail.committed = Some(purged.clone());
        tail.committed_unwritten = None;
        tail.purged = Some(purged);
        Ok(())
    }

    /// Durable on return.
    pub async fn save_vote(&self, vote: Bytes) -> Result<(), EngineError> {
        let ops = vec![LogOp::Put { key: mark_key(self.shard, Mark::Vote), value: vote.clone() }];
        if !planted::has(Bug::VoteNotKept) {
            self.writer.write_and_wait(ops, true).await?;
        }
        self.tail.lock().vote = Some(vote);
        Ok(())
    }

    /// A hint for the next start: written with the next entries, never by itself. A write of its own for each batch of
    /// commits would cost as much as the batch, and what a hint that is older lacks comes again from the leader.
    pub fn save_committed(&self, committed: Bytes) {
        let mut tail = self.tail.lock();
        tail.committed = Some(committed.clone());
        tail.committed_unwritten = Some(committed);
    }

    /// Bytes of the entries that follow one, roughly, and never too many; none: it is from before the start.
    pub fn bytes_behind(&self, index: u64) -> Option<u64> {
        self.tail.lock().sizes.behind(index)
    }

    /// The newest entry that so many bytes follow.
    pub fn last_with_behind(&self, bytes: u64) -> Option<u64> {
        self.tail.lock().sizes.last_with_behind(bytes)
    }

    /// Entries of a range that are there, until they exceed `bytes_max`; the first always.
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Bytes>, EngineError> {
        let cached_from = self.tail.lock().first;
        let mut entries = Vec::new();
        if range.start < cached_from {
            let end = range.end.min(cached_from);
            let rows = self.scan(range.start..end, bytes_max)?;
            let reached = rows.last().map(|(key, _)| index_of(key)).transpose()?;
            entries.extend(rows.into_iter().map(|(_, entry)| entry));
            if reached.is_some_and(|index| index + 1 < end) {
                return Ok(entries);
            }
        }
        let rest = range.start.max(cached_from)..range.end;
        if rest.is_empty() {
            return Ok(entries);
        }
        let read_bytes = entries.iter().map(Bytes::len).sum::<usize>();
        let tail = self.tail.lock();
        if tail.first > rest.start {
            // Evicted since: they are in the engine now, but what follows them need not be.
            drop(tail);
            entries.extend(self.read(rest, bytes_max.saturating_sub(read_bytes))?);
            return Ok(entries);
        }
        let mut size_bytes = read_bytes;
        let cached = tail.entries.iter().skip((rest.start - tail.first) as usize);
        for entry in cached.take((rest.end - rest.start) as usize) {
            size_bytes += entry.len();
            if size_bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn scan(&self, range: Range<u64>, bytes_max: usize) -> Result<LogRows, EngineError> {
        self.engine.scan(&entry_key(self.shard, range.start), &entry_key(self.shard, range.end), bytes_max)
    }

    fn put_committed(&self, committed: Bytes) -> LogOp {
        LogOp::Put { key: mark_key(self.shard, Mark::Committed), value: committed }
    }

    fn delete_entries(&self, from: u64, to: u64) -> LogOp {
        LogOp::DeleteRange { from: entry_key(self.shard, from), to: entry_key(self.shard, to) }
    }

    fn purge_ops(&self, from: u64, before: u64, purged: &Bytes) -> Vec<LogOp> {
        let mark = LogOp::Put { key: mark_key(self.shard, Mark::Purged), value: purged.clone() };
        vec![mark, self.delete_entries(from, before)]
    }
}
