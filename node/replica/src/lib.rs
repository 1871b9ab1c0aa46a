//! Everything below the wall: Raft groups, storage, node-to-node connections.
//!
//! This crate replicates tokens and sealed bytes. It owns no key, links no cipher and knows no crate above it, so it
//! cannot read a record: that is the wall, and it is why the crate is one. TLS comes in from above as a
//! [`peer::transport::Transport`], clock and randomness as a [`platform::Platform`].
//!
//! # Layout
//! - [`shard`]: one Raft group: propose, read barrier, apply. The only place that names `openraft`.
//! - [`directory`]: the same group with another state machine: tenants and grants, sealed.
//! - [`store`]: the log and the state on disk, a file per table. The only place that names `rocksdb`.
//! - [`peer`]: connections that carry opaque frames.
//! - [`replica`]: one node's groups put together; what the gateway calls.
//! - [`planted`]: bugs on purpose, for a build that tests the tests.
//! - [`metrics`], [`trace`]: what is measured on the way, and a request followed over nodes.

pub mod directory;
pub mod metrics;
pub mod peer;
pub mod planted;
pub mod platform;
pub mod replica;
pub mod shard;
pub mod store;
#[cfg(test)]
mod testing;
pub mod trace;

/// A keyed hash that stands for an id. Who does not hold the tenant's address secret can only compare it.
pub type Token = [u8; 16];

/// Names one node for ever: random, made with its data directory, never 0.
pub type NodeId = u64;

/// One Raft group. 0 is the directory.
pub type ShardId = u16;

/// A chart's place among the shards.
pub type Slot = u16;

/// The directory's group.
pub const DIRECTORY: ShardId = 0;

/// How many shards hold charts. Slots are spread evenly over them.
pub const SHARD_COUNT: u16 = 8;

/// All groups of a node, the directory first.
pub fn all_shards() -> impl Iterator<Item = ShardId> {
    DIRECTORY..=SHARD_COUNT
}

/// The shard that holds a slot.
///
/// Fixed until shards can be moved; apply checks it against its own slot range, so a stale answer is refused, not
/// misplaced.
pub fn shard_of(slot: Slot) -> ShardId {
    1 + slot / slots_per_shard()
}

/// First and last slot of a shard; none for the directory.
pub fn slots_of(shard: ShardId) -> Option<(Slot, Slot)> {
    (1..=SHARD_COUNT).contains(&shard).then(|| {
        let first = (shard - 1) * slots_per_shard();
        (first, first + (slots_per_shard() - 1))
    })
}

const fn slots_per_shard() -> u16 {
    (65_536 / SHARD_COUNT as u32) as u16
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_slot_has_one_shard() {
        for slot in 0..=u16::MAX {
            let (first, last) = slots_of(shard_of(slot)).unwrap();
            assert!((first..=last).contains(&slot));
        }
        assert_eq!(slots_of(DIRECTORY), None);
        assert_eq!(slots_of(SHARD_COUNT + 1), None);
    }
}
