//! A 256-bit key: zeroized when dropped, never shown. What it is for is the holder's business.

use std::cell::RefCell;
use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Names a key without telling it: derived from the key, so that a key that was unwrapped can be checked against it.
pub type KeyId = [u8; 8];

pub(super) const KEY_LEN: usize = 32;
/// Random bytes that wait to become salts. Few: were a running machine copied, both would go on with them, and then only what
/// else is in a message key's derivation, the request's id first, keeps the two apart.
const SUPPLY_LEN: usize = 384;

#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; KEY_LEN]);

impl Key {
    pub fn generate() -> Self {
        let mut key = Self([0; KEY_LEN]);
        fill_random(&mut key.0);
        key
    }

    /// The caller's copy stays: keep it in a [`Zeroizing`].
    pub fn from_bytes(bytes: &[u8; KEY_LEN]) -> Self {
        Self(*bytes)
    }

    pub fn id(&self) -> KeyId {
        let mut id = KeyId::default();
        self.expand(&[b"charthold/key-id/v1"], &mut id);
        id
    }

    /// A key of its own for one purpose.
    pub(super) fn subkey(&self, prefix: &str, label: &str) -> Self {
        let mut key = Self([0; KEY_LEN]);
        self.expand(&[prefix.as_bytes(), label.as_bytes()], &mut key.0);
        key
    }

    pub(super) fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    fn expand(&self, info: &[&[u8]], out: &mut [u8]) {
        Hkdf::<Sha256>::new(None, &self.0).expand_multi_info(info, out).expect("a few bytes are within HKDF's limit");
    }
}

impl TryFrom<&[u8]> for Key {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        let bytes = Zeroizing::new(<[u8; KEY_LEN]>::try_from(bytes)?);
        Ok(Self::from_bytes(&bytes))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Without randomness nothing can be sealed, and going on without would be worse than stopping.
pub(super) fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system gives random bytes");
}

/// What is not secret, from a supply that is drawn from the system for some salts at once: a call into the kernel for
/// each of a commit's three envelopes costs more than to seal them. Every byte is given out once.
pub(super) fn fresh_salt<const LEN: usize>() -> [u8; LEN] {
    thread_local! {
        static SUPPLY: RefCell<Supply> = const { RefCell::new(Supply { bytes: [0; SUPPLY_LEN], used: SUPPLY_LEN }) };
    }
    SUPPLY.with_borrow_mut(|supply| {
        if supply.used + LEN > SUPPLY_LEN {
            fill_random(&mut supply.bytes);
            supply.used = 0;
        }
        let at = supply.used;
        supply.used += LEN;
        let mut salt = [0; LEN];
        salt.copy_from_slice(&supply.bytes[at..at + LEN]);
        salt
    })
}

struct Supply {
    bytes: [u8; SUPPLY_LEN],
    used: usize,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Over several supplies, of lengths that do not divide one.
    #[test]
    fn no_random_byte_is_given_out_twice() {
        let salts = (0..SUPPLY_LEN).map(|_| fresh_salt::<13>()).collect::<HashSet<_>>();
        assert_eq!(salts.len(), SUPPLY_LEN);
        let parts = salts.iter().flat_map(|salt| salt.windows(8)).collect::<HashSet<_>>();
        assert_eq!(parts.len(), 6 * SUPPLY_LEN, "no two overlap");
    }
}
