//! Proofs that take long, and figures: `deploy/test.sh --long NAME`. Ignored in a normal run. A module for each.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod failover;
mod listing;
