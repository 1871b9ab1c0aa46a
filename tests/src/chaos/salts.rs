//! No two envelopes of one key have one salt: with it they would share what they are sealed with.
//!
//! An envelope begins with version 1, algorithm 1, key id 8, salt 24: these bytes come once in a node's rows.

use std::collections::HashMap;
use std::path::Path;

use charthold_replica::store::state::rocks::RocksState;
use charthold_replica::store::state::{MemoryLimits, StateEngine as _, Table};
use charthold_replica::store::table::{ledger, part, version};
use prost::Message as _;

use super::sweep::Violation;
use crate::harness::Cluster;

const HEADER_LEN: usize = 34;
/// Behind every key.
const END: [u8; 128] = [0xff; 128];
const ROWS_READ: usize = 4_096;
const BYTES_READ: usize = 8 << 20;

/// Of nodes that have stopped.
pub fn check(cluster: &Cluster) -> Vec<Violation> {
    cluster.data_dirs().iter().flat_map(|folder| check_one(folder)).collect()
}

fn check_one(data: &Path) -> Vec<Violation> {
    let state = RocksState::open(&data.join("state"), MemoryLimits::default()).expect("a stopped node's state");
    let (mut seen, mut violations) = (HashMap::new(), Vec::new());
    for table in [Table::Version, Table::Ledger, Table::Part] {
        let mut from = Vec::new();
        loop {
            let rows = state.scan(table, &from, &END, ROWS_READ, BYTES_READ).expect("rows of a stopped node");
            let Some((last, _)) = rows.last() else { break };
            from = [last.as_slice(), &[0]].concat();
            for (key, row) in &rows {
                for envelope in envelopes(table, row) {
                    let header = envelope.get(..HEADER_LEN).expect("an envelope is longer than its header").to_vec();
                    if let Some(other) = seen.insert(header, (table.name(), key.clone())) {
                        let row = |table, key: &[u8]| format!("{table} {}", hex::encode(key));
                        let detail = format!("{} and {}", row(other.0, &other.1), row(table.name(), key));
                        let what = "two envelopes of one key have one salt";
                        violations.push(Violation { what, key: "-".to_owned(), detail });
                    }
                }
            }
        }
    }
    assert!(!seen.is_empty(), "no envelope in {}", data.display());
    violations
}

/// All that are in a row; a tombstone has no body.
fn envelopes(table: Table, row: &[u8]) -> Vec<prost::bytes::Bytes> {
    let decoded = "invariant: a node's own rows can be decoded";
    let all = match table {
        Table::Version => {
            let row = version::Row::decode(row).expect(decoded);
            vec![row.header, row.body]
        }
        Table::Ledger => vec![ledger::Row::decode(row).expect(decoded).audit_event],
        Table::Part => vec![part::Row::decode(row).expect(decoded).envelope],
        _ => Vec::new(),
    };
    all.into_iter().filter(|envelope| !envelope.is_empty()).collect()
}
