//! The log of all groups of a node, in one engine, written by one thread.
//!
//! Owns order and durability of entries, votes and marks. Must not know what they say: they are bytes.
//!
//! ```text
//! key                              value
//! 0 | shard 2 | 0                  vote
//! 0 | shard 2 | 1                  committed log id
//! 0 | shard 2 | 2                  purged log id
//! 1 | shard 2 | index 8            entry
//! 2 | node id 8                    boot counter 8, nonce 8, synced 8: a peer's newest start, and how far its log was
//! ```
//! Big endian, so that a scan is in order.

pub mod group;
#[cfg(test)]
mod group_tests;
pub mod memory;
pub mod rocks;
mod sizes;
pub mod synced_mark;
pub mod writer;

use bytes::Bytes;

use super::EngineError;
use super::figures::EngineFigures;
use crate::{NodeId, ShardId};

/// One change, in order with all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOp {
    Put {
        key: Vec<u8>,
        value: Bytes,
    },
    /// From inclusive, to exclusive.
    DeleteRange {
        from: Vec<u8>,
        to: Vec<u8>,
    },
}

impl LogOp {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::DeleteRange { from, to } => from.len() + to.len(),
        }
    }
}

/// Rows of a scan: key, value.
pub type LogRows = Vec<(Vec<u8>, Bytes)>;

/// What the log needs of an engine. Writes come from one thread.
pub trait LogEngine: Send + Sync + 'static {
    /// Writes all or nothing, readable on return. With `sync` everything written until now is durable on return.
    /// Answers the engine's own number of the last write, which grows.
    fn write(&self, ops: &[LogOp], sync: bool) -> Result<u64, EngineError>;
    /// The number of the last write that is there.
    fn write_number(&self) -> u64;
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// Rows of `from..to` in order, until they exceed `bytes_max`; the first always.
    fn scan(&self, from: &[u8], to: &[u8], bytes_max: usize) -> Result<LogRows, EngineError>;
    /// The last row of `from..to`.
    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, EngineError>;
    fn figures(&self) -> EngineFigures {
        EngineFigures::default()
    }
}

/// A group's marks, beside its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Vote = 0,
    Committed = 1,
    Purged = 2,
}

fn mark_key(shard: ShardId, mark: Mark) -> Vec<u8> {
    let mut key = vec![0];
    key.extend(shard.to_be_bytes());
    key.push(mark as u8);
    key
}

fn entry_key(shard: ShardId, index: u64) -> Vec<u8> {
    let mut key = vec![1];
    key.extend(shard.to_be_bytes());
    key.extend(index.to_be_bytes());
    key
}

fn index_of(entry_key: &[u8]) -> Result<u64, EngineError> {
    let tail = entry_key.get(3..).and_then(|tail| <[u8; 8]>::try_from(tail).ok());
    tail.map(u64::from_be_bytes).ok_or_else(|| EngineError::new("log", "an entry's key is not 11 bytes long"))
}

pub(crate) fn peer_key(node: NodeId) -> Vec<u8> {
    let mut key = vec![2];
    key.extend(node.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    proptest::proptest! {
        #[test]
        fn entry_keys_round_trip_and_keep_order(a: (u16, u64), b: (u16, u64)) {
            let (key_a, key_b) = (entry_key(a.0, a.1), entry_key(b.0, b.1));
            proptest::prop_assert_eq!(index_of(&key_a).unwrap(), a.1);
            proptest::prop_assert_eq!(key_a.cmp(&key_b), a.cmp(&b));
            proptest::prop_assert!(mark_key(a.0, Mark::Purged) < key_b && key_a < peer_key(b.1));
        }
    }
}
