//! A state that is damaged is set aside, and made anew: from the log what the log has, from the peers what it lacks.
//!
//! Owns the marks and where the damaged state stays until the new one has everything. Must not know how it is made.
//!
//! ```text
//! DATA/DAMAGED         why; then a peer's address a line, as far as they were known     state/ is worth nothing
//! DATA/REFILLING       the same, once it was set aside                                  state/ is the new one, not whole yet
//! DATA/state.damaged/  the state that was set aside first
//! ```
//! The log is not touched: it holds what this node has acknowledged and whom it has voted for.

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

    fn damaged_mark(&self) -> PathBuf {
        self.data.join("DAMAGED")
    }

    fn refilling_mark(&self) -> PathBuf {
        self.data.join("REFILLING")
    }

    fn damaged_state(&self) -> PathBuf {
        self.data.join("state.damaged")
    }

    /// The next start sets the state aside. Durable on return.
    pub fn mark(&self, mark: &Mark) -> Result<(), StoreError> {
        let detail = mark.detail.replace('\n', " ");
        let lines = std::iter::once(&detail).chain(&mark.peers).map(|line| format!("{line}\n"));
        write_atomically(&self.damaged_mark(), lines.collect::<String>().as_bytes())
    }

    /// The same, by who knows no peers: those that were known stay.
    pub fn mark_found(&self, detail: &str) -> Result<(), StoreError> {
        let peers = self.refilling()?.map(|mark| mark.peers).unwrap_or_default();
        self.mark(&Mark { detail: detail.to_owned(), peers })
    }

    /// Why the state is made anew, if it is.
    pub fn refilling(&self) -> Result<Option<Mark>, StoreError> {
        let path = self.refilling_mark();
        match fs::read_to_string(&path) {
            Ok(text) => {
                let mut lines = text.lines().map(str::to_owned);
                Ok(Some(Mark { detail: lines.next().unwrap_or_default(), peers: lines.collect() }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// Before the state is opened: one that is marked goes out of the way. The first one stays until the end: a new one that
    /// was not whole yet is worth less.
    pub fn make_way(&self, state: &Path) -> Result<(), StoreError> {
        let made = self.try_make_way(state);
        made.map_err(|source| StoreError::Io { path: state.to_owned(), source })
    }

    fn try_make_way(&self, state: &Path) -> io::Result<()> {
        let first = self.damaged_state();
        if self.damaged_mark().try_exists()? {
            let moved = if first.try_exists()? { fs::remove_dir_all(state) } else { fs::rename(state, &first) };
            unless_missing(moved)?;
            sync_folder(&self.data)?;
            fs::rename(self.damaged_mark(), self.refilling_mark())?;
            return sync_folder(&self.data);
        }
        match self.refilling_mark().try_exists()? {
            true => Ok(()),
            false => unless_missing(fs::remove_dir_all(first)),
        }
    }

    /// The new state has everything.
    pub fn done(&self) -> Result<(), StoreError> {
        let path = self.refilling_mark();
        if !path.exists() {
            return Ok(());
        }
        let gone = fs::remove_file(&path).and_then(|()| sync_folder(&self.data));
        let gone = gone.and_then(|()| unless_missing(fs::remove_dir_all(self.damaged_state())));
        gone.map_err(|source| StoreError::Io { path, source })
    }
}

fn unless_missing(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
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
        let (old, half) = (|| Some("old".to_owned()), || Some("half".to_owned()));
        let why = || aside.refilling().unwrap().map(|mark| (mark.detail, mark.peers));
        write_state(data.path(), "old");
        aside.make_way(&state).unwrap();
        aside.done().unwrap();
        assert_eq!((why(), found(data.path())), (None, [old(), None]), "nothing is marked");
        aside.mark(&mark()).unwrap();
        assert_eq!((why(), found(data.path())), (None, [old(), None]), "it is still in use");
        aside.make_way(&state).unwrap();
        assert_eq!(why(), Some(("a bad block in a table".to_owned(), mark().peers)));
        assert_eq!(found(data.path()), [None, old()]);
        // Starts that break off go on where they were.
        write_state(data.path(), "half");
        aside.make_way(&state).unwrap();
        assert_eq!(found(data.path()), [half(), old()]);
        // The new one is damaged itself.
        aside.mark_found("another bad block").unwrap();
        aside.make_way(&state).unwrap();
        assert_eq!(why(), Some(("another bad block".to_owned(), mark().peers)));
        assert_eq!(found(data.path()), [None, old()]);
        write_state(data.path(), "new");
        aside.done().unwrap();
        aside.done().unwrap();
        assert_eq!((why(), found(data.path())), (None, [Some("new".to_owned()), None]));
    }

    #[test]
    fn a_crash_between_two_steps_is_made_up_for() {
        let data = tempfile::tempdir().unwrap();
        let (aside, state) = (SetAside::at(data.path()), data.path().join("state"));
        // Set aside, and still marked.
        aside.mark(&mark()).unwrap();
        fs::create_dir_all(data.path().join("state.damaged")).unwrap();
        aside.make_way(&state).unwrap();
        assert!(aside.refilling().unwrap().is_some() && !aside.damaged_mark().exists());
        // Done, but for what was set aside.
        write_state(data.path(), "new");
        fs::remove_file(aside.refilling_mark()).unwrap();
        aside.make_way(&state).unwrap();
        assert_eq!(found(data.path()), [Some("new".to_owned()), None]);
        assert!(!aside.damaged_state().exists());
    }
}
