//! What was measured, as a table that can be copied, and what of it must hold.

use std::time::Duration;

use super::Figures;
use super::reads::Reads;
use super::returns::Returns;

/// Of a cold get: how many more blocks it may read in the mean where there are a hundred times as many records, and how many
/// times as long it may take (p99).
const MORE_BLOCK_READS_MAX: f64 = 1.0;
const TIMES_P99_MAX: f64 = 2.0;
/// From the start of a process to its first answer.
const SERVING_MAX: Duration = Duration::from_secs(10);
/// What a node's process may hold, as ARCHITECTURE.md states it.
const MEMORY_MIB_MAX: u64 = 2_560;

pub fn report(small: &Figures, large: &Figures, returns: &Returns) {
    table(small, large);
    let (by_log, by_snapshot) = (&returns.by_log, &returns.by_snapshot);
    let log_secs = by_log.1.as_secs_f64();
    let [state_gb, node_gb] = [by_snapshot.0, returns.node_bytes].map(|bytes| bytes as f64 / 1e9);
    println!("a node of {node_gb:.1} GB after SIGKILL: serving after {:.1} s", returns.serving.as_secs_f64());
    println!(
        "a node that lacks {} commits of {} records each: caught up {log_secs:.1} s after its start, {:.0} commits a \
         second, {:.1} MB of bodies a second",
        by_log.0.commits,
        by_log.0.records() / by_log.0.commits,
        by_log.0.commits as f64 / log_secs,
        by_log.0.body_bytes as f64 / 1e6 / log_secs,
    );
    println!(
        "a node that lacks more than the log: caught up {:.1} s after its start, a state of {state_gb:.1} GB in \
         snapshots of its shards, {:.1} MB a second",
        by_snapshot.1.as_secs_f64(),
        state_gb * 1e3 / by_snapshot.1.as_secs_f64(),
    );
    judge(small, large, returns);
}

fn table(small: &Figures, large: &Figures) {
    let row = |what: &str, figure: &dyn Fn(&Figures) -> String| {
        println!("| {what} | {} | {} |", figure(small), figure(large));
    };
    let per_body_byte =
        |bytes: u64, figures: &Figures| format!("{:.2}", bytes as f64 / figures.loaded.body_bytes as f64);
    println!("| | small | large |\n| --- | --- | --- |");
    row("records", &|it| it.loaded.records().to_string());
    row("mean body, bytes", &|it| (it.loaded.body_bytes / it.loaded.records()).to_string());
    row("import, records a second", &|it| format!("{:.0}", it.loaded.per_s(it.loaded.records())));
    row("import, MB of bodies a second", &|it| format!("{:.1}", it.loaded.per_s(it.loaded.body_bytes) / 1e6));
    row("a node's state, MB", &|it| (it.state_bytes / 1_000_000).to_string());
    row("a node's log, MB", &|it| (it.log_bytes / 1_000_000).to_string());
    row("bytes of state for a byte of body", &|it| per_body_byte(it.state_bytes, it));
    row("bytes on a node's disk for a byte of body", &|it| per_body_byte(it.node_bytes, it));
    row("memory of a node at most, MiB", &|it| it.peak_resident_mib.to_string());
    for (what, reads) in [("get", get as fn(&Figures) -> &[Reads; 2]), ("list of a chart", list)] {
        for (warmth, pass) in ["cold", "warm"].into_iter().zip(0..) {
            let of = |it: &Figures, figure: fn(&Reads) -> f64| format!("{:.2}", figure(&reads(it)[pass]));
            row(&format!("{warmth} {what}, p50 ms"), &|it| of(it, |reads| ms(reads.p50)));
            row(&format!("{warmth} {what}, p99 ms"), &|it| of(it, |reads| ms(reads.p99)));
            row(&format!("{warmth} {what}, block reads"), &|it| of(it, |reads| reads.block_reads));
            row(&format!("{warmth} {what}, KiB from the disk"), &|it| of(it, |reads| reads.disk_kib));
        }
    }
}

fn get(figures: &Figures) -> &[Reads; 2] {
    &figures.get
}

fn list(figures: &Figures) -> &[Reads; 2] {
    &figures.list
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Tells all that must hold, and panics if something does not.
fn judge(small: &Figures, large: &Figures, returns: &Returns) {
    let ([small, _], [cold, _]) = (&small.get, &large.get);
    let more_blocks = cold.block_reads - small.block_reads;
    let times = cold.p99.as_secs_f64() / small.p99.as_secs_f64();
    let (serving_s, serving_s_max) = (returns.serving.as_secs_f64(), SERVING_MAX.as_secs_f64());
    let memory_mib = large.peak_resident_mib;
    let judged = [
        ("cold get, more block reads", more_blocks, MORE_BLOCK_READS_MAX),
        ("cold get, times the p99", times, TIMES_P99_MAX),
        ("serving after SIGKILL, s", serving_s, serving_s_max),
        ("memory of a node, MiB", memory_mib as f64, MEMORY_MIB_MAX as f64),
    ];
    let mut missed = Vec::new();
    for (what, found, most) in judged {
        let holds = found <= most;
        println!("{what}: {found:.2}, at most {most}: {}", if holds { "holds" } else { "MISSED" });
        missed.extend((!holds).then_some(what));
    }
    assert!(missed.is_empty(), "missed: {missed:?}");
}
