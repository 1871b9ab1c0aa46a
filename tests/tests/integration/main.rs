//! Whole clusters of real processes. One binary, so that it links once; one module for each area.

#![allow(clippy::unwrap_used)]

mod bench;
mod canary;
mod chaos;
mod collector;
mod command_line;
mod damage;
mod dev;
mod disk_full;
mod disk_stall;
mod documents;
mod fault_disk;
mod find;
mod freshness;
mod hand_over;
mod keyless;
mod listing;
mod main_job;
mod manual;
mod members;
mod memory;
mod metrics;
mod once;
mod pages;
mod placement;
mod power_cut;
mod revocation;
mod rotation;
mod simulation;
mod snapshots;
mod split;
mod state_disk;
mod status;
mod stops;
mod tracing;
mod wan;
