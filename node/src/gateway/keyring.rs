//! Tenants' and charts' keys, opened and kept for a while.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_replica::DIRECTORY;
use charthold_replica::replica::Replica;
use charthold_replica::replica::rows::ChartRows;
use charthold_replica::shard::command::Command;
use charthold_replica::store::EngineError;
use charthold_replica::store::table::ChartAddress;
use moka::sync::Cache;
use pb::outcome::Result as Answer;
use tokio::time::Instant;

use super::error::GatewayError;
use super::record::refusal;
use crate::seal::{ChartKeyCache, Key, KeyId, RootKey, TenantKeys, Token, WrappedTenantKeys};

const TENANTS_MAX: u64 = 10_000;
const TENANT_IDLE: Duration = Duration::from_secs(10 * 60);
/// How long the absence of a tenant is believed.
const ABSENT_BELIEVED: Duration = Duration::from_secs(1);
const CHART_KEYS_MAX: u64 = 100_000;
/// How long this gateway believes what it knows of a chart's current key: apply refuses a stale one.
const CURRENT_BELIEVED: Duration = Duration::from_secs(10 * 60);

pub struct Keyring {
    replica: Arc<Replica>,
    root: Arc<RootKey>,
    tenants: Cache<Token, Arc<TenantKeys>>,
    absent: Cache<Token, ()>,
    chart_keys: ChartKeyCache,
    /// By tenant and chart.
    current: Cache<(Token, Token), KeyId>,
}

/// The key that seals a chart's records now.
pub struct CurrentKey {
    pub id: KeyId,
    pub key: Arc<Key>,
}

impl Keyring {
    pub fn new(replica: Arc<Replica>, root: Arc<RootKey>) -> Self {
        Self {
            replica,
            root,
            tenants: Cache::builder().max_capacity(TENANTS_MAX).time_to_idle(TENANT_IDLE).build(),
            absent: Cache::builder().max_capacity(TENANTS_MAX).time_to_live(ABSENT_BELIEVED).build(),
            chart_keys: ChartKeyCache::new(CHART_KEYS_MAX),
            current: Cache::builder().max_capacity(CHART_KEYS_MAX).time_to_live(CURRENT_BELIEVED).build(),
        }
    }

    /// A tenant's keys; nothing if there is no such tenant.
    pub async fn tenant(&self, uid: &Token, deadline: Instant) -> Result<Option<Arc<TenantKeys>>, GatewayError> {
        if let Some(keys) = self.tenants.get(uid) {
            return Ok(Some(keys));
        }
        if self.absent.contains_key(uid) {
            return Ok(None);
        }
        let mut row = self.replica.directory().tenant(uid)?;
        if row.is_none() {
            // It may be newer than what this node has applied.
            self.replica.barrier(DIRECTORY, deadline).await?;
            row = self.replica.directory().tenant(uid)?;
        }
        let Some(row) = row else {
            self.absent.insert(*uid, ());
            return Ok(None);
        };
        let wrapped = WrappedTenantKeys {
            tenant_key: row.tenant_key,
            audit_key: row.audit_key,
            address_secret: row.address_secret,
        };
        let keys = Arc::new(TenantKeys::unwrap(&self.root, *uid, &wrapped)?);
        self.tenants.insert(*uid, Arc::clone(&keys));
        Ok(Some(keys))
    }

    /// The key that once sealed what was found in these rows.
    pub fn chart_key(
        &self,
        tenant: &TenantKeys,
        rows: &ChartRows,
        address: &ChartAddress,
        key_id: &[u8],
    ) -> Result<Arc<Key>, GatewayError> {
        let key_id = KeyId::try_from(key_id).map_err(|_| GatewayError::Damaged)?;
        if let Some(key) = self.chart_keys.get(&tenant.uid, &address.chart, &key_id) {
            return Ok(key);
        }
        let wrapped = rows.wrapped_key(address, key_id)?.ok_or(GatewayError::Damaged)?;
        self.unwrap(tenant, address, key_id, &wrapped)
    }

    /// The chart's current key, as far as this node knows; made if the chart has none.
    ///
    /// If it turns out to be stale, `refresh` asks the shard.
    pub async fn current_key(
        &self,
        tenant: &TenantKeys,
        address: &ChartAddress,
        refresh: bool,
        deadline: Instant,
    ) -> Result<CurrentKey, GatewayError> {
        let place = (tenant.uid, address.chart);
        let believed = self.current.get(&place).filter(|_| !refresh);
        if let Some((id, key)) = believed.and_then(|id| Some((id, self.chart_keys.get(&place.0, &place.1, &id)?))) {
            return Ok(CurrentKey { id, key });
        }
        let known = if refresh { None } else { self.known_key(address)? };
        let current = match known {
            Some(current) => current,
            None => self.ensure_key(tenant, address, deadline).await?,
        };
        let id = KeyId::try_from(current.key_id.as_ref()).map_err(|_| GatewayError::Damaged)?;
        let key = match self.chart_keys.get(&tenant.uid, &address.chart, &id) {
            Some(key) => key,
            None => self.unwrap(tenant, address, id, &current.wrapped_key)?,
        };
        self.current.insert(place, id);
        Ok(CurrentKey { id, key })
    }

    /// The current one, as it happens to be where the chart is; nothing also if that cannot be told now.
    fn known_key(&self, address: &ChartAddress) -> Result<Option<pb::ChartKey>, GatewayError> {
        match self.replica.rows_of(address.slot).chart_key(address) {
            Err(EngineError::Unplaced | EngineError::Unreachable) => Ok(None),
            known => Ok(known?),
        }
    }

    /// Offers a new key; the shard answers the one that counts.
    async fn ensure_key(
        &self,
        tenant: &TenantKeys,
        address: &ChartAddress,
        deadline: Instant,
    ) -> Result<pb::ChartKey, GatewayError> {
        let (key_id, _key, wrapped) = tenant.new_chart_key(&address.chart);
        let command = Command::EnsureChartKey(pb::EnsureChartKey {
            tenant: Bytes::copy_from_slice(&address.tenant),
            chart: Bytes::copy_from_slice(&address.chart),
            key_id: Bytes::copy_from_slice(&key_id),
            wrapped_key: wrapped.into_bytes(),
        });
        let proposed = self.replica.propose_at(address.slot, command.encode(address.slot), deadline).await?;
        match proposed.outcome.result {
            Some(Answer::ChartKey(current)) => Ok(current),
            Some(Answer::Refused(refused)) => Err(refusal(&refused)),
            _ => Err(GatewayError::Internal),
        }
    }

    fn unwrap(
        &self,
        tenant: &TenantKeys,
        address: &ChartAddress,
        id: KeyId,
        wrapped: &[u8],
    ) -> Result<Arc<Key>, GatewayError> {
        let key = tenant.unwrap_chart_key(&address.chart, &id, wrapped)?;
        Ok(self.chart_keys.insert(&tenant.uid, &address.chart, &id, key))
    }
}
