//! ```text
//! version    slot 2 · tenant 16 · chart 16 · type 16 · record 16 · ^version 8  →  VersionRow
//! ```
//! `^version` is inverted: a record's newest version comes first, so that reading it is one seek. A record is stored
//! once: its history and its present are the same rows.

pub use charthold_proto::internal::VersionRow as Row;

use super::{ChartAddress, RecordAddress, after_prefix, take};

/// How much of a key is the record.
pub const RECORD_LEN: usize = 66;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub record: RecordAddress,
    /// From 1.
    pub version: u64,
}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        let mut key = record_prefix(&self.record);
        key.extend((!self.version).to_be_bytes());
        key
    }

    pub fn decode(mut key: &[u8]) -> Option<Self> {
        let chart = ChartAddress::read(&mut key)?;
        let record = RecordAddress { chart, record_type: take(&mut key)?, record: take(&mut key)? };
        let version = !u64::from_be_bytes(take(&mut key)?);
        key.is_empty().then_some(Self { record, version })
    }
}

/// What the keys of all versions of a record begin with, the newest first.
pub fn record_prefix(record: &RecordAddress) -> Vec<u8> {
    let mut key = Vec::with_capacity(RECORD_LEN + size_of::<u64>());
    record.chart.write(&mut key);
    key.extend(record.record_type);
    key.extend(record.record);
    key
}

/// All versions of a record, newest first: from, to.
pub fn record_range(record: &RecordAddress) -> (Vec<u8>, Vec<u8>) {
    let prefix = record_prefix(record);
    let end = after_prefix(&prefix);
    (prefix, end)
}

/// All records of a chart, or of one type: from, to.
pub fn chart_range(chart: &ChartAddress, record_type: Option<&crate::Token>) -> (Vec<u8>, Vec<u8>) {
    let mut prefix = Vec::with_capacity(50);
    chart.write(&mut prefix);
    prefix.extend(record_type.into_iter().flatten());
    let end = after_prefix(&prefix);
    (prefix, end)
}

#[cfg(test)]
mod tests {
    use super::super::testing::record_address;
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(record in record_address(), version: u64) {
            let key = Key { record, version };
            proptest::prop_assert_eq!(Key::decode(&key.encode()), Some(key));
            proptest::prop_assert_eq!(key.encode().len(), 74);
            proptest::prop_assert_eq!(record_prefix(&record).len(), RECORD_LEN);
            let (from, to) = record_range(&record);
            proptest::prop_assert!(from <= key.encode() && key.encode() < to);
            let (from, to) = chart_range(&record.chart, Some(&record.record_type));
            proptest::prop_assert!(from <= key.encode() && key.encode() < to);
        }

        #[test]
        fn newest_first(record in record_address(), a: u64, b: u64) {
            let encode = |version| Key { record, version }.encode();
            proptest::prop_assert_eq!(encode(a).cmp(&encode(b)), b.cmp(&a));
        }
    }
}
