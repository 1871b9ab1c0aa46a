//! Charthold: a Raft-replicated store for patient records, sealed before they are replicated.
//!
//! This crate is everything above the wall: the gateway, sealing, TLS, the command line. Below it is
//! `charthold-replica`, which cannot read a record because it does not link the code.
//!
//! # Layout
//! - [`gateway`]: talks to clients; [`seal`]: envelopes, keys, tokens; [`tls`]: certificates and connections
//! - [`node`]: one running node; [`config`], [`telemetry`]: what it is started with; [`reload`]: what changes meanwhile
//! - [`ops`]: the port of probes and of Prometheus, with [`health`], [`metrics`], [`process`]
//! - [`cli`]: the commands; [`fhir`]: reading bundles for `import`; [`error_pages`]: what each error means

pub mod cli;
pub mod config;
pub mod error_pages;
pub mod fhir;
pub mod gateway;
pub mod health;
pub mod metrics;
#[cfg(test)]
#[path = "../replica/src/testing/mutate.rs"]
mod mutate;
pub mod node;
mod open_files;
pub mod ops;
pub mod process;
pub mod reload;
pub mod seal;
pub mod telemetry;
pub mod tls;
