//! ```text
//! ledger_by_chart    slot 2 · tenant 16 · chart 16 · shard 2 · seq 8  →  ()
//! ```
//! The ledger's index by chart: which outcomes were about this patient.

use super::{ChartAddress, take};
use crate::ShardId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub chart: ChartAddress,
    pub shard: ShardId,
    pub seq: u64,
}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(44);
        self.chart.write(&mut key);
        key.extend(self.shard.to_be_bytes());
        key.extend(self.seq.to_be_bytes());
        key
    }

    pub fn decode(mut key: &[u8]) -> Option<Self> {
        let chart = ChartAddress::read(&mut key)?;
        let shard = u16::from_be_bytes(take(&mut key)?);
        let found = Self { chart, shard, seq: u64::from_be_bytes(take(&mut key)?) };
        key.is_empty().then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::chart_address;
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(chart in chart_address(), shard: ShardId, seq: u64) {
            let key = Key { chart, shard, seq };
            proptest::prop_assert_eq!(Key::decode(&key.encode()), Some(key));
        }
    }
}
