//! What the state does on a disk that is full, or fails.

use std::time::Duration;

use bytes::Bytes;
use charthold_replica::store::EngineError;
use charthold_replica::store::state::rocks::RocksState;
use charthold_replica::store::state::{MemoryLimits, StateEngine as _, StateOp, Table};
use charthold_tests::fault_disk::{FaultDisk, Operation};

/// What is written before a flush, and what room there is for it.
const ROWS: u32 = 64;
const ROW_BYTES: usize = 64 << 10;
const LEFT_BYTES: usize = 256 << 10;

/// An engine on a disk of its own; nothing without root. The disk is dropped last: it is dropped in this order.
fn start() -> Option<(RocksState, FaultDisk, tempfile::TempDir)> {
    if !FaultDisk::is_possible() {
        skip();
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = FaultDisk::mount(folder.path());
    let state = RocksState::open(&folder.path().join("state"), MemoryLimits::default()).unwrap();
    Some((state, disk, folder))
}

#[allow(clippy::print_stderr)]
fn skip() {
    eprintln!("SKIPPED: fault disks need root and /dev/fuse");
}

fn write(state: &RocksState, round: u32) {
    let put = |number: u32| StateOp::Put {
        table: Table::Part,
        key: [round.to_be_bytes(), number.to_be_bytes()].concat(),
        value: Bytes::from(vec![number as u8; ROW_BYTES]),
    };
    state.write(&(0..ROWS).map(put).collect::<Vec<_>>()).unwrap();
}

fn flush(state: &RocksState) -> Result<(), EngineError> {
    state.begin_flush()?;
    state.finish_flush()
}

#[test]
fn it_waits_for_room_and_so_do_writes() {
    let Some((state, disk, folder)) = start() else { return };
    write(&state, 0);
    disk.leave(LEFT_BYTES);
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| flush(&state));
        std::thread::sleep(Duration::from_secs(2));
        assert!(!flushing.is_finished(), "it has no room");
        let writing = scope.spawn(|| write(&state, 1));
        std::thread::sleep(Duration::from_secs(1));
        disk.make_room();
        flushing.join().unwrap().unwrap();
        writing.join().unwrap();
    });
    flush(&state).unwrap();
    drop(state);
    let state = RocksState::open(&folder.path().join("state"), MemoryLimits::default()).unwrap();
    assert_eq!(state.scan(Table::Part, &[], &[9], usize::MAX, usize::MAX).unwrap().len() as u32, 2 * ROWS);
}

#[test]
fn a_disk_that_fails_is_not_waited_for() {
    for operation in [Operation::Write, Operation::Sync] {
        let Some((state, disk, _folder)) = start() else { return };
        write(&state, 0);
        disk.fail_next(operation, 1);
        let error = flush(&state).unwrap_err();
        assert!(error.to_string().contains("Input/output error"), "{error}");
        assert_eq!(disk.failed(operation), 1);
    }
}

#[test]
fn a_sector_that_cannot_be_read_is_damage() {
    let Some((state, disk, folder)) = start() else { return };
    write(&state, 0);
    flush(&state).unwrap();
    drop(state);
    let state = RocksState::open(&folder.path().join("state"), MemoryLimits::default()).unwrap();
    assert_eq!(state.damage(), None);
    disk.fail_next(Operation::Read, 1);
    let read = || state.scan(Table::Part, &[], &[9], usize::MAX, usize::MAX);
    assert!(matches!(read(), Err(EngineError::Damaged { .. })));
    assert_eq!(disk.failed(Operation::Read), 1);
    assert!(state.damage().is_some_and(|why| why.contains("Input/output error")));
    // That it was, is not forgotten over a read that succeeds.
    assert_eq!(read().unwrap().len() as u32, ROWS);
    assert!(state.damage().is_some());
}
