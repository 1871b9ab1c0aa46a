//! What a client does next, by chance: which record, and what with it.

use std::ops::Range;

use super::history::Function;

/// How many of a hundred operations are on hot records.
const HOT_PERCENT: u64 = 60;

/// How current a read asks to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Linearizable,
    Lease,
    Stale,
}

/// A client's chance.
pub struct Choice {
    pub random: fastrand::Rng,
    /// Records that all clients use all the time, one in each of so many charts: `h0/r` and on.
    pub hot: u64,
    /// The rest: `c` and a number of these.
    pub cold: Range<u64>,
}

impl Choice {
    pub fn key(&mut self) -> String {
        match self.random.u64(0..100) < HOT_PERCENT {
            true => format!("h{}/r", self.random.u64(0..self.hot)),
            false => format!("c{}/r", self.random.u64(self.cold.clone())),
        }
    }

    pub fn function(&mut self, version_is_known: bool) -> Function {
        match (self.random.u64(0..10), version_is_known) {
            (0..5, _) => Function::Get,
            (5..7, true) => Function::Cas,
            (7, true) => Function::Del,
            _ => Function::Put,
        }
    }

    pub fn wish(&mut self) -> Wish {
        match self.random.u8(0..10) {
            0..5 => Wish::Linearizable,
            5..8 => Wish::Lease,
            _ => Wish::Stale,
        }
    }
}

/// Whether a record is one of those that all clients use all the time.
pub fn is_hot(key: &str) -> bool {
    key.starts_with('h')
}
