//! What a fault disk is told to do wrong: errors for chosen operations, slow syncs, and a stall of everything.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// What a program asks of a disk, as far as faults tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Read,
    Write,
    Sync,
    /// All that concerns names.
    Name,
}

/// Every operation passes here before it is done.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    resumed: Condvar,
}

#[derive(Default)]
struct State {
    stalled: bool,
    waiting: usize,
    /// How much longer a sync takes.
    slow_syncs: Duration,
    /// How many more of them fail with EIO.
    failing: BTreeMap<Operation, usize>,
    failed: BTreeMap<Operation, usize>,
}

/// The operation fails with EIO.
pub struct Broken;

impl Gate {
    pub fn pass(&self, operation: Operation) -> Result<(), Broken> {
        let mut state = self.lock();
        state.waiting += 1;
        let mut state = self.resumed.wait_while(state, |state| state.stalled).expect("no holder of this lock panics");
        state.waiting -= 1;
        if operation == Operation::Sync && !state.slow_syncs.is_zero() {
            let slow_syncs = state.slow_syncs;
            drop(state);
            std::thread::sleep(slow_syncs);
            state = self.lock();
        }
        match state.failing.get_mut(&operation) {
            Some(left @ 1..) => {
                *left -= 1;
                *state.failed.entry(operation).or_default() += 1;
                Err(Broken)
            }
            _ => Ok(()),
        }
    }

    pub fn stall(&self) {
        self.lock().stalled = true;
    }

    pub fn resume(&self) {
        self.lock().stalled = false;
        self.resumed.notify_all();
    }

    pub fn slow_syncs(&self, by: Duration) {
        self.lock().slow_syncs = by;
    }

    /// Whether somebody waits for a stalled disk.
    pub fn is_waited_for(&self) -> bool {
        let state = self.lock();
        state.stalled && state.waiting > 0
    }

    pub fn fail_next(&self, operation: Operation, times: usize) {
        self.lock().failing.insert(operation, times);
    }

    /// How many of them failed so far.
    pub fn failed(&self, operation: Operation) -> usize {
        self.lock().failed.get(&operation).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}
