//! Documents: open uploads and parts for the gateway, and the end of uploads that were abandoned.
//!
//! That an upload is dropped is decided by apply, by log time; here the leader only asks for it. Needs no key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::outcome::Result as Answer;
use prost::Message;

use super::source::Source;
use crate::shard::apply::document::chain;
use crate::shard::authors::Authors;
use crate::shard::command::Command;
use crate::shard::group::Group;
use crate::store::EngineError;
use crate::store::state::Table;
use crate::store::state::flusher::StateStore;
use crate::store::table::ChartAddress;
use crate::store::table::upload::{self, UploadId};
use crate::store::table::{after_prefix, part};
use crate::{ShardId, Slots};

pub use crate::shard::apply::document::{OPEN_UPLOADS_MAX, PARTS_MAX, chain_start};

/// How often abandoned uploads are looked for: a share of the time that makes them so, within these.
const SWEEP_SHARE: u32 = 4;
const SWEEP_INTERVAL_MIN: Duration = Duration::from_millis(250);
const SWEEP_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Uploads that one sweep looks at, a shard; the next goes on behind them.
const SWEEP_ROWS: usize = 256;
const SWEEP_BYTES: usize = 1 << 20;
/// What one command gets to be answered. Without an answer the next sweep asks again.
const DROP_MAX: Duration = Duration::from_secs(5);

/// Documents as they were applied where they are.
#[derive(Clone)]
pub struct DocumentRows {
    source: Source,
}

impl DocumentRows {
    pub(super) fn new(source: Source) -> Self {
        Self { source }
    }

    /// An upload that no commit has used up.
    pub fn upload(&self, chart: &ChartAddress, upload_id: UploadId) -> Result<Option<upload::Row>, EngineError> {
        let key = upload::Key { chart: *chart, upload_id }.encode();
        let row = self.source.get(chart.slot, Table::Upload, &key)?;
        row.map(|row| upload::Row::decode(row).map_err(|_| damaged())).transpose()
    }

    /// One part's envelope.
    pub fn part(&self, chart: &ChartAddress, upload_id: UploadId, part: u32) -> Result<Option<Bytes>, EngineError> {
        let key = part::Key { chart: *chart, upload_id, part }.encode();
        let row = self.source.get(chart.slot, Table::Part, &key)?;
        row.map(|row| part::Row::decode(row).map(|row| row.envelope).map_err(|_| damaged())).transpose()
    }
}

/// Uploads of a shard here after a key, and whether there may be more.
fn uploads(state: &StateStore, shard: ShardId, after: Option<&upload::Key>) -> Result<Vec<upload::Key>, EngineError> {
    let Some(Slots { first, last }) = state.slots().of(shard) else { return Ok(Vec::new()) };
    let from = after.map_or(first.to_be_bytes().to_vec(), |key| [key.encode(), vec![0]].concat());
    let to = after_prefix(&last.to_be_bytes());
    let rows = state.reader(shard)?.scan(Table::Upload, &from, &to, SWEEP_ROWS, SWEEP_BYTES)?;
    rows.into_iter().map(|(key, _)| upload::Key::decode(&key).ok_or_else(damaged)).collect()
}

/// A part's place in the chain that a version's header holds: how a reader knows that it was given the parts that were
/// committed.
pub fn add_to_chain(so_far: &[u8], envelope: &[u8]) -> Bytes {
    chain(so_far, envelope)
}

/// Drops uploads that got no part for `idle`, in the shards that this node leads, for ever.
pub(super) async fn sweep(groups: Vec<Arc<Group>>, authors: Arc<Authors>, state: StateStore, idle: Duration) {
    let interval = (idle / SWEEP_SHARE).clamp(SWEEP_INTERVAL_MIN, SWEEP_INTERVAL_MAX);
    let mut seen = vec![None; groups.len()];
    loop {
        tokio::time::sleep(interval).await;
        for (group, seen) in groups.iter().zip(&mut seen) {
            if group.leads() && authors.has_keys() {
                *seen = sweep_shard(group, &authors, &state, idle, seen.take()).await;
            }
        }
    }
}

/// Looks at some uploads; answers behind which one to go on.
async fn sweep_shard(
    group: &Group,
    authors: &Authors,
    state: &StateStore,
    idle: Duration,
    seen: Option<upload::Key>,
) -> Option<upload::Key> {
    let rows = DocumentRows::new(Source::Here(state.clone()));
    let uploads = match uploads(state, group.shard, seen.as_ref()) {
        Ok(uploads) => uploads,
        Err(error) => {
            tracing::error!(shard = group.shard, %error, "cannot look for abandoned uploads; check this node's disk");
            return None;
        }
    };
    for key in &uploads {
        if is_idle(group, &rows, key, idle) {
            drop_upload(group, authors, key, idle).await;
        }
    }
    uploads.last().filter(|_| uploads.len() == SWEEP_ROWS).copied()
}

/// As far as this node sees: what is not, is not proposed.
fn is_idle(group: &Group, rows: &DocumentRows, key: &upload::Key, idle: Duration) -> bool {
    let (Some(now_ms), Ok(Some(row))) = (group.now_ms(), rows.upload(&key.chart, key.upload_id)) else { return false };
    row.dropped || row.last_ms.saturating_add(idle.as_millis() as u64) <= now_ms
}

/// Part by part, so that no command is long.
async fn drop_upload(group: &Group, authors: &Authors, key: &upload::Key, idle: Duration) {
    let command = Command::DropUpload(pb::DropUpload {
        tenant: Bytes::copy_from_slice(&key.chart.tenant),
        chart: Bytes::copy_from_slice(&key.chart.chart),
        upload_id: Bytes::copy_from_slice(&key.upload_id),
        idle_ms: idle.as_millis() as u64,
    });
    let command = command.encode(key.chart.slot);
    loop {
        let Ok(signed) = authors.sign(group, &command) else { return };
        match group.propose_here(&signed, DROP_MAX).await.map(|(outcome, _)| outcome.result) {
            Ok(Some(Answer::PartsDropped(dropped))) if dropped.parts_left > 0 => {}
            Ok(Some(Answer::PartsDropped(_))) => {
                tracing::info!(shard = group.shard, "dropped an upload that was abandoned");
                return;
            }
            // Refused: a part came meanwhile, or a commit. Not answered: the next sweep, or the next leader, asks again.
            _ => return,
        }
    }
}

fn damaged() -> EngineError {
    EngineError::new("state", "a row of a document cannot be decoded")
}
