//! Everything that a node must refuse, told to clusters of real processes: each with a clear error, and nothing lost.
//!
//! ```text
//! wire.rs          raw gRPC, and what a refusal says       requests.rs     what a commit may not be
//! roles.rs         every method, asked by every role       certificates.rs who may connect, on either port
//! directories.rs   foreign, copied, wiped data             keys.rs         the root key; keys_on_disk.rs
//! configs.rs       configurations and files of a node      imports.rs      bundles that cannot be imported
//! fsync.rs         a disk that fails                       reads.rs        what a read may not ask for
//! admin.rs         what operators may not ask for          health.rs       a node that cannot serve
//! limits.rs        every limit, at it and one above       tenants.rs      one tenant's callers and another's data
//! floods.rs        too much of one thing, or too little    http2.rs       frames by hand, for floods.rs
//! overload.rs      more than there is room for          python.rs       a stock gRPC client: not refused
//! uploads.rs       what is no part of a document          peers.rs        a site that turned on the others
//! handshakes.rs    broken off, and in pieces            pipeline.rs     calls on a stream
//! ```
#![allow(clippy::unwrap_used)]

mod admin;
mod certificates;
mod configs;
mod directories;
mod floods;
mod fsync;
mod handshakes;
mod health;
mod http2;
mod imports;
mod keys;
mod keys_on_disk;
mod limits;
mod overload;
mod peers;
mod pipeline;
mod python;
mod reads;
mod requests;
mod roles;
mod tenants;
mod uploads;
mod wire;
