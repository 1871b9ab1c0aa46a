//! What the system says of this process and its disk. All best effort: a figure that cannot be read is 0 or absent.

use std::fs;
use std::path::Path;

/// Linux counts a process's CPU time in hundredths of a second, towards programs, on every architecture that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub resident_bytes: u64,
    pub cpu_seconds: f64,
    pub threads: u64,
    pub open_files: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub total_bytes: u64,
    /// To who is not root.
    pub free_bytes: u64,
}

pub fn usage() -> Usage {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Usage {
        resident_bytes: status_field(&status, "VmRSS:") << 10,
        cpu_seconds: cpu_seconds(&fs::read_to_string("/proc/self/stat").unwrap_or_default()),
        threads: status_field(&status, "Threads:"),
        open_files: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
    }
}

/// Of the file system that holds a folder.
pub fn disk(folder: &Path) -> Option<Disk> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(Disk { total_bytes: found.f_blocks * found.f_frsize, free_bytes: found.f_bavail * found.f_frsize })
}

fn status_field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// User and system time, the 14th and 15th field; the second is the program's name in brackets and may hold anything.
fn cpu_seconds(stat: &str) -> f64 {
    let Some((_, fields)) = stat.rsplit_once(") ") else { return 0.0 };
    let ticks = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        assert_eq!(status_field("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t7\n", "VmRSS:"), 1_234);
        assert_eq!(status_field("Threads:\t7\n", "VmRSS:"), 0);
        let stat = "1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 1 0 3 4 5";
        assert_eq!(cpu_seconds(stat), 3.0);
        assert_eq!(cpu_seconds("nonsense"), 0.0);
    }

    #[test]
    fn this_process_is_seen() {
        let usage = usage();
        assert!(usage.resident_bytes > 1 << 20 && usage.threads >= 1 && usage.open_files >= 3, "{usage:?}");
        let disk = disk(Path::new("/")).unwrap();
        assert!(disk.total_bytes >= disk.free_bytes && disk.total_bytes > 0);
        assert_eq!(super::disk(Path::new("/no/such/folder")), None);
    }
}
