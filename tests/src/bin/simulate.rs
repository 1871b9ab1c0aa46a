//! Runs a simulated cluster for a while of its own time. See [`charthold_tests::simulation`].
//!
//! One line of JSON on standard output; what was wrong, if anything, on standard error, with exit code 1.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use charthold_tests::chaos::{Violation, write_history};
use charthold_tests::simulation::{self, Plan, Setup, graphs};
use clap::Parser;
use serde::Serialize;

/// Of violations, so many are shown: the first ones tell.
const SHOWN_MAX: usize = 20;

#[derive(Parser)]
#[command(about = "Faults against a simulated cluster, and what its clients saw", long_about = None)]
struct Arguments {
    /// All that happens follows from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// 3 or 5
    #[arg(long, value_name = "N", default_value = "3", value_parser = ["3", "5"])]
    nodes: String,
    /// How many of them, the last ones, have no keys
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    keyless: u8,
    /// How long faults come, of the cluster's time
    #[arg(long, value_name = "N", default_value_t = 60)]
    minutes: u64,
    /// In place of that: cut links in all ways from this one on
    #[arg(long, value_name = "N", requires = "graphs")]
    first_graph: Option<u32>,
    /// In place of faults: cut links in so many ways, one after the other
    #[arg(long, value_name = "N")]
    graphs: Option<u32>,
    /// Where to write what the clients saw, one line an operation
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Where to write all that happens, in order
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let nodes = if arguments.nodes == "3" { 3 } else { 5 };
    let keyless = usize::from(arguments.keyless);
    if 2 * keyless >= nodes {
        say("nodes without keys must be fewer than those with keys");
        return ExitCode::from(2);
    }
    let setup = Setup { seed: arguments.seed, nodes, keyless, log: arguments.log };
    if let Some(graphs) = arguments.graphs {
        let first = arguments.first_graph.unwrap_or(0);
        let last = first.saturating_add(graphs).min(graphs::count(nodes));
        let report = graphs::run(&graphs::Plan { setup, cuts: first..last });
        return conclude(&report, &report.found);
    }
    let report = simulation::run(&Plan { setup, time: Duration::from_secs(arguments.minutes * 60) });
    if let Some(path) = &arguments.history
        && let Err(error) = write_history(path, &report.history)
    {
        say(&format!("{}: {error}", path.display()));
        return ExitCode::from(2);
    }
    conclude(&report, &report.found)
}

fn conclude(report: &impl Serialize, found: &[Violation]) -> ExitCode {
    let line = serde_json::to_string(report).expect("invariant: a report is plain data");
    // A reader that went away does not change the verdict.
    let _closed = writeln!(std::io::stdout(), "{line}");
    for violation in found.iter().take(SHOWN_MAX) {
        say(&format!("{}: {}: {}", violation.key, violation.what, violation.detail));
    }
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(text: &str) {
    let _closed = writeln!(std::io::stderr(), "{text}");
}
