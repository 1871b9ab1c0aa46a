//! Each planted bug (`node/replica/src/planted.rs`) is caught by a test that is there anyway; and without a bug, the same
//! build passes the same tests, so that it is the bug that was caught.
//!
//! `PLANTED_BUG=name` tries that one only.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use charthold_replica::planted::{Bug, VARIABLE};
use charthold_tests::chaos::Kind;
use charthold_tests::harness::{PROGRAM_VARIABLE, program};

use super::build::{again, cargo, root};

/// A run of `simulate` or `chaos` is caught in most of so many.
const SEEDS: u64 = 3;
/// Of the cluster's time.
const SIMULATED_MINUTES: u64 = 30;
const CHAOS_SECONDS: u64 = 60;
/// What takes longer has caught nothing.
const CATCH_MAX: Duration = Duration::from_secs(600);
const SIMULATE: &str = "simulate";
const FEATURE: [&str; 2] = ["--features", "charthold/planted-bugs"];

/// What finds a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Catcher {
    /// Unit tests, by a part of their names.
    Unit(&'static str),
    /// A test with real processes: its binary, and its name.
    Test(&'static str, &'static str),
    /// `simulate`, three nodes.
    Simulation,
    /// `chaos` with these faults.
    Chaos(&'static [Kind]),
}

fn catcher(bug: Bug) -> Catcher {
    match bug {
        Bug::TruncateSkipped | Bug::VoteNotKept | Bug::ApplyNotAtomic => Catcher::Unit("shard::crash_tests"),
        Bug::SnapshotWithoutLastRow | Bug::TombstoneLostInSnapshot => Catcher::Unit("shard::install_tests"),
        Bug::AuthorUnchecked => Catcher::Unit("author_tests"),
        Bug::LateExecuted => Catcher::Unit("apply::scripts"),
        Bug::FailedSyncIgnored => Catcher::Test("bad_input", "fsync::a_failed_sync_ends_the_node_and_nothing_else"),
        Bug::RolledBackAccepted => {
            Catcher::Test("bad_input", "directories::a_copied_directory_is_refused_by_the_others")
        }
        Bug::WipedNodeAccepted => Catcher::Test("bad_input", "directories::a_wiped_directory_is_a_stranger"),
        Bug::WatchdogOff => {
            Catcher::Test("integration", "disk_stall::a_disk_that_hangs_ends_its_node_and_others_take_over")
        }
        Bug::GrantUnchecked => Catcher::Test("bad_input", "roles::every_role_may_what_the_table_says_and_nothing_else"),
        Bug::SkipSync => Catcher::Chaos(&[Kind::PowerCutAll]),
        Bug::AckBeforeWrite => Catcher::Chaos(&[Kind::KillAll]),
        Bug::ReadWithoutQuorum | Bug::LeaseUnchecked | Bug::AgeUnchecked | Bug::StaleFollowerRead => {
            Catcher::Simulation
        }
        Bug::RequestIdIgnored | Bug::PreconditionIgnored => Catcher::Simulation,
        Bug::ApplyDiffers | Bug::HalfCommit | Bug::SaltReused => Catcher::Chaos(&[Kind::Restart]),
    }
}

/// How a run ended.
struct Ended {
    passed: bool,
    took: Duration,
    /// Of what went wrong, the first line.
    said: String,
}

pub fn run() {
    let asked = std::env::var(VARIABLE).ok();
    let bugs = Bug::ALL.into_iter().filter(|bug| asked.as_ref().is_none_or(|asked| asked == bug.name()));
    let bugs = bugs.collect::<Vec<_>>();
    assert!(!bugs.is_empty(), "{VARIABLE}={asked:?}: no such bug");
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path());

    let mut sound = Vec::new();
    let mut missed = Vec::new();
    for bug in bugs {
        let catcher = catcher(bug);
        if !sound.contains(&catcher) {
            let ended = catch(catcher, &program, folder.path(), None, 1);
            assert!(ended.passed, "without a bug, {catcher:?}: {}", ended.said);
            sound.push(catcher);
        }
        let seeds = if matches!(catcher, Catcher::Simulation | Catcher::Chaos(_)) { SEEDS } else { 1 };
        let runs = (1..=seeds).map(|seed| catch(catcher, &program, folder.path(), Some(bug), seed));
        let runs = runs.collect::<Vec<_>>();
        let mut caught = runs.iter().filter(|run| !run.passed && run.took < CATCH_MAX).collect::<Vec<_>>();
        caught.sort_by_key(|run| run.took);
        let said = caught.first().map_or("", |run| run.said.as_str());
        let seconds = caught.iter().map(|run| run.took.as_secs()).collect::<Vec<_>>();
        println!("{}: caught in {} of {seeds}, after {seconds:?} s, by {catcher:?}: {said}", bug.name(), caught.len());
        if caught.len() as u64 * 2 <= seeds {
            missed.push(bug.name());
        }
    }
    assert!(missed.is_empty(), "nothing caught {missed:?}");
}

/// The program with the bugs, and beside it the simulation; then what is beside the tests is built again as it was.
fn build(folder: &Path) -> PathBuf {
    let with_bugs = [&["build", "--locked", "--workspace", "--bins"], &FEATURE[..]].concat();
    let unit_tests = [&["test", "--locked", "--workspace", "--lib", "--no-run"], &FEATURE[..]].concat();
    let built = folder.join("charthold");
    assert!(cargo(root(), &with_bugs).status().unwrap().success(), "building the bugs");
    std::fs::copy(program(), &built).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_simulate"), built.with_file_name(SIMULATE)).unwrap();
    assert!(cargo(root(), &unit_tests).status().unwrap().success(), "building unit tests with the bugs");
    again();
    built
}

fn catch(catcher: Catcher, program: &Path, folder: &Path, bug: Option<Bug>, seed: u64) -> Ended {
    let mut command = match catcher {
        Catcher::Unit(filter) => {
            let unit = [&["test", "--quiet", "--locked", "--workspace", "--lib"], &FEATURE[..], &["--", filter]];
            cargo(root(), &unit.concat())
        }
        Catcher::Test(binary, name) => {
            cargo(root(), &["test", "--quiet", "--locked", "--workspace", "--test", binary, "--", "--exact", name])
        }
        Catcher::Simulation => {
            let mut simulate = Command::new(program.with_file_name(SIMULATE));
            simulate.args(["--minutes", &SIMULATED_MINUTES.to_string(), "--seed", &seed.to_string()]);
            simulate
        }
        Catcher::Chaos(faults) => {
            let mut chaos = Command::new(env!("CARGO_BIN_EXE_chaos"));
            let faults = faults.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(",");
            chaos.args(["--seconds", &CHAOS_SECONDS.to_string(), "--seed", &seed.to_string(), "--faults", &faults]);
            chaos
        }
    };
    let said = folder.join("said");
    let out = std::fs::File::create(&said).unwrap();
    command.env(PROGRAM_VARIABLE, program).env(VARIABLE, bug.map_or("", Bug::name));
    // A random case that fails is no regression to keep.
    command.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
    command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
    let began = Instant::now();
    let mut child = command.spawn().unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if began.elapsed() > CATCH_MAX {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let text = String::from_utf8_lossy(&std::fs::read(&said).unwrap()).into_owned();
    Ended { passed: status.is_some_and(|status| status.success()), took: began.elapsed(), said: first_wrong(&text) }
}

/// What a panic says, or the first violation.
fn first_wrong(text: &str) -> String {
    let mut lines = text.lines();
    let panicked = lines.by_ref().find(|line| line.contains("panicked at"));
    let line = panicked.and_then(|_| lines.next()).or_else(|| text.lines().find(|line| !line.starts_with('{')));
    line.unwrap_or_default().chars().take(160).collect()
}
