//! Page tokens: where a listing goes on. Sealed, so that nobody can make one; bound to caller and query; expiring.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use charthold_proto::internal as pb;
use prost::Message;
use sha2::{Digest, Sha256};

use super::Gateway;
use super::access::{GrantPlace, operator_address};
use super::audit::now_ms;
use super::error::GatewayError;
use crate::seal::{Kind, OpenError};

const GOOD_MS: u64 = 60 * 60 * 1_000;

/// Where a listing is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub as_of_seq: u64,
    pub next: Vec<u8>,
}

impl Gateway {
    /// `query` is the request without its page fields.
    pub fn write_page_token(
        &self,
        of: &GrantPlace,
        method: &str,
        query: &impl Message,
        cursor: Cursor,
    ) -> Result<String, GatewayError> {
        let token = pb::PageToken {
            method: method.to_owned(),
            query: hash(query),
            as_of_seq: cursor.as_of_seq,
            next: cursor.next.into(),
            expires_ms: now_ms() + GOOD_MS,
        };
        let clear = token.encode_to_vec();
        let sealed = match &of.tenant {
            Some(tenant) => tenant.seal_page_token(&of.principal, &clear)?,
            None => self.root.seal_bytes(&operator_address(Kind::PageToken, of.principal), &clear)?,
        };
        Ok(URL_SAFE_NO_PAD.encode(sealed.as_ref()))
    }

    /// Nothing for an empty token: the listing starts.
    pub fn read_page_token(
        &self,
        of: &GrantPlace,
        method: &str,
        query: &impl Message,
        token: &str,
    ) -> Result<Option<Cursor>, GatewayError> {
        if token.is_empty() {
            return Ok(None);
        }
        let invalid = || GatewayError::field("page_token", "is not of this listing, or has expired: list again");
        let sealed = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
        let opened = match &of.tenant {
            Some(tenant) => tenant.open_page_token(&of.principal, &sealed),
            None => self.root.open_bytes(&operator_address(Kind::PageToken, of.principal), &sealed),
        };
        let clear = opened.map_err(|_: OpenError| invalid())?;
        let found = pb::PageToken::decode(clear.expose()).map_err(|_| invalid())?;
        let good = found.method == method && found.query == hash(query) && now_ms() < found.expires_ms;
        match good {
            true => Ok(Some(Cursor { as_of_seq: found.as_of_seq, next: found.next.to_vec() })),
            false => Err(invalid()),
        }
    }
}

fn hash(query: &impl Message) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&Sha256::digest(query.encode_to_vec()))
}
