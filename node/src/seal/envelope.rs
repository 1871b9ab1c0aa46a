//! Envelope v1: seal and open. The format is on top of the module.
//!
//! Must not know what it seals, nor where keys come from.

use std::fmt;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use charthold_replica::metrics::timed;
use charthold_replica::planted::{self, Bug};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use super::clear::{Clear, Sealed};
use super::compress::{compress_into, decompress};
use super::key::{Key, KeyId, fresh_salt};
use super::padme::padded_len;
use super::token::Token;
use crate::metrics::METRICS;

const VERSION: u8 = 1;
const ALG_HKDF_SHA256_AES256_GCM: u8 = 1;
const SALT_LEN: usize = 24;
const HEADER_LEN: usize = 2 + size_of::<KeyId>() + SALT_LEN;
const COMMITMENT_LEN: usize = 32;
const TAG_LEN: usize = 16;
const FRAME_LEN: usize = 5;
const OVERHEAD_LEN: usize = HEADER_LEN + COMMITMENT_LEN + TAG_LEN;
const AAD_LEN: usize = 139;
const OKM_LEN: usize = 76;

/// Above every message of the API; bounds what opening may allocate.
pub const CLEAR_LEN_MAX: usize = 8 << 20;
/// Padmé adds less than an eighth.
pub const ENVELOPE_LEN_MAX: usize = CLEAR_LEN_MAX + CLEAR_LEN_MAX / 8 + OVERHEAD_LEN;
/// zstd gains nothing below.
const COMPRESS_LEN_MIN: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Body = 1,
    Header = 2,
    AuditEvent = 3,
    WrappedKey = 4,
    Name = 5,
    Grant = 6,
    PageToken = 7,
    RootCheck = 8,
    Part = 9,
}

/// request id 16, mutation index 2
pub type WriteId = [u8; 18];

pub fn write_id(request_id: &[u8; 16], mutation_index: u16) -> WriteId {
    let mut id = [0; 18];
    id[..16].copy_from_slice(request_id);
    id[16..].copy_from_slice(&mutation_index.to_be_bytes());
    id
}

/// Where an envelope belongs. It opens there and nowhere else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub kind: Kind,
    pub op: u8,
    pub tenant: Token,
    pub chart: Token,
    pub record_type: Token,
    pub record: Token,
    pub write_id: WriteId,
    pub part: u32,
    pub last: bool,
}

impl Address {
    /// All else zero.
    pub fn of(kind: Kind) -> Self {
        Self {
            kind,
            op: 0,
            tenant: [0; 16],
            chart: [0; 16],
            record_type: [0; 16],
            record: [0; 16],
            write_id: [0; 18],
            part: 0,
            last: false,
        }
    }

    /// Of a grant or a page token; an operator's tenant is all zeros.
    pub fn of_principal(kind: Kind, tenant: Token, principal: Token) -> Self {
        Self { tenant, record: principal, ..Self::of(kind) }
    }

    /// Of a tenant's name.
    pub fn of_name(tenant: Token) -> Self {
        Self { tenant, ..Self::of(Kind::Name) }
    }

    fn associated_data(&self, header: &[u8; HEADER_LEN]) -> [u8; AAD_LEN] {
        let fields: [&[u8]; 10] = [
            b"charthold/aad/v1",
            header,
            &[self.kind as u8, self.op],
            &self.tenant,
            &self.chart,
            &self.record_type,
            &self.record,
            &self.write_id,
            &self.part.to_be_bytes(),
            &[u8::from(self.last)],
        ];
        let mut aad = [0; AAD_LEN];
        let mut at = 0;
        for field in fields {
            aad[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        debug_assert_eq!(at, AAD_LEN);
        aad
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("kind", &self.kind).field("op", &self.op).finish_non_exhaustive()
    }
}

/// Zstd is a wish: what does not shrink is kept as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Compression {
    None = 0,
    Zstd = 1,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum SealError {
    #[error("more than {CLEAR_LEN_MAX} bytes cannot be sealed")]
    TooLarge,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum OpenError {
    /// Another key, another address or changed bytes: which one is not told.
    #[error("the envelope does not open")]
    Unauthentic,
    #[error("this is not an envelope")]
    Malformed,
    #[error("the envelope's version is not known")]
    UnknownVersion,
}

/// Seals `clear` for `address`. `key_id` is not secret: it says later which key to look for.
pub fn seal(
    key: &Key,
    key_id: &KeyId,
    address: &Address,
    clear: &[u8],
    compression: Compression,
) -> Result<Sealed, SealError> {
    let _timed = timed(&METRICS.seal);
    METRICS.sealed_bytes.observe(clear.len() as f64);
    let salt = if planted::has(Bug::SaltReused) { [0; SALT_LEN] } else { fresh_salt() };
    Ok(seal_plain(key, key_id, &salt, address, frame(clear, compression)?))
}

/// Opens an envelope that was found at `address`.
pub fn open(key: &Key, address: &Address, sealed: &[u8]) -> Result<Clear, OpenError> {
    let _timed = timed(&METRICS.open);
    METRICS.opened_bytes.observe(sealed.len() as f64);
    let envelope = Envelope::parse(sealed)?;
    let aad = address.associated_data(envelope.header);
    let keys = MessageKeys::derive(key, envelope.salt(), &aad);
    if !bool::from(keys.commitment().ct_eq(envelope.commitment)) {
        return Err(OpenError::Unauthentic);
    }
    let mut plain = Zeroizing::new(envelope.ciphertext.to_vec());
    keys.cipher()
        .decrypt_inout_detached(&keys.nonce(), &aad, plain.as_mut_slice().into(), &Tag::from(*envelope.tag))
        .map_err(|_| OpenError::Unauthentic)?;
    unframe(plain)
}

/// Which key sealed this. Not authenticated before [`open`].
pub fn key_id_of(sealed: &[u8]) -> Result<KeyId, OpenError> {
    let mut id = KeyId::default();
    id.copy_from_slice(&Envelope::parse(sealed)?.header[2..2 + size_of::<KeyId>()]);
    Ok(id)
}

pub(super) fn seal_plain(
    key: &Key,
    key_id: &KeyId,
    salt: &[u8; SALT_LEN],
    address: &Address,
    mut plain: Zeroizing<Vec<u8>>,
) -> Sealed {
    let mut header = [VERSION; HEADER_LEN];
    header[1] = ALG_HKDF_SHA256_AES256_GCM;
    header[2..HEADER_LEN - SALT_LEN].copy_from_slice(key_id);
    header[HEADER_LEN - SALT_LEN..].copy_from_slice(salt);
    let aad = address.associated_data(&header);
    let keys = MessageKeys::derive(key, salt, &aad);
    let tag = keys
        .cipher()
        .encrypt_inout_detached(&keys.nonce(), &aad, plain.as_mut_slice().into())
        .expect("the plain bytes are within GCM's 64 GiB");
    Sealed([&header[..], keys.commitment(), &plain, &tag].concat().into())
}

/// The parts of an envelope, by position only.
struct Envelope<'a> {
    header: &'a [u8; HEADER_LEN],
    commitment: &'a [u8; COMMITMENT_LEN],
    ciphertext: &'a [u8],
    tag: &'a [u8; TAG_LEN],
}

impl<'a> Envelope<'a> {
    fn parse(sealed: &'a [u8]) -> Result<Self, OpenError> {
        if sealed.len() < OVERHEAD_LEN + FRAME_LEN || sealed.len() > ENVELOPE_LEN_MAX {
            return Err(OpenError::Malformed);
        }
        if sealed[..2] != [VERSION, ALG_HKDF_SHA256_AES256_GCM] {
            return Err(OpenError::UnknownVersion);
        }
        let (header, rest) = sealed.split_first_chunk().ok_or(OpenError::Malformed)?;
        let (commitment, rest) = rest.split_first_chunk().ok_or(OpenError::Malformed)?;
        let (ciphertext, tag) = rest.split_last_chunk().ok_or(OpenError::Malformed)?;
        Ok(Self { header, commitment, ciphertext, tag })
    }

    fn salt(&self) -> &[u8] {
        &self.header[HEADER_LEN - SALT_LEN..]
    }
}

/// message key 32 | commitment 32 | nonce 12
struct MessageKeys(Zeroizing<[u8; OKM_LEN]>);

impl MessageKeys {
    fn derive(key: &Key, salt: &[u8], aad: &[u8; AAD_LEN]) -> Self {
        let mut okm = Zeroizing::new([0; OKM_LEN]);
        Hkdf::<Sha256>::new(Some(salt), key.expose())
            .expand_multi_info(&[b"charthold/envelope/v1", &Sha256::digest(aad)], okm.as_mut_slice())
            .expect("76 bytes are within HKDF's limit");
        Self(okm)
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new_from_slice(&self.0[..32]).expect("32 bytes are an AES-256 key")
    }

    fn commitment(&self) -> &[u8] {
        &self.0[32..64]
    }

    fn nonce(&self) -> Nonce<aes_gcm::aead::consts::U12> {
        let mut nonce = Nonce::default();
        nonce.copy_from_slice(&self.0[64..]);
        nonce
    }
}

/// compression 1 | length 4 | data | zeros
pub(super) fn frame(clear: &[u8], compression: Compression) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if clear.len() > CLEAR_LEN_MAX {
        return Err(SealError::TooLarge);
    }
    let mut plain = Zeroizing::new(vec![0; padded_len(FRAME_LEN + clear.len())]);
    let room = &mut plain[FRAME_LEN..FRAME_LEN + clear.len()];
    let (compression, len) = match compression {
        Compression::Zstd if clear.len() >= COMPRESS_LEN_MIN => match compress_into(clear, room) {
            Some(len) if len < clear.len() => (Compression::Zstd, len),
            _ => (Compression::None, clear.len()),
        },
        _ => (Compression::None, clear.len()),
    };
    let data_end = FRAME_LEN + len;
    if compression == Compression::None {
        plain[FRAME_LEN..data_end].copy_from_slice(clear);
    }
    plain[0] = compression as u8;
    plain[1..FRAME_LEN].copy_from_slice(&(len as u32).to_be_bytes());
    // The compressor may have used the rest of the buffer.
    plain[data_end..].fill(0);
    plain.truncate(padded_len(data_end));
    Ok(plain)
}

fn unframe(mut plain: Zeroizing<Vec<u8>>) -> Result<Clear, OpenError> {
    let (&[compression, a, b, c, d], rest) = plain.split_first_chunk().ok_or(OpenError::Malformed)?;
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    let (data, padding) = rest.split_at_checked(len).ok_or(OpenError::Malformed)?;
    if padded_len(FRAME_LEN + len) != plain.len() || padding.iter().any(|byte| *byte != 0) {
        return Err(OpenError::Malformed);
    }
    if compression == Compression::Zstd as u8 {
        return decompress(data, CLEAR_LEN_MAX).map(Clear::from_zeroizing).ok_or(OpenError::Malformed);
    }
    if compression != Compression::None as u8 || len > CLEAR_LEN_MAX {
        return Err(OpenError::Malformed);
    }
    plain.copy_within(FRAME_LEN..FRAME_LEN + len, 0);
    plain.truncate(len);
    Ok(Clear::from_zeroizing(plain))
}
