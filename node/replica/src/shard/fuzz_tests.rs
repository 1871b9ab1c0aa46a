//! What comes from a peer or a disk and is not what it should be: refused, or taken for what it is. Nothing panics, and
//! no replica stops over a command that a leader takes.

#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use charthold_proto::internal as pb;
use proptest::prelude::*;
use prost::Message as _;

use super::apply::partitions::{Step, dump, step, with_keys};
use super::apply::{Applier, Entry, Payload};
use super::codec;
use super::command::{Command, stamp};
use super::snapshot::{Checker, RunningHash};
use crate::directory::plan;
use crate::peer::frame::{Assembler, Kind, MESSAGE_BYTES_MAX, Message};
use crate::store::state::StateEngine;
use crate::store::state::memory::MemoryState;
use crate::testing::mutate::mutated;
use crate::testing::{applier, commit, ensure_key, key_id, put, request_id, slots_of, token};
use crate::{DIRECTORY, SHARD_COUNT, ShardId, Slots};

const SHARD: ShardId = 1;
/// Of each, in a normal run. `PROPTEST_CASES` makes it more.
const CASES: u32 = 4_000;

fn config() -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    if asked { ProptestConfig::default() } else { ProptestConfig::with_cases(CASES) }
}

fn bytes(name: &str) -> Bytes {
    Bytes::copy_from_slice(&token(name))
}

/// One of each kind, all of them good.
fn commands() -> Vec<Bytes> {
    let id = |name: &str| Bytes::copy_from_slice(&request_id(name, 3_600_000));
    let row = pb::PutIndex {
        tenant: bytes("tenant"),
        term: bytes("m"),
        chart: bytes("a"),
        r#type: bytes("t"),
        record: bytes("p"),
    };
    let part = pb::PutPart {
        tenant: bytes("tenant"),
        chart: bytes("a"),
        upload_id: bytes("u"),
        part: 0,
        last: true,
        key_id: key_id("k1"),
        fingerprint: bytes("print"),
        envelope: bytes("sealed"),
    };
    let drop = pb::DropUpload { tenant: bytes("tenant"), chart: bytes("a"), upload_id: bytes("u"), idle_ms: 1 };
    let grant = pb::Grant { tenant: bytes("tenant"), principal: bytes("me"), ..pb::Grant::default() };
    let init = pb::InitCluster {
        request_id: id("init"),
        cluster: "c".to_owned(),
        shards: plan::begin(SHARD_COUNT),
        grant: Some(grant.clone()),
        audit_event: bytes("event"),
        ..pb::InitCluster::default()
    };
    let tenant = pb::PutTenant {
        request_id: id("tenant"),
        tenant: bytes("tenant"),
        audit_event: bytes("event"),
        ..pb::PutTenant::default()
    };
    let put_grant = pb::PutGrant {
        request_id: id("grant"),
        grant: Some(grant),
        audit_event: bytes("event"),
        ..pb::PutGrant::default()
    };
    let remove = pb::RemoveGrant {
        request_id: id("remove"),
        tenant: bytes("tenant"),
        principal: bytes("me"),
        audit_event: bytes("event"),
        ..pb::RemoveGrant::default()
    };
    let given =
        pb::Given { shard: 1, seq: 2, log_time_ms: 3_600_000, frontier: vec![bytes("r")], ..pb::Given::default() };
    let take = pb::TakeSlots { slots: Some(pb::SlotRange { first: 0, last: 8_191 }), given: Some(given) };
    let two = commit(request_id("two", 3_600_000), "a", "k1", vec![put("t/p"), put("t/q")]);
    let place = pb::PlaceShards {
        request_id: id("place"),
        placements: vec![pb::ShardPlacement { shard: 1, nodes: vec![1, 2, 3] }],
        replicas: 3,
        ..pb::PlaceShards::default()
    };
    let commands = [
        Command::Commit(two),
        Command::Commit(commit(request_id("one", 3_600_000), "b", "k1", vec![put("t/p")])),
        Command::EnsureChartKey(ensure_key("a", "k1")),
        Command::DropIndex(pb::DropIndex { row: Some(row.clone()), log_time_ms: 3_600_000 }),
        Command::PutIndex(row),
        Command::PutPart(part),
        Command::DropUpload(drop),
        Command::GiveSlots(pb::GiveSlots { slots: Some(pb::SlotRange { first: 7, last: 8_191 }), to: 2 }),
        Command::TakeSlots(take),
        Command::InitCluster(init),
        Command::PutTenant(tenant),
        Command::PutGrant(put_grant),
        Command::RemoveGrant(remove),
        Command::SplitShard(pb::SplitShard { request_id: id("split"), shard: 1, ..pb::SplitShard::default() }),
        Command::CheckRows(pb::CheckRows { check_id: id("check") }),
        Command::RaiseFormat(pb::RaiseFormat { request_id: id("raise"), format: 3, ..pb::RaiseFormat::default() }),
        Command::PlaceShards(place),
    ];
    commands.iter().map(|command| command.encode(0)).collect()
}

/// A group's state, and what applies to it.
struct Group {
    engine: MemoryState,
    applier: Applier,
    index: u64,
}

impl Group {
    fn new(shard: ShardId) -> Self {
        let engine = MemoryState::default();
        let applier = applier(shard, &engine);
        Self { engine, applier, index: 0 }
    }

    fn apply(&mut self, payload: Payload) -> pb::Outcome {
        self.index += 1;
        let entry = Entry { log_id: pb::LogId { term: 1, leader: 1, index: self.index }, payload };
        let (ops, mut outcomes) = self.applier.apply(&self.engine, vec![entry]).expect("no replica stops");
        self.engine.write(&ops).unwrap();
        outcomes.remove(0)
    }

    fn apply_all(&mut self, steps: &[Step]) {
        steps.iter().for_each(|step| drop(self.apply(step.payload_for(SHARD))));
    }
}

fn frames() -> Vec<Bytes> {
    let message =
        |kind, id, payload: &[u8]| Message { kind, shard: SHARD, id, payload: Bytes::copy_from_slice(payload) };
    let streams: [Vec<Message>; 3] = [
        vec![message(Kind::Echo, 1, b""), message(Kind::Vote, 2, b"vote")],
        vec![message(Kind::Append, 7, &[7; 600]), message(Kind::StreamEnd, 7, b"")],
        vec![message(Kind::Snapshot, 9, &vec![9; 300 << 10])],
    ];
    let written = |messages: Vec<Message>| {
        let mut bytes = BytesMut::new();
        for mut message in messages {
            while !message.write_frame(&mut bytes) {}
        }
        bytes.freeze()
    };
    streams.into_iter().map(written).collect()
}

fn entries() -> Vec<Bytes> {
    let entry = |payload| {
        let log_id = Some(pb::LogId { term: 3, leader: 7, index: 9 });
        let code = Bytes::from_static(&[7; 16]);
        Bytes::from(pb::LogEntry { log_id, payload: Some(payload), code }.encode_to_vec())
    };
    let membership = pb::Membership {
        configs: vec![pb::VoterSet { nodes: vec![1, 2, 3] }],
        members: [1, 2, 3].map(|id| pb::Member { id, name: format!("n{id}"), ..pb::Member::default() }).to_vec(),
    };
    vec![
        entry(pb::log_entry::Payload::Blank(pb::Blank {})),
        entry(pb::log_entry::Payload::Command(commands()[0].clone())),
        entry(pb::log_entry::Payload::Membership(membership)),
    ]
}

fn chunks() -> Vec<Bytes> {
    let mut group = Group::new(SHARD);
    group.apply_all(&with_keys(Vec::new()));
    let mut chunks = std::collections::BTreeMap::<&str, Vec<pb::SnapshotRow>>::new();
    for (table, key, value) in dump(&group.engine) {
        chunks.entry(table.name()).or_default().push(pb::SnapshotRow { key: key.into(), value });
    }
    let chunk = |(table, rows): (&str, _)| pb::SnapshotChunk { table: table.to_owned(), rows }.encode_to_vec().into();
    chunks.into_iter().map(chunk).collect()
}

proptest! {
    #![proptest_config(config())]

    /// A leader stamps whatever a peer forwards, if it can be decoded. From then on it is in the log of all.
    #[test]
    fn a_command_that_a_leader_takes_stops_no_replica(
        command in mutated(commands()),
        before in prop::collection::vec(step(), 0..6),
        after in prop::collection::vec(step(), 0..6),
    ) {
        let Ok(stamped) = stamp(&command, 3_600_000) else { return Ok(()) };
        for shard in [SHARD, DIRECTORY] {
            let mut group = Group::new(shard);
            if shard == SHARD {
                group.apply_all(&with_keys(before.clone()));
            }
            group.apply(Payload::Command(stamped.clone()));
            // Again, and after a restart: what it wrote can be read.
            group.applier = applier(shard, &group.engine);
            group.apply(Payload::Command(stamped.clone()));
            if shard == SHARD {
                group.apply_all(&after);
            }
            commands().into_iter().for_each(|good| drop(group.apply(Payload::Command(good))));
        }
    }

    #[test]
    fn an_entry_is_refused_or_means_something(entry in mutated(entries())) {
        if let Ok(decoded) = codec::decode_entry(entry) {
            let encoded = codec::encode_entry(&decoded);
            prop_assert_eq!(codec::encode_entry(&codec::decode_entry(encoded.clone()).unwrap()), encoded);
        }
    }

    #[test]
    fn marks_are_refused_or_mean_something(mark in mutated(vec![
        codec::encode_vote(&codec::vote_from_pb(Some(pb::Vote { term: 3, node: 7, committed: true })).unwrap()),
        codec::encode_log_id(&codec::log_id_from_pb(&pb::LogId { term: 3, leader: 7, index: 9 })),
    ])) {
        if let Ok(vote) = codec::decode_vote(mark.clone()) {
            prop_assert_eq!(codec::decode_vote(codec::encode_vote(&vote)).unwrap(), vote);
        }
        if let Ok(log_id) = codec::decode_log_id(mark) {
            prop_assert_eq!(codec::decode_log_id(codec::encode_log_id(&log_id)).unwrap(), log_id);
        }
    }

    #[test]
    fn frames_come_whole_or_not_at_all(stream in mutated(frames()), piece in 1..5_000_usize) {
        let (mut assembler, mut input) = (Assembler::default(), BytesMut::new());
        'stream: for piece in stream.chunks(piece) {
            input.extend_from_slice(piece);
            loop {
                match assembler.next(&mut input) {
                    Ok(Some(message)) => prop_assert!(message.payload.len() <= MESSAGE_BYTES_MAX),
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
    }

    #[test]
    fn a_chunk_is_of_this_group_or_refused(chunk in mutated(chunks())) {
        let mut hash = RunningHash::default();
        hash.add(&chunk);
        let part = pb::SnapshotPart { chunk: chunk.clone(), running_sha256: hash.to_bytes() };
        let meta = pb::SnapshotMeta { slots: slots_of(SHARD).map(Slots::to_pb), ..Default::default() };
        let taken = Checker::new(SHARD, &meta).part(&part).is_ok();
        let decoded = pb::SnapshotChunk::decode(chunk);
        prop_assert!(!taken || decoded.is_ok_and(|chunk| chunk.rows.is_sorted_by(|one, next| one.key < next.key)));
    }
}
