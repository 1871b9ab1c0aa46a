//! How full disks are, disks that are small, and disks that fail.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fault_disk::unmount_lazily;

/// All files below a folder. Some may go while they are counted.
pub fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// On the disk that a folder is on.
pub fn free_bytes(folder: &Path) -> u64 {
    let found = rustix::fs::statvfs(folder).expect("statvfs");
    found.f_bavail * found.f_frsize
}

/// The system forgets what it has of files that are on disks. Answers whether this process may ask for that.
pub fn drop_page_cache() -> bool {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// A library that makes syncs fail or hang. See its source.
pub fn fsync_shim(folder: &Path) -> PathBuf {
    build_shim(folder, "fsync_shim")
}

/// To be preloaded: one of `fixtures`, built with whatever compiler is there.
pub fn build_shim(folder: &Path, name: &str) -> PathBuf {
    let library = folder.join(name).with_extension("so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).with_extension("c");
    let built = ["clang", "cc", "gcc"].iter().any(|compiler| {
        let mut command = Command::new(compiler);
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl");
        command.status().is_ok_and(|status| status.success())
    });
    assert!(built, "no C compiler (clang, cc, gcc) builds {}", source.display());
    library
}

/// A file system of its own, in memory. Unmounted when this is dropped, also under running processes: drop it first.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Nothing if this process may not mount: only root may.
    pub fn mount(folder: &Path, mib: u64) -> Option<Self> {
        std::fs::create_dir_all(folder).expect("a folder to mount on");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0700"), "tmpfs"]).arg(folder);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then(|| Self(folder.to_owned()))
    }

    pub fn free_mib(&self) -> u64 {
        free_bytes(&self.0) >> 20
    }

    /// As another program fills a disk: with a file that leaves so much.
    pub fn fill(&self, leave_mib: u64) {
        let mut file = File::options().create(true).append(true).open(self.filling()).expect("a file that fills");
        let block = vec![0xfe; 1 << 20];
        while self.free_mib() > leave_mib && file.write_all(&block).is_ok() {}
    }

    /// To the last byte.
    pub fn fill_up(&self) {
        self.fill(0);
        let mut file = File::options().append(true).open(self.filling()).expect("a file that fills");
        while file.write_all(&[0xfe; 512]).is_ok() {}
    }

    pub fn empty(&self) {
        std::fs::remove_file(self.filling()).expect("removing the file that fills");
    }

    fn filling(&self) -> PathBuf {
        self.0.join("somebody-elses-file")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount_lazily(&self.0);
    }
}
