//! A cluster of real `charthold start` processes on this machine.
//!
//! ```text
//! cluster.rs  start, kill, restart, clients, commands     files.rs    what is on disk for it
//! process.rs  the program, its processes, free ports      observe.rs  leaders, roots, how far it is
//! disk.rs     folders' sizes, small disks, failing syncs  writers.rs  clients that remember every promise
//! ops.rs      probes and metrics                          wan.rs      sites with networks between them
//! ```
//!
//! Each cluster has a folder and ports of its own, and leaves neither files nor processes behind, also when the test
//! panics. Set `CHARTHOLD_TEST_KEEP=1` to keep the folders, to look at.

mod cluster;
mod disk;
mod files;
mod observe;
mod ops;
mod process;
mod wan;
mod writers;

use std::future::Future;
use std::time::{Duration, Instant};

pub use cluster::{CLUSTER, Cluster, Options, TENANT_NAME};
pub use disk::{SmallDisk, bytes_in, drop_page_cache, free_bytes, fsync_shim};
pub use files::{RAFT, RAFT_AS_SHIPPED};
pub use ops::{Metrics, Page, Sample};
pub use process::{Background, Finished, PROGRAM_VARIABLE, Running, command, free_ports, free_range, program};
pub use process::{peak_resident_mib, resident_kib, resident_mib};
pub use wan::{Link, Wan};
pub use writers::{Log, Writers};

/// Of anything that is waited for: long, so that a loaded machine fails no test.
pub const WAIT_MAX: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Repeats a check until it gives a value. What kept it from doing so at the end is in the panic's text.
pub async fn until<T, F: Future<Output = Result<T, String>>>(what: &str, check: impl FnMut() -> F) -> T {
    until_within(what, WAIT_MAX, check).await
}

/// The same of what takes longer.
pub async fn until_within<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    wait_max: Duration,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + wait_max;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(why) if Instant::now() > deadline => panic!("{what}: not after {} s: {why}", wait_max.as_secs()),
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}
