//! A script's lines to log entries.

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::mutation::Op;
use pb::precondition::Condition;

use super::super::Payload;
use crate::shard::apply::document::{chain, chain_start};
use crate::shard::command::{Command, sign, stamp};
use crate::testing::{commit, ensure_key, key_id, mutation, request_id, token};

/// What a line does not say.
pub struct Defaults {
    pub at: u64,
    pub slot: crate::Slot,
}

/// A line's words; `name=value` are options, wherever they stand.
struct Words<'a> {
    words: std::vec::IntoIter<&'a str>,
    options: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn new(line: &'a str) -> Self {
        let (options, words) = line.split_whitespace().partition::<Vec<_>, _>(|word| word.contains('='));
        Self { words: words.into_iter(), options: options.iter().filter_map(|word| word.split_once('=')).collect() }
    }

    fn next(&mut self) -> &'a str {
        self.words.next().expect("a further word")
    }

    fn option(&self, name: &str) -> Option<&'a str> {
        self.options.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }

    fn request_id(&mut self, defaults: &Defaults) -> (Bytes, Bytes) {
        let name = self.next();
        let made_at = self.option("made").map_or(defaults.at, |made| made.parse().unwrap());
        let print = self.option("print").unwrap_or(name);
        (Bytes::copy_from_slice(&request_id(name, made_at)), Bytes::from(print.to_owned()))
    }

    fn token(&mut self) -> Bytes {
        Bytes::copy_from_slice(&token(self.next()))
    }
}

pub fn payload(line: &str, defaults: &Defaults) -> Payload {
    let (head, mutations) = line.split_once(": ").unwrap_or((line, ""));
    let mut words = Words::new(head);
    let event = Bytes::from_static(b"sealed event");
    let command = match words.next() {
        "blank" => return Payload::Blank,
        "members" => {
            let nodes = words.words.map(|word| word.parse().unwrap()).collect();
            let configs = vec![pb::VoterSet { nodes }];
            return Payload::Membership(pb::Membership { configs, members: Vec::new() });
        }
        "raw" => return Payload::Command(unhex(words.next())),
        "key" => Command::EnsureChartKey(ensure_key(words.option("chart").unwrap_or("a"), words.next())),
        "commit" => {
            let (id, fingerprint) = words.request_id(defaults);
            let chart = words.option("chart").unwrap_or("a");
            let mutations = mutations.split(", ").filter(|part| !part.is_empty()).map(parse_mutation).collect();
            let made = commit([0; 16], chart, words.option("key").unwrap_or("k1"), mutations);
            Command::Commit(pb::Commit { request_id: id, fingerprint, ..made })
        }
        "give" => {
            let to = words.option("to").unwrap().parse().unwrap();
            Command::GiveSlots(pb::GiveSlots { slots: Some(slots(words.next())), to })
        }
        "take" => {
            let given = words.option("of").map(|shard| given(shard, &words));
            Command::TakeSlots(pb::TakeSlots { slots: Some(slots(words.next())), given })
        }
        "index" => Command::PutIndex(index(&mut words)),
        "unindex" => {
            let row = Some(index(&mut words));
            Command::DropIndex(pb::DropIndex { row, log_time_ms: words.option("seen").unwrap().parse().unwrap() })
        }
        "part" => Command::PutPart(put_part(&mut words)),
        "drop" => Command::DropUpload(pb::DropUpload {
            tenant: Bytes::copy_from_slice(&token("tenant")),
            upload_id: words.token(),
            chart: Bytes::copy_from_slice(&token(words.option("chart").unwrap_or("a"))),
            idle_ms: words.option("idle").map_or(0, |idle| idle.parse().unwrap()),
        }),
        "init" => {
            let (request_id, fingerprint) = words.request_id(defaults);
            let (cluster, root_check) = ("c".to_owned(), Bytes::from_static(b"root check"));
            let grant = Some(grant(Bytes::from_static(&[0; 16]), words.token()));
            let shards = Vec::new();
            let audit_event = event;
            Command::InitCluster(pb::InitCluster {
                request_id,
                cluster,
                root_check,
                shards,
                grant,
                audit_event,
                fingerprint,
                format: 0,
            })
        }
        "raise" => {
            let (request_id, fingerprint) = words.request_id(defaults);
            let format = words.next().parse().unwrap();
            Command::RaiseFormat(pb::RaiseFormat { request_id, format, audit_event: event, fingerprint })
        }
        "check" => Command::CheckRows(pb::CheckRows { check_id: words.token() }),
        "tenant" => {
            let (request_id, fingerprint) = words.request_id(defaults);
            let name = words.next();
            let key = |kind: &str| Bytes::from(format!("{kind} of {name}"));
            Command::PutTenant(pb::PutTenant {
                request_id,
                tenant: Bytes::copy_from_slice(&token(words.option("uid").unwrap_or(name))),
                sealed_name: key("name"),
                tenant_key: key("key"),
                audit_key: key("audit key"),
                address_secret: key("secret"),
                audit_event: event,
                fingerprint,
            })
        }
        "grant" => {
            let (request_id, fingerprint) = words.request_id(defaults);
            let grant = Some(grant(words.token(), words.token()));
            Command::PutGrant(pb::PutGrant { request_id, grant, audit_event: event, fingerprint })
        }
        "ungrant" => {
            let (request_id, fingerprint) = words.request_id(defaults);
            let (tenant, principal) = (words.token(), words.token());
            Command::RemoveGrant(pb::RemoveGrant { request_id, tenant, principal, audit_event: event, fingerprint })
        }
        unknown => panic!("unknown entry {unknown}"),
    };
    let issued_ms = words.option("issued").map_or(u64::MAX, |issued| issued.parse().unwrap());
    let issued = sign(&command.encode(defaults.slot), 1, issued_ms, |_| [0; 16]).unwrap();
    Payload::Command(stamp(&issued, defaults.at).unwrap())
}

fn slots(range: &str) -> pb::SlotRange {
    let (first, last) = range.split_once('-').unwrap();
    pb::SlotRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
}

/// Whose frontier is of zeros.
fn given(shard: &str, words: &Words<'_>) -> pb::Given {
    let seq = words.option("seq").unwrap().parse::<u64>().unwrap();
    pb::Given {
        shard: shard.parse().unwrap(),
        seq,
        log_time_ms: words.option("at-ms").unwrap().parse().unwrap(),
        frontier: vec![Bytes::from_static(&[0; 32]); seq.count_ones() as usize],
        ..Default::default()
    }
}

fn index(words: &mut Words<'_>) -> pb::PutIndex {
    let term = words.token();
    let record = mutation(Op::Put, words.next(), None);
    let chart = Bytes::copy_from_slice(&token(words.option("chart").unwrap_or("a")));
    let tenant = Bytes::copy_from_slice(&token("tenant"));
    pb::PutIndex { tenant, term, chart, r#type: record.r#type, record: record.record }
}

fn grant(tenant: Bytes, principal: Bytes) -> pb::Grant {
    pb::Grant { tenant, principal, sealed_grant: Bytes::from_static(b"sealed grant") }
}

fn put_part(words: &mut Words) -> pb::PutPart {
    let name = words.next();
    let part = words.next().parse().unwrap();
    pb::PutPart {
        tenant: Bytes::copy_from_slice(&token("tenant")),
        chart: Bytes::copy_from_slice(&token(words.option("chart").unwrap_or("a"))),
        upload_id: Bytes::copy_from_slice(&token(name)),
        part,
        last: words.words.next() == Some("last"),
        key_id: key_id(words.option("key").unwrap_or("k1")),
        fingerprint: Bytes::from(words.option("print").unwrap_or("print").to_owned()),
        envelope: envelope(name, part),
    }
}

fn envelope(upload: &str, part: u32) -> Bytes {
    Bytes::from(format!("part {part} of {upload}"))
}

/// `u1:3`: the upload with its first three parts.
fn document(text: &str) -> pb::Document {
    let (upload, parts) = text.split_once(':').expect("upload:parts");
    let parts = parts.parse().unwrap();
    pb::Document {
        upload_id: Bytes::copy_from_slice(&token(upload)),
        parts,
        parts_sha256: (0..parts).fold(chain_start(), |so_far, part| chain(&so_far, &envelope(upload, part))),
    }
}

fn parse_mutation(text: &str) -> pb::Mutation {
    let mut words = text.split_whitespace();
    let op = match words.next() {
        Some("put") => Op::Put,
        Some("delete") => Op::Delete,
        Some("check") => Op::Check,
        Some("unspecified") => Op::Unspecified,
        other => panic!("unknown mutation {other:?}"),
    };
    let record = words.next().expect("a record");
    let (of, conditions) = words.partition::<Vec<_>, _>(|word| word.starts_with("of:"));
    let condition = conditions.first().map(|word| match word.strip_prefix('=') {
        Some(version) => Condition::Version(version.parse().unwrap()),
        None if *word == "absent" => Condition::MustNotExist(true),
        None => panic!("unknown precondition {word}"),
    });
    let made = mutation(op, record, condition);
    match of.first().and_then(|word| word.strip_prefix("of:")) {
        Some(text) => pb::Mutation { body: Bytes::new(), document: Some(document(text)), ..made },
        None => made,
    }
}

fn unhex(text: &str) -> Bytes {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}
