//! What a replica's log lets go of beyond openraft's rule, which counts entries.

use openraft::async_runtime::WatchReceiver;

use super::group::Group;

impl Group {
    /// Lets go of what has more bytes behind it, and of no more. To be called again and again.
    pub async fn keep_log_within(&self, bytes: u64) {
        let purged = self.raft().metrics().borrow_watched().purged;
        let excess = self.log().last_with_behind(bytes);
        if let Some(last) = excess.filter(|last| purged.is_none_or(|purged| purged.index < *last)) {
            self.purge_log_from(last, |_| last).await;
        }
    }

    /// Bytes of this replica's log behind an entry, roughly, and never too many; none: it is from before the start.
    pub fn log_bytes_behind(&self, index: u64) -> Option<u64> {
        self.log().bytes_behind(index)
    }

    /// Lets go of all that is durable in the state, and of an entry's successor at least. To be called again until that is
    /// done.
    pub async fn purge_log_beyond(&self, index: u64) {
        self.purge_log_from(index + 1, |durable| durable).await;
    }

    /// Once an entry is durable in the state, up to where the rule says, of the last that is; else has the state made durable.
    async fn purge_log_from(&self, least: u64, upto: impl FnOnce(u64) -> u64) {
        // Openraft takes for a snapshot what it has applied at its start, and nothing has flushed that yet.
        let announced = self.raft().metrics().borrow_watched().snapshot.map(|log_id| log_id.index);
        let durable = self.state.flushed(self.shard).and_then(|row| row.log_id).map(|log_id| log_id.index);
        let asked = match announced.min(durable).filter(|last| *last >= least) {
            Some(last) => self.raft().trigger().purge_log(upto(last)).await,
            None => self.raft().trigger().snapshot().await,
        };
        if let Err(error) = asked {
            tracing::debug!(shard = self.shard, %error, "the log was not purged");
        }
    }
}
