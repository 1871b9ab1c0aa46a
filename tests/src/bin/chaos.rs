//! Breaks a cluster of its own for a while, and says whether anybody saw it do wrong. See [`charthold_tests::chaos`].
//!
//! One line of JSON on standard output; what was wrong, if anything, on standard error, with exit code 1.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use charthold_tests::chaos::{self, Kind, Plan};
use charthold_tests::harness::Wan;
use clap::Parser;

/// Of violations, so many are shown: the first ones tell.
const SHOWN_MAX: usize = 20;

#[derive(Parser)]
#[command(about = "Faults against a cluster of real processes, and what its clients saw", long_about = None)]
struct Arguments {
    /// How long faults come, one after the other; each kind comes at least once
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Which clients do what, and which nodes are hit when
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Nodes, each a site
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=7))]
    sites: u8,
    /// Kinds of faults; all that are possible, if none is given
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    faults: Vec<Kind>,
    /// The round trip between any two sites. With root, each is in a network of its own; else all are on loopback
    #[arg(long, value_name = "N", default_value_t = 0)]
    rtt_ms: u64,
    /// Where to write what the clients saw, one line an operation
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let round_trip = Wan::is_possible().then(|| Duration::from_millis(arguments.rtt_ms));
    let sites = usize::from(arguments.sites);
    if let Some(kind) = arguments.faults.iter().find(|kind| kind.sites_min() > sites) {
        say(&format!("{} takes {} sites at least", kind.name(), kind.sites_min()));
        return ExitCode::from(2);
    }
    let (faults, impossible) = Kind::ALL
        .into_iter()
        .filter(|kind| arguments.faults.is_empty() || arguments.faults.contains(kind))
        .filter(|kind| kind.sites_min() <= sites)
        .partition::<Vec<_>, _>(|kind| kind.is_possible());
    if round_trip.is_none() {
        say("without root, all sites are on loopback: there is no round trip");
    }
    if !impossible.is_empty() {
        let left_out = impossible.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
        say(&format!("without root and /dev/fuse, none of these faults: {left_out}"));
        // Asked for by name, it must not be missed in silence.
        if !arguments.faults.is_empty() {
            return ExitCode::from(2);
        }
    }
    let plan = Plan {
        time: Duration::from_secs(arguments.seconds),
        seed: arguments.seed,
        sites,
        round_trip,
        faults,
        history: arguments.history,
    };
    let report = chaos::run(&plan).await;
    let line = serde_json::to_string(&report).expect("invariant: a report is plain data");
    // A reader that went away does not change the verdict.
    let _closed = writeln!(std::io::stdout(), "{line}");
    for violation in report.found.iter().take(SHOWN_MAX) {
        say(&format!("{}: {}: {}", violation.key, violation.what, violation.detail));
    }
    if report.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(text: &str) {
    let _closed = writeln!(std::io::stderr(), "{text}");
}
