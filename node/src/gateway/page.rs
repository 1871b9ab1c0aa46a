//! Page tokens: where a listing goes on. Sealed, so that nobody can make one; bound to caller and query; expiring.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use charthold_proto::internal as pb;
use prost::Message;
use sha2::{Digest, Sha256};

use super::Gateway;
use super::access::{Caller, GrantPlace, operator_address};
use super::audit::now_ms;
use super::error::GatewayError;
use crate::seal::{Kind, OpenError, RootKey};

const GOOD_MS: u64 = 60 * 60 * 1_000;

/// Where a listing is. What comes next may be a clinical date: not to be printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    pub as_of_seq: u64,
    pub next: Vec<u8>,
}

/// Whose page tokens those of a tenant's service are.
pub fn place_of(caller: &Caller) -> GrantPlace {
    GrantPlace { tenant: Some(Arc::clone(&caller.tenant)), principal: caller.tenant.principal_token(&caller.principal) }
}

impl Gateway {
    /// `query` is the request without its context and its page fields.
    pub fn write_page_token(
        &self,
        of: &GrantPlace,
        method: &str,
        query: &impl Message,
        cursor: Cursor,
    ) -> Result<String, GatewayError> {
        write(&self.root, of, method, query, cursor, now_ms())
    }

    /// Nothing for an empty token: the listing starts.
    pub fn read_page_token(
        &self,
        of: &GrantPlace,
        method: &str,
        query: &impl Message,
        token: &str,
    ) -> Result<Option<Cursor>, GatewayError> {
        match token.is_empty() {
            true => Ok(None),
            false => read(&self.root, of, method, query, token, now_ms()).map(Some),
        }
    }
}

fn write(
    root: &RootKey,
    of: &GrantPlace,
    method: &str,
    query: &impl Message,
    cursor: Cursor,
    now_ms: u64,
) -> Result<String, GatewayError> {
    let token = pb::PageToken {
        method: method.to_owned(),
        query: hash(query),
        as_of_seq: cursor.as_of_seq,
        next: cursor.next.into(),
        expires_ms: now_ms + GOOD_MS,
    };
    let clear = token.encode_to_vec();
    let sealed = match &of.tenant {
        Some(tenant) => tenant.seal_page_token(&of.principal, &clear)?,
        None => root.seal_bytes(&operator_address(Kind::PageToken, of.principal), &clear)?,
    };
    Ok(URL_SAFE_NO_PAD.encode(sealed.as_ref()))
}

fn read(
    root: &RootKey,
    of: &GrantPlace,
    method: &str,
    query: &impl Message,
    token: &str,
    now_ms: u64,
) -> Result<Cursor, GatewayError> {
    let invalid = || GatewayError::field("page_token", "is not of this listing, or has expired: list again");
    let sealed = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    let opened = match &of.tenant {
        Some(tenant) => tenant.open_page_token(&of.principal, &sealed),
        None => root.open_bytes(&operator_address(Kind::PageToken, of.principal), &sealed),
    };
    let clear = opened.map_err(|_: OpenError| invalid())?;
    let found = pb::PageToken::decode(clear.expose()).map_err(|_| invalid())?;
    let good = found.method == method && found.query == hash(query) && now_ms < found.expires_ms;
    match good {
        true => Ok(Cursor { as_of_seq: found.as_of_seq, next: found.next.to_vec() }),
        false => Err(invalid()),
    }
}

fn hash(query: &impl Message) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&Sha256::digest(query.encode_to_vec()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use charthold_proto::v1::ListRequest;
    use proptest::prelude::*;

    use std::sync::LazyLock;

    use super::*;
    use crate::mutate::mutated;
    use crate::seal::{Key, TenantKeys, Token};

    fn place(tenant: Option<&Arc<TenantKeys>>, principal: Token) -> GrantPlace {
        GrantPlace { tenant: tenant.cloned(), principal }
    }

    /// Of which others are made.
    static GOOD: LazyLock<(RootKey, String)> = LazyLock::new(|| {
        let root = RootKey::new(Key::generate());
        let cursor = Cursor { as_of_seq: 7, next: vec![7; 32] };
        let token = write(&root, &place(None, [7; 16]), "List", &ListRequest::default(), cursor, 0).ok().unwrap();
        (root, token)
    });

    proptest! {
        #[test]
        fn no_other_text_is_a_token(text in mutated(vec![GOOD.1.clone().into(), "AQEB".into()])) {
            let (root, good) = &*GOOD;
            let text = String::from_utf8_lossy(&text);
            let found = read(root, &place(None, [7; 16]), "List", &ListRequest::default(), &text, 0);
            prop_assert!(found.is_err() || text == good.as_str());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_token_is_good_for_its_caller_query_and_hour_only(
            as_of_seq: u64,
            next: Vec<u8>,
            now in 0..u64::MAX / 2,
            later in 0..2 * GOOD_MS,
            of_operator: bool,
            flip in any::<prop::sample::Index>(),
        ) {
            let root = RootKey::new(Key::generate());
            let tenants = [[1; 16], [2; 16]].map(|uid| Arc::new(TenantKeys::generate(uid)));
            let of = place(Some(&tenants[0]).filter(|_| !of_operator), [7; 16]);
            let query = ListRequest { r#type: "Note".to_owned(), ..Default::default() };
            let cursor = Cursor { as_of_seq, next };
            let token = write(&root, &of, "List", &query, cursor.clone(), now).ok().unwrap();
            let reads = |of: &GrantPlace, method: &str, query: &ListRequest, token: &str, now| {
                read(&root, of, method, query, token, now).ok()
            };

            let found = reads(&of, "List", &query, &token, now + later);
            prop_assert!(found == Some(cursor).filter(|_| later < GOOD_MS));
            prop_assert!(reads(&of, "History", &query, &token, now).is_none());
            prop_assert!(reads(&place(of.tenant.as_ref(), [8; 16]), "List", &query, &token, now).is_none());
            prop_assert!(reads(&place(Some(&tenants[1]), [7; 16]), "List", &query, &token, now).is_none());
            let others = [
                ListRequest { order: 1, ..query.clone() },
                ListRequest { as_of: "01".to_owned(), ..query.clone() },
                ListRequest { status: vec!["final".to_owned()], ..query.clone() },
                ListRequest { clinical_from: "2024".to_owned(), ..query.clone() },
                ListRequest { clinical_to: "2024".to_owned(), ..query.clone() },
                ListRequest { include_deleted: true, ..query.clone() },
                ListRequest { r#type: String::new(), ..query.clone() },
            ];
            for other in others {
                prop_assert!(reads(&of, "List", &other, &token, now).is_none());
            }
            let mut changed = URL_SAFE_NO_PAD.decode(&token).unwrap();
            *flip.get_mut(&mut changed) ^= 1;
            prop_assert!(reads(&of, "List", &query, &URL_SAFE_NO_PAD.encode(changed), now).is_none());
        }
    }
}
