//! ```text
//! ledger    shard 2 · seq 8  →  LedgerRow
//! ```
//! Every recorded outcome, numbered without a gap from 1: audit, change feed and point-in-time log in one. The row's
//! leaf hash covers the row with the sealed event replaced by its hash, so that events can be archived elsewhere.

pub use charthold_proto::internal::LedgerRow as Row;

use super::take;
use crate::ShardId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub shard: ShardId,
    pub seq: u64,
}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        [self.shard.to_be_bytes().as_slice(), &self.seq.to_be_bytes()].concat()
    }

    pub fn decode(mut key: &[u8]) -> Option<Self> {
        let found = Self { shard: u16::from_be_bytes(take(&mut key)?), seq: u64::from_be_bytes(take(&mut key)?) };
        key.is_empty().then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip_in_order(shard: ShardId, a: u64, b: u64) {
            let key = Key { shard, seq: a };
            proptest::prop_assert_eq!(Key::decode(&key.encode()), Some(key));
            proptest::prop_assert_eq!(key.encode().cmp(&Key { shard, seq: b }.encode()), a.cmp(&b));
        }
    }
}
