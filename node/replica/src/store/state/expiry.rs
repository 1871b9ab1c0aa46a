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
use crate::{DIRECTORY, SHARD_COUNT, ShardId, SlotMap};

const GROUPS: usize = SHARD_COUNT as usize + 1;

/// What an engine needs to know to tell which rows are dead.
#[derive(Default)]
pub struct Cutoffs {
    /// By group: requests made before are dead. Grows only, but for pinned views that hold it back.
    made_before_ms: [AtomicU64; GROUPS],
    /// Whose a row is. One that is nobody's stays.
    pub slots: SlotMap,
}

impl Cutoffs {
    /// Answers whether it is higher than before: then more rows may be dead.
    pub fn set(&self, shard: ShardId, made_before_ms: u64) -> bool {
        made_before_ms > self.made_before_ms[usize::from(shard)].swap(made_before_ms, Ordering::AcqRel)
    }

    /// No request is dead that was made then or later.
    pub fn latest(&self) -> u64 {
        self.made_before_ms.iter().map(|cutoff| cutoff.load(Ordering::Acquire)).max().unwrap_or(0)
    }

    fn get(&self, shard: ShardId) -> u64 {
        self.made_before_ms[usize::from(shard)].load(Ordering::Acquire)
    }
}

/// Whether a row is one that nobody will ask for again.
pub fn is_dead(table: Table, key: &[u8], cutoffs: &Cutoffs) -> bool {
    match table {
        Table::Request => request::Key::decode(key).is_some_and(|key| {
            let shard = cutoffs.slots.shard_of(key.slot);
            shard.is_some_and(|shard| request::made_at_ms(&key.request_id) < cutoffs.get(shard))
        }),
        Table::DirectoryRequest => directory_request::decode(key)
            .is_some_and(|request_id| request::made_at_ms(&request_id) < cutoffs.get(DIRECTORY)),
        _ => false,
    }
}

/// When the request of a row was made; nothing, if it is a row of something else.
pub fn made_at_ms(table: Table, key: &[u8]) -> Option<u64> {
    let request_id = match table {
        Table::Request => request::Key::decode(key)?.request_id,
        Table::DirectoryRequest => directory_request::decode(key)?,
        _ => return None,
    };
    Some(request::made_at_ms(&request_id))
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
    /// How many views are pinned, by log time. Of whatever group: rows may be another one's by now than in the view.
    pinned: BTreeMap<u64, usize>,
}

impl Times {
    fn cutoff_ms(&self, shard: ShardId) -> u64 {
        let flushed = self.flushed_ms.get(&shard).copied().unwrap_or(0);
        let oldest = self.pinned.keys().next().copied();
        oldest.map_or(flushed, |oldest| oldest.min(flushed)).saturating_sub(request::AGE_MS_MAX)
    }
}

impl Expiry {
    pub fn new(engine: Arc<dyn StateEngine>) -> Arc<Self> {
        Arc::new(Self { engine, times: Mutex::default() })
    }

    /// A group's state of this log time is durable.
    pub fn note_flushed(&self, shard: ShardId, log_time_ms: u64) {
        let mut times = self.times.lock();
        times.flushed_ms.insert(shard, log_time_ms);
        // Under the lock, so that cutoffs are set in order.
        self.engine.expire_requests(shard, times.cutoff_ms(shard));
    }

    /// While held, nothing goes that was alive at this log time. To be taken before the view.
    pub fn pin(self: &Arc<Self>, log_time_ms: u64) -> Pin {
        self.change_pinned(|pinned| *pinned.entry(log_time_ms).or_default() += 1);
        Pin { expiry: Arc::clone(self), log_time_ms }
    }

    fn change_pinned(&self, change: impl FnOnce(&mut BTreeMap<u64, usize>)) {
        let mut times = self.times.lock();
        change(&mut times.pinned);
        for shard in times.flushed_ms.keys() {
            self.engine.expire_requests(*shard, times.cutoff_ms(*shard));
        }
    }
}

/// Holds back all cutoffs until it is dropped.
pub struct Pin {
    expiry: Arc<Expiry>,
    log_time_ms: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.expiry.change_pinned(|pinned| {
            let left = pinned.get(&self.log_time_ms).copied().unwrap_or(0).saturating_sub(1);
            match left {
                0 => pinned.remove(&self.log_time_ms),
                left => pinned.insert(self.log_time_ms, left),
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
    use crate::Slots;

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
        let (other_shard, nobodys) = (row(u16::MAX, 10), row(100, 10));
        engine.slots().set(1, Some(Slots { first: 0, last: 99 }));
        engine.slots().set(2, Some(Slots { first: 1_000, last: u16::MAX }));
        for key in keys.iter().chain([&other_shard, &nobodys]) {
            engine.write(&[StateOp::Put { table: Table::Request, key: key.clone(), value: Bytes::new() }]).unwrap();
        }
        expiry.note_flushed(1, HOUR_MS);
        assert!(keys.iter().all(|key| there(key)), "the age is reached by none");
        let pin = expiry.pin(HOUR_MS + 20);
        expiry.note_flushed(1, HOUR_MS + 1_000);
        assert_eq!(keys.each_ref().map(|key| there(key)), [false, true, true], "a view of an hour and 20 is pinned");
        drop(pin);
        assert_eq!(keys.each_ref().map(|key| there(key)), [false; 3]);
        assert!(there(&other_shard), "every group has a log time of its own");
        assert!(there(&nobodys), "it goes from one shard to another");
        let pin = expiry.pin(HOUR_MS + 5);
        expiry.note_flushed(2, HOUR_MS + 1_000);
        assert!(there(&other_shard), "it may be in the view, as another shard's");
        drop(pin);
        assert!(!there(&other_shard));
        assert!(there(&nobodys));
    }
}
