//! A run in one line of JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::nemesis::{Kind, Nemesis};
use super::{Plan, World, verdict};
use crate::chaos::{Operation, Status, Violation};

#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub nodes: usize,
    pub keyless: usize,
    /// Of the cluster.
    pub simulated_seconds: u64,
    /// Of the machine.
    pub seconds: f64,
    pub operations: usize,
    pub writes: usize,
    pub reads: usize,
    /// Calls that were not answered, and had no effect.
    pub failed: usize,
    /// Calls whose outcome was known at the end only.
    pub unknown: usize,
    /// That nodes installed.
    pub snapshots: usize,
    /// Shards that nodes fetched whose state was lost.
    pub refills: usize,
    pub faults: BTreeMap<Kind, usize>,
    /// Writes of the log that power cuts took: none of them was acknowledged by that disk.
    pub lost_writes: usize,
    /// Of all that happened, and of all rows at the end.
    pub digest: String,
    pub violations: usize,
    #[serde(skip)]
    pub found: Vec<Violation>,
    #[serde(skip)]
    pub history: Vec<Operation>,
}

impl Report {
    pub(super) fn new(plan: &Plan, nemesis: Nemesis, world: World) -> Self {
        let mut history = world.workload.take();
        let count = |counts: &dyn Fn(&Operation) -> bool| history.iter().filter(|operation| counts(operation)).count();
        let reads = count(&|operation| !operation.is_write() && operation.status == Status::Ok);
        let failed = count(&|operation| operation.status == Status::Fail && operation.returned_ns.is_some());
        let unknown = count(&|operation| operation.returned_ns.is_none());
        let found = verdict::violations(&world.nodes, &mut history, world.digest.errors());
        world.digest.add_line(&format!("{:?}", world.nodes[0].state().dump()));
        Self {
            seed: plan.setup.seed,
            nodes: plan.setup.nodes,
            keyless: plan.setup.keyless,
            simulated_seconds: world.sim.elapsed().as_secs(),
            seconds: world.begun.elapsed().as_secs_f64(),
            operations: history.len(),
            writes: history.iter().filter(|operation| operation.wrote()).count(),
            reads,
            failed,
            unknown,
            snapshots: world.digest.snapshots(),
            refills: world.digest.refills(),
            faults: nemesis.faults,
            lost_writes: nemesis.lost_writes,
            digest: format!("{:016x}", world.digest.value()),
            violations: found.len(),
            found,
            history,
        }
    }
}
