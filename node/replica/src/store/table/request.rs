//! ```text
//! request    slot 2 · tenant 16 · request id 16  →  RequestRow: fingerprint, recorded outcome
//! ```
//! What makes a repeated request answer its first outcome. A row is dead exactly when its id would be refused as
//! expired.

pub use charthold_proto::internal::RequestRow as Row;

use super::take;
use crate::{Slot, Token};

/// How long a request id is good, by log time. Older, it is refused, and its row is dead.
pub const AGE_MS_MAX: u64 = 60 * 60 * 1_000;

/// A UUIDv7, as bytes.
pub type RequestId = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub slot: Slot,
    pub tenant: Token,
    pub request_id: RequestId,
}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        [self.slot.to_be_bytes().as_slice(), &self.tenant, &self.request_id].concat()
    }

    pub fn decode(mut key: &[u8]) -> Option<Self> {
        let slot = u16::from_be_bytes(take(&mut key)?);
        let found = Self { slot, tenant: take(&mut key)?, request_id: take(&mut key)? };
        key.is_empty().then_some(found)
    }
}

/// When the id was made, milliseconds since 1970: the first 48 bits of a UUIDv7 (RFC 9562, 5.7).
pub fn made_at_ms(id: &RequestId) -> u64 {
    id[..6].iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(slot: Slot, tenant: Token, request_id: RequestId) {
            let key = Key { slot, tenant, request_id };
            proptest::prop_assert_eq!(Key::decode(&key.encode()), Some(key));
        }
    }

    #[test]
    fn reads_the_time_of_a_uuid_v7() {
        // The example of RFC 9562, appendix A.6: 017F22E2-79B0-7CC3-98C4-DC0C0C07398F
        let id = 0x017F_22E2_79B0_7CC3_98C4_DC0C_0C07_398F_u128.to_be_bytes();
        assert_eq!(made_at_ms(&id), 0x017F_22E2_79B0);
    }
}
