//! What is wrong at the end of a run: with what clients saw, with what replicas hold.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use charthold_replica::store::state::Table;
use charthold_replica::store::table::{applied, version};
use charthold_replica::{DIRECTORY, all_shards};

use super::gateway::name_of;
use super::node::Node;
use crate::chaos::{Operation, Versions, Violation, check};

type Rows = BTreeMap<(Table, Vec<u8>), Bytes>;

/// Whether all replicas have applied as much: the same rows then, or something is wrong.
pub fn all_equal(nodes: &[Arc<Node>]) -> bool {
    let positions = |node: &Arc<Node>| {
        let rows = node.state().dump();
        all_shards().map(|shard| rows.get(&(Table::Applied, applied::encode(shard))).cloned()).collect::<Vec<_>>()
    };
    let first = positions(&nodes[0]);
    first[usize::from(DIRECTORY)].is_some() && nodes.iter().all(|node| positions(node) == first)
}

/// Of a cluster that has settled.
pub fn violations(nodes: &[Arc<Node>], operations: &mut [Operation], errors: Vec<String>) -> Vec<Violation> {
    let all_rows = nodes.iter().map(|node| node.state().dump()).collect::<Vec<_>>();
    let (mut violations, _) = check(operations, &stored(&all_rows[0]));
    for (node, rows) in nodes.iter().zip(&all_rows) {
        violations.extend(first_difference(&all_rows[0], rows).map(|detail| Violation {
            what: "two replicas differ",
            key: format!("{} and {}", nodes[0].name, node.name),
            detail,
        }));
    }
    let error = |line| Violation { what: "a node complains", key: String::new(), detail: line };
    // One that got a snapshot of a giver and none of the taker says so, and has its state made anew: see `handover.rs`.
    let expected = |line: &String| line.contains("were given to it by shard");
    violations.extend(errors.into_iter().filter(|line| !expected(line)).map(error));
    violations
}

fn first_difference(one: &Rows, other: &Rows) -> Option<String> {
    // Dead rows of requests are dropped by each node in its own time.
    let may_lack = |table| table == Table::Request;
    let differs = |(place, row): &(&(Table, Vec<u8>), &Bytes)| match other.get(place) {
        Some(others) => others != *row,
        None => !may_lack(place.0),
    };
    let added = |(place, _): &(&(Table, Vec<u8>), &Bytes)| !may_lack(place.0) && !one.contains_key(place);
    let (table, key) = one.iter().find(differs).or_else(|| other.iter().find(added))?.0;
    Some(format!("table {} at {}", table.name(), hex::encode(key)))
}

/// All versions of all records.
fn stored(rows: &Rows) -> HashMap<String, Versions> {
    let mut stored = HashMap::<String, BTreeMap<u64, Option<String>>>::new();
    for ((_, key), row) in rows.iter().filter(|((table, _), _)| *table == Table::Version) {
        let key = version::Key::decode(key).expect("a version's key");
        let row = <version::Row as prost::Message>::decode(row.clone()).expect("a version's row");
        let name = format!("{}/{}", name_of(&key.record.chart.chart), name_of(&key.record.record));
        let value = (!row.tombstone).then(|| String::from_utf8_lossy(&row.body).into_owned());
        stored.entry(name).or_default().insert(key.version, value);
    }
    let without_gaps = |(name, versions): (String, BTreeMap<u64, Option<String>>)| {
        assert!(versions.keys().copied().eq(1..=versions.len() as u64), "the history of {name} has a gap");
        (name, versions.into_values().collect())
    };
    stored.into_iter().map(without_gaps).collect()
}
