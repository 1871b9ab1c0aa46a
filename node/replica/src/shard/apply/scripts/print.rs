//! Answers and rows as a script shows them.

use std::fmt::Write;

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::outcome::Result as Answer;
use prost::Message;

use super::super::Progress;
use super::super::merkle::{Frontier, Hash};
use super::super::recorder::leaf_of;
use crate::store::state::memory::MemoryState;
use crate::store::state::{StateEngine, Table};
use crate::store::table::{
    after_prefix, chart, grant, handover, index, key, ledger, ledger_by_chart, part, request, tenant, upload, version,
};
use crate::testing::name_of;

fn rows(state: &MemoryState, table: Table) -> Vec<(Vec<u8>, Bytes)> {
    state.scan(table, &[], &after_prefix(&[]), usize::MAX, usize::MAX).unwrap()
}

fn lines<T>(state: &MemoryState, table: Table, mut line: impl FnMut(Vec<u8>, T) -> String) -> String
where
    T: Message + Default,
{
    let lines = rows(state, table).into_iter().map(|(key, row)| line(key, T::decode(row).unwrap()) + "\n");
    lines.collect::<String>()
}

pub fn outcome(outcome: &pb::Outcome) -> String {
    let Some(answer) = &outcome.result else { return "nothing\n".to_owned() };
    answer_line(answer) + "\n"
}

fn answer_line(answer: &Answer) -> String {
    match answer {
        Answer::Committed(done) => format!("committed seq={} versions={:?}", done.seq, done.versions),
        Answer::PreconditionFailed(failed) => {
            let deleted = if failed.deleted { " deleted" } else { "" };
            let (seq, index, version) = (failed.seq, failed.index, failed.version);
            let wanted = failed.wanted().as_str_name().to_lowercase();
            format!("failed seq={seq}: wanted {wanted} at {index}, found {version}{deleted}")
        }
        Answer::ChartKey(key) => format!("key {} ({})", name_of(&key.key_id), name_of(&key.wrapped_key)),
        Answer::Refused(refused) => refused.reason().as_str_name().to_lowercase().replace('_', " "),
        Answer::Done(done) => format!("done seq={}", done.seq),
        Answer::PartStored(stored) => {
            let complete = if stored.complete { " complete" } else { "" };
            format!("stored, next {}{complete}", stored.next_part)
        }
        Answer::PartsDropped(dropped) => format!("dropped, {} left", dropped.parts_left),
    }
}

pub fn records(state: &MemoryState) -> String {
    lines(state, Table::Version, |key, row: version::Row| {
        let key = version::Key::decode(&key).unwrap();
        let record = key.record;
        let (of_chart, of_type, name) =
            (name_of(&record.chart.chart), name_of(&record.record_type), name_of(&record.record));
        let tombstone = if row.tombstone { " deleted" } else { "" };
        let (request, index) = row.write_id.split_at(16);
        let write = format!("{}/{}", name_of(&request[6..]), index[1]);
        let document = row.document.map_or(String::new(), |of| format!(" of {}:{}", name_of(&of.upload_id), of.parts));
        format!("{of_chart} {of_type}/{name} v{}{tombstone} seq={} write={write}{document}", key.version, row.seq)
    })
}

pub fn charts(state: &MemoryState) -> String {
    let charts = lines(state, Table::Chart, |key, row: chart::Row| {
        let address = chart::decode(&key).unwrap();
        let state = row.state().as_str_name().to_lowercase();
        format!(
            "slot {} {} {state} since={} key={}",
            address.slot,
            name_of(&address.chart),
            row.at_seq,
            name_of(&row.key_id)
        )
    });
    let keys = rows(state, Table::Key).into_iter().map(|(key, wrapped)| {
        let key = key::Key::decode(&key).unwrap();
        format!("{} {}: {}\n", name_of(&key.chart.chart), name_of(&key.key_id), name_of(&wrapped))
    });
    charts + &keys.collect::<String>()
}

/// Open uploads, how many of them the charts count, and all parts.
pub fn uploads(state: &MemoryState) -> String {
    let uploads = lines(state, Table::Upload, |key, row: upload::Row| {
        let key = upload::Key::decode(&key).unwrap();
        let of_chart = name_of(&key.chart.chart);
        let mark = if row.complete { " complete" } else { "" }.to_owned() + if row.dropped { " dropped" } else { "" };
        let (name, parts) = (name_of(&key.upload_id), row.parts);
        format!("{of_chart} {name}: {parts} parts, from {} to {}{mark}", row.started_ms, row.last_ms)
    });
    let counted = rows(state, Table::Chart).into_iter().map(|(key, row)| {
        let (address, row) = (chart::decode(&key).unwrap(), chart::Row::decode(row).unwrap());
        format!(" {}:{}", name_of(&address.chart), row.open_uploads)
    });
    let mut parts = std::collections::BTreeMap::<String, Vec<u32>>::new();
    for (key, _) in rows(state, Table::Part) {
        let key = part::Key::decode(&key).unwrap();
        parts.entry(name_of(&key.upload_id)).or_default().push(key.part);
    }
    let parts = parts.into_iter().map(|(upload, parts)| match parts.len() {
        0..=9 => format!("parts of {upload}: {parts:?}\n"),
        many => format!("parts of {upload}: {many}\n"),
    });
    format!("{uploads}open:{}\n{}", counted.collect::<String>(), parts.collect::<String>())
}

pub fn requests(state: &MemoryState) -> String {
    lines(state, Table::Request, |key, row: request::Row| {
        let id = request::Key::decode(&key).unwrap().request_id;
        let (name, print) = (name_of(&id[6..]), name_of(&row.fingerprint));
        format!("{name} print={print}: {}", answer_line(&row.outcome.unwrap().result.unwrap()))
    })
}

pub fn index(state: &MemoryState) -> String {
    lines(state, Table::Index, |key, row: index::Row| {
        let key = index::Key::decode(&key).unwrap();
        let (term, of_chart) = (name_of(&key.term), name_of(&key.chart));
        let (of_type, name) = (name_of(&key.record_type), name_of(&key.record));
        format!("slot {} {term} {of_chart} {of_type}/{name} at={}", key.slot, row.log_time_ms)
    })
}

/// The rows, and whether the tree that apply keeps is the one over their leaves.
pub fn ledger(state: &MemoryState, shard: crate::ShardId, progress: &Progress) -> String {
    let mut frontier = Frontier::default();
    let text = lines(state, Table::Ledger, |key, row: ledger::Row| {
        let key = ledger::Key::decode(&key).unwrap();
        assert_eq!(key.shard, shard);
        assert_eq!(row.leaf_hash, leaf_of(&row).to_vec(), "the leaf is the row's");
        frontier.push(Hash::try_from(row.leaf_hash.as_ref()).unwrap());
        let mut line =
            format!("{} at={} {} {}:", key.seq, row.log_time_ms, name_of(&row.request_id[6..]), name_of(&row.chart));
        for mutation in &row.mutations {
            let (of_type, name) = (name_of(&mutation.r#type), name_of(&mutation.record));
            let hashed = if mutation.envelopes_sha256.is_empty() { "" } else { "+" };
            write!(line, " op{} {of_type}/{name} v{}{hashed}", mutation.op, mutation.version).unwrap();
        }
        let answer = row.outcome.unwrap().result.unwrap();
        format!("{line} → {}", answer_line(&answer))
    });
    let same = if frontier.root() == progress.frontier.root() { "is" } else { "IS NOT" };
    let by_chart = rows(state, Table::LedgerByChart).into_iter().map(|(key, _)| {
        let key = ledger_by_chart::Key::decode(&key).unwrap();
        format!(" {}:{}", name_of(&key.chart.chart), key.seq)
    });
    format!("{text}by chart:{}\nthe root {same} that of these {} rows\n", by_chart.collect::<String>(), progress.seq)
}

pub fn directory(state: &MemoryState) -> String {
    let clusters = lines(state, Table::Cluster, |_, row: pb::ClusterRow| {
        let format = if row.format == 0 { String::new() } else { format!(" format={}", row.format) };
        format!("cluster {}{format}", row.cluster)
    });
    let tenants = lines(state, Table::Tenant, |key, row: tenant::Row| {
        let uid = name_of(&tenant::decode(&key).unwrap());
        format!("tenant {uid}: {}, at={}", name_of(&row.sealed_name), row.log_time_ms)
    });
    let grants = lines(state, Table::Grant, |key, row: grant::Row| {
        let key = grant::Key::decode(&key).unwrap();
        format!("grant [{}] {} at={}", name_of(&key.tenant), name_of(&key.principal), row.log_time_ms)
    });
    clusters + &tenants + &grants
}

pub fn handovers(state: &MemoryState) -> String {
    lines(state, Table::Handover, |key, row: handover::Row| {
        let (key, slots, given) = (handover::Key::decode(&key).unwrap(), row.slots.unwrap(), row.given.unwrap());
        let at = format!("seq={} time={} subtrees={}", given.seq, given.log_time_ms, given.frontier.len());
        format!("{}-{} from {} to {} {at}", slots.first, slots.last, key.giver, key.taker)
    })
}

pub fn progress(progress: &Progress) -> String {
    let index = progress.log_id.map_or(0, |log_id| log_id.index);
    let roots = progress.recent_roots().iter().map(|(seq, _)| *seq).collect::<Vec<_>>();
    let slots = progress.slots.map_or("none".to_owned(), |slots| format!("{}-{}", slots.first, slots.last));
    let origin = |origin: &pb::Origin| format!(" of {} at {}", origin.shard, origin.seq);
    let origins = progress.origins.iter().map(origin).collect::<String>();
    let time = progress.log_time_ms;
    format!("index={index} seq={} time={time} slots={slots}{origins} roots at {roots:?}\n", progress.seq)
}
