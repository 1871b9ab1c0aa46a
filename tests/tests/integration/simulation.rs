//! Short runs of `simulate`: a seed does the same again, and links that are cut in any way leave a leader where one can be.

use std::process::{Child, Command, Stdio};

use charthold_tests::harness::Finished;
use serde_json::Value;

fn start(arguments: &[&str]) -> Child {
    let mut simulate = Command::new(env!("CARGO_BIN_EXE_simulate"));
    simulate.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(run: Child) -> Value {
    Finished::new(run.wait_with_output().unwrap()).ok().json()
}

#[test]
fn a_seed_does_the_same_again_in_another_process() {
    let seed = |seed, keyless| start(&["--nodes", "5", "--keyless", keyless, "--minutes", "30", "--seed", seed]);
    let (run, again, other) = (seed("9", "1"), seed("9", "1"), seed("25", "0"));
    let (run, again, other) = (end(run), end(again), end(other));
    assert_eq!(run["digest"], again["digest"]);
    assert_ne!(run["digest"], other["digest"]);
    let number = |report: &Value, name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"));
    // Whether a cut of the power meets a write that is not synced yet is chance: one of the two has to.
    for name in ["refills", "unknown", "lost_writes"] {
        assert!(number(&run, name) + number(&other, name) > 0, "{name}: {run}, {other}");
    }
    for report in [run, other] {
        assert_eq!(report["violations"], 0);
        for (name, least) in [("writes", 500), ("reads", 500), ("snapshots", 1)] {
            assert!(number(&report, name) >= least, "{name}: {report}");
        }
        assert!(report["faults"].as_object().unwrap().len() >= 8 && report["faults"]["replace"].is_u64(), "{report}");
    }
}

#[test]
fn whichever_links_are_cut_a_connected_majority_takes_writes() {
    let three = start(&["--nodes", "3", "--graphs", "8"]);
    // From the middle on: of these no link is cut, one, or many.
    let five = start(&["--nodes", "5", "--first-graph", "500", "--graphs", "40"]);
    for (report, graphs) in [(end(three), 8), (end(five), 40)] {
        assert_eq!(report["violations"], 0, "{report}");
        assert_eq!(report["graphs"], graphs);
        assert_eq!(report["met"], report["with_majority"], "{report}");
    }
}
