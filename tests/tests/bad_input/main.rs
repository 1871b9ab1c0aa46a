//! Everything that a node must refuse, told to clusters of real processes: each with a clear error, and nothing lost.
//!
//! ```text
//! wire.rs          raw gRPC, and what a refusal says       requests.rs     what a commit may not be
//! roles.rs         every method, asked by every role       certificates.rs who may connect, on either port
//! directories.rs   foreign, copied, wiped data             keys.rs         the root key; keys_on_disk.rs
//! configs.rs       configurations and files of a node      imports.rs      bundles that cannot be imported
//! fsync.rs         a disk that fails                       reads.rs        what a read may not ask for
//! admin.rs         what operators may not ask for          health.rs       a node that cannot serve
//! uploads.rs       what is no part of a document
//! python.rs        a stock gRPC client: not refused
//! ```
#![allow(clippy::unwrap_used)]

mod admin;
mod certificates;
mod configs;
mod directories;
mod fsync;
mod health;
mod imports;
mod keys;
mod keys_on_disk;
mod python;
mod reads;
mod requests;
mod roles;
mod uploads;
mod wire;
