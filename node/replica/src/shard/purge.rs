//! What a replica's log lets go of beyond openraft's rule, which counts entries.

use openraft::async_runtime::WatchReceiver;

use super::group::Group;

impl Group {
    /// Lets go of what has more bytes behind it. To be called again and again.
    pub async fn keep_log_within(&self, bytes: u64) {
        let purged = self.raft().metrics().borrow_watched().purged;
        let excess = self.log().last_with_behind(bytes);
        if let Some(last) = excess.filter(|last| purged.is_none_or(|purged| purged.index < *last)) {
            self.purge_log_upto(last).await;
        }
    }

    /// Bytes of this replica's log behind an entry, roughly; never too many.
    pub fn log_bytes_behind(&self, index: u64) -> u64 {
        self.log().bytes_behind(index)
    }

    /// Makes this replica's state durable and purges its log, up to an entry and with it. To be called again until that
    /// is done.
    pub async fn purge_log_upto(&self, index: u64) {
        let flushed = self.raft().metrics().borrow_watched().snapshot;
        let asked = match flushed.is_some_and(|flushed| flushed.index >= index) {
            true => self.raft().trigger().purge_log(index).await,
            false => self.raft().trigger().snapshot().await,
        };
        if let Err(error) = asked {
            tracing::debug!(shard = self.shard, %error, "the log was not purged");
        }
    }
}
