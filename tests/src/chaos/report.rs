//! A run in one line of JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Plan;
use super::history::{Operation, Status};
use super::nemesis::Fault;
use super::sweep::Violation;

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
    pub records: usize,
    /// Of them, those that the search agreed on.
    pub searched: usize,
    pub faults: BTreeMap<&'static str, usize>,
    /// By kind of fault: the longest time without a successful write from one fault's begin to the next one's, in ms.
    pub write_outage_ms: BTreeMap<&'static str, u64>,
    pub violations: usize,
    #[serde(skip)]
    pub found: Vec<Violation>,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        operations: &[Operation],
        faults: &[Fault],
        transfers: u64,
        searched: usize,
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
            transfers,
            records: records.len(),
            searched,
            faults: kinds,
            write_outage_ms: outages(operations, faults),
            violations: found.len(),
            found,
        }
    }
}

fn outages(operations: &[Operation], faults: &[Fault]) -> BTreeMap<&'static str, u64> {
    let mut written = operations
        .iter()
        .filter(|operation| operation.wrote())
        .filter_map(|operation| operation.returned_ns)
        .collect::<Vec<_>>();
    written.sort_unstable();
    let last_call = operations.iter().map(|operation| operation.called_ns).max().unwrap_or(0);
    let mut longest = BTreeMap::new();
    for (index, fault) in faults.iter().enumerate() {
        let end = faults.get(index + 1).map_or(last_call, |next| next.began_ns);
        let within = written.iter().copied().filter(|at| (fault.began_ns..end).contains(at));
        let longest = longest.entry(fault.kind.name()).or_insert(0);
        let mut before = fault.began_ns;
        // The end too: after a fault that nothing is written after, all of the time is an outage.
        for at in within.chain([end]) {
            *longest = (at.saturating_sub(before) / 1_000_000).max(*longest);
            before = at;
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::super::history::Function;
    use super::super::nemesis::Kind;
    use super::*;

    #[test]
    fn an_outage_that_lasts_is_counted_to_the_end() {
        const S: u64 = 1_000_000_000;
        let write = |called_ns, status| Operation {
            client: 0,
            key: "p/r".to_owned(),
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
        let operations = [write(S, Status::Ok), write(3 * S, Status::Ok), write(9 * S, Status::Fail)];
        let faults = [(Kind::Kill, 2 * S), (Kind::Pause, 4 * S)].map(|(kind, began_ns)| Fault { kind, began_ns });
        assert_eq!(outages(&operations, &faults), BTreeMap::from([("kill", 1_000), ("pause", 5_000)]));
    }
}
