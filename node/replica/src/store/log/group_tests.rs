//! A group's log where its cache is too small for it, and where it is used wrongly.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::group::GroupLog;
use super::writer::LogWriter;
use crate::testing::disk::{Disk, MemoryDisk};

const ENTRY_BYTES: usize = 1 << 20;
/// Several times what the cache keeps.
const ENTRIES: u64 = 40;

fn open(disk: &MemoryDisk) -> (GroupLog, LogWriter) {
    let writer = LogWriter::start(disk.log(), None).unwrap();
    (GroupLog::open(1, disk.log(), writer.clone()).unwrap(), writer)
}

/// An entry that tells its index and its writer.
fn entry(index: u64, of: u8) -> Bytes {
    let mut bytes = vec![of; ENTRY_BYTES];
    bytes[..8].copy_from_slice(&index.to_be_bytes());
    bytes.into()
}

fn append(log: &GroupLog, indexes: std::ops::Range<u64>, of: u8) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for index in indexes {
        runtime.block_on(log.append(index, vec![entry(index, of)], || ())).unwrap();
    }
}

#[test]
fn what_the_cache_lost_comes_from_the_engine_while_it_grows() {
    let (log, writer) = open(&MemoryDisk::empty());
    let done = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (log, done) = (log.clone(), Arc::clone(&done));
        move || {
            while !done.load(Ordering::SeqCst) {
                let found = log.read(1..u64::MAX, usize::MAX).unwrap();
                assert!(found.iter().zip(1..).all(|(found, index)| *found == entry(index, 0)), "a hole");
            }
        }
    });
    append(&log, 1..ENTRIES + 1, 0);
    writer.sync_blocking().unwrap();
    done.store(true, Ordering::SeqCst);
    reader.join().unwrap();
    assert_eq!(log.read(1..u64::MAX, usize::MAX).unwrap().len() as u64, ENTRIES);
    // Pieces of at most 2 MiB, but never nothing; across the border between engine and cache.
    let mut next = 1;
    while next <= ENTRIES {
        let piece = log.read(next..ENTRIES + 1, 2 * ENTRY_BYTES + 100).unwrap();
        assert!((1..=2).contains(&piece.len()), "{} entries", piece.len());
        assert!(piece.iter().zip(next..).all(|(found, index)| *found == entry(index, 0)));
        next += piece.len() as u64;
    }
    assert_eq!(log.read(3..4, 1).unwrap(), [entry(3, 0)]);
}

#[test]
fn a_late_callback_does_not_let_go_of_newer_entries() {
    let disk = MemoryDisk::empty();
    let (log, writer) = open(&disk);
    disk.syncs().hold();
    append(&log, 1..ENTRIES / 2, 0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(log.truncate(3)).unwrap();
    append(&log, 3..ENTRIES / 2, 1);
    let expected = (1..ENTRIES / 2).map(|index| entry(index, u8::from(index >= 3))).collect::<Vec<_>>();
    disk.syncs().release();
    for _while_it_writes in 0..20 {
        assert!(log.read(1..u64::MAX, usize::MAX).unwrap() == expected);
    }
    writer.sync_blocking().unwrap();
    assert!(log.read(1..u64::MAX, usize::MAX).unwrap() == expected);
    assert!(log.last_entry().unwrap() == expected.last().cloned());
}

#[test]
fn no_hole_and_no_overwriting() {
    let (log, writer) = open(&MemoryDisk::empty());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    append(&log, 5..8, 0);
    for first in [0, 5, 7, 9] {
        assert!(runtime.block_on(log.append(first, vec![entry(first, 0)], || ())).is_err(), "at {first}");
    }
    // Nor when all that was there is purged or truncated.
    runtime.block_on(log.truncate(6)).unwrap();
    runtime.block_on(log.purge(6, Bytes::from_static(b"mark"))).unwrap();
    assert!(runtime.block_on(log.append(7, vec![entry(7, 0)], || ())).is_err());
    runtime.block_on(log.append(6, vec![entry(6, 0)], || ())).unwrap();
    writer.sync_blocking().unwrap();
    assert_eq!(log.read(0..u64::MAX, usize::MAX).unwrap(), [entry(6, 0)]);
}
