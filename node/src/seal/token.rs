//! Tokens: keyed hashes that stand for ids below the gateway. Same id, same token; nothing else is told.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::key::Key;

/// The same type as `charthold_replica::Token`, which may not depend on this crate.
pub type Token = [u8; 16];

/// One subkey of an address secret: tokens of one purpose.
pub(super) struct Tokens(Key);

impl Tokens {
    pub fn new(secret: &Key, label: &str) -> Self {
        Self(secret.subkey("charthold/token/v1/", label))
    }

    /// The caller sees to it that different messages differ when their parts are joined.
    pub fn token(&self, parts: &[&[u8]]) -> Token {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose()).expect("HMAC takes keys of any length");
        for part in parts {
            mac.update(part);
        }
        let mut token = Token::default();
        token.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        token
    }
}
