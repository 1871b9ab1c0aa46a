//! Everything that a node must refuse, told to clusters of real processes: each with a clear error, and nothing lost.
//!
//! ```text
//! wire.rs          raw gRPC, and what a refusal says       requests.rs     what a commit may not be
//! roles.rs         every method, asked by every role       certificates.rs who may connect, on either port
//! directories.rs   foreign, copied, wiped data             keys.rs         root keys, and that no disk holds one
//! configs.rs       configurations and files of a node      imports.rs      bundles that cannot be imported
//! fsync.rs         a disk that fails                       python.rs       a stock gRPC client: not refused
//! ```
#![allow(clippy::unwrap_used)]

mod certificates;
mod configs;
mod directories;
mod fsync;
mod imports;
mod keys;
mod python;
mod requests;
mod roles;
mod wire;
