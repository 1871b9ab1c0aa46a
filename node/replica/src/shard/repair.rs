//! What a group's log and state must agree on before openraft starts.
//!
//! Apply may run ahead of the local disk's log (a majority elsewhere is enough to commit), and a crash may take an
//! unsynced tail of the log while a flush kept what it led to. Then the state is ahead of the log, or stands on an
//! entry that the log no longer has. The state is right: it holds committed entries only. So the log gives way: it is
//! dropped, and what is applied counts as purged.
//!
//! A state that is behind where its log begins (it was set aside, or the disk lost what was flushed) is none of this: its
//! rows come from a peer first, see [`super::fetch`].

use charthold_proto::internal as pb;

use super::apply::Progress;
use super::codec;
use super::types::LogId;
use crate::ShardId;
use crate::store::log::Mark;
use crate::store::log::group::GroupLog;

/// Up to where a log was purged: what is before that can come from a state only.
pub fn begins_after(log: &GroupLog) -> std::io::Result<Option<LogId>> {
    log.mark(Mark::Purged).map(codec::decode_log_id).transpose().map_err(std::io::Error::from)
}

/// Whether a state that is at `applied` lacks what its log no longer has.
pub fn lacks(log: &GroupLog, applied: Option<&pb::LogId>) -> std::io::Result<bool> {
    Ok(begins_after(log)? > applied.map(codec::log_id_from_pb))
}

/// Brings a log in line with its state, which lacks nothing. Durable on return.
pub async fn repair(shard: ShardId, log: &GroupLog, progress: &Progress) -> std::io::Result<()> {
    if lacks(log, progress.log_id.as_ref())? {
        return Err(std::io::Error::other(format!("shard {shard}: the state lacks what the log no longer has")));
    }
    let applied = progress.log_id.as_ref().map(codec::log_id_from_pb);
    let Some(applied) = applied else { return Ok(()) };
    if begins_after(log)? == Some(applied) || holds(log, &applied)? {
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
