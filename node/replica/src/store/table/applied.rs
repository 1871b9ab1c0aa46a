//! ```text
//! applied    shard 2  →  AppliedRow: log id, seq, log time, membership, Merkle frontier, recent roots
//! ```
//! How far a group has come. Written in the batch of what it describes.

pub use charthold_proto::internal::AppliedRow as Row;

use super::take;
use crate::ShardId;

pub fn encode(shard: ShardId) -> Vec<u8> {
    shard.to_be_bytes().to_vec()
}

pub fn decode(mut key: &[u8]) -> Option<ShardId> {
    let shard = u16::from_be_bytes(take(&mut key)?);
    key.is_empty().then_some(shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(shard: ShardId) {
            proptest::prop_assert_eq!(decode(&encode(shard)), Some(shard));
        }
    }
}
