//! ```text
//! grant    tenant 16 · principal 16  →  GrantRow: principal and roles, sealed
//! ```
//! Directory only. Operators' grants have the tenant zero.

pub use charthold_proto::internal::GrantRow as Row;

use super::take;
use crate::Token;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub tenant: Token,
    /// Token of the principal's URI.
    pub principal: Token,
}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        [self.tenant, self.principal].concat()
    }

    pub fn decode(mut key: &[u8]) -> Option<Self> {
        let found = Self { tenant: take(&mut key)?, principal: take(&mut key)? };
        key.is_empty().then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn keys_round_trip(tenant: Token, principal: Token) {
            let key = Key { tenant, principal };
            proptest::prop_assert_eq!(Key::decode(&key.encode()), Some(key));
        }
    }
}
