//! `chaos` over many seeds: the sum of what its runs did, and that none of them saw anything wrong.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use charthold_tests::chaos::Kind;
use charthold_tests::harness::Finished;

/// All faults, each run long enough for every one of them.
const RUNS: u64 = 20;
const RUN_SECONDS: u64 = 130;
const OPERATIONS_MIN: u64 = 1_000_000;

/// A run of nothing but power cuts, again and again.
const CUTS_MIN: u64 = 300;
const CUTS_OF_ALL_MIN: u64 = 60;
const CUT_RUN_SECONDS: u64 = 300;

/// What some runs came to.
#[derive(Default)]
struct Sum {
    runs: u64,
    operations: u64,
    snapshots: u64,
    faults: BTreeMap<String, u64>,
    lost: BTreeMap<String, u64>,
}

impl Sum {
    fn of(&self, kind: Kind) -> u64 {
        self.faults.get(kind.name()).copied().unwrap_or_default()
    }

    /// One more run, with the next seed. It must not have seen anything wrong.
    fn run(&mut self, seconds: u64, faults: &[&str]) {
        let seed = super::seed() + self.runs;
        let mut chaos = Command::new(env!("CARGO_BIN_EXE_chaos"));
        chaos.args(["--rtt-ms", "10", "--seconds", &seconds.to_string(), "--seed", &seed.to_string()]);
        chaos.args(faults).stderr(Stdio::inherit());
        let finished = Finished::new(chaos.output().unwrap());
        println!("{}", finished.text());
        assert_eq!(finished.code, 0, "seed {seed}: something is wrong, see above");
        let report = finished.json();
        self.runs += 1;
        self.operations += report["operations"].as_u64().unwrap();
        self.snapshots += report["snapshots"].as_u64().unwrap();
        for (sums, name) in [(&mut self.faults, "faults"), (&mut self.lost, "lost")] {
            for (kind, count) in report[name].as_object().unwrap() {
                *sums.entry(kind.clone()).or_default() += count.as_u64().unwrap();
            }
        }
    }

    fn say(&self) {
        println!(
            "{} runs, {} operations, {} snapshots, faults {:?}, lost in power cuts {:?}: nothing wrong",
            self.runs, self.operations, self.snapshots, self.faults, self.lost
        );
    }
}

pub fn run() {
    let mut sum = Sum::default();
    while sum.runs < RUNS || sum.operations < OPERATIONS_MIN {
        sum.run(RUN_SECONDS, &[]);
    }
    sum.say();
    assert!(sum.snapshots > 0, "no node was brought up by a snapshot");
}

pub fn power_cuts() {
    let mut sum = Sum::default();
    while sum.of(Kind::PowerCut) + sum.of(Kind::PowerCutAll) < CUTS_MIN || sum.of(Kind::PowerCutAll) < CUTS_OF_ALL_MIN {
        sum.run(CUT_RUN_SECONDS, &["--faults", "power-cut,power-cut-all"]);
    }
    sum.say();
}
