//! A short run of `chaos`: every fault once, and nobody sees anything wrong.

use std::process::Command;

use charthold_tests::chaos::{Function, Kind, Operation};
use charthold_tests::fault_disk::FaultDisk;
use charthold_tests::harness::Finished;

#[test]
fn every_fault_once_and_nothing_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("history.jsonl");
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_chaos"));
    chaos.args(["--seconds", "1", "--seed", "7", "--rtt-ms", "4", "--history"]).arg(&history);
    let report = Finished::new(chaos.output().unwrap()).ok().json();
    assert_eq!(report["violations"], 0);
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_possible() && kind.sites_min() <= 3) {
        assert_eq!(report["faults"][kind.name()], 1, "{report}");
    }
    if FaultDisk::is_possible() {
        assert!(
            report["lost"]["writes"].as_u64().unwrap() > 0,
            "a power cut that takes nothing proves nothing: {report}"
        );
    }
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"));
    for name in ["writes", "reads", "refused", "transfers", "searched"] {
        assert!(number(name) > 100, "{name}: {report}");
    }
    let lines = std::fs::read_to_string(&history).unwrap();
    let operations = lines.lines().map(|line| serde_json::from_str::<Operation>(line).unwrap()).collect::<Vec<_>>();
    assert_eq!(operations.len() as u64, number("operations"));
    assert!(operations.iter().any(|operation| operation.function == Function::Del && operation.hit));
}
