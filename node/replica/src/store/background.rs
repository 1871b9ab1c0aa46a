//! What an engine writes in the background, flushes and compactions: past the kernel's cache and evenly, and never so slowly
//! that who writes has to wait for it.
//!
//! Both ways are wrong. A flush at full speed makes the syncs of the log wait, and with them every commit. One that is held up
//! until no memtable is left makes writers wait (RocksDB those of the log, the flusher those of the state), for seconds, and the node looks
//! as if its disk hangs.
//!
//! Nothing is less durable so: a file that was written directly is synced when it is closed (RocksDB,
//! `file/writable_file_writer.cc`), before anything refers to it. The log's own file is not written so.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rocksdb::Options;
use rustix::fs::OFlags;

/// What one engine may write in a second, at most. RocksDB tunes it down to a twentieth while it needs no more, and up by
/// a twentieth a second: so the lower end counts, and is above what a node can take in (some 50 MB of bodies on two
/// cores, written to the log and to the state).
const BYTES_PER_S_MAX: i64 = 4 << 30;
/// How often the limit gives out a share of it: RocksDB's default of 100 ms would make bursts.
const REFILL_US: i64 = 10_000;
/// One in so many shares goes to compactions first: RocksDB's default.
const FAIRNESS: i32 = 10;
/// Exists for a moment, beside an engine's files.
const PROBE: &str = "DIRECT";
/// What take direct writes and do them through the cache, `f_type` of statfs(2): btrfs and ZFS (those with checksums). RocksDB would
/// have such a file synced once, as a whole.
const NOT_REALLY: [u64; 2] = [0x9123_683e, 0x2fc1_2fc1];

/// What a direct write is aligned to, at least; no disk has larger blocks.
#[repr(align(4096))]
struct Block([u8; 4096]);

/// For an engine in a folder, which is made.
pub(super) fn even_out(options: &mut Options, folder: &Path) {
    match write_directly(folder) {
        Ok(()) => options.set_use_direct_io_for_flush_and_compaction(true),
        // RocksDB has the kernel write each MiB then, because of the limit.
        Err(why) => tracing::info!(folder = %folder.display(), %why, "flushes go through the kernel's cache"),
    }
    options.set_auto_tuned_ratelimiter(BYTES_PER_S_MAX, REFILL_US, FAIRNESS);
}

/// Tries it.
fn write_directly(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    if NOT_REALLY.contains(&(rustix::fs::statfs(folder)?.f_type as u64)) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "btrfs and ZFS cache direct writes, too"));
    }
    let path = folder.join(PROBE);
    let direct = OFlags::DIRECT.bits().cast_signed();
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).custom_flags(direct).open(&path);
    let written = file.and_then(|mut file| file.write_all(&Block([0; 4096]).0));
    // Also where it was made and not opened.
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// `f_type` of statfs(2).
    const EXT4: u64 = 0xef53;

    #[test]
    fn it_is_tried_without_a_trace() {
        let folder = tempfile::tempdir().unwrap();
        let engine = folder.path().join("data/log");
        let tried = write_directly(&engine);
        // What most run on takes direct writes; another file system may.
        if rustix::fs::statfs(&engine).unwrap().f_type as u64 == EXT4 {
            tried.unwrap();
        }
        assert_eq!(std::fs::read_dir(&engine).unwrap().count(), 0);
        assert!(write_directly(Path::new("/proc")).is_err());
    }
}
