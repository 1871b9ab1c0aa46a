//! Charthold beside what one would otherwise run: real clusters of three nodes on this machine, under the same load, one
//! after the other and again.
//!
//! ```text
//! load.rs      the load, and what is measured of it     charthold.rs   ours: sealed, audited, mTLS
//! values.rs    what is stored                           etcd.rs        etcd, plain or with mTLS (tls.rs)
//! servers.rs   what processes use                       postgresql.rs  a primary and two standbys, one of them synchronous
//! report.rs    ratios, as a table and as JSON
//! ```
//!
//! All sync each write to disk on a majority before they answer (`fsync` is nowhere off). Keys are new for writes and
//! known for reads. Nothing here is a test: figures on a shared machine are for people to read.

mod charthold;
mod etcd;
pub mod load;
mod postgresql;
pub mod report;
mod servers;
mod tls;
pub mod values;

use futures::future::BoxFuture;

pub use self::charthold::{CHARTS, Charthold};
pub use self::etcd::Etcd;
pub use self::postgresql::Postgresql;

/// A running cluster, as a load sees it.
pub trait Store: Send + Sync + 'static {
    /// Stores a value under a new key.
    fn put(&self, key: u64, value: Vec<u8>) -> BoxFuture<'_, Result<(), String>>;
    /// The same as a call by itself, where calls may share what carries them.
    fn put_alone(&self, key: u64, value: Vec<u8>) -> BoxFuture<'_, Result<(), String>> {
        self.put(key, value)
    }
    /// Reads what was stored there, linearizably.
    fn get(&self, key: u64) -> BoxFuture<'_, Result<(), String>>;
    /// Its servers.
    fn processes(&self) -> Vec<u32>;
}
