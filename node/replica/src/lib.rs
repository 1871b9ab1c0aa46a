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
//! - [`Slots`]: ranges of slots, and which shard holds which.
//! - [`replica`]: one node's groups put together; what the gateway calls.
//! - [`planted`]: bugs on purpose, for a build that tests the tests.
//! - [`metrics`], [`trace`]: what is measured on the way, and a request followed over nodes.

pub mod directory;
pub mod format;
pub mod metrics;
pub mod peer;
pub mod planted;
pub mod platform;
pub mod replica;
pub mod shard;
mod slots;
pub mod store;
#[cfg(test)]
mod testing;
pub mod trace;

pub use self::slots::{Slot, SlotMap, Slots};

/// A keyed hash that stands for an id. Who does not hold the tenant's address secret can only compare it.
pub type Token = [u8; 16];

/// Names one node for ever: random, made with its data directory, never 0.
pub type NodeId = u64;

/// One Raft group. 0 is the directory.
pub type ShardId = u16;

/// The directory's group.
pub const DIRECTORY: ShardId = 0;

/// How many shards there may be. Each has its group on every node from the start; one that holds no slots is spare.
pub const SHARD_COUNT: u16 = 8;

/// All groups of a node, the directory first.
pub fn all_shards() -> impl Iterator<Item = ShardId> {
    DIRECTORY..=SHARD_COUNT
}
