//! ```text
//! chart    slot 2 · tenant 16 · chart 16  →  ChartRow: open, held or erased, since which seq; the current key id
//! ```

pub use charthold_proto::internal::ChartRow as Row;

use super::ChartAddress;

pub fn encode(chart: &ChartAddress) -> Vec<u8> {
    let mut key = Vec::with_capacity(34);
    chart.write(&mut key);
    key
}

pub fn decode(mut key: &[u8]) -> Option<ChartAddress> {
    let chart = ChartAddress::read(&mut key)?;
    key.is_empty().then_some(chart)
}

#[cfg(test)]
mod tests {
    use super::super::testing::chart_address;
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(chart in chart_address()) {
            proptest::prop_assert_eq!(decode(&encode(&chart)), Some(chart));
        }
    }
}
