//! Ends the process when its disk hangs.
//!
//! A thread that waits for a disk waits inside of the kernel, and nothing else of the process notices: heartbeats go on,
//! and the others stay loyal to a leader that commits nothing. So threads that wait for the disk say so
//! ([`Busy`]), a probe syncs a small file twice a second so that a silent disk is noticed on an idle node too, and one
//! thread that never touches the disk looks at all of them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};

use super::{Disk, DiskLimits};
use crate::planted::{self, Bug};
use crate::store::StoreError;

const PROBE_INTERVAL: Duration = Duration::from_millis(500);
const PROBE_BYTES: usize = 512;
/// How often the watchdog looks: the bound on a stall is exact to this.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What the last line gets: standard error may be a file on the same disk.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);

/// Whether a thread is at something that the disk may hold up: an odd number is. Clones share it; one thread begins and
/// ends.
#[derive(Clone, Debug, Default)]
pub struct Busy(Arc<AtomicU64>);

impl Busy {
    /// Does what may wait for the disk.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.fetch_add(1, Ordering::Release);
        let done = work();
        self.0.fetch_add(1, Ordering::Release);
        done
    }
}

/// How long a thread was seen at the same piece of work. Time in which the watchdog did not run either does not count: a
/// process that was stopped, or a machine that slept, has no bad disk.
struct Watched {
    busy: Busy,
    seen: u64,
    lasts: Duration,
}

impl Watched {
    fn look(&mut self, passed: Duration) -> Duration {
        let now = self.busy.0.load(Ordering::Acquire);
        let same = now % 2 == 1 && now == self.seen;
        self.lasts = if same { self.lasts + passed.min(2 * LOOK_INTERVAL) } else { Duration::ZERO };
        self.seen = now;
        self.lasts
    }
}

/// Starts the probe and the watchdog; they end with the last user of `disk`.
pub(super) fn start(
    data: &Path,
    limits: &DiskLimits,
    disk: &Arc<Disk>,
    mut watched: Vec<Busy>,
) -> Result<(), StoreError> {
    let path = data.join("PROBE");
    let io = |source| StoreError::Io { path: path.clone(), source };
    let probed = Busy::default();
    watched.push(probed.clone());
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(io)
    };
    // Without its file there is no probe, and the log thread alone shows what the disk does.
    if let Ok(file) = File::options().create(true).truncate(false).write(true).open(&path) {
        let disk = Arc::downgrade(disk);
        spawn("probe", Box::new(move || probe(&file, &probed, &disk)))?;
    }
    let (limits, disk) = (*limits, Arc::downgrade(disk));
    spawn("watchdog", Box::new(move || look(&limits, &disk, watched)))?;
    Ok(())
}

/// Writes over the same block, which takes no room. An error proves nothing of the log's own writes, which speak for
/// themselves: only the time counts.
fn probe(file: &File, busy: &Busy, disk: &Weak<Disk>) {
    while disk.strong_count() > 0 {
        let _only_the_time_counts = busy.during(|| file.write_all_at(&[0; PROBE_BYTES], 0).and(file.sync_data()));
        std::thread::sleep(PROBE_INTERVAL);
    }
}

fn look(limits: &DiskLimits, disk: &Weak<Disk>, watched: Vec<Busy>) {
    let watched = watched.into_iter().map(|busy| Watched { busy, seen: 0, lasts: Duration::ZERO });
    let mut watched = watched.collect::<Vec<_>>();
    let mut looked = Instant::now();
    while let Some(disk) = disk.upgrade() {
        let passed = looked.elapsed();
        looked = Instant::now();
        let stalled_for = watched.iter_mut().map(|thread| thread.look(passed)).max().unwrap_or_default();
        if stalled_for > limits.stall_max && !planted::has(Bug::WatchdogOff) {
            end(stalled_for);
        }
        disk.stalled.store(stalled_for > limits.stall_warn, Ordering::Release);
        drop(disk);
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Not `abort`: a core dump would wait for the same disk.
fn end(stalled_for: Duration) -> ! {
    let seconds = stalled_for.as_secs();
    // On a thread of its own, for it may hang too.
    let said = std::thread::Builder::new().spawn(move || {
        tracing::error!(seconds, "the disk does not answer, ending this process; check the disk, then start it again");
    });
    let until = Instant::now() + LAST_WORDS_MAX;
    while said.as_ref().is_ok_and(|said| !said.is_finished()) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _cannot_fail = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{DiskLevel, watch};
    use super::*;

    #[test]
    fn a_thread_that_waits_too_long_shows_until_it_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let limits = DiskLimits {
            reserve_bytes: 1 << 20,
            stall_warn: Duration::from_millis(300),
            stall_max: Duration::from_secs(3_600),
        };
        let log = Busy::default();
        let disk = watch(folder.path(), limits, log.clone()).unwrap();
        let becomes = |level| {
            let until = Instant::now() + Duration::from_secs(60);
            while disk.level() != level {
                assert!(Instant::now() < until, "never {level:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        becomes(DiskLevel::Good);
        log.during(|| becomes(DiskLevel::Stalled));
        becomes(DiskLevel::Good);
    }
}
