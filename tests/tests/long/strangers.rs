//! Wiped, cloned, rolled-back and foreign data directories, 25 times each, with the program as it is shipped: none is let
//! in, and the cluster loses nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use charthold_client::{Chart, Put, RecordId};
use charthold_tests::harness::{Cluster, Running, until};
use charthold_tests::strangers::{beside, copy, impostor, in_place_of, log_of};

const ROUNDS: usize = 25;
const NODE: usize = 2;

/// A cluster in which strangers try their luck.
struct Place {
    cluster: Cluster,
    /// From round to round, so that each has a log of its own.
    tried: usize,
    written: u64,
}

impl Place {
    async fn write(&mut self) {
        let (chart, record) = (Chart::patient("p1"), RecordId::new("Note", "n1"));
        let written = self.cluster.client().put(&chart, &record, Put::new("text/plain", "kept")).await.unwrap();
        self.written += 1;
        assert_eq!(written.versions, [self.written]);
    }

    fn start(&mut self, flags: &[String]) -> (Running, String) {
        self.tried += 1;
        let name = format!("stranger-{}", self.tried);
        (impostor(&self.cluster, NODE, &name, flags), name)
    }

    /// It runs, is told why it is not let in, and serves nobody; the others go on meanwhile.
    async fn is_let_in_nowhere(&mut self, flags: &[String], why: &str) {
        let (mut process, name) = self.start(flags);
        let log = log_of(&self.cluster, &name);
        until(&format!("{name} is told {why:?}"), || async {
            let text = std::fs::read_to_string(&log).unwrap();
            if text.contains(why) { Ok(()) } else { Err(text) }
        })
        .await;
        assert!(process.is_running(), "{name} has ended: it should wait for its operator");
        self.write().await;
        let ops = flags.iter().find_map(|flag| flag.strip_prefix("listen.ops=")).map(str::to_owned);
        let ready = ready(&ops.unwrap_or_else(|| self.cluster.ops_endpoint(NODE)));
        assert!(ready.starts_with("HTTP/1.1 503"), "{name} serves: {ready}");
        drop(process);
    }

    async fn does_not_start(&mut self, flags: &[String], why: &str) {
        let (mut process, name) = self.start(flags);
        let status = process.wait();
        let text = std::fs::read_to_string(log_of(&self.cluster, &name)).unwrap();
        assert!(status.code() == Some(1) && text.contains(why), "{status}: {text}");
        self.write().await;
    }

    async fn come_back(&mut self) {
        self.cluster.restart(NODE);
        self.cluster.wait_ready().await;
    }
}

/// What it says to a probe.
fn ready(ops: &str) -> String {
    let mut stream = TcpStream::connect(ops).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub async fn run() {
    let mut place = Place { cluster: Cluster::start(3).await, tried: 0, written: 0 };
    place.write().await;
    let foreign = {
        let mut other = Cluster::start(3).await;
        other.stop(NODE);
        let foreign = place.cluster.folder().join("foreign");
        copy(&other.data_dir(NODE), &foreign);
        let identity = std::fs::read_to_string(foreign.join("IDENTITY")).unwrap();
        std::fs::write(foreign.join("IDENTITY"), identity.replace("cluster test", "cluster elsewhere")).unwrap();
        foreign
    };
    for round in 0..ROUNDS {
        let folder = |what: &str| place.cluster.folder().join(format!("{what}-{round}"));
        let (empty, clone, old) = (folder("empty"), folder("clone"), folder("old"));
        place.cluster.stop(NODE);
        copy(&place.cluster.data_dir(NODE), &clone);
        copy(&clone, &old);
        place.is_let_in_nowhere(&[in_place_of(&empty)], "you expect node").await;
        place.does_not_start(&[in_place_of(&foreign)], "of cluster elsewhere").await;
        // The original and its copy are started once each: the same start of the same node, twice.
        place.come_back().await;
        place.is_let_in_nowhere(&beside(&clone), "its data directory is a copy").await;
        // The original goes on counting.
        place.cluster.stop(NODE);
        place.come_back().await;
        place.is_let_in_nowhere(&beside(&old), "its data directory was rolled back").await;
        for folder in [empty, clone, old] {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }
    place.cluster.wait_roots_equal().await;
    println!("{} strangers: {ROUNDS} each wiped, foreign, cloned, rolled back; none was let in", place.tried);
}
