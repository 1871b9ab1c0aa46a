//! A run in one line of JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Plan;
use super::choice::is_hot;
use super::history::{Operation, Status};
use super::nemesis::Fault;
use super::sweep::Violation;
use crate::fault_disk::Lost;

#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub seconds: u64,
    pub sites: usize,
    pub operations: usize,
    pub writes: usize,
    pub reads: usize,
    /// Preconditions that did not hold.
    pub refused: usize,
    /// Calls that were not answered, and had no effect.
    pub failed: usize,
    /// Calls whose outcome was known at the end only.
    pub unknown: usize,
    /// Commits over two records.
    pub transfers: u64,
    /// Calls that those who transfer, list and read histories gave up.
    pub transfers_gave_up: u64,
    pub records: usize,
    /// Of them, those that the search agreed on.
    pub searched: usize,
    /// That nodes installed.
    pub snapshots: usize,
    pub faults: BTreeMap<&'static str, usize>,
    /// What disks lost when their power was cut: what was not synced.
    pub lost: Lost,
    /// By kind of fault, in ms: the longest time from one fault's begin to the next one's in which one of the hot charts
    /// took no write. They are in all shards, so it is that of the shard which was hit worst.
    pub write_outage_ms: BTreeMap<&'static str, u64>,
    pub violations: usize,
    #[serde(skip)]
    pub found: Vec<Violation>,
}

/// What is not in the history.
pub struct Also {
    pub transfers: u64,
    pub transfers_gave_up: u64,
    pub searched: usize,
    pub snapshots: usize,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        operations: &[Operation],
        faults: &[Fault],
        also: &Also,
        found: Vec<Violation>,
    ) -> Self {
        let count =
            |counts: &dyn Fn(&Operation) -> bool| operations.iter().filter(|operation| counts(operation)).count();
        let mut kinds = BTreeMap::new();
        faults.iter().for_each(|fault| *kinds.entry(fault.kind.name()).or_default() += 1);
        for kind in &plan.faults {
            assert!(kinds.contains_key(kind.name()), "no {} happened, though it was to", kind.name());
        }
        let records =
            operations.iter().map(|operation| operation.key.as_str()).collect::<std::collections::HashSet<_>>();
        Self {
            seed: plan.seed,
            seconds: plan.time.as_secs(),
            sites: plan.sites,
            operations: operations.len(),
            writes: count(&|operation| operation.wrote()),
            reads: count(&|operation| !operation.is_write() && operation.status == Status::Ok),
            refused: count(&|operation| operation.is_write() && operation.status == Status::Ok && !operation.hit),
            failed: count(&|operation| operation.status == Status::Fail && operation.returned_ns.is_some()),
            unknown: count(&|operation| operation.returned_ns.is_none()),
            transfers: also.transfers,
            transfers_gave_up: also.transfers_gave_up,
            records: records.len(),
            searched: also.searched,
            snapshots: also.snapshots,
            faults: kinds,
            lost: faults.iter().map(|fault| fault.lost).sum(),
            write_outage_ms: outages(operations, faults),
            violations: found.len(),
            found,
        }
    }
}

fn outages(operations: &[Operation], faults: &[Fault]) -> BTreeMap<&'static str, u64> {
    let mut written = BTreeMap::<&str, Vec<u64>>::new();
    for operation in operations.iter().filter(|operation| is_hot(&operation.key)) {
        let written = written.entry(&operation.key).or_default();
        written.extend(operation.returned_ns.filter(|_| operation.wrote()));
    }
    written.values_mut().for_each(|written| written.sort_unstable());
    let last_call = operations.iter().map(|operation| operation.called_ns).max().unwrap_or(0);
    let mut longest = BTreeMap::new();
    for (index, fault) in faults.iter().enumerate() {
        let end = faults.get(index + 1).map_or(last_call, |next| next.began_ns);
        let of_charts = written.values().map(|written| longest_gap_ms(written, fault.began_ns, end));
        let longest = longest.entry(fault.kind.name()).or_insert(0);
        *longest = of_charts.max().unwrap_or(0).max(*longest);
    }
    longest
}

/// Of times in order, between two times. The end counts too: after a fault that nothing is written after, all of the
/// time is an outage.
fn longest_gap_ms(written: &[u64], begin: u64, end: u64) -> u64 {
    let within = written.iter().copied().filter(|at| (begin..end).contains(at));
    let mut before = begin;
    let gaps = within.chain([end]).map(|at| at.saturating_sub(std::mem::replace(&mut before, at)));
    gaps.max().unwrap_or(0) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::super::history::Function;
    use super::super::nemesis::Kind;
    use super::*;

    #[test]
    fn an_outage_is_that_of_the_worst_chart_and_lasts_to_the_end() {
        const S: u64 = 1_000_000_000;
        let write = |key: &str, called_ns, status| Operation {
            client: 0,
            key: key.to_owned(),
            function: Function::Put,
            value: String::new(),
            expected: None,
            status,
            output: String::new(),
            hit: status == Status::Ok,
            version: 0,
            called_ns,
            returned_ns: Some(called_ns),
        };
        let operations = [
            write("h1/r", S, Status::Ok),
            write("h1/r", 3 * S, Status::Ok),
            write("h2/r", 3 * S + S / 2, Status::Ok),
            write("h2/r", 6 * S, Status::Ok),
            write("h2/r", 9 * S, Status::Fail),
        ];
        let fault = |kind, began_ns| Fault { kind, began_ns, lost: Lost::default() };
        let faults = [fault(Kind::Kill, 2 * S), fault(Kind::Pause, 4 * S)];
        assert_eq!(outages(&operations, &faults), BTreeMap::from([("kill", 1_500), ("pause", 5_000)]));
    }
}
