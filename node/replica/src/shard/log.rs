//! openraft's log storage over a group's log.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::authors::AuthorKey;
use super::entry::EntryCode;
use super::types::{Entry, EntryPayload, LogId, Proposal, TypeConfig, Vote};
use super::{codec, quorum, traced};
use crate::store::log::Mark;
use crate::store::log::group::GroupLog;

/// What one message to a follower carries: openraft caps the number of entries only.
const APPEND_BYTES_MAX: usize = 2 << 20;

/// A group's log, as openraft wants it. Clones read the same log.
#[derive(Clone)]
pub struct LogStorage {
    log: GroupLog,
    replays: bool,
    /// Signs what this node puts into the log as leader; nothing: it has no keys.
    key: Option<Arc<dyn AuthorKey>>,
}

impl LogStorage {
    /// `replays`: whether openraft, before it has started, applies what it knows to be committed. Else it hears from the
    /// leader how far that is: a spare group may wait for another one, which has to have started.
    pub fn new(log: GroupLog, replays: bool, key: Option<Arc<dyn AuthorKey>>) -> Self {
        Self { log, replays, key }
    }

    pub fn of_group(&self) -> &GroupLog {
        &self.log
    }

    /// The entry at an index, if the log has it.
    pub fn entry(&self, index: u64) -> io::Result<Option<Entry>> {
        Ok(self.read(index, index + 1, usize::MAX)?.pop())
    }

    /// What stands before an index that is about to be written.
    fn log_id_before(&self, index: u64) -> io::Result<Option<LogId>> {
        let Some(before) = index.checked_sub(1) else { return Ok(None) };
        match self.entry(before)? {
            Some(entry) => Ok(Some(entry.log_id)),
            None => self.log_id_mark(Mark::Purged),
        }
    }

    fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let entries = self.log.read(start..end, bytes_max)?;
        entries.into_iter().map(|entry| Ok(codec::decode_entry(entry)?)).collect()
    }

    /// A part of a range that apply reads. openraft takes a stream that ends early for a whole one, and counts as
    /// applied what it never saw: so a hole is an error here.
    fn piece(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let entries = self.read(start, end, APPEND_BYTES_MAX)?;
        let without_hole = entries.iter().zip(start..).all(|(entry, index)| entry.log_id.index == index);
        let committed = self.log_id_mark(Mark::Committed)?;
        let ends_early = entries.is_empty() && committed.is_some_and(|committed| start <= committed.index);
        match without_hole && !ends_early {
            true => Ok(entries),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, format!("the log has a hole at or after {start}"))),
        }
    }

    fn log_id_mark(&self, mark: Mark) -> io::Result<Option<LogId>> {
        Ok(self.log.mark(mark).map(codec::decode_log_id).transpose()?)
    }
}

/// From inclusive, to exclusive.
fn start_end(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStorage {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (start, end) = start_end(&range);
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, APPEND_BYTES_MAX)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl futures::Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // Apply reads all that is committed: after a restart that may be the whole log. So it comes in pieces.
        let (start, end) = start_end(&range);
        let reader = self.clone();
        let pieces = futures::stream::try_unfold(start, move |next| {
            let piece = if next < end { reader.piece(next, end) } else { Ok(Vec::new()) };
            std::future::ready(piece.map(|entries| {
                let after = entries.last().map(|entry| entry.log_id.index + 1)?;
                Some((futures::stream::iter(entries.into_iter().map(Ok)), after))
            }))
        });
        Box::pin(futures::TryStreamExt::try_flatten(pieces))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log.mark(Mark::Vote).map(codec::decode_vote).transpose()?)
    }
}

impl RaftLogStorage<TypeConfig> for LogStorage {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let last_purged_log_id = self.log_id_mark(Mark::Purged)?;
        let last = self.log.last_entry()?.map(codec::decode_entry).transpose()?;
        let last_log_id = last.map(|entry| entry.log_id).max(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        Ok(self.log.save_vote(codec::encode_vote(vote)).await?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(log_id) = committed {
            self.log.save_committed(codec::encode_log_id(&log_id));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        if self.replays { self.log_id_mark(Mark::Committed) } else { Ok(None) }
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let shard = self.log.shard();
        let (mut first, mut before, mut encoded) = (None, None, Vec::new());
        for mut entry in entries {
            if first.is_none() {
                first = Some(entry.index());
                // What a leader brings is signed, or will not be.
                if entry.code == EntryCode::Due {
                    before = self.log_id_before(entry.index())?;
                }
            }
            if let Some(key) = &self.key {
                entry.sign(key.as_ref(), shard, before);
            }
            before = Some(entry.log_id);
            let index = entry.index();
            if let EntryPayload::Normal(Proposal(_, Some(context))) = &entry.payload {
                traced::remember(shard, index, *context);
            }
            encoded.push(codec::encode_entry(&entry));
        }
        match first {
            Some(first) => {
                let end = first + encoded.len() as u64;
                let spans = traced::spans(shard, first..end, "log");
                let done = move || {
                    drop(spans);
                    quorum::synced(shard, end - 1);
                    callback.io_completed(Ok(()));
                };
                Ok(self.log.append(first, encoded, done).await?)
            }
            None => {
                callback.io_completed(Ok(()));
                Ok(())
            }
        }
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        Ok(self.log.truncate(last_log_id.map_or(0, |log_id| log_id.index + 1)).await?)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        Ok(self.log.purge(log_id.index + 1, codec::encode_log_id(&log_id)).await?)
    }
}
