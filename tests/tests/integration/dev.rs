//! `charthold dev`, as a newcomer meets it: up, load, kill a node, Ctrl-C, again.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use charthold_tests::harness::{Running, command, free_range, until};
use charthold_tests::patients;
use rustix::process::{Pid, Signal, kill_process};

struct Dev {
    folder: PathBuf,
    process: Running,
    log: PathBuf,
}

impl Dev {
    /// Until it says that it is ready.
    async fn start(folder: &Path, name: &str, more: &[&str]) -> Self {
        let log = folder.join(name);
        let data = folder.join("dev");
        let mut start = command(&["dev", "--data"]);
        start.arg(&data).args(more);
        let mut dev = Self { folder: data, process: Running::with_log(start, &log, "charthold dev"), log };
        until("charthold dev is ready", || {
            let said = dev.said();
            assert!(dev.process.is_running(), "charthold dev has ended: {said}");
            async move { if said.contains("ready; Ctrl-C stops it") { Ok(()) } else { Err(said) } }
        })
        .await;
        dev
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn run(&self, arguments: &[&str]) -> String {
        let profile = if arguments[0] == "cluster" { "operator.toml" } else { "client.toml" };
        let mut run = command(arguments);
        let output = run.env("CHARTHOLD_PROFILE", self.folder.join(profile)).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn count(&self, patient: &str) -> usize {
        let list = self.run(&["record", "list", "--patient", patient, "--output", "json"]);
        serde_json::from_str::<Vec<serde_json::Value>>(&list).unwrap().len()
    }

    fn pid(&self, node: &str) -> Pid {
        let text = std::fs::read_to_string(self.folder.join(node).join("node.pid")).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    /// Ctrl-C.
    fn interrupt(mut self) {
        let nodes: Vec<Pid> = ["b1", "c1"].iter().map(|node| self.pid(node)).collect();
        self.process.signal(Signal::INT);
        let status = self.process.wait();
        assert!(status.success(), "{status}: {}", self.said());
        assert!(!self.said().contains("had to be killed"), "{}", self.said());
        for node in nodes {
            assert!(rustix::process::test_kill_process(node).is_err(), "a node lives on");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_to_try_things_out() {
    let folder = tempfile::tempdir().unwrap();
    let (port, file) = (free_range(23).to_string(), patients::file(7));
    let bundle = patients::bundle(7);
    let charthold::fhir::ChartName::Patient(patient) = bundle.entries[0].chart.clone() else { panic!("no patient") };
    let expected = bundle.entries.iter().filter(|entry| entry.chart == bundle.entries[0].chart).count();

    let first = ["--sites", "3", "--base-port", &port, "--load", file.to_str().unwrap()];
    let mut dev = Dev::start(folder.path(), "first.log", &first).await;
    assert_eq!(dev.count(&patient), expected);
    let status: serde_json::Value = serde_json::from_str(&dev.run(&["cluster", "status", "--output", "json"])).unwrap();
    let sites: Vec<&str> = status["nodes"].as_array().unwrap().iter().map(|n| n["site"].as_str().unwrap()).collect();
    assert_eq!(sites.len(), 3, "{status}");
    let second = command(&["dev", "--data", dev.folder.to_str().unwrap()]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another `charthold dev` runs on this folder"));

    // A killed node is told of and left alone; the cluster goes on.
    kill_process(dev.pid("a1"), Signal::KILL).unwrap();
    until("dev tells of the killed node", || {
        let said = dev.said();
        async move { if said.contains("node a1 ended") { Ok(()) } else { Err(said) } }
    })
    .await;
    assert_eq!(dev.count(&patient), expected);
    assert!(dev.process.is_running());
    dev.interrupt();

    let again = Dev::start(folder.path(), "again.log", &[]).await;
    assert_eq!(again.count(&patient), expected);
    again.interrupt();
}
