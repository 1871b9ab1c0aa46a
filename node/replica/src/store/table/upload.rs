//! ```text
//! upload    slot 2 · tenant 16 · chart 16 · upload id 16  →  UploadRow: how many parts, since when
//! ```
//! Open uploads only: a commit that refers to one takes its row away, and the parts stay as the version's content.

pub use charthold_proto::internal::UploadRow as Row;

use super::{ChartAddress, take};

/// A UUIDv7, as bytes.
pub type UploadId = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub chart: ChartAddress,
    pub upload_id: UploadId,
}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(50);
        self.chart.write(&mut key);
        key.extend(self.upload_id);
        key
    }

    pub fn decode(mut key: &[u8]) -> Option<Self> {
        let found = Self { chart: ChartAddress::read(&mut key)?, upload_id: take(&mut key)? };
        key.is_empty().then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::chart_address;
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(chart in chart_address(), upload_id: UploadId) {
            let key = Key { chart, upload_id };
            proptest::prop_assert_eq!(Key::decode(&key.encode()), Some(key));
        }
    }
}
