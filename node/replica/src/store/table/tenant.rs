//! ```text
//! tenant    tenant 16  →  TenantRow: sealed name, keys wrapped by the root key
//! ```
//! Directory only.

pub use charthold_proto::internal::TenantRow as Row;

use crate::Token;

pub fn encode(tenant: &Token) -> Vec<u8> {
    tenant.to_vec()
}

pub fn decode(key: &[u8]) -> Option<Token> {
    key.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(tenant: Token) {
            proptest::prop_assert_eq!(decode(&encode(&tenant)), Some(tenant));
        }
    }
}
