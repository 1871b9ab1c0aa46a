//! `simulate` over many seeds, each twice, and over all ways to cut links.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use charthold_tests::harness::Finished;
use charthold_tests::simulation::graphs;
use serde_json::Value;

const SEEDS: u64 = 50;
/// Of the cluster's time, for each.
const MINUTES: u64 = 15;
/// The aim: so many hours of the cluster's time in so many minutes of two processors', and in each hour so much.
const HOURS_MIN: u64 = 12;
const MINUTES_MAX: u64 = 10;
const OPERATIONS_AN_HOUR_MIN: u64 = 1_000;
const FAULTS_AN_HOUR_MIN: u64 = 20;
/// Ways to cut links, for one process.
const GRAPHS_AT_ONCE: u32 = 128;

/// Runs, two at once; each must have seen nothing wrong.
fn run_all(runs: &[Vec<String>]) -> Vec<Value> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut reports = Vec::new();
        while let Some((at, arguments)) = runs.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
            let mut simulate = Command::new(env!("CARGO_BIN_EXE_simulate"));
            let finished = Finished::new(simulate.args(arguments).stderr(Stdio::inherit()).output().unwrap());
            println!("{}", finished.text().trim());
            assert_eq!(finished.code, 0, "simulate {}: see above", arguments.join(" "));
            reports.push((at, finished.json()));
        }
        reports
    };
    let mut reports = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let own = work();
        [own, other.join().unwrap()].concat()
    });
    reports.sort_by_key(|(at, _)| *at);
    reports.into_iter().map(|(_, report)| report).collect()
}

fn sum(reports: &[Value], name: &str) -> u64 {
    reports.iter().map(|report| report[name].as_u64().unwrap()).sum()
}

pub fn run() {
    let first = super::seed();
    let arguments = |seed: u64| {
        // With keyless nodes as many as can be, fewer, none.
        let nodes = if seed.is_multiple_of(2) { 3 } else { 5 };
        let keyless = seed / 2 % (nodes / 2 + 1);
        format!("--seed {seed} --nodes {nodes} --keyless {keyless} --minutes {MINUTES}")
            .split(' ')
            .map(str::to_owned)
            .collect()
    };
    let runs = (first..first + SEEDS).map(arguments).collect::<Vec<Vec<String>>>();
    let begun = Instant::now();
    let reports = run_all(&runs);
    let took = begun.elapsed();
    let again = run_all(&runs);
    let same = reports.iter().zip(&again).filter(|(one, other)| one["digest"] == other["digest"]).count();
    let hours = sum(&reports, "simulated_seconds") as f64 / 3_600.0;
    let faults = |report: &Value| report["faults"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>();
    // Those that were answered.
    let operations = sum(&reports, "operations") - sum(&reports, "failed");
    let faults = reports.iter().map(faults).sum::<u64>();
    println!(
        "{hours:.1} hours of a cluster in {:.1} minutes: {operations} operations, {faults} faults, {} snapshots; \
         {same} of {SEEDS} seeds did the same again; nothing wrong",
        took.as_secs_f64() / 60.0,
        sum(&reports, "snapshots")
    );
    assert_eq!(same as u64, SEEDS);
    let in_all = |an_hour: u64| (hours * an_hour as f64) as u64;
    assert!(operations >= in_all(OPERATIONS_AN_HOUR_MIN) && faults >= in_all(FAULTS_AN_HOUR_MIN));
    let in_ten_minutes = hours * MINUTES_MAX as f64 * 60.0 / took.as_secs_f64();
    assert!(in_ten_minutes >= HOURS_MIN as f64, "only {in_ten_minutes:.1} hours in {MINUTES_MAX} minutes");
}

pub fn all_graphs() {
    let seed = super::seed();
    let runs = [3, 5].into_iter().flat_map(|nodes| {
        let firsts = (0..graphs::count(nodes)).step_by(GRAPHS_AT_ONCE as usize);
        firsts.map(move |first| {
            let text = format!("--seed {seed} --nodes {nodes} --first-graph {first} --graphs {GRAPHS_AT_ONCE}");
            text.split(' ').map(str::to_owned).collect::<Vec<_>>()
        })
    });
    let reports = run_all(&runs.collect::<Vec<_>>());
    let longest_ms = reports.iter().filter_map(|report| report["longest_ms"].as_u64()).max().unwrap();
    let (graphs, met) = (sum(&reports, "graphs"), sum(&reports, "met"));
    println!("{graphs} graphs, {met} with a connected majority: all took writes, after {longest_ms} ms at most");
    assert_eq!(graphs, u64::from(graphs::count(3) + graphs::count(5)));
    assert_eq!(met, sum(&reports, "with_majority"));
}
