//! The index's leftovers: rows whose record does not hold their term, or not any more.
//!
//! The node that leads a term's shard looks at its rows, a few at a time, over and over. A young row is left alone: the
//! commit that it was written for may be under way. An old one is verified as a find would; what nothing stands behind
//! is dropped, unless somebody has written it anew meanwhile. Only keyed nodes can do so: a shard that a keyless node
//! leads for a moment waits.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use charthold_proto::internal as pb;
use charthold_replica::replica::index_rows::IndexRow;
use charthold_replica::shard::command::Command;
use charthold_replica::{DIRECTORY, ShardId, all_shards};
use tokio::time::Instant;

use super::Gateway;
use super::audit::now_ms;
use super::error::GatewayError;
use super::find::put_of;
use crate::seal::Token;

const PASS_INTERVAL: Duration = Duration::from_secs(10);
/// Of one shard: some microseconds each.
const PASS_ROWS_MAX: usize = 256;
/// Barriers and proposals of one shard's pass.
const PASS_MAX: Duration = Duration::from_secs(5);

/// Sweeps for ever. `after` is how old a row must be: older than any commit under way can be.
pub async fn run(gateway: Arc<Gateway>, after: Duration) {
    let mut places = HashMap::<ShardId, Vec<u8>>::new();
    loop {
        tokio::time::sleep(PASS_INTERVAL.min(after)).await;
        for shard in all_shards().filter(|shard| *shard != DIRECTORY) {
            let leads = gateway.replica.leader(shard).is_some_and(|(id, _)| id == gateway.replica.node_id);
            if !leads {
                places.remove(&shard);
                continue;
            }
            match gateway.sweep(shard, places.remove(&shard), after).await {
                Ok(Some(next)) => drop(places.insert(shard, next)),
                // From the start again.
                Ok(None) => {}
                Err(error) => tracing::debug!(shard, %error, "the index was not swept; it will be"),
            }
        }
    }
}

impl Gateway {
    /// One pass over some rows of a shard; answers where the next one begins, nothing at the end.
    async fn sweep(
        self: &Arc<Self>,
        shard: ShardId,
        next: Option<Vec<u8>>,
        after: Duration,
    ) -> Result<Option<Vec<u8>>, GatewayError> {
        let deadline = Instant::now() + PASS_MAX;
        let rows = self.replica.index_of_shard(shard, next, PASS_ROWS_MAX)?;
        let next = rows.last().filter(|_| rows.len() == PASS_ROWS_MAX).map(|row| row.key.next());
        let young = now_ms().saturating_sub(after.as_millis() as u64);
        let mut of_tenants = BTreeMap::<Token, Vec<IndexRow>>::new();
        for row in rows.into_iter().filter(|row| row.log_time_ms < young) {
            of_tenants.entry(row.key.tenant).or_default().push(row);
        }
        let mut dropped = 0;
        for (tenant, rows) in of_tenants {
            dropped += self.sweep_tenant(&tenant, rows, deadline).await?;
        }
        if dropped > 0 {
            tracing::debug!(shard, dropped, "rows of the index that nothing stood behind");
        }
        Ok(next)
    }

    async fn sweep_tenant(
        self: &Arc<Self>,
        tenant: &Token,
        rows: Vec<IndexRow>,
        deadline: Instant,
    ) -> Result<usize, GatewayError> {
        let Some(tenant) = self.keyring.tenant(tenant, deadline).await? else { return Ok(0) };
        let keys = rows.iter().map(|row| row.key).collect::<Vec<_>>();
        let moments = self.barriers_of(&tenant, &keys, deadline).await?;
        // A record that does not open is damage: reported where it was found, and no reason to drop what leads to it.
        let is_left_over =
            move |gateway: &Self, row: &IndexRow| matches!(gateway.holder(&tenant, &row.key, &moments), Ok(None));
        let verify =
            move |gateway: &Self| Ok(rows.into_iter().filter(|row| is_left_over(gateway, row)).collect::<Vec<_>>());
        let left_over = self.on_own_thread(verify).await?;
        for row in &left_over {
            let drop = pb::DropIndex { row: Some(put_of(&row.key)), log_time_ms: row.log_time_ms };
            self.propose_index(row.key.slot, Command::DropIndex(drop), deadline).await?;
        }
        Ok(left_over.len())
    }
}
