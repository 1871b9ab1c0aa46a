//! Node-to-node connections that carry opaque frames.
//!
//! Owns connecting, the handshake, framing, fairness among shards, and dead-peer detection. Must not know what a frame
//! says, nor how TLS works: a [`transport::Transport`] hands in authenticated streams.
//!
//! Each node dials two connections to each peer and sends its requests there; answers come back on the same one.
//! *Control* carries what must not wait (votes, heartbeats, read index), *bulk* the rest (appends, forwards).

pub mod client;
pub mod clock;
mod connection;
pub mod disks;
pub mod frame;
pub mod hello;
pub mod leadership;
mod outbox;
pub mod registry;
pub mod server;
#[cfg(test)]
mod tests;
pub mod transport;

use std::time::Duration;

/// A connection on which nothing was read for this long is given up.
const IDLE_MAX: Duration = Duration::from_secs(6);
/// A connection on which nothing was written for this long gets a ping.
const PING_AFTER: Duration = Duration::from_secs(2);
/// From connecting to the end of the handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How often a node tells its peers its clock and how far its log is synced.
const MARK_INTERVAL: Duration = Duration::from_secs(1);
/// How often it keeps what they told it.
const KEEP_INTERVAL: Duration = Duration::from_secs(2);
/// Calls and streams that a caller may have open on one connection.
const CALLS_MAX: usize = 4_096;
/// Requests of one append stream that may wait for their answers.
pub const STREAM_WINDOW: usize = 8;

/// Which of a peer's two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Control,
    Bulk,
}
