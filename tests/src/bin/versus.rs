//! Measures Charthold against etcd, PostgreSQL, and other builds of itself, on this machine. See [`charthold_tests::versus`].

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use charthold_tests::versus::load::{self, Call, Case, Figures, Pace, Subject};
use charthold_tests::versus::report::{self, Row, Targets};
use charthold_tests::versus::values::{Kind, Values};
use charthold_tests::versus::{Charthold, Etcd, Postgresql, Store};
use clap::{Parser, ValueEnum};

/// The load shares the processors with what it measures.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Written before the first measurement.
const FILLED: u64 = 20_000;
/// Names the program of `--peers charthold`.
const OLD_PROGRAM: &str = "CHARTHOLD_OLD_PROGRAM";

#[derive(Parser)]
#[command(about = "Charthold beside etcd and PostgreSQL, three nodes each on this machine", long_about = None)]
struct Arguments {
    /// Against whom; all others that are installed, if none is given
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    peers: Vec<Peer>,
    /// How often each case is run on both, in turn
    #[arg(long, value_name = "N", default_value_t = 5)]
    pairs: usize,
    /// How long one run of a case is measured
    #[arg(long, value_name = "N", default_value_t = 5)]
    seconds: u64,
    /// What is stored
    #[arg(long, value_enum, default_value_t = Kind::Random)]
    values: Kind,
    /// A random value
    #[arg(long, value_name = "BYTES", default_value_t = 1_024)]
    size: usize,
    /// Which calls; those at a fixed rate come with put and get only
    #[arg(long, value_name = "CALL", value_delimiter = ',', default_value = "put,put-alone,get")]
    calls: Vec<Call>,
    /// How many calls are under way
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,16,64,256")]
    callers: Vec<usize>,
    /// Where to write the rows as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    Etcd,
    EtcdTls,
    Postgresql,
    /// The program at CHARTHOLD_OLD_PROGRAM: an older build, say
    Charthold,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::EtcdTls => "etcd-tls",
            Self::Postgresql => "postgresql",
            Self::Charthold => "charthold",
        }
    }

    /// All that are not ours.
    fn others() -> Vec<Self> {
        vec![Self::Etcd, Self::EtcdTls, Self::Postgresql]
    }

    fn is_possible(self) -> bool {
        match self {
            Self::Etcd | Self::EtcdTls => Etcd::is_possible(),
            Self::Postgresql => Postgresql::is_possible(),
            Self::Charthold => old_program().is_some(),
        }
    }

    async fn start(self) -> Arc<dyn Store> {
        match self {
            Self::Etcd => Arc::new(Etcd::start(false).await),
            Self::EtcdTls => Arc::new(Etcd::start(true).await),
            Self::Postgresql => Arc::new(Postgresql::start().await),
            Self::Charthold => Arc::new(Charthold::start(old_program().as_deref()).await),
        }
    }

    /// What is aimed at against it.
    fn targets(self, case: &Case) -> Targets {
        let none = Targets::default();
        if self != Self::Etcd {
            return none;
        }
        let third = Some(1.0 / 3.0);
        match (case.call, case.pace) {
            (Call::Put, Pace::Closed(1)) => Targets { per_s: Some(1.5), cpu_us: third, ..none },
            (Call::Put, Pace::Closed(64..)) => Targets { per_s: Some(3.0), cpu_us: third, ..none },
            (Call::PutAlone, Pace::Closed(_)) => Targets { per_s: Some(1.5), ..none },
            (Call::Get, Pace::Closed(64..)) => Targets { per_s: Some(4.0), ..none },
            (Call::Put, Pace::Open(_)) => Targets { p99_ms: Some(0.5), ..none },
            _ => none,
        }
    }
}

fn old_program() -> Option<PathBuf> {
    std::env::var_os(OLD_PROGRAM).map(PathBuf::from)
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let wanted = if arguments.peers.is_empty() { Peer::others() } else { arguments.peers.clone() };
    let (peers, missing) = wanted.into_iter().partition::<Vec<_>, _>(|peer| peer.is_possible());
    for peer in &missing {
        let why = match peer {
            Peer::Charthold => format!("{OLD_PROGRAM} names no program"),
            _ => "it is not installed here, or cannot run".to_owned(),
        };
        say(&format!("{} is left out: {why}", peer.name()));
    }
    let mut rows = Vec::new();
    for peer in &peers {
        rows.extend(Contest::start(*peer, &arguments).await.cases(&arguments).await);
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

/// Ours and a peer's: both run all the time, only one at a time has a load.
struct Contest {
    peer: Peer,
    pairs: usize,
    time: Duration,
    ours: Arc<Subject>,
    theirs: Arc<Subject>,
    rows: Vec<Row>,
}

impl Contest {
    async fn start(peer: Peer, arguments: &Arguments) -> Self {
        let values = Arc::new(Values::new(arguments.values, arguments.size));
        let ours = Subject::new(Arc::new(Charthold::start(None).await), Arc::clone(&values));
        let theirs = Subject::new(peer.start().await, values);
        for subject in [&ours, &theirs] {
            subject.fill(FILLED).await;
        }
        let time = Duration::from_secs(arguments.seconds);
        Self { peer, pairs: arguments.pairs.max(1), time, ours, theirs, rows: Vec::new() }
    }

    /// Throughput; then latency at half of what the peer can take at most.
    async fn cases(mut self, arguments: &Arguments) -> Vec<Row> {
        let calls = |call| arguments.calls.contains(&call);
        let mut best = [[0.0_f64; 2]; 2];
        for (call, best) in [Call::Put, Call::Get].into_iter().zip(&mut best).filter(|(call, _)| calls(*call)) {
            for callers in &arguments.callers {
                for (best, per_s) in best.iter_mut().zip(self.case(call, Pace::Closed(*callers)).await) {
                    *best = best.max(per_s);
                }
            }
        }
        let [[ours, theirs], [_, their_gets]] = best;
        if let (true, Some(most)) = (calls(Call::PutAlone), arguments.callers.iter().max()) {
            self.case(Call::PutAlone, Pace::Closed(*most)).await;
        }
        if calls(Call::Put) && calls(Call::Get) {
            let target = (self.peer == Peer::Postgresql).then_some(2.0);
            self.add(vec![report::compared(self.peer.name(), "put best per_s".into(), ours, theirs, target, "higher")]);
            self.case(Call::Put, Pace::Open(theirs / 2.0)).await;
            self.case(Call::Get, Pace::Open(their_gets / 2.0)).await;
        }
        self.rows
    }

    /// Answers how many calls a second ours took, and theirs.
    async fn case(&mut self, call: Call, pace: Pace) -> [f64; 2] {
        let case = Case { call, pace, time: self.time };
        let mut found: [Vec<Figures>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..self.pairs {
            for (found, subject) in found.iter_mut().zip([&self.ours, &self.theirs]) {
                found.push(load::run(subject, case).await);
            }
        }
        let [ours, theirs] = &found;
        let targets = self.peer.targets(&case);
        self.add(report::rows(self.peer.name(), &case.name(), targets, ours, theirs));
        found.each_ref().map(|figures| report::median(figures, |it| it.per_s))
    }

    fn add(&mut self, rows: Vec<Row>) {
        say(&report::table(&rows));
        self.rows.extend(rows);
    }
}

fn say(text: &str) {
    // Nobody reads it: nothing to do about that.
    let _ = writeln!(std::io::stderr(), "{text}");
}
