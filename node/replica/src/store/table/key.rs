//! ```text
//! key    slot 2 · tenant 16 · chart 16 · key id 8  →  the chart key, wrapped by the tenant key (an envelope)
//! ```
//! A column family of its own: erasing a chart deletes rows here, and archives keep it apart from the rest.

use super::{ChartAddress, take};

/// Names a chart key: random.
pub type KeyId = [u8; 8];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub chart: ChartAddress,
    pub key_id: KeyId,
}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(42);
        self.chart.write(&mut key);
        key.extend(self.key_id);
        key
    }

    pub fn decode(mut key: &[u8]) -> Option<Self> {
        let found = Self { chart: ChartAddress::read(&mut key)?, key_id: take(&mut key)? };
        key.is_empty().then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::chart_address;
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(chart in chart_address(), key_id: KeyId) {
            let key = Key { chart, key_id };
            proptest::prop_assert_eq!(Key::decode(&key.encode()), Some(key));
        }
    }
}
