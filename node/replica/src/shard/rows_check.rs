//! A check of a group's rows: what all of them come to at one place of its log.
//!
//! A command puts it at the same place of every replica's log. There a replica pins its rows, and a task of its own reads
//! them all, at the pace of snapshots and one group after the other, while further entries are applied. What they come to is
//! told by the group's status until the next check or the node's end: replicas that are well have the same. What cannot be
//! read is damage, and goes the way of all damage ([`crate::replica`]). A command that was proposed again stands at two
//! places: the first one counts, and a result says which it is of. The ids of checks are UUIDv7.
//!
//! ```text
//! SHA-256 over, for each row in order:   table | 0 | key length 4 | key | value length 8 | value
//! ```
//! Rows of requests are left out: each replica drops the dead ones by itself.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use charthold_proto::internal as pb;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::task::AbortHandle;

use super::snapshot::PinnedRows;
use super::transfer::Outgoing;
use crate::ShardId;
use crate::store::state::Table;

/// The newest check of a group.
#[derive(Default)]
pub struct RowsChecks {
    newest: Mutex<Newest>,
}

#[derive(Default)]
struct Newest {
    check: Option<pb::RowsCheck>,
    task: Option<AbortHandle>,
}

impl RowsChecks {
    pub fn newest(&self) -> Option<pb::RowsCheck> {
        self.newest.lock().check.clone()
    }

    /// Whether a check was begun here, or a later one: ids are in order of time.
    pub(super) fn has_begun(&self, check_id: &Bytes) -> bool {
        self.newest.lock().check.as_ref().is_some_and(|newest| newest.check_id >= *check_id)
    }

    /// Reads rows that are pinned, in place of whatever was read before; or tells why there are none.
    pub(super) fn begin(
        self: &Arc<Self>,
        shard: ShardId,
        check: pb::RowsCheck,
        rows: std::io::Result<PinnedRows>,
        turns: Arc<Outgoing>,
    ) {
        self.stop();
        let mut newest = self.newest.lock();
        match rows {
            Ok(rows) => {
                let reading = read(Arc::downgrade(self), shard, check.clone(), rows, turns);
                newest.task = Some(tokio::spawn(reading).abort_handle());
                newest.check = Some(check);
            }
            Err(error) => newest.check = Some(pb::RowsCheck { failed: error.to_string(), ..check }),
        }
    }

    /// Lets go of the rows that are being read.
    pub fn stop(&self) {
        if let Some(task) = self.newest.lock().task.take() {
            task.abort();
        }
    }

    /// Unless another check has taken its place.
    fn note(&self, check: &pb::RowsCheck) {
        let mut newest = self.newest.lock();
        if newest.check.as_ref().is_some_and(|newest| newest.check_id == check.check_id) {
            newest.check = Some(check.clone());
        }
    }
}

async fn read(
    checks: Weak<RowsChecks>,
    shard: ShardId,
    mut check: pb::RowsCheck,
    rows: PinnedRows,
    turns: Arc<Outgoing>,
) {
    match hash(&checks, &mut check, rows, &turns).await {
        Ok(sha256) => {
            check.sha256 = sha256;
            tracing::info!(shard, seq = check.seq, rows = check.rows, bytes = check.bytes, "rows were checked");
        }
        Err(why) => {
            tracing::error!(shard, why, "the rows of a replica cannot be read: see what its engine says");
            check.failed = why;
        }
    }
    if let Some(checks) = checks.upgrade() {
        checks.note(&check);
    }
}

async fn hash(
    checks: &Weak<RowsChecks>,
    check: &mut pb::RowsCheck,
    mut rows: PinnedRows,
    turns: &Outgoing,
) -> Result<Bytes, String> {
    let _turn = turns.check_turn().await.map_err(|error| error.to_string())?;
    let mut hash = Sha256::new();
    while let Some(chunk) = rows.next().await {
        let chunk = chunk.map_err(|error| error.to_string())?;
        if is_left_out(&chunk.table) {
            continue;
        }
        let bytes = chunk.rows.iter().map(|row| row.key.len() + row.value.len()).sum::<usize>();
        turns.pace(bytes).await;
        for row in &chunk.rows {
            add(&mut hash, &chunk.table, row);
        }
        check.rows += chunk.rows.len() as u64;
        check.bytes += bytes as u64;
        checks.upgrade().ok_or("the replica is stopping")?.note(check);
    }
    Ok(Bytes::copy_from_slice(&hash.finalize()))
}

fn is_left_out(table: &str) -> bool {
    matches!(Table::named(table), Some(Table::Request | Table::DirectoryRequest))
}

fn add(hash: &mut Sha256, table: &str, row: &pb::SnapshotRow) {
    hash.update(table);
    hash.update([0]);
    hash.update((row.key.len() as u32).to_be_bytes());
    hash.update(&row.key);
    hash.update((row.value.len() as u64).to_be_bytes());
    hash.update(&row.value);
}
