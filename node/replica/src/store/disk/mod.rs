//! What the data directory's disk permits: room that is left, and whether it still answers.
//!
//! Owns the levels, their thresholds, `DATA/BALLAST` and `DATA/PROBE`. Must not know what is done about a level: that is
//! the groups' business, see [`crate::peer::disks`].
//!
//! Room is what the file system has free for us, and the ballast: a file that holds room against others who fill the
//! disk. It is given up when the disk is nearly full, so that what is acknowledged already can still be flushed.
//!
//! ```text
//! room < reserve       low       client writes are refused
//! room < reserve / 2   critical  a follower takes no more entries, the ballast (reserve / 4) is given up
//! ```
//! Each ends a quarter above where it began, and nobody has to do anything.

pub mod ballast;
pub mod watchdog;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use self::ballast::Ballast;
use self::watchdog::Busy;
use super::StoreError;

/// How often the file system is asked.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

/// When a disk is full, and when it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Room that is kept for what is acknowledged already: the log's files, flushes, compactions.
    pub reserve_bytes: u64,
    /// A sync that takes longer makes the node give leadership away.
    pub stall_warn: Duration,
    /// One that takes longer ends the process.
    pub stall_max: Duration,
}

impl Default for DiskLimits {
    fn default() -> Self {
        Self { reserve_bytes: 1 << 30, stall_warn: Duration::from_secs(2), stall_max: Duration::from_secs(10) }
    }
}

impl DiskLimits {
    fn critical_bytes(&self) -> u64 {
        self.reserve_bytes / 2
    }

    fn ballast_bytes(&self) -> u64 {
        self.reserve_bytes / 4
    }

    /// The level with so much room, after `before`: a level is left a quarter above where it begins.
    fn level(&self, room_bytes: u64, before: DiskLevel) -> DiskLevel {
        let below = |limit: u64, was: bool| room_bytes < if was { limit.saturating_add(limit / 4) } else { limit };
        if below(self.critical_bytes(), before == DiskLevel::Critical) {
            DiskLevel::Critical
        } else if below(self.reserve_bytes, before != DiskLevel::Good) {
            DiskLevel::Low
        } else {
            DiskLevel::Good
        }
    }
}

/// What a node's disk permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskLevel {
    Good,
    /// No new writes of clients.
    Low,
    /// No entries of a leader either.
    Critical,
    /// It does not answer.
    Stalled,
    /// A file of the state is damaged.
    Damaged,
    /// The state is made anew.
    Refilling,
}

/// A node's disk, as it was seen last.
#[derive(Debug, Default)]
pub struct Disk {
    /// Of the room alone.
    level: AtomicU8,
    stalled: AtomicBool,
    damaged: AtomicBool,
    refilling: AtomicBool,
    room_bytes: AtomicU64,
}

impl Disk {
    pub fn level(&self) -> DiskLevel {
        match self.level.load(Ordering::Acquire) {
            _ if self.stalled.load(Ordering::Acquire) => DiskLevel::Stalled,
            _ if self.refilling.load(Ordering::Acquire) => DiskLevel::Refilling,
            2.. => DiskLevel::Critical,
            _ if self.damaged.load(Ordering::Acquire) => DiskLevel::Damaged,
            0 => DiskLevel::Good,
            1 => DiskLevel::Low,
        }
    }

    /// Whether there is as much room as there should be, whatever else is wrong.
    pub fn has_room(&self) -> bool {
        self.level.load(Ordering::Acquire) == 0
    }

    /// A file of the state is damaged, for as long as this process runs.
    pub fn note_damage(&self) {
        self.damaged.store(true, Ordering::Release);
    }

    pub fn note_refilling(&self, refilling: bool) {
        self.refilling.store(refilling, Ordering::Release);
    }

    /// What is left, the ballast included.
    pub fn room_bytes(&self) -> u64 {
        self.room_bytes.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub fn set(&self, level: DiskLevel) {
        self.stalled.store(level == DiskLevel::Stalled, Ordering::Release);
        self.damaged.store(level == DiskLevel::Damaged, Ordering::Release);
        self.note_refilling(level == DiskLevel::Refilling);
        let of_room = matches!(level, DiskLevel::Low | DiskLevel::Critical);
        self.note_level(if of_room { level } else { DiskLevel::Good });
    }

    fn note_level(&self, level: DiskLevel) {
        self.level.store(level as u8, Ordering::Release);
    }
}

/// Starts the threads that watch a data directory; they end with the last user of the answer, or the process with them.
/// `log` is the log thread's.
pub fn watch(data: &Path, limits: DiskLimits, log: Busy) -> Result<Arc<Disk>, StoreError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| StoreError::Io { path, source }
    };
    let disk = Arc::new(Disk::default());
    let mut gauge = Gauge { data: data.to_path_buf(), limits, ballast: Ballast::at(data), level: DiskLevel::Good };
    gauge.look(&disk).map_err(io(data))?;
    let weak = Arc::downgrade(&disk);
    let asking = Busy::default();
    let busy = asking.clone();
    let spawned = std::thread::Builder::new().name("disk".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(ROOM_INTERVAL);
            let Some(disk) = weak.upgrade() else { return };
            busy.during(|| {
                if let Err(error) = gauge.look(&disk) {
                    tracing::warn!(%error, path = %gauge.data.display(), "cannot ask how much room is left");
                }
            });
        }
    });
    spawned.map_err(io(data))?;
    watchdog::start(data, &limits, &disk, vec![log, asking])?;
    Ok(disk)
}

/// Before a data directory is opened, which writes: gives up the ballast if the disk is nearly full.
pub fn make_room(data: &Path, limits: &DiskLimits) {
    let ballast = Ballast::at(data);
    if let Ok(free_bytes) = free_bytes(data)
        && free_bytes + ballast.held_bytes() < limits.critical_bytes()
    {
        ballast.give_up();
    }
}

/// What watches the room.
struct Gauge {
    data: PathBuf,
    limits: DiskLimits,
    ballast: Ballast,
    level: DiskLevel,
}

impl Gauge {
    fn look(&mut self, disk: &Disk) -> std::io::Result<()> {
        let free_bytes = free_bytes(&self.data)?;
        let room_bytes = free_bytes + self.ballast.held_bytes();
        let level = self.limits.level(room_bytes, self.level);
        disk.room_bytes.store(room_bytes, Ordering::Relaxed);
        disk.note_level(level);
        let ballast_bytes = self.limits.ballast_bytes();
        match level {
            DiskLevel::Critical => self.ballast.give_up(),
            DiskLevel::Good if free_bytes > self.limits.reserve_bytes => self.ballast.take(ballast_bytes),
            _ => {}
        }
        let mib = room_bytes >> 20;
        if level != self.level {
            let path = self.data.display();
            match level {
                DiskLevel::Good => tracing::info!(mib, %path, "the disk has room again: writes are taken"),
                DiskLevel::Low => tracing::warn!(mib, %path, "the disk is nearly full: writes are refused; make room"),
                _ => tracing::error!(mib, %path, "the disk is full: this replica stands still; make room"),
            }
        }
        self.level = level;
        Ok(())
    }
}

/// What the file system has left for a process without privileges.
fn free_bytes(path: &Path) -> std::io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_level_is_left_a_quarter_above_where_it_began() {
        use DiskLevel::{Critical, Good, Low};
        let limits = DiskLimits { reserve_bytes: 1_000, ..DiskLimits::default() };
        for (room, before, wanted) in [
            (1_000, Good, Good),
            (999, Good, Low),
            (1_249, Low, Low),
            (1_250, Low, Good),
            (500, Low, Low),
            (499, Low, Critical),
            (499, Good, Critical),
            (624, Critical, Critical),
            (625, Critical, Low),
            (1_249, Critical, Low),
            (1_250, Critical, Good),
            (0, Good, Critical),
        ] {
            assert_eq!(limits.level(room, before), wanted, "{room} after {before:?}");
        }
    }

    #[test]
    fn what_is_worse_is_told() {
        use DiskLevel::{Critical, Damaged, Good, Low, Refilling, Stalled};
        let disk = Disk::default();
        let told = |room: DiskLevel| {
            disk.note_level(room);
            (disk.level(), disk.has_room())
        };
        assert_eq!([Good, Low, Critical].map(told), [(Good, true), (Low, false), (Critical, false)]);
        disk.note_damage();
        assert_eq!([Good, Low, Critical].map(told), [(Damaged, true), (Damaged, false), (Critical, false)]);
        disk.note_refilling(true);
        assert_eq!([Good, Critical].map(told), [(Refilling, true), (Refilling, false)]);
        disk.stalled.store(true, Ordering::Release);
        assert_eq!(told(Good), (Stalled, true));
    }

    #[test]
    fn the_ballast_comes_and_goes_with_the_room() {
        let folder = tempfile::tempdir().unwrap();
        let look = |reserve_bytes| {
            let limits = DiskLimits { reserve_bytes, ..DiskLimits::default() };
            let (data, disk) = (folder.path().to_path_buf(), Disk::default());
            let mut gauge = Gauge { ballast: Ballast::at(&data), data, limits, level: DiskLevel::Good };
            gauge.look(&disk).unwrap();
            (disk.level(), Ballast::at(folder.path()).held_bytes())
        };
        assert_eq!(look(1 << 20), (DiskLevel::Good, 1 << 18));
        assert_eq!(look(u64::MAX), (DiskLevel::Critical, 0));
        assert_eq!(look(1 << 20), (DiskLevel::Good, 1 << 18));
        make_room(folder.path(), &DiskLimits { reserve_bytes: u64::MAX, ..DiskLimits::default() });
        assert_eq!(Ballast::at(folder.path()).held_bytes(), 0);
    }
}
