//! Unwrapped chart keys, so that a commit or a read does not unwrap one each time. Bounded in number and in age.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use super::key::{Key, KeyId};
use super::token::Token;

/// How long the key of an erased chart may outlive the erasure in a gateway's memory.
const KEY_AGE_MAX: Duration = Duration::from_secs(10 * 60);

/// Keys are zeroized once they are out of the cache and out of use.
#[derive(Clone)]
pub struct ChartKeyCache(Cache<(Token, Token, KeyId), Arc<Key>>);

impl ChartKeyCache {
    pub fn new(keys_max: u64) -> Self {
        Self(Cache::builder().max_capacity(keys_max).time_to_live(KEY_AGE_MAX).build())
    }

    pub fn get(&self, tenant: &Token, chart: &Token, key_id: &KeyId) -> Option<Arc<Key>> {
        self.0.get(&(*tenant, *chart, *key_id))
    }

    pub fn insert(&self, tenant: &Token, chart: &Token, key_id: &KeyId, key: Key) -> Arc<Key> {
        let key = Arc::new(key);
        self.0.insert((*tenant, *chart, *key_id), Arc::clone(&key));
        key
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn finds_what_was_put_and_stays_bounded() {
        let cache = ChartKeyCache::new(4);
        let key = Key::generate();
        let id = key.id();
        cache.insert(&[1; 16], &[2; 16], &id, key);
        assert_eq!(cache.get(&[1; 16], &[2; 16], &id).unwrap().id(), id);
        assert!(cache.get(&[2; 16], &[1; 16], &id).is_none());
        for chart in 0..100 {
            let key = Key::generate();
            cache.insert(&[1; 16], &[chart; 16], &key.id(), key);
        }
        cache.0.run_pending_tasks();
        assert!(cache.0.entry_count() <= 4);
    }
}
