//! Measures Charthold against etcd and PostgreSQL on this machine. See [`charthold_tests::versus`].

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use charthold_tests::versus::load::{self, Call, Case, Figures, Keys};
use charthold_tests::versus::report::{self, Row, Target};
use charthold_tests::versus::{Charthold, Etcd, Postgresql, Store};
use clap::{Parser, ValueEnum};

/// Written before the first measurement.
const FILLED: u64 = 20_000;

#[derive(Parser)]
#[command(about = "Charthold beside etcd and PostgreSQL, three nodes each on this machine", long_about = None)]
struct Arguments {
    /// Against whom; all that are installed, if none is given
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    peers: Vec<Peer>,
    /// How often each case is run on both, in turn
    #[arg(long, value_name = "N", default_value_t = 5)]
    pairs: usize,
    /// How long one run of a case is measured
    #[arg(long, value_name = "N", default_value_t = 5)]
    seconds: u64,
    /// A value
    #[arg(long, value_name = "BYTES", default_value_t = 1_024)]
    size: usize,
    /// Where to write the rows as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    Etcd,
    Postgresql,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Postgresql => "postgresql",
        }
    }

    fn is_possible(self) -> bool {
        match self {
            Self::Etcd => Etcd::is_possible(),
            Self::Postgresql => Postgresql::is_possible(),
        }
    }

    async fn start(self) -> Arc<dyn Store> {
        match self {
            Self::Etcd => Arc::new(Etcd::start().await),
            Self::Postgresql => Arc::new(Postgresql::start().await),
        }
    }

    /// What is aimed at against it.
    fn target(self, call: Call, in_flight: usize) -> Target {
        let per_s = match (self, call, in_flight) {
            (Self::Etcd, Call::Put, 1) => 1.5,
            (Self::Etcd, Call::Put, 64) => 3.0,
            (Self::Etcd, Call::Put, 256) => 3.0,
            (Self::Etcd, Call::Get, 64..) => 4.0,
            (Self::Postgresql, Call::Put, 64..) => 2.0,
            _ => 1.0,
        };
        let cpu = (self == Self::Etcd && call == Call::Put).then_some(1.0 / 3.0);
        Target { per_s, cpu }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let wanted = if arguments.peers.is_empty() { Peer::value_variants().to_vec() } else { arguments.peers.clone() };
    let (peers, missing) = wanted.into_iter().partition::<Vec<_>, _>(|peer| peer.is_possible());
    for peer in &missing {
        say(&format!("{} is not installed here, or cannot run: left out", peer.name()));
    }
    let mut rows = Vec::new();
    for peer in &peers {
        rows.extend(against(*peer, &arguments).await);
    }
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{}", report::table(&rows)).is_err() {
        return ExitCode::FAILURE;
    }
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec_pretty(&rows).expect("rows are numbers and words");
        if let Err(error) = std::fs::write(path, json) {
            say(&format!("{}: {error}", path.display()));
            return ExitCode::FAILURE;
        }
    }
    if missing.is_empty() || arguments.peers.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

/// Both run all the time; only one at a time has a load.
async fn against(peer: Peer, arguments: &Arguments) -> Vec<Row> {
    let stores: [Arc<dyn Store>; 2] = [Arc::new(Charthold::start().await), peer.start().await];
    let keys = [Arc::new(Keys::default()), Arc::new(Keys::default())];
    for (store, keys) in stores.iter().zip(&keys) {
        keys.fill(store, FILLED, arguments.size).await;
    }
    let mut rows = Vec::new();
    for (call, in_flight) in [Call::Put, Call::Get].into_iter().flat_map(|call| [1, 16, 64, 256].map(|n| (call, n))) {
        let time = Duration::from_secs(arguments.seconds);
        let case = Case { call, in_flight, value_bytes: arguments.size, time };
        let mut found: [Vec<Figures>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..arguments.pairs.max(1) {
            for which in 0..2 {
                found[which].push(load::run(&stores[which], &keys[which], case).await);
            }
        }
        let name = format!("{} {in_flight}", call.name());
        let new = report::rows(peer.name(), &name, &peer.target(call, in_flight), &found[0], &found[1]);
        say(&report::table(&new));
        rows.extend(new);
    }
    rows
}

fn say(text: &str) {
    // Nobody reads it: nothing to do about that.
    let _ = writeln!(std::io::stderr(), "{text}");
}
