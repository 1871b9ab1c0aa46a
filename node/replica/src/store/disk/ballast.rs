//! `DATA/BALLAST`: room that is held against others who fill the disk, and given up when it is needed.
//!
//! It holds nothing, is never read, and may be deleted at any time. Where a file system cannot hold room for a file
//! there is none: the thresholds work without.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

pub(super) struct Ballast(PathBuf);

impl Ballast {
    pub fn at(data: &Path) -> Self {
        Self(data.join("BALLAST"))
    }

    pub fn held_bytes(&self) -> u64 {
        std::fs::metadata(&self.0).map_or(0, |found| found.len())
    }

    /// Holds so many bytes.
    pub fn take(&self, bytes: u64) {
        if self.held_bytes() == bytes {
            return;
        }
        // Another size: the configuration was changed.
        self.give_up();
        let taken = File::create(&self.0).and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, bytes)?));
        if let Err(error) = taken {
            self.give_up();
            tracing::debug!(%error, path = %self.0.display(), "this file system holds no room for a file");
        }
    }

    pub fn give_up(&self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.0.display(), "cannot give up the ballast; delete it");
            }
            _ => {}
        }
    }
}
