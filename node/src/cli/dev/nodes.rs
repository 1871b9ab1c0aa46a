//! The node processes of `charthold dev`: started, watched, stopped; never started again by us.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::folder::{Folder, PlannedNode};
use crate::cli::exit::CliError;

/// From SIGTERM to SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a log is shown when its node does not come up.
const LOG_TAIL_BYTES: u64 = 2048;
const LOG_TAIL_LINES: usize = 5;

pub(super) struct Nodes {
    running: Vec<Running>,
}

struct Running {
    name: String,
    folder: PathBuf,
    child: Child,
}

/// A node that ended by itself, or was killed.
pub(super) struct Ended {
    pub name: String,
    pub folder: PathBuf,
    status: std::io::Result<ExitStatus>,
}

impl Ended {
    pub fn how(&self) -> String {
        self.status.as_ref().map_or_else(|error| error.to_string(), ToString::to_string)
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        tail(&self.folder.join("node.log")).unwrap_or_default()
    }
}

impl Nodes {
    /// One process each. Nothing is started unless every port is free.
    pub fn start(folder: &Folder) -> Result<Self, CliError> {
        let nodes = folder.plan.nodes();
        nodes.iter().try_for_each(check_ports)?;
        let mut running = Vec::with_capacity(nodes.len());
        for node in &nodes {
            running.push(Running { name: node.name.clone(), folder: folder.node(node), child: spawn(folder, node)? });
        }
        Ok(Self { running })
    }

    pub fn any(&self) -> bool {
        !self.running.is_empty()
    }

    pub fn process_id(&self, name: &str) -> Option<u32> {
        self.running.iter().find(|node| node.name == name)?.child.id()
    }

    /// The next node to end. Waits for ever when none runs.
    pub async fn next_end(&mut self) -> Ended {
        let mut waits: FuturesUnordered<_> = self
            .running
            .iter_mut()
            .enumerate()
            .map(|(index, node)| async move { (index, node.child.wait().await) })
            .collect();
        let Some((index, status)) = waits.next().await else { return std::future::pending().await };
        drop(waits);
        let node = self.running.swap_remove(index);
        // The number may soon be another process's.
        let _ = std::fs::remove_file(node.folder.join("node.pid"));
        Ended { name: node.name, folder: node.folder, status }
    }

    /// Asks all to stop, and ends those that don't.
    pub async fn stop(mut self, mut hurry: impl Future<Output = ()> + Unpin) -> Vec<String> {
        self.signal(Signal::TERM);
        let mut killed = Vec::new();
        let deadline = tokio::time::sleep(STOP_TIMEOUT);
        tokio::pin!(deadline);
        let mut patient = true;
        while self.any() {
            let late = tokio::select! {
                _ = self.next_end() => false,
                () = &mut deadline, if patient => true,
                () = &mut hurry, if patient => true,
            };
            if late {
                patient = false;
                killed = self.running.iter().map(|node| node.name.clone()).collect();
                self.signal(Signal::KILL);
            }
        }
        killed
    }

    fn signal(&self, signal: Signal) {
        let ids = self.running.iter().filter_map(|node| node.child.id());
        for id in ids.filter_map(|id| Pid::from_raw(id.cast_signed())) {
            // It may have ended this moment.
            let _ = kill_process(id, signal);
        }
    }
}

fn spawn(folder: &Folder, node: &PlannedNode) -> Result<Child, CliError> {
    let home = folder.node(node);
    let log_path = home.join("node.log");
    let log = std::fs::File::options().create(true).append(true).open(&log_path);
    let log = log.map_err(|error| CliError::file(&log_path, &error))?;
    let for_stderr = log.try_clone().map_err(|error| CliError::file(&log_path, &error))?;
    let program = std::env::current_exe().map_err(|error| CliError::Failed(format!("this program: {error}")))?;
    let mut command = Command::new(program);
    command.arg("start").arg("--config").arg(home.join("config.toml")).arg("--stop-with-parent");
    // What is set for one node in our environment would be set for all.
    let ours = |name: &str| name.starts_with("CHARTHOLD_") && name != "CHARTHOLD_LOG";
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    // A group of its own: Ctrl-C in the terminal is for us, and we stop the nodes in our own way.
    command.stdin(Stdio::null()).stdout(log).stderr(for_stderr).process_group(0).kill_on_drop(true);
    let child = command.spawn().map_err(|error| CliError::Failed(format!("starting {}: {error}", node.name)))?;
    let pid = home.join("node.pid");
    let id = child.id().unwrap_or_default();
    std::fs::write(&pid, format!("{id}\n")).map_err(|error| CliError::file(&pid, &error))?;
    Ok(child)
}

fn check_ports(node: &PlannedNode) -> Result<(), CliError> {
    for address in [node.client, node.peer, node.ops] {
        TcpListener::bind(address).map(drop).map_err(|error| {
            CliError::Failed(format!(
                "{address}, for node {}: {error}; stop what uses it (an earlier cluster?), or take another folder and \
                 other ports with --data and --base-port",
                node.name
            ))
        })?;
    }
    Ok(())
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let [name, site] = ["a1", "a"].map(str::to_owned);
        let node = PlannedNode { name, site, keyed: true, client: address, peer: address, ops: address };
        let error = check_ports(&node).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{address}, for node a1: ")) && error.contains("--base-port"), "{error}");
    }

    #[test]
    fn the_tail_of_a_log() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: Vec<String> = (0..1000).map(|number| format!("line {number}")).collect();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        assert_eq!(tail(file.path()).unwrap(), lines[995..].join("\n"));
    }

    #[tokio::test]
    async fn nodes_are_stopped_gently_first() {
        let running = |script: &str| {
            let child = Command::new("sh").args(["-c", script]).kill_on_drop(true).spawn().unwrap();
            Running { name: script.chars().take(4).collect(), folder: PathBuf::from("/nonexistent"), child }
        };
        let nodes = Nodes { running: vec![running("exec sleep 60")] };
        assert!(nodes.stop(std::future::pending::<()>()).await.is_empty());

        let deaf = Nodes { running: vec![running("trap '' TERM; while true; do sleep 1; done")] };
        tokio::time::sleep(Duration::from_millis(300)).await;
        let hurry = Box::pin(tokio::time::sleep(Duration::from_millis(200)));
        assert_eq!(deaf.stop(hurry).await, ["trap"]);
    }

    #[tokio::test]
    async fn an_ended_node_is_told() {
        let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let mut nodes = Nodes { running: vec![Running { name: "b1".into(), folder: "/nonexistent".into(), child }] };
        let ended = nodes.next_end().await;
        assert_eq!((ended.name.as_str(), ended.how().as_str()), ("b1", "exit status: 3"));
        assert!(!nodes.any());
    }
}
