//! What processes and their children have used of the processors and the disk.

use std::fs;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// User and system time.
    pub cpu_s: f64,
    /// What they had the kernel write to files' pages, each dirtied page whole (`write_bytes` of proc(5)); a file system's
    /// own journal is not in it. No number: who asks may not see it.
    pub disk_bytes: f64,
}

impl Used {
    pub fn since(self, before: Self) -> Self {
        Self { cpu_s: self.cpu_s - before.cpu_s, disk_bytes: self.disk_bytes - before.disk_bytes }
    }
}

/// What these processes and all below them have used so far.
pub fn used_by(roots: Vec<u32>) -> Used {
    // USER_HZ: 100 on every Linux of ours, whatever the kernel's own tick is (proc(5)).
    const TICKS_PER_S: f64 = 100.0;
    let (mut ticks, mut disk_bytes) = (0, 0.0);
    let mut todo = roots;
    while let Some(process) = todo.pop() {
        let read = |name: &str| fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
        let stat = read("stat");
        // After the name, which may hold anything: state, parent, … utime is the 12th, stime the 13th.
        let fields =
            stat.rsplit_once(") ").map(|(_, fields)| fields.split(' ').collect::<Vec<_>>()).unwrap_or_default();
        let of = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        ticks += of(11) + of(12);
        let io = read("io");
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse::<f64>().ok());
        disk_bytes += written.unwrap_or(f64::NAN);
        todo.extend(read(&format!("task/{process}/children")).split_whitespace().flat_map(str::parse::<u32>));
    }
    Used { cpu_s: ticks as f64 / TICKS_PER_S, disk_bytes }
}
