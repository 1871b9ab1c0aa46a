//! ```text
//! directory_request    request id 16  →  RequestRow
//! ```
//! As `request`, for the directory's own commands. Apart, so that a shard stays a key range of every table it is in.

pub use charthold_proto::internal::RequestRow as Row;

use super::request::RequestId;

pub fn encode(request_id: &RequestId) -> Vec<u8> {
    request_id.to_vec()
}

pub fn decode(key: &[u8]) -> Option<RequestId> {
    key.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(request_id: RequestId) {
            proptest::prop_assert_eq!(decode(&encode(&request_id)), Some(request_id));
        }
    }
}
