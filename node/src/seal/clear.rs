//! Clear and sealed bytes: two types, so that one is never taken for the other.

use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

/// Opened bytes. Overwritten with zeros when dropped; no `Display`, no serde, and `Debug` says nothing of the content.
pub struct Clear(Zeroizing<Vec<u8>>);

impl Clear {
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn from_zeroizing(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

impl From<Vec<u8>> for Clear {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

/// For the answer to a client, without a copy: still overwritten when the last handle is dropped.
impl From<Clear> for Bytes {
    fn from(clear: Clear) -> Self {
        struct Owner(Clear);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                self.0.expose()
            }
        }
        Bytes::from_owner(Owner(clear))
    }
}

impl fmt::Debug for Clear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clear(redacted)")
    }
}

/// An envelope. Safe to store and to send; its format is on top of the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(pub Bytes);

impl Sealed {
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl AsRef<[u8]> for Sealed {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}
