//! ```text
//! handover    giver 2 · taker 2  →  HandoverRow: slots, where the giver was
//! ```
//! Slots between two shards, on this node: the giver's log was applied up to where it gave them away, so all their rows are
//! here, and the taker has not begun. Of this node alone, and in no snapshot: a replica that came past that point by a
//! snapshot has no such row, nor the rows of those slots.

pub use charthold_proto::internal::HandoverRow as Row;

use super::{after_prefix, take};
use crate::ShardId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub giver: ShardId,
    pub taker: ShardId,
}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        [self.giver.to_be_bytes(), self.taker.to_be_bytes()].concat()
    }

    pub fn decode(mut key: &[u8]) -> Option<Self> {
        let (giver, taker) = (take(&mut key)?, take(&mut key)?);
        let found = Self { giver: u16::from_be_bytes(giver), taker: u16::from_be_bytes(taker) };
        key.is_empty().then_some(found)
    }
}

/// All rows of a giver: from, to.
pub fn giver_range(giver: ShardId) -> (Vec<u8>, Vec<u8>) {
    (giver.to_be_bytes().to_vec(), after_prefix(&giver.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(giver: ShardId, taker: ShardId) {
            let key = Key { giver, taker };
            proptest::prop_assert_eq!(Key::decode(&key.encode()), Some(key));
        }

        #[test]
        fn ranges_hold_exactly_what_they_say(of: ShardId, giver: ShardId, taker: ShardId) {
            let (from, to) = giver_range(of);
            let key = Key { giver, taker }.encode();
            proptest::prop_assert_eq!((from..to).contains(&key), of == giver);
        }
    }
}
