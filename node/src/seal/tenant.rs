//! A tenant's three secrets, and what is done with them: tokens from the address secret, chart keys, grants and page
//! tokens under the tenant key, audit events under the audit key.

use std::fmt;

use bytes::Bytes;

use super::clear::{Clear, Sealed};
use super::envelope::{Address, Compression, Kind, OpenError, SealError, WriteId, open, seal};
use super::key::{Key, KeyId};
use super::root::RootKey;
use super::token::{Token, Tokens};

/// What a wrapped key is: `op` of its address, so that none is taken for another.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Wrapped {
    TenantKey = 1,
    AuditKey = 2,
    AddressSecret = 3,
    ChartKey = 4,
}

pub struct TenantKeys {
    pub uid: Token,
    tenant_key: Key,
    audit_key: Key,
    /// Never rotates: every token of the tenant hangs on it.
    address_secret: Key,
    tenant_key_id: KeyId,
    audit_key_id: KeyId,
    charts: Tokens,
    slots: Tokens,
    types: Tokens,
    records: Tokens,
    principals: Tokens,
    fingerprints: Tokens,
    terms: Tokens,
    term_slots: Tokens,
}

/// Envelopes under the root key, as the directory keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedTenantKeys {
    pub tenant_key: Bytes,
    pub audit_key: Bytes,
    pub address_secret: Bytes,
}

impl TenantKeys {
    pub fn generate(uid: Token) -> Self {
        Self::new(uid, Key::generate(), Key::generate(), Key::generate())
    }

    pub(super) fn new(uid: Token, tenant_key: Key, audit_key: Key, address_secret: Key) -> Self {
        let tokens = |label| Tokens::new(&address_secret, label);
        Self {
            uid,
            tenant_key_id: tenant_key.id(),
            audit_key_id: audit_key.id(),
            charts: tokens("chart"),
            slots: tokens("slot"),
            types: tokens("type"),
            records: tokens("record"),
            principals: tokens("principal"),
            fingerprints: tokens("fingerprint"),
            terms: tokens("term"),
            term_slots: tokens("term-slot"),
            tenant_key,
            audit_key,
            address_secret,
        }
    }

    pub fn wrap(&self, root: &RootKey) -> WrappedTenantKeys {
        let wrap = |what, key| root.wrap(&wrapped_address(what, self.uid), key).into_bytes();
        WrappedTenantKeys {
            tenant_key: wrap(Wrapped::TenantKey, &self.tenant_key),
            audit_key: wrap(Wrapped::AuditKey, &self.audit_key),
            address_secret: wrap(Wrapped::AddressSecret, &self.address_secret),
        }
    }

    pub fn unwrap(root: &RootKey, uid: Token, wrapped: &WrappedTenantKeys) -> Result<Self, OpenError> {
        let unwrap = |what, sealed| root.unwrap(&wrapped_address(what, uid), sealed);
        Ok(Self::new(
            uid,
            unwrap(Wrapped::TenantKey, &wrapped.tenant_key)?,
            unwrap(Wrapped::AuditKey, &wrapped.audit_key)?,
            unwrap(Wrapped::AddressSecret, &wrapped.address_secret)?,
        ))
    }

    /// `kind` as in the API's `ChartRef.Kind`.
    pub fn chart_token(&self, kind: u8, id: &str) -> Token {
        self.charts.token(&[&[kind], id.as_bytes()])
    }

    pub fn slot(&self, chart: &Token) -> u16 {
        let token = self.slots.token(&[chart]);
        u16::from_be_bytes([token[0], token[1]])
    }

    /// Scoped to the chart: how often a type occurs in one chart says nothing about another's.
    pub fn type_token(&self, chart: &Token, record_type: &str) -> Token {
        self.types.token(&[chart, record_type.as_bytes()])
    }

    pub fn record_token(&self, chart: &Token, record_type: &str, id: &str) -> Token {
        let type_len = (record_type.len() as u32).to_be_bytes();
        self.records.token(&[chart, &type_len, record_type.as_bytes(), id.as_bytes()])
    }

    pub fn principal_token(&self, principal: &str) -> Token {
        self.principals.token(&[principal.as_bytes()])
    }

    /// Tells a repeated commit from another one with the same request id. The principal is part of `canonical`.
    pub fn fingerprint(&self, canonical: &[u8]) -> Token {
        self.fingerprints.token(&[canonical])
    }

    /// What an identifier is in the index: not scoped to a chart, so that it can be looked up. Equal ones show as equal.
    pub fn term_token(&self, system: &str, value: &str) -> Token {
        let system_len = (system.len() as u32).to_be_bytes();
        self.terms.token(&[&system_len, system.as_bytes(), value.as_bytes()])
    }

    /// Where a term's rows live: nothing to do with where its charts do.
    pub fn term_slot(&self, term: &Token) -> u16 {
        let token = self.term_slots.token(&[term]);
        u16::from_be_bytes([token[0], token[1]])
    }

    /// A new key for a chart, and the same wrapped under the tenant key.
    pub fn new_chart_key(&self, chart: &Token) -> (KeyId, Key, Sealed) {
        let key = Key::generate();
        let id = key.id();
        let wrapped = wrap_key(&self.tenant_key, &self.tenant_key_id, &self.chart_key_address(chart, &id), &key);
        (id, key, wrapped)
    }

    pub fn unwrap_chart_key(&self, chart: &Token, key_id: &KeyId, wrapped: &[u8]) -> Result<Key, OpenError> {
        let key = unwrap_key(&self.tenant_key, &self.chart_key_address(chart, key_id), wrapped)?;
        if key.id() == *key_id { Ok(key) } else { Err(OpenError::Malformed) }
    }

    pub fn seal_audit(&self, chart: &Token, write_id: &WriteId, clear: &[u8]) -> Result<Sealed, SealError> {
        seal(&self.audit_key, &self.audit_key_id, &self.audit_address(chart, write_id), clear, Compression::None)
    }

    pub fn open_audit(&self, chart: &Token, write_id: &WriteId, sealed: &[u8]) -> Result<Clear, OpenError> {
        open(&self.audit_key, &self.audit_address(chart, write_id), sealed)
    }

    pub fn seal_grant(&self, principal: &Token, clear: &[u8]) -> Result<Sealed, SealError> {
        self.seal_for(Kind::Grant, principal, clear)
    }

    pub fn open_grant(&self, principal: &Token, sealed: &[u8]) -> Result<Clear, OpenError> {
        open(&self.tenant_key, &Address::of_principal(Kind::Grant, self.uid, *principal), sealed)
    }

    pub fn seal_page_token(&self, principal: &Token, clear: &[u8]) -> Result<Sealed, SealError> {
        self.seal_for(Kind::PageToken, principal, clear)
    }

    pub fn open_page_token(&self, principal: &Token, sealed: &[u8]) -> Result<Clear, OpenError> {
        open(&self.tenant_key, &Address::of_principal(Kind::PageToken, self.uid, *principal), sealed)
    }

    fn seal_for(&self, kind: Kind, principal: &Token, clear: &[u8]) -> Result<Sealed, SealError> {
        let address = Address::of_principal(kind, self.uid, *principal);
        seal(&self.tenant_key, &self.tenant_key_id, &address, clear, Compression::None)
    }

    fn chart_key_address(&self, chart: &Token, key_id: &KeyId) -> Address {
        let mut record = Token::default();
        record[..key_id.len()].copy_from_slice(key_id);
        Address { chart: *chart, record, ..wrapped_address(Wrapped::ChartKey, self.uid) }
    }

    fn audit_address(&self, chart: &Token, write_id: &WriteId) -> Address {
        Address { tenant: self.uid, chart: *chart, write_id: *write_id, ..Address::of(Kind::AuditEvent) }
    }
}

impl fmt::Debug for TenantKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantKeys(redacted)")
    }
}

fn wrapped_address(what: Wrapped, tenant: Token) -> Address {
    Address { op: what as u8, tenant, ..Address::of(Kind::WrappedKey) }
}

pub(super) fn wrap_key(under: &Key, under_id: &KeyId, address: &Address, key: &Key) -> Sealed {
    seal(under, under_id, address, key.expose(), Compression::None).expect("a key is within the size limit")
}

pub(super) fn unwrap_key(under: &Key, address: &Address, sealed: &[u8]) -> Result<Key, OpenError> {
    Key::try_from(open(under, address, sealed)?.expose()).map_err(|_| OpenError::Malformed)
}
