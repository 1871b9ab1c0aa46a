//! Sealing: the only code that turns clear bytes into sealed ones and back, and ids into tokens.
//!
//! Owns keys, envelopes and tokens. Knows nothing of requests, records' content, storage or the network: it is given an
//! [`Address`] and bytes. Everything here stays above the wall.
//!
//! # Envelope v1
//!
//! Integers are big endian, `|` joins, widths are in bytes.
//!
//! ```text
//! envelope   = version 1 = 1 | alg 1 = 1 | key id 8 | salt 24 | commitment 32 | ciphertext | tag 16
//! AAD        = "charthold/aad/v1" | version | alg | key id | salt | kind 1 | op 1 | tenant 16 | chart 16 | type 16 |
//!              record 16 | write id 18 | part 4 | last 1                       139 bytes, unused fields are zeros
//! OKM        = HKDF-SHA256(key, salt, info = "charthold/envelope/v1" | SHA-256(AAD), 76)
//!            = message key 32 | commitment 32 | nonce 12
//! ciphertext | tag = AES-256-GCM(message key, nonce, AAD, plain)
//! plain      = compression 1 | length of data 4 | data | zeros up to padme(5 + length)
//! data       = clear                                             compression 0
//!            = one zstd frame, which states its content size     compression 1
//! ```
//!
//! A message key is used once: the salt is random, so there is no count of messages to keep below a limit, and nothing
//! to repeat after a restore. The commitment makes an envelope open under one key only. It is compared in constant time
//! before opening, and a wrong one looks like a wrong tag. The address is not in the envelope: whoever opens says where
//! it was found, and an envelope that was moved does not open. Rollback (an old envelope at its own address) is *not*
//! caught here; the ledger's Merkle root does that.
//!
//! `padme(L)` rounds L up so that with E = ⌊log2 L⌋ and S = ⌊log2 E⌋ + 1 its last E − S bits are zero: at most 12 %
//! more, and a length tells only its order and first digits. Clear bytes are at most [`CLEAR_LEN_MAX`], also after
//! decompression.
//!
//! # Addresses
//!
//! | what | sealed under | kind | fields in use |
//! | --- | --- | --- | --- |
//! | body, header | chart key | 1, 2 | op (1 put, 2 delete), tenant, chart, type, record, write id; body: part, last |
//! | part of a document | chart key | 9 | op 1, tenant, chart, write id (the upload's id, then zeros), part, last |
//! | audit event | audit key | 3 | tenant, chart, write id |
//! | tenant key, audit key, address secret | root key | 4 | op (1, 2, 3), tenant |
//! | chart key | tenant key | 4 | op 4, tenant, chart, record (its key id, then zeros) |
//! | tenant's name | root key | 5 | tenant |
//! | grant, page token | tenant key; an operator's: root key | 6, 7 | tenant, record (token of the principal) |
//! | root check | root key | 8 | none; clear is the cluster's name |
//!
//! A body is in one piece: part 0 and last. A document's parts count from 0, and only the last one is `last`.
//!
//! # Keys and tokens
//!
//! ```text
//! key id     = HKDF-SHA256(key, no salt, "charthold/key-id/v1", 8)
//! subkey     = HKDF-SHA256(address secret, no salt, "charthold/token/v1/" | label, 32)
//! token      = first 16 bytes of HMAC-SHA256(subkey, message)
//! ```
//!
//! | label | message |
//! | --- | --- |
//! | chart | kind 1, id |
//! | slot | chart token; the first 2 bytes are the slot |
//! | type | chart token, type |
//! | record | chart token, length of type 4, type, id |
//! | principal | the principal's URI; an operator's: with the root key for address secret |
//! | fingerprint | the canonical clear commit |
//! | term | length of system 4, system, value |
//! | term-slot | term token; the first 2 bytes are the slot |
//!
//! `vectors.json` was computed by `vectors.py`, which was written from this text and shares no code with the crate; the
//! tests reproduce it byte by byte.

mod author;
mod cache;
mod clear;
mod compress;
mod envelope;
mod key;
mod padme;
mod root;
mod tenant;
#[cfg(test)]
mod tests;
mod token;

pub use author::Author;
pub use cache::ChartKeyCache;
pub use clear::{Clear, Sealed};
pub use envelope::{
    Address, CLEAR_LEN_MAX, Compression, ENVELOPE_LEN_MAX, Kind, OpenError, SealError, WriteId, key_id_of, open, seal,
    write_id,
};
pub use key::{Key, KeyId};
pub use root::{
    FileRootKey, RootCheckError, RootKey, RootKeyError, RootKeyProvider, create_root_key_file, provider_from_uri,
};
pub use tenant::{TenantKeys, WrappedTenantKeys};
pub use token::Token;
