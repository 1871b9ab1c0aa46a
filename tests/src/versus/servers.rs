//! What a process and its children have used of the processors.

use std::fs;

/// User and system time of a process and all below it, in seconds.
pub fn cpu_s_of_tree(root: u32) -> f64 {
    // USER_HZ: 100 on every Linux of ours, whatever the kernel's own tick is (proc(5)).
    const TICKS_PER_S: f64 = 100.0;
    let mut ticks = 0;
    let mut todo = vec![root];
    while let Some(process) = todo.pop() {
        let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { continue };
        // After the name, which may hold anything: state, parent, … utime is the 12th, stime the 13th.
        let fields =
            stat.rsplit_once(") ").map(|(_, fields)| fields.split(' ').collect::<Vec<_>>()).unwrap_or_default();
        let of = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        ticks += of(11) + of(12);
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
        todo.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    ticks as f64 / TICKS_PER_S
}
