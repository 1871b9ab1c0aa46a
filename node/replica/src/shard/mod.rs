//! A Raft group: propose, read barrier, apply.
//!
//! Owns consensus: which entries there are, in which order, and what they do to the state. Must not know what an
//! envelope says. The only place that names `openraft`.

pub mod apply;
pub mod authors;
pub mod codec;
pub mod command;
pub mod config;
#[cfg(test)]
mod crash_tests;
pub mod durability;
pub mod entry;
pub mod fetch;
#[cfg(test)]
mod fuzz_tests;
pub mod group;
mod handover;
pub mod held;
pub mod inbound;
pub mod install;
#[cfg(test)]
mod install_tests;
pub mod log;
mod log_ends;
pub mod machine;
pub mod members;
pub mod network;
#[cfg(test)]
mod network_tests;
pub mod parts;
mod proposer;
mod purge;
mod quorum;
pub mod read_rows;
pub mod repair;
pub mod rows_check;
mod runtime;
pub mod snapshot;
pub mod status;
#[cfg(test)]
mod storage_suite;
pub mod traced;
pub mod transfer;
pub mod types;
pub mod vacancy;
