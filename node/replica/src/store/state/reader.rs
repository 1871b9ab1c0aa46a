//! Reading a group's rows while a snapshot may take their place.
//!
//! An install deletes the group's rows and writes others, over a while; readers must not take for absent what is only
//! not there yet. So each install counts twice, when it begins and when it is done, and a read is good only if nothing
//! was counted from before it to after it (a sequence lock). What a read finds after an install is no older than before.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{StateEngine, StateRows, Table};
use crate::metrics::METRICS;
use crate::store::EngineError;

/// How often a group's rows were replaced, twice: odd while they are.
#[derive(Default)]
pub struct Replacements(AtomicU64);

impl Replacements {
    /// An install begins. Readers fail until it is said to be done; for ever, if it breaks off.
    pub fn begin(&self) -> Replacing<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        Replacing(self)
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

#[must_use]
pub struct Replacing<'a>(&'a Replacements);

impl Replacing<'_> {
    pub fn done(self) {
        self.0.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// Reads of one group's rows that belong together.
pub struct Reader<'a> {
    engine: &'a dyn StateEngine,
    replacements: &'a Replacements,
    since: u64,
}

impl<'a> Reader<'a> {
    pub fn new(engine: &'a dyn StateEngine, replacements: &'a Replacements) -> Result<Self, EngineError> {
        let since = replacements.count();
        match since.is_multiple_of(2) {
            true => Ok(Self { engine, replacements, since }),
            false => Err(EngineError::Replaced),
        }
    }

    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let row = self.counted(|engine| engine.get(table, key))?;
        self.unless_replaced(row)
    }

    /// As [`StateEngine::scan`].
    pub fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<StateRows, EngineError> {
        let rows = self.counted(|engine| engine.scan(table, from, to, rows_max, bytes_max))?;
        self.unless_replaced(rows)
    }

    /// As [`StateEngine::first`].
    pub fn first(&self, table: Table, prefix: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, EngineError> {
        let row = self.counted(|engine| engine.first(table, prefix))?;
        self.unless_replaced(row)
    }

    /// Here and not in the engine: what apply reads is no part of it.
    fn counted<T>(&self, read: impl FnOnce(&dyn StateEngine) -> T) -> T {
        let before = self.engine.block_reads();
        let found = read(self.engine);
        METRICS.state_reads.inc();
        METRICS.state_block_reads.inc_by(self.engine.block_reads() - before);
        found
    }

    fn unless_replaced<T>(&self, found: T) -> Result<T, EngineError> {
        match self.replacements.count() == self.since {
            true => Ok(found),
            false => Err(EngineError::Replaced),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::memory::MemoryState;
    use super::*;

    #[test]
    fn a_read_over_a_replacement_fails_and_one_after_it_does_not() {
        let (engine, replacements) = (MemoryState::default(), Replacements::default());
        let before = Reader::new(&engine, &replacements).unwrap();
        assert!(before.get(Table::Version, b"x").is_ok());
        let replacing = replacements.begin();
        assert!(matches!(Reader::new(&engine, &replacements), Err(EngineError::Replaced)));
        assert!(matches!(before.get(Table::Version, b"x"), Err(EngineError::Replaced)));
        replacing.done();
        assert!(matches!(before.scan(Table::Version, b"", b"x", 1, 1), Err(EngineError::Replaced)));
        assert!(Reader::new(&engine, &replacements).unwrap().get(Table::Version, b"x").is_ok());
    }
}
