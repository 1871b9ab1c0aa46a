//! A state that is damaged is set aside, and made anew: from the log what the log has, from the peers what it lacks.
//!
//! Owns the mark and where the damaged state stays until the new one has everything. Must not know how it is made.
//!
//! ```text
//! DATA/DAMAGED         why; then a peer's address a line, as far as they were known     state/ is worth nothing
//! DATA/state.damaged/  the state that was set aside
//! ```
//! As long as the mark is there, each start begins again with an empty state. The log is not touched: it holds what this
//! node has acknowledged and whom it has voted for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::identity::write_atomically;

/// Of a data directory.
#[derive(Clone, Debug)]
pub struct SetAside {
    data: PathBuf,
}

/// What the mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub detail: String,
    pub peers: Vec<String>,
}

impl SetAside {
    pub fn at(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    fn mark_path(&self) -> PathBuf {
        self.data.join("DAMAGED")
    }

    fn damaged_path(&self) -> PathBuf {
        self.data.join("state.damaged")
    }

    /// From the next start on, the state is made anew. Durable on return.
    pub fn mark(&self, mark: &Mark) -> Result<(), StoreError> {
        let detail = mark.detail.replace('\n', " ");
        let lines = std::iter::once(&detail).chain(&mark.peers).map(|line| format!("{line}\n"));
        write_atomically(&self.mark_path(), lines.collect::<String>().as_bytes())
    }

    /// What was marked and is not done.
    pub fn marked(&self) -> Result<Option<Mark>, StoreError> {
        let path = self.mark_path();
        match fs::read_to_string(&path) {
            Ok(text) => {
                let mut lines = text.lines().map(str::to_owned);
                Ok(Some(Mark { detail: lines.next().unwrap_or_default(), peers: lines.collect() }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// Before the state is opened: if it is marked, it goes out of the way. What was set aside first stays: a new state that
    /// is not whole yet is worth less.
    pub fn make_way(&self, state: &Path) -> Result<(), StoreError> {
        let damaged = self.damaged_path();
        let moved = match (self.marked()?, damaged.exists()) {
            (Some(_), false) => fs::rename(state, &damaged),
            (Some(_), true) => fs::remove_dir_all(state),
            (None, true) => fs::remove_dir_all(&damaged),
            (None, false) => Ok(()),
        };
        match moved {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Io { path: state.to_owned(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// The new state has everything.
    pub fn done(&self) -> Result<(), StoreError> {
        let gone = fs::remove_file(self.mark_path()).and_then(|()| fs::File::open(&self.data)?.sync_all());
        gone.and_then(|()| fs::remove_dir_all(self.damaged_path()))
            .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
            .map_err(|source| StoreError::Io { path: self.mark_path(), source })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mark() -> Mark {
        Mark { detail: "a bad block\nin a table".to_owned(), peers: vec!["b:1".to_owned(), "c:1".to_owned()] }
    }

    /// What is in `state` and `state.damaged`.
    fn found(data: &Path) -> [Option<String>; 2] {
        ["state/CURRENT", "state.damaged/CURRENT"].map(|path| fs::read_to_string(data.join(path)).ok())
    }

    fn write_state(data: &Path, content: &str) {
        fs::create_dir_all(data.join("state")).unwrap();
        fs::write(data.join("state/CURRENT"), content).unwrap();
    }

    #[test]
    fn the_first_state_stays_until_a_new_one_is_whole() {
        let data = tempfile::tempdir().unwrap();
        let (aside, state) = (SetAside::at(data.path()), data.path().join("state"));
        let old = || Some("old".to_owned());
        write_state(data.path(), "old");
        aside.make_way(&state).unwrap();
        assert_eq!((aside.marked().unwrap(), found(data.path())), (None, [old(), None]));
        aside.mark(&mark()).unwrap();
        let marked = aside.marked().unwrap().unwrap();
        assert_eq!((marked.detail.as_str(), marked.peers), ("a bad block in a table", mark().peers));
        aside.make_way(&state).unwrap();
        assert_eq!(found(data.path()), [None, old()]);
        // A start that breaks off, before and after it made a state.
        aside.make_way(&state).unwrap();
        write_state(data.path(), "half");
        aside.make_way(&state).unwrap();
        assert_eq!(found(data.path()), [None, old()]);
        write_state(data.path(), "new");
        aside.done().unwrap();
        aside.done().unwrap();
        assert_eq!((aside.marked().unwrap(), found(data.path())), (None, [Some("new".to_owned()), None]));
    }

    #[test]
    fn what_is_left_after_the_mark_has_gone_goes_at_the_next_start() {
        let data = tempfile::tempdir().unwrap();
        let (aside, state) = (SetAside::at(data.path()), data.path().join("state"));
        write_state(data.path(), "new");
        fs::create_dir_all(data.path().join("state.damaged")).unwrap();
        aside.make_way(&state).unwrap();
        assert_eq!(found(data.path()), [Some("new".to_owned()), None]);
        assert!(!data.path().join("state.damaged").exists());
    }
}
