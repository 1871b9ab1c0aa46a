//! Processes on data directories that are not theirs to use: copies, old ones, empty ones.

use std::path::{Path, PathBuf};

use crate::harness::{Cluster, Running, command, free_ports};

/// A directory with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { std::fs::copy(&path, &target).map(|_| ()).unwrap() }
    }
}

/// Flags for a second process beside the cluster's own: its own ports, another directory.
pub fn beside(data: &Path) -> Vec<String> {
    let ports = free_ports(3);
    let listen =
        ["client", "peer", "ops"].iter().zip(ports).map(|(name, port)| format!("listen.{name}=127.0.0.1:{port}"));
    listen.chain([in_place_of(data)]).collect()
}

/// The flag for a process in the place of the cluster's own, on another directory.
pub fn in_place_of(data: &Path) -> String {
    format!("data={}", data.display())
}

/// A process with a node's configuration and certificates. It may run; what it may not is take part.
pub fn impostor(cluster: &Cluster, node: usize, name: &str, flags: &[String]) -> Running {
    let mut start = command(&["start", "--stop-with-parent", "--config"]);
    start.arg(cluster.config(node)).args(flags.iter().flat_map(|flag| ["--set", flag.as_str()]));
    Running::with_log(start, &log_of(cluster, name), name)
}

/// Of an impostor.
pub fn log_of(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.folder().join(format!("{name}.log"))
}
