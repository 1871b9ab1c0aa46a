//! The key that all nodes with keys share, and with which they put their code on what they write and whom they make a
//! member: see `charthold_replica::shard::authors`.

use charthold_replica::shard::authors::{AuthorKey, Code};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::key::Key;

/// HMAC-SHA256 (RFC 2104) under a subkey of the root key, of which the first 128 bits are kept.
pub struct Author(Key);

impl Author {
    pub(super) fn new(root: &Key, cluster: &str) -> Self {
        Self(root.subkey("charthold/author/v1/", cluster))
    }

    /// Each part with its length, so that no two lists of parts are one message.
    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose()).expect("HMAC takes keys of any length");
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

impl AuthorKey for Author {
    fn code(&self, parts: &[&[u8]]) -> Code {
        let mut code = Code::default();
        let len = code.len();
        code.copy_from_slice(&self.mac(parts).finalize().into_bytes()[..len]);
        code
    }

    fn check(&self, parts: &[&[u8]], code: &[u8]) -> bool {
        code.len() == Code::default().len() && self.mac(parts).verify_truncated_left(code).is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_code_is_of_one_key_one_cluster_and_these_parts() {
        let root = Key::from_bytes(&[7; 32]);
        let author = Author::new(&root, "c");
        let parts: [&[u8]; 2] = [b"ab", b"c"];
        let code = author.code(&parts);
        assert!(author.check(&parts, &code));
        // HMAC-SHA256(HKDF(root, "charthold/author/v1/c"), 2 as 8 bytes | "ab" | 1 as 8 bytes | "c"), by Python.
        assert_eq!(hex::encode(code), "2200c146f9376f511ef2e93cdd417bd5");
        assert!(!author.check(&[b"a", b"bc"], &code) && !author.check(&[b"abc"], &code));
        assert!(!author.check(&parts, &code[..15]) && !author.check(&parts, b""));
        let mut other = code;
        other[15] ^= 1;
        assert!(!author.check(&parts, &other));
        assert!(!Author::new(&root, "d").check(&parts, &code));
        assert!(!Author::new(&Key::from_bytes(&[8; 32]), "c").check(&parts, &code));
    }
}
