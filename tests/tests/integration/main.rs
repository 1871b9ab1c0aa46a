//! Whole clusters of real processes. One binary, so that it links once; one module for each area.

#![allow(clippy::unwrap_used)]

mod canary;
mod collector;
mod command_line;
mod dev;
mod hand_over;
mod main_job;
mod metrics;
mod once;
mod pages;
mod power_cut;
mod status;
mod stops;
mod tracing;
