//! Who a data directory is, and that one process uses it.
//!
//! `IDENTITY` is text, so that an operator can read it:
//! ```text
//! charthold-data 1
//! cluster <name>
//! node <name>
//! id <16 hex digits>
//! ```
//! `BOOT` is `<counter> <nonce, 16 hex digits>`, rewritten and synced at every start. With both peers tell a directory
//! that was rolled back or copied: its counter is one that they have seen before, or it follows a start that they have
//! not.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::log::synced_mark::SyncedMark;
use crate::NodeId;
use crate::planted::{self, Bug};
use crate::platform::Platform;

const MAGIC: &str = "charthold-data 1";

/// One start of a data directory. No two have the same nonce, copies of the directory included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// Counts from 1; 0 is no start.
    pub counter: u64,
    pub nonce: u64,
}

/// An open, locked data directory.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    pub node_id: NodeId,
    pub boot: Boot,
    pub previous_boot: Boot,
    /// Held open: the lock ends with the process, however it ends.
    _lock: File,
}

impl DataDirectory {
    /// Opens the directory, or makes it for this node if it is empty.
    pub fn open(path: &Path, cluster: &str, node: &str, platform: &Platform) -> Result<Self, StoreError> {
        std::fs::create_dir_all(path).map_err(|source| io(path, source))?;
        sync_folder(path.parent().unwrap_or(path))?;
        let lock = lock(path)?;
        let identity = path.join("IDENTITY");
        let node_id = match std::fs::read_to_string(&identity) {
            Ok(text) => read_identity(&identity, &text, cluster, node)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                refuse_leftovers(path, "IDENTITY", &["log", "state", "SYNCED", "BOOT"])?;
                let id = match planted::has(Bug::WipedNodeAccepted) {
                    true => u64::from(crc32c::crc32c(node.as_bytes())),
                    false => platform.random().max(1),
                };
                let text = format!("{MAGIC}\ncluster {cluster}\nnode {node}\nid {id:016x}\n");
                write_atomically(&identity, text.as_bytes())?;
                id
            }
            Err(source) => return Err(io(&identity, source)),
        };
        let previous_boot = read_boot(path)?;
        let boot = Boot { counter: previous_boot.counter + 1, nonce: platform.random() };
        let text = format!("{} {:016x}\n", boot.counter, boot.nonce);
        write_atomically(&path.join("BOOT"), text.as_bytes())?;
        Ok(Self { path: path.to_owned(), node_id, boot, previous_boot, _lock: lock })
    }

    /// Makes what was created in the directory since stay there: the folders of the engines.
    pub fn sync(&self) -> Result<(), StoreError> {
        sync_folder(&self.path)
    }

    pub fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }

    pub fn state_path(&self) -> PathBuf {
        self.path.join("state")
    }

    pub fn incoming_path(&self) -> PathBuf {
        self.path.join("incoming")
    }

    pub fn synced_mark_path(&self) -> PathBuf {
        self.path.join("SYNCED")
    }
}

fn io(path: &Path, source: std::io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), source }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let lock_path = path.join("LOCK");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|source| io(&lock_path, source))?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse(path.to_owned())),
        Err(errno) => Err(io(&lock_path, errno.into())),
    }
}

/// A log without an identity is half of somebody's data: making a new identity over it would start a second life.
fn refuse_leftovers(path: &Path, missing: &str, later: &[&str]) -> Result<(), StoreError> {
    for name in later {
        if path.join(name).exists() {
            let detail = format!("it has {name} but no {missing}; restore that file or use an empty directory");
            return Err(StoreError::Damaged { path: path.to_owned(), detail });
        }
    }
    Ok(())
}

fn read_identity(path: &Path, text: &str, cluster: &str, node: &str) -> Result<NodeId, StoreError> {
    let damaged = |detail: &str| StoreError::Damaged { path: path.to_owned(), detail: detail.to_owned() };
    let mut lines = text.lines();
    if lines.next() != Some(MAGIC) {
        return Err(damaged("unknown format"));
    }
    let mut field = |name: &str| {
        let line = lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(str::to_owned).ok_or_else(|| damaged(&format!("no line \"{name}\"")))
    };
    let (found_cluster, found_node) = (field("cluster")?, field("node")?);
    let id = u64::from_str_radix(&field("id")?, 16).map_err(|_| damaged("the id is no hexadecimal number"))?;
    if found_cluster != cluster || found_node != node {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
            found: format!("node {found_node} of cluster {found_cluster}"),
            expected: format!("node {node} of cluster {cluster}"),
        });
    }
    Ok(id)
}

/// The start before this one. Before the first the synced mark is made: from then on it must be there.
fn read_boot(folder: &Path) -> Result<Boot, StoreError> {
    let path = folder.join("BOOT");
    match std::fs::read_to_string(&path) {
        Ok(text) => parse_boot(&text)
            .ok_or_else(|| StoreError::Damaged { path, detail: "no counter and nonce of a start".to_owned() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            refuse_leftovers(folder, "BOOT", &["log", "state"])?;
            SyncedMark::create(&folder.join("SYNCED"))?;
            Ok(Boot::default())
        }
        Err(source) => Err(io(&path, source)),
    }
}

fn parse_boot(text: &str) -> Option<Boot> {
    let (counter, nonce) = text.trim().split_once(' ')?;
    Some(Boot { counter: counter.parse().ok()?, nonce: u64::from_str_radix(nonce, 16).ok()? })
}

/// Writes a file so that after a crash it has its old or its new content.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let new = path.with_extension("new");
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.map_err(|source| io(&new, source))?;
    std::fs::rename(&new, path).map_err(|source| io(path, source))?;
    sync_folder(path.parent().unwrap_or(path))
}

/// Makes the names in a folder durable.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    // The parent of a relative name is empty.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| io(folder, source))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn open(path: &Path, cluster: &str, node: &str) -> Result<DataDirectory, StoreError> {
        DataDirectory::open(path, cluster, node, &Platform::system())
    }

    #[test]
    fn keeps_its_id_and_counts_boots() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), "c", "a1").unwrap();
        let id = first.node_id;
        assert_eq!((first.boot.counter, first.previous_boot), (1, Boot::default()));
        let boot = first.boot;
        drop(first);
        let second = open(dir.path(), "c", "a1").unwrap();
        assert_eq!((second.node_id, second.boot.counter, second.previous_boot), (id, 2, boot));
        assert_ne!(second.boot.nonce, boot.nonce);
    }

    #[test]
    fn a_first_start_that_broke_off_is_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "c", "a1").unwrap());
        std::fs::remove_file(dir.path().join("BOOT")).unwrap();
        std::fs::write(dir.path().join("SYNCED"), "").unwrap();
        assert_eq!(open(dir.path(), "c", "a1").unwrap().boot.counter, 1);
        assert!(SyncedMark::open(&dir.path().join("SYNCED"), 0).is_ok());
    }

    #[test]
    fn refuses_a_second_process_another_node_and_another_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let held = open(dir.path(), "c", "a1").unwrap();
        assert!(matches!(open(dir.path(), "c", "a1"), Err(StoreError::InUse(_))));
        drop(held);
        let error = open(dir.path(), "c", "b1").unwrap_err().to_string();
        assert!(error.contains("belongs to node a1 of cluster c, this node is node b1 of cluster c"), "{error}");
        assert!(matches!(open(dir.path(), "d", "a1"), Err(StoreError::Foreign { .. })));
    }

    #[test]
    fn refuses_damage_and_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        assert!(matches!(open(dir.path(), "c", "a1"), Err(StoreError::Damaged { .. })));
        std::fs::remove_dir(dir.path().join("log")).unwrap();
        drop(open(dir.path(), "c", "a1").unwrap());
        for text in ["", "charthold-data 2\n", "charthold-data 1\ncluster c\nnode a1\nid zz\n"] {
            std::fs::write(dir.path().join("IDENTITY"), text).unwrap();
            assert!(matches!(open(dir.path(), "c", "a1"), Err(StoreError::Damaged { .. })));
        }
    }

    #[test]
    fn refuses_a_lost_or_damaged_boot_file() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "c", "a1").unwrap());
        for text in ["", "2\n", "x 00\n", "2 zz\n"] {
            std::fs::write(dir.path().join("BOOT"), text).unwrap();
            assert!(matches!(open(dir.path(), "c", "a1"), Err(StoreError::Damaged { .. })));
        }
        std::fs::remove_file(dir.path().join("BOOT")).unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        assert!(matches!(open(dir.path(), "c", "a1"), Err(StoreError::Damaged { .. })));
    }
}
