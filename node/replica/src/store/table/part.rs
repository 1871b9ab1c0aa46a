//! ```text
//! part    slot 2 · tenant 16 · chart 16 · upload id 16 · part 4  →  PartRow: one part of a document, an envelope
//! ```
//! Apart from the versions, so that listing a chart reads no documents.

pub use charthold_proto::internal::PartRow as Row;

use super::upload::UploadId;
use super::{ChartAddress, take};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub chart: ChartAddress,
    pub upload_id: UploadId,
    /// From 0.
    pub part: u32,
}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(54);
        self.chart.write(&mut key);
        key.extend(self.upload_id);
        key.extend(self.part.to_be_bytes());
        key
    }

    pub fn decode(mut key: &[u8]) -> Option<Self> {
        let chart = ChartAddress::read(&mut key)?;
        let found = Self { chart, upload_id: take(&mut key)?, part: u32::from_be_bytes(take(&mut key)?) };
        key.is_empty().then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::chart_address;
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip_in_order(chart in chart_address(), upload_id: UploadId, a: u32, b: u32) {
            let key = |part| Key { chart, upload_id, part };
            proptest::prop_assert_eq!(Key::decode(&key(a).encode()), Some(key(a)));
            proptest::prop_assert_eq!(key(a).encode().cmp(&key(b).encode()), a.cmp(&b));
        }
    }
}
