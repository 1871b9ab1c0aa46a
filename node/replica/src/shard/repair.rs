//! What a group's log and state must agree on before openraft starts.
//!
//! Apply may run ahead of the local disk's log (a majority elsewhere is enough to commit), and a crash may take an
//! unsynced tail of the log while a flush kept what it led to. Then the state is ahead of the log, or stands on an
//! entry that the log no longer has. The state is right: it holds committed entries only. So the log gives way: it is
//! dropped, and what is applied counts as purged.

use super::apply::Progress;
use super::codec;
use super::types::LogId;
use crate::ShardId;
use crate::store::log::Mark;
use crate::store::log::group::GroupLog;

/// Brings a log in line with its state. Durable on return.
pub async fn repair(shard: ShardId, log: &GroupLog, progress: &Progress) -> std::io::Result<()> {
    let applied = progress.log_id.as_ref().map(codec::log_id_from_pb);
    let purged = log.mark(Mark::Purged).map(codec::decode_log_id).transpose()?;
    if purged > applied {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!(
                "shard {shard}: the log is purged up to {}, the state is only at {}: the disk lost what was flushed. \
                 Remove this node and join a new one with an empty data directory",
                purged.map_or(0, |log_id| log_id.index),
                applied.map_or(0, |log_id| log_id.index),
            ),
        ));
    }
    let Some(applied) = applied else { return Ok(()) };
    if purged == Some(applied) || holds(log, &applied)? {
        return Ok(());
    }
    tracing::warn!(shard, %applied, "the state is ahead of the log: dropping the log, the leader sends what follows");
    log.reset(applied.index + 1, codec::encode_log_id(&applied)).await?;
    Ok(())
}

fn holds(log: &GroupLog, applied: &LogId) -> std::io::Result<bool> {
    let entry = log.read(applied.index..applied.index + 1, usize::MAX)?.pop();
    let entry = entry.map(codec::decode_entry).transpose()?;
    Ok(entry.is_some_and(|entry| entry.log_id == *applied))
}
