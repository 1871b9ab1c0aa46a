//! What tests of this crate share.

#![allow(clippy::unwrap_used)]

pub mod disk;
pub mod mutate;
pub mod peers;
pub mod transport;

use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::shard::apply::Applier;
use crate::shard::authors::{AuthorKey, Code};
use crate::store::state::StateEngine;
use crate::store::table::request::RequestId;
use crate::{SHARD_COUNT, ShardId, Slots, Token};

/// No test waits longer; none asserts that it was faster.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// No secret, and else as the real one.
pub struct TestKey;

impl AuthorKey for TestKey {
    fn code(&self, parts: &[&[u8]]) -> Code {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        *hash.finalize().first_chunk().unwrap()
    }

    fn check(&self, parts: &[&[u8]], code: &[u8]) -> bool {
        self.code(parts) == code
    }
}

/// What a shard holds in tests: each an eighth of all.
pub fn slots_of(shard: ShardId) -> Option<Slots> {
    Slots::evenly(SHARD_COUNT).find(|(of, _)| *of == shard).map(|(_, slots)| slots)
}

/// A group's apply, taken up where its state is; one that has applied nothing yet holds its eighth.
pub fn applier(shard: ShardId, engine: &dyn StateEngine) -> Applier {
    let mut applier = Applier::restore(shard, engine).unwrap();
    if applier.progress.log_id.is_none() {
        applier.progress.slots = slots_of(shard);
    }
    applier
}

/// A readable token: the name, padded.
pub fn token(name: &str) -> Token {
    let mut token = [0; 16];
    token[..name.len()].copy_from_slice(name.as_bytes());
    token
}

/// The name back.
pub fn name_of(token: &[u8]) -> String {
    String::from_utf8_lossy(token).trim_end_matches('\0').to_owned()
}

/// An id like a UUIDv7: the time it was made, then its name.
pub fn request_id(name: &str, made_at_ms: u64) -> RequestId {
    let mut id = [0; 16];
    id[..6].copy_from_slice(&made_at_ms.to_be_bytes()[2..]);
    id[6..][..name.len()].copy_from_slice(name.as_bytes());
    id
}

/// A key id: the name, padded.
pub fn key_id(name: &str) -> Bytes {
    Bytes::copy_from_slice(&token(name)[..8])
}

pub fn ensure_key(chart: &str, key: &str) -> pb::EnsureChartKey {
    pb::EnsureChartKey {
        tenant: Bytes::copy_from_slice(&token("tenant")),
        chart: Bytes::copy_from_slice(&token(chart)),
        key_id: key_id(key),
        wrapped_key: Bytes::from(format!("wrapped {key}")),
    }
}

pub fn commit(id: RequestId, chart: &str, key: &str, mutations: Vec<pb::Mutation>) -> pb::Commit {
    pb::Commit {
        tenant: Bytes::copy_from_slice(&token("tenant")),
        chart: Bytes::copy_from_slice(&token(chart)),
        request_id: Bytes::copy_from_slice(&id),
        fingerprint: Bytes::from_static(b"fingerprint"),
        key_id: key_id(key),
        mutations,
        audit_event: Bytes::from_static(b"sealed event"),
    }
}

/// A mutation of the record `type/record`.
pub fn mutation(op: pb::mutation::Op, record: &str, condition: Option<pb::precondition::Condition>) -> pb::Mutation {
    let (record_type, name) = record.split_once('/').unwrap_or(("", record));
    pb::Mutation {
        op: op as i32,
        r#type: Bytes::copy_from_slice(&token(record_type)),
        record: Bytes::copy_from_slice(&token(name)),
        precondition: condition.map(|condition| pb::Precondition { condition: Some(condition) }),
        header: Bytes::from(format!("header of {record}")),
        body: Bytes::from(format!("body of {record}")),
        document: None,
    }
}

/// A replacement without a precondition.
pub fn put(record: &str) -> pb::Mutation {
    mutation(pb::mutation::Op::Put, record, None)
}

/// Asks until the answer is there, for as long as [`WAIT_MAX`].
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
