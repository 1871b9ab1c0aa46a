//! Proofs that take long, and figures: `deploy/test.sh --long NAME`. Ignored in a normal run.
//!
//! A file a proof; this is their list. `CHARTHOLD_LONG_MINUTES` shortens those that run for a time.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod away;
mod bit_flips;
mod build;
mod chaos;
mod documents;
mod failover;
mod growth;
mod listing;
mod month;
mod overload;
mod planted;
mod scale;
mod simulation;
mod strangers;
mod transfers;
mod upgrade;
mod waits;
mod wide;

use std::time::Duration;

/// How long a proof may run, if somebody asks for a shorter one.
fn asked_for() -> Option<Duration> {
    let minutes = std::env::var("CHARTHOLD_LONG_MINUTES").ok()?;
    Some(Duration::from_secs(minutes.parse::<u64>().unwrap() * 60))
}

/// How long it runs: as asked for, or as it is meant to.
fn minutes(meant: u64) -> Duration {
    asked_for().unwrap_or(Duration::from_secs(meant * 60))
}

/// Of all that is drawn; the first one, of a proof that goes through some in a row.
fn seed() -> u64 {
    std::env::var("CHARTHOLD_TEST_SEED").map_or(1, |seed| seed.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour; a figure"]
async fn failover() {
    failover::run().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes; a figure"]
async fn wide() {
    wide::run().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes five minutes; a figure"]
async fn transfers() {
    transfers::run().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes six minutes; a proof"]
async fn growth() {
    growth::run().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes; a proof"]
async fn away() {
    away::run().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; a proof"]
async fn listing() {
    listing::run().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes an hour; a proof and figures"]
async fn month() {
    month::run().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes an hour, and 30 GB of disk; a proof and figures"]
async fn scale() {
    scale::run().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour; a proof and figures"]
async fn overload() {
    overload::run().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; a figure"]
async fn documents() {
    documents::run().await;
}

#[test]
#[ignore = "takes twenty minutes; a proof"]
fn bit_flips() {
    bit_flips::run();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes twenty minutes; a proof"]
async fn bit_flips_live() {
    bit_flips::run_live().await;
}

#[test]
#[ignore = "takes an hour; a proof"]
fn chaos() {
    chaos::run();
}

#[test]
#[ignore = "takes an hour; a proof"]
fn power_cuts() {
    chaos::power_cuts();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes; a proof"]
async fn strangers() {
    strangers::run().await;
}

#[test]
#[ignore = "takes half an hour; a proof that the tests bite"]
fn planted() {
    planted::run();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes fifteen minutes, most of them to build an older version; a proof"]
async fn upgrade() {
    upgrade::run().await;
}

#[test]
#[ignore = "takes twenty minutes; a proof and a figure"]
fn simulation() {
    simulation::run();
}

#[test]
#[ignore = "takes minutes; a proof"]
fn graphs() {
    simulation::all_graphs();
}
