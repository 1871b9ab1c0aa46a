//! How long a majority takes: on a leader, from the sync of an entry in its own log to the begin of its apply.
//!
//! One entry of a shard is watched at a time: a sample, that costs next to nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::metrics::METRICS;
use crate::{SHARD_COUNT, ShardId};

/// The watched entry's index and when it was synced; index 0: none.
struct Watched {
    index: AtomicU64,
    synced: Mutex<Option<Instant>>,
}

static WATCHED: [Watched; SHARD_COUNT as usize + 1] =
    [const { Watched { index: AtomicU64::new(0), synced: Mutex::new(None) } }; SHARD_COUNT as usize + 1];

/// This node's log has an entry.
pub fn synced(shard: ShardId, index: u64) {
    let Some(watched) = WATCHED.get(usize::from(shard)) else { return };
    if watched.index.load(Ordering::Relaxed) == 0 {
        *watched.synced.lock() = Some(Instant::now());
        watched.index.store(index, Ordering::Relaxed);
    }
}

/// It is about to apply up to one; `leads` tells whether somebody here waits for it.
pub fn applies(shard: ShardId, index: u64, leads: bool) {
    let Some(watched) = WATCHED.get(usize::from(shard)) else { return };
    let of = watched.index.load(Ordering::Relaxed);
    if of == 0 || of > index {
        return;
    }
    let synced = watched.synced.lock().take();
    watched.index.store(0, Ordering::Relaxed);
    if let (true, Some(synced)) = (leads, synced) {
        METRICS.quorum.observe(synced.elapsed().as_secs_f64());
    }
}
