//! How much of the log is known to be synced, kept outside the log's engine.
//!
//! An engine that recovers less than this lost writes that were acknowledged: the node would vote on a log that it no
//! longer has. RocksDB cannot notice by itself that the end of its log is missing; this file does.
//!
//! ```text
//! two slots of 24 bytes, written in turn:  counter 8 | write number 8 | crc32c 4 of both | zero 4
//! ```
//! A write that tears spoils one slot; the other holds the mark before, which is still a lower bound.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::store::StoreError;

const SLOT_BYTES: usize = 24;
const INTERVAL: Duration = Duration::from_secs(1);

/// The open mark file.
pub struct SyncedMark {
    file: File,
    path: PathBuf,
    counter: u64,
    written_at: Option<Instant>,
}

impl SyncedMark {
    /// Makes the file, for a log that does not exist yet.
    pub fn create(path: &Path) -> Result<(), StoreError> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
        Self { file, path: path.to_owned(), counter: 0, written_at: None }.note(0, true)
    }

    /// Opens the file, refuses a log that recovered less than it says.
    pub fn open(path: &Path, recovered: u64) -> Result<Self, StoreError> {
        let damaged = |detail: &str| StoreError::Damaged { path: path.to_owned(), detail: detail.to_owned() };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => damaged("it is missing, though the node has started before"),
            _ => StoreError::Io { path: path.to_owned(), source },
        })?;
        let slots = [0, 1].map(|slot| read_slot(&file, slot));
        let (counter, synced) = slots.into_iter().flatten().max().ok_or_else(|| damaged("both slots are bad"))?;
        if recovered < synced {
            return Err(StoreError::RolledBack { path: path.to_owned(), recovered, synced });
        }
        Ok(Self { file, path: path.to_owned(), counter, written_at: None })
    }

    /// Notes that everything up to `write_number` is synced. Unless it must be now, at most once a second: it is a sync
    /// of its own.
    pub fn note(&mut self, write_number: u64, now: bool) -> Result<(), StoreError> {
        if !now && self.written_at.is_some_and(|at| at.elapsed() < INTERVAL) {
            return Ok(());
        }
        self.counter += 1;
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(&self.counter.to_be_bytes());
        slot[8..16].copy_from_slice(&write_number.to_be_bytes());
        let crc = crc32c::crc32c(&slot[..16]);
        slot[16..20].copy_from_slice(&crc.to_be_bytes());
        let offset = (self.counter % 2) * SLOT_BYTES as u64;
        let written = self.file.write_all_at(&slot, offset).and_then(|()| self.file.sync_data());
        written.map_err(|source| StoreError::Io { path: self.path.clone(), source })?;
        self.written_at = Some(Instant::now());
        Ok(())
    }
}

fn read_slot(file: &File, slot: u64) -> Option<(u64, u64)> {
    let mut bytes = [0; SLOT_BYTES];
    file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64).ok()?;
    let number = |at: usize| <[u8; 8]>::try_from(&bytes[at..at + 8]).ok().map(u64::from_be_bytes);
    let crc = u32::from_be_bytes(<[u8; 4]>::try_from(&bytes[16..20]).ok()?);
    let counter = number(0)?;
    (counter > 0 && crc == crc32c::crc32c(&bytes[..16])).then_some((counter, number(8)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn note(mark: &mut SyncedMark, write_number: u64) {
        mark.note(write_number, true).unwrap();
    }

    #[test]
    fn refuses_a_log_that_lost_synced_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("SYNCED");
        assert!(matches!(SyncedMark::open(&path, 0), Err(StoreError::Damaged { .. })), "missing");
        SyncedMark::create(&path).unwrap();
        let mut mark = SyncedMark::open(&path, 0).unwrap();
        note(&mut mark, 10);
        note(&mut mark, 20);
        assert!(SyncedMark::open(&path, 20).is_ok());
        assert!(SyncedMark::open(&path, 25).is_ok());
        assert!(matches!(SyncedMark::open(&path, 19), Err(StoreError::RolledBack { recovered: 19, synced: 20, .. })));
    }

    #[test]
    fn a_torn_slot_leaves_the_mark_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("SYNCED");
        SyncedMark::create(&path).unwrap();
        let mut mark = SyncedMark::open(&path, 0).unwrap();
        note(&mut mark, 10);
        note(&mut mark, 20);
        mark.file.write_all_at(&[0xff; 3], 24 + 9).unwrap();
        assert!(matches!(SyncedMark::open(&path, 9), Err(StoreError::RolledBack { synced: 10, .. })));
        assert!(SyncedMark::open(&path, 10).is_ok());
        mark.file.write_all_at(&[0xff; 3], 9).unwrap();
        assert!(matches!(SyncedMark::open(&path, 99), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn at_most_one_write_a_second_unless_it_must_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("SYNCED");
        SyncedMark::create(&path).unwrap();
        let mut mark = SyncedMark::open(&path, 0).unwrap();
        mark.note(1, false).unwrap();
        mark.note(2, false).unwrap();
        assert_eq!(mark.counter, 2);
        mark.note(3, true).unwrap();
        assert_eq!(mark.counter, 3);
    }
}
