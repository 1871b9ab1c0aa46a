//! Rows that may go by themselves: requests whose id would be refused by now.
//!
//! Owns the rule and the cutoffs. A row is dead exactly when its id would be refused as expired, by the log time of its
//! group; and it may be dropped once that is so in every state that can come back: the one that the last flush made
//! durable (a crash goes back to it), and every pinned view (another replica goes on from it). Else two replicas could
//! answer one repeated request differently.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{StateEngine, Table};
use crate::store::table::{directory_request, request};
use crate::{DIRECTORY, SHARD_COUNT, ShardId, shard_of};

const GROUPS: usize = SHARD_COUNT as usize + 1;

/// By group: requests made before are dead. Grows only, but for pinned views that hold it back.
#[derive(Default)]
pub struct Cutoffs([AtomicU64; GROUPS]);

impl Cutoffs {
    pub fn set(&self, shard: ShardId, made_before_ms: u64) {
        self.0[usize::from(shard)].store(made_before_ms, Ordering::Release);
    }

    fn get(&self, shard: ShardId) -> u64 {
        self.0[usize::from(shard)].load(Ordering::Acquire)
    }
}

/// Whether a row is one that nobody will ask for again.
pub fn is_dead(table: Table, key: &[u8], cutoffs: &Cutoffs) -> bool {
    match table {
        Table::Request => request::Key::decode(key)
            .is_some_and(|key| request::made_at_ms(&key.request_id) < cutoffs.get(shard_of(key.slot))),
        Table::DirectoryRequest => directory_request::decode(key)
            .is_some_and(|request_id| request::made_at_ms(&request_id) < cutoffs.get(DIRECTORY)),
        _ => false,
    }
}

/// Moves an engine's cutoffs as flushes are done and views come and go.
pub struct Expiry {
    engine: Arc<dyn StateEngine>,
    times: Mutex<Times>,
}

#[derive(Default)]
struct Times {
    /// Log time of the last flush, by group.
    flushed_ms: BTreeMap<ShardId, u64>,
    /// How many views are pinned, by group and log time.
    pinned: BTreeMap<(ShardId, u64), usize>,
}

impl Times {
    fn cutoff_ms(&self, shard: ShardId) -> u64 {
        let flushed = self.flushed_ms.get(&shard).copied().unwrap_or(0);
        let oldest = self.pinned.range((shard, 0)..=(shard, u64::MAX)).next().map(|((_, log_time_ms), _)| *log_time_ms);
        oldest.map_or(flushed, |oldest| oldest.min(flushed)).saturating_sub(request::AGE_MS_MAX)
    }
}

impl Expiry {
    pub fn new(engine: Arc<dyn StateEngine>) -> Arc<Self> {
        Arc::new(Self { engine, times: Mutex::default() })
    }

    /// A group's state of this log time is durable.
    pub fn note_flushed(&self, shard: ShardId, log_time_ms: u64) {
        self.change(shard, |times| {
            times.flushed_ms.insert(shard, log_time_ms);
        });
    }

    /// While held, nothing goes that was alive at this log time. To be taken before the view.
    pub fn pin(self: &Arc<Self>, shard: ShardId, log_time_ms: u64) -> Pin {
        self.change(shard, |times| *times.pinned.entry((shard, log_time_ms)).or_default() += 1);
        Pin { expiry: Arc::clone(self), shard, log_time_ms }
    }

    fn change(&self, shard: ShardId, change: impl FnOnce(&mut Times)) {
        let mut times = self.times.lock();
        change(&mut times);
        // Under the lock, so that cutoffs are set in order.
        self.engine.expire_requests(shard, times.cutoff_ms(shard));
    }
}

/// Holds back a group's cutoff until it is dropped.
pub struct Pin {
    expiry: Arc<Expiry>,
    shard: ShardId,
    log_time_ms: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let place = (self.shard, self.log_time_ms);
        self.expiry.change(self.shard, |times| {
            let left = times.pinned.get(&place).copied().unwrap_or(0).saturating_sub(1);
            match left {
                0 => times.pinned.remove(&place),
                left => times.pinned.insert(place, left),
            };
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::super::StateOp;
    use super::super::memory::MemoryState;
    use super::*;

    const HOUR_MS: u64 = request::AGE_MS_MAX;

    fn row(slot: crate::Slot, made_at_ms: u64) -> Vec<u8> {
        let mut request_id = [0xff; 16];
        request_id[..6].copy_from_slice(&made_at_ms.to_be_bytes()[2..]);
        request::Key { slot, tenant: [1; 16], request_id }.encode()
    }

    #[test]
    fn the_oldest_of_flush_and_views_decides() {
        let engine = Arc::new(MemoryState::default());
        let expiry = Expiry::new(Arc::clone(&engine) as Arc<dyn StateEngine>);
        let there = |key: &[u8]| engine.get(Table::Request, key).unwrap().is_some();
        let keys = [10, 20, 30].map(|ms| row(0, ms));
        let other_shard = row(u16::MAX, 10);
        for key in keys.iter().chain([&other_shard]) {
            engine.write(&[StateOp::Put { table: Table::Request, key: key.clone(), value: Bytes::new() }]).unwrap();
        }
        expiry.note_flushed(1, HOUR_MS);
        assert!(keys.iter().all(|key| there(key)), "the age is reached by none");
        let pin = expiry.pin(1, HOUR_MS + 20);
        expiry.note_flushed(1, HOUR_MS + 1_000);
        assert_eq!(keys.each_ref().map(|key| there(key)), [false, true, true], "a view of an hour and 20 is pinned");
        drop(pin);
        assert_eq!(keys.each_ref().map(|key| there(key)), [false; 3]);
        assert!(there(&other_shard), "every group has a log time of its own");
    }
}
