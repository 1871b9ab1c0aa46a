//! A disk that fails: a file system of our own (FUSE), in the memory of the test, under a node's data directory.
//!
//! ```text
//! image.rs       what is stored, and what of it a power cut would leave
//! gate.rs        errors, slow syncs and stalls to come
//! filesystem.rs  the kernel's questions
//! ```
//!
//! It loses what was not synced when its power is cut, whole or torn, in order or not; flips bits; brings back what a
//! confirmed write had replaced; fails reads, writes and syncs with EIO; is full; stands still. The idea is LazyFS's
//! (Ramos et al., VLDB 2024).

mod filesystem;
mod gate;
mod image;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fuser::{BackgroundSession, MountOption};

pub use self::gate::Operation;
pub use self::image::Lost;

use self::filesystem::Faulty;
use self::gate::Gate;
use self::image::Image;

/// So much fits on a disk that nobody made smaller.
const CAPACITY_BYTES: usize = 8 << 30;

struct Shared {
    image: Mutex<Image>,
    gate: Gate,
}

impl Shared {
    fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().expect("no holder of this lock panics")
    }
}

/// A mounted disk. Dropped, it is unmounted: end the processes that use it first.
pub struct FaultDisk {
    shared: Arc<Shared>,
    folder: PathBuf,
    _session: BackgroundSession,
}

impl FaultDisk {
    /// Whether this process may mount one.
    pub fn is_possible() -> bool {
        rustix::process::geteuid().is_root()
            && std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok()
    }

    pub fn mount(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("a folder to mount on");
        let shared = Arc::new(Shared { image: Mutex::new(Image::new(CAPACITY_BYTES)), gate: Gate::default() });
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("charthold-fault-disk".to_owned())];
        let session = fuser::spawn_mount(Faulty(Arc::clone(&shared)), folder, &config);
        let session = session.unwrap_or_else(|error| panic!("mounting a fault disk on {}: {error}", folder.display()));
        Self { shared, folder: folder.to_owned(), _session: session }
    }

    /// The power goes, and comes back. Every process that had files open here must have been killed.
    pub fn cut_power(&self, random: &mut fastrand::Rng) -> Lost {
        self.shared.image().cut(random)
    }

    /// All files on it, with the path that programs know them by.
    pub fn files(&self) -> Vec<PathBuf> {
        self.shared.image().files().into_iter().map(|path| self.folder.join(path)).collect()
    }

    /// Flips a bit of a file, counted from the file's first byte.
    pub fn flip(&self, file: &Path, bit: usize) {
        let mut image = self.shared.image();
        let inode = image.find(self.below(file)).expect("the file is there");
        image.flip(inode, bit).expect("it is a file");
    }

    /// Undoes a part of what the last sync of a file made safe; gives the offset of the chunk in bytes, if there was
    /// such a sync.
    pub fn bring_back(&self, file: &Path) -> Option<usize> {
        let mut image = self.shared.image();
        let inode = image.find(self.below(file)).expect("the file is there");
        image.bring_back(inode).expect("it is a file")
    }

    /// The next so many of these operations fail with EIO.
    pub fn fail_next(&self, operation: Operation, times: usize) {
        self.shared.gate.fail_next(operation, times);
    }

    pub fn failed(&self, operation: Operation) -> usize {
        self.shared.gate.failed(operation)
    }

    /// Nothing that is asked of the disk is answered until `resume`.
    pub fn stall(&self) {
        self.shared.gate.stall();
    }

    pub fn resume(&self) {
        self.shared.gate.resume();
    }

    /// Each sync takes so much longer from now on, and all else waits for it, as on a disk that is busy.
    pub fn slow_syncs(&self, by: Duration) {
        self.shared.gate.slow_syncs(by);
    }

    /// Whether it stands still and somebody waits for it.
    pub fn is_waited_for(&self) -> bool {
        self.shared.gate.is_waited_for()
    }

    /// Leaves so much room from now on.
    pub fn leave(&self, bytes: usize) {
        let mut image = self.shared.image();
        image.capacity_bytes = image.capacity_bytes - image.free_bytes() + bytes;
    }

    /// Room again.
    pub fn make_room(&self) {
        self.shared.image().capacity_bytes = CAPACITY_BYTES;
    }

    pub fn free_bytes(&self) -> usize {
        self.shared.image().free_bytes()
    }

    fn below<'a>(&self, file: &'a Path) -> &'a Path {
        file.strip_prefix(&self.folder).expect("a file of this disk")
    }
}

impl Drop for FaultDisk {
    fn drop(&mut self) {
        // Nothing may wait for it, or the unmount would.
        self.resume();
        unmount_lazily(&self.folder);
    }
}

/// The file system goes when its last user goes.
pub fn unmount_lazily(folder: &Path) {
    let unmounted = Command::new("umount").arg("--lazy").arg(folder).status();
    debug_assert!(unmounted.is_ok_and(|status| status.success()));
}
