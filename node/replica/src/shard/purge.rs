//! What a replica's log lets go of beyond openraft's rule, which counts entries.

use openraft::async_runtime::WatchReceiver;

use super::group::Group;
use super::types::LogId;

impl Group {
    /// Lets go of what has more bytes behind it, and of no more. To be called again and again.
    pub async fn keep_log_within(&self, bytes: u64) {
        let purged = self.raft().metrics().borrow_watched().purged;
        let excess = self.log().last_with_behind(bytes);
        if let Some(last) = excess.filter(|last| purged.is_none_or(|purged| purged.index < *last)) {
            self.purge_log(last, |_| last).await;
        }
    }

    /// Bytes of this replica's log behind an entry, roughly, and never too many; none: it is from before the start.
    pub fn log_bytes_behind(&self, index: u64) -> Option<u64> {
        self.log().bytes_behind(index)
    }

    /// Lets go of all that is durable in the state, and of an entry's successor at least. To be called again until that is
    /// done.
    pub async fn purge_log_beyond(&self, index: u64) {
        self.purge_log(index + 1, |flushed| flushed.index).await;
    }

    /// Once an entry is durable in the state, up to where the rule says; else has the state made durable.
    async fn purge_log(&self, least: u64, upto: impl FnOnce(LogId) -> u64) {
        let flushed = self.raft().metrics().borrow_watched().snapshot;
        let asked = match flushed.filter(|flushed| flushed.index >= least) {
            Some(flushed) => self.raft().trigger().purge_log(upto(flushed)).await,
            None => self.raft().trigger().snapshot().await,
        };
        if let Err(error) = asked {
            tracing::debug!(shard = self.shard, %error, "the log was not purged");
        }
    }
}
