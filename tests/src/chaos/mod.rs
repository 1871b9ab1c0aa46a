//! Charthold under faults: clients that write and read all the time, somebody who breaks nodes, and checkers who look at
//! what the clients saw.
//!
//! ```text
//! workload.rs   clients, and what they do         history.rs   what they saw: one line an operation
//! choice.rs     what a client does next
//! transfers.rs  commits over several records      stored.rs    what the cluster has of it at the end
//! nemesis.rs    faults, and when                  sweep.rs     the verdict by versions
//! report.rs     the run in one line               search.rs    the verdict by search, as a second opinion
//! growth.rs     in place of faults: nodes come and go
//! traces.rs     what the nodes' files must not hold
//! salts.rs      what no two envelopes may share
//! ```
//!
//! A run: clients begin, faults come one after the other with a pause between them, then everything is healed, the
//! clients stop, and all that is stored is read and compared with all that was seen. Which client does what to which
//! record, and which node is hit by what, follows from the seed; when things happen does not, these are real processes.

mod choice;
mod growth;
mod history;
mod nemesis;
mod report;
mod salts;
mod search;
mod stored;
mod sweep;
mod traces;
mod transfers;
mod workload;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use charthold_client::DEFAULT_DEADLINE;

pub use self::choice::{Choice, Wish};
pub use self::history::{Function, Operation, Recorder, Status, write as write_history};
pub use self::nemesis::Kind;
pub use self::report::Report;
pub use self::stored::Versions;
pub use self::sweep::Violation;

use self::nemesis::{Fault, Nemesis};
use self::report::Also;
use self::transfers::Transfers;
use self::workload::Workload;
use crate::harness::{Cluster, Options, RAFT};

/// So little log is kept that a node which was away for more than a second or two needs snapshots.
const SNAPSHOTS: &str = "snapshot_after_entries = 200\nkeep_entries = 100\n";

/// How long clients keep at a call amid faults: less than most faults last, so that some outcomes stay unknown.
const AMID_FAULTS: Duration = Duration::from_secs(3);

/// What a run is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub time: Duration,
    pub seed: u64,
    pub sites: usize,
    /// Between sites in networks of their own; nothing: all on loopback, where the network has no faults.
    pub round_trip: Option<Duration>,
    /// Which kinds of faults; each must happen at least once.
    pub faults: Vec<Kind>,
    /// Where the history is written, one line an operation.
    pub history: Option<PathBuf>,
}

/// Runs it; the verdict is in the report.
pub async fn run(plan: &Plan) -> Report {
    let options = Options {
        fault_disks: plan.faults.iter().any(|kind| kind.is_of_disk()),
        own_clocks: plan.faults.contains(&Kind::ClockJump),
        ..Options::default()
    };
    let meanwhile = async |cluster: &mut Cluster, recorder: &Recorder| {
        let faults = Nemesis::new(plan.seed, &plan.faults, recorder).run(cluster, plan.time).await;
        nemesis::place_everywhere(cluster).await;
        faults
    };
    run_with(plan, options, AMID_FAULTS, meanwhile).await
}

/// The same without faults: two nodes come, and two others go, see [`growth`].
pub async fn grow(plan: &Plan) -> Report {
    let options = Options { members: growth::AT_FIRST, ..Options::default() };
    let meanwhile = async |cluster: &mut Cluster, _: &Recorder| {
        growth::run(cluster, plan.time).await;
        Vec::new()
    };
    run_with(plan, options, DEFAULT_DEADLINE, meanwhile).await
}

/// Clients, something that happens meanwhile, and the verdict.
async fn run_with(
    plan: &Plan,
    options: Options,
    deadline: Duration,
    meanwhile: impl AsyncFnOnce(&mut Cluster, &Recorder) -> Vec<Fault>,
) -> Report {
    let (sites, round_trip, config) = (plan.sites, plan.round_trip, format!("{RAFT}{SNAPSHOTS}"));
    let mut cluster = Cluster::start_with(Options { sites, round_trip, config, ..options }).await;
    let recorder = Arc::new(Recorder::new(Instant::now()));
    let transfers = Transfers::start(&cluster, plan.seed, deadline).await;
    let workload = Workload::start(&cluster, plan.seed, deadline, &recorder);
    let faults = meanwhile(&mut cluster, &recorder).await;
    workload.stop().await;
    let transfers = transfers.stop().await;
    cluster.wait_ready().await;

    let mut operations = recorder.take();
    let stored = stored::read(&cluster.client(), &operations).await;
    let (mut violations, searched) = check(&mut operations, &stored);
    violations.extend(transfers.check(&cluster.client()).await);
    cluster.wait_roots_equal().await;
    cluster.assert_rows_equal().await;
    violations.extend(traces::check(&mut cluster));
    violations.extend(salts::check(&cluster));
    if let Some(path) = &plan.history {
        history::write(path, &operations).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let (done, gave_up) = (transfers.done(), transfers.gave_up());
    let also = Also { transfers: done, transfers_gave_up: gave_up, searched, snapshots: traces::snapshots(&cluster) };
    Report::new(plan, &operations, &faults, &also, violations)
}

/// Resolves unknown outcomes by what is stored at the end, and judges the history, twice. Answers also how many records
/// were searched.
pub fn check(operations: &mut [Operation], stored: &HashMap<String, Versions>) -> (Vec<Violation>, usize) {
    let mut violations = stored::resolve(operations, stored);
    violations.extend(sweep::check(operations, stored));
    let second_opinion = search::check(operations);
    violations.extend(second_opinion.violations);
    (violations, second_opinion.keys)
}
