//! The tables of the state: a file each, with its key's layout on top.
//!
//! Keys are fixed-width and big endian, so that rows of a chart, and charts of a slot range, lie together in order.
//! Values are protobuf messages of `charthold.internal.v1`.

pub mod applied;
pub mod chart;
pub mod cluster;
pub mod directory_request;
pub mod grant;
pub mod handover;
pub mod index;
pub mod key;
pub mod ledger;
pub mod ledger_by_chart;
pub mod part;
pub mod request;
pub mod tenant;
pub mod upload;
pub mod version;

use crate::{Slot, Token};

/// Which chart: the start of most keys. slot 2 · tenant 16 · chart 16
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChartAddress {
    pub slot: Slot,
    pub tenant: Token,
    pub chart: Token,
}

/// Which record. … · type 16 · record 16
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordAddress {
    pub chart: ChartAddress,
    pub record_type: Token,
    pub record: Token,
}

impl ChartAddress {
    fn write(&self, key: &mut Vec<u8>) {
        key.extend(self.slot.to_be_bytes());
        key.extend(self.tenant);
        key.extend(self.chart);
    }

    fn read(key: &mut &[u8]) -> Option<Self> {
        Some(Self { slot: u16::from_be_bytes(take(key)?), tenant: take(key)?, chart: take(key)? })
    }
}

/// Takes a fixed-width field off the front of a key.
fn take<const N: usize>(key: &mut &[u8]) -> Option<[u8; N]> {
    let (field, rest) = key.split_first_chunk::<N>()?;
    *key = rest;
    Some(*field)
}

/// The first key after all that start with a prefix.
pub(crate) fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // A prefix of all ones: nothing sorts after, but a longer key of ones.
    vec![u8::MAX; prefix.len() + 128]
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use proptest::prelude::*;

    pub fn chart_address() -> impl Strategy<Value = ChartAddress> {
        any::<(Slot, Token, Token)>().prop_map(|(slot, tenant, chart)| ChartAddress { slot, tenant, chart })
    }

    pub fn record_address() -> impl Strategy<Value = RecordAddress> {
        (chart_address(), any::<(Token, Token)>()).prop_map(|(chart, (record_type, record))| RecordAddress {
            chart,
            record_type,
            record,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_prefix_ends_after_its_last_key(prefix: Vec<u8>, tail: [u8; 8]) {
            let key = [prefix.as_slice(), &tail].concat();
            proptest::prop_assert!(key < after_prefix(&prefix));
            if let Some(first) = prefix.first().filter(|first| **first < 255) {
                proptest::prop_assert!(after_prefix(&prefix) <= vec![first + 1]);
            }
        }
    }
}
