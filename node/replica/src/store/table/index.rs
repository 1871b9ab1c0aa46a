//! ```text
//! index    slot 2 · tenant 16 · term 16 · chart 16 · type 16 · record 16  →  IndexRow: when it was written
//! ```
//! Which records may be found by a term: a keyed hash of an identifier. The slot is the term's, so that a row lives in
//! another shard than its chart, mostly. A row is a hint: whether the record holds the term is said by the record alone.

pub use charthold_proto::internal::IndexRow as Row;

use super::{after_prefix, take};
use crate::{Slot, Token};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub slot: Slot,
    pub tenant: Token,
    pub term: Token,
    pub chart: Token,
    pub record_type: Token,
    pub record: Token,
}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        let mut key = term_prefix(self.slot, &self.tenant, &self.term);
        [self.chart, self.record_type, self.record].iter().for_each(|token| key.extend(token));
        key
    }

    pub fn decode(mut key: &[u8]) -> Option<Self> {
        let slot = u16::from_be_bytes(take(&mut key)?);
        let (tenant, term) = (take(&mut key)?, take(&mut key)?);
        let found =
            Self { slot, tenant, term, chart: take(&mut key)?, record_type: take(&mut key)?, record: take(&mut key)? };
        key.is_empty().then_some(found)
    }

    /// Where a walk over rows goes on after this one.
    pub fn next(&self) -> Vec<u8> {
        let mut next = self.encode();
        next.push(0);
        next
    }
}

fn term_prefix(slot: Slot, tenant: &Token, term: &Token) -> Vec<u8> {
    let mut key = Vec::with_capacity(82);
    key.extend(slot.to_be_bytes());
    key.extend(tenant);
    key.extend(term);
    key
}

/// All rows of a term: from, to.
pub fn term_range(slot: Slot, tenant: &Token, term: &Token) -> (Vec<u8>, Vec<u8>) {
    let prefix = term_prefix(slot, tenant, term);
    let end = after_prefix(&prefix);
    (prefix, end)
}

/// All rows of a range of slots: from, to.
pub fn slots_range(first: Slot, last: Slot) -> (Vec<u8>, Vec<u8>) {
    (first.to_be_bytes().to_vec(), after_prefix(&last.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        any::<(Slot, [Token; 5])>().prop_map(|(slot, [tenant, term, chart, record_type, record])| Key {
            slot,
            tenant,
            term,
            chart,
            record_type,
            record,
        })
    }

    proptest! {
        #[test]
        fn keys_round_trip(key in key()) {
            prop_assert_eq!(Key::decode(&key.encode()), Some(key));
            prop_assert_eq!(key.encode().len(), 82);
            prop_assert!(key.encode() < key.next());
            let (from, to) = term_range(key.slot, &key.tenant, &key.term);
            prop_assert!(from <= key.encode() && key.encode() < to);
            let (from, to) = slots_range(key.slot, key.slot);
            prop_assert!(from <= key.encode() && key.encode() < to);
        }
    }
}
