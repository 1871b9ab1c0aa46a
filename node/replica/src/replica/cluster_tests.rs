//! A few nodes in one process, over the network in memory.

#![allow(clippy::unwrap_used)]

mod append_tests;
mod author_tests;
mod member_tests;
mod placement_tests;
mod proposer_tests;
mod reach_tests;
mod refill_tests;
mod rows_tests;
mod split_tests;
mod trust_tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use pb::outcome::Result as Answer;
use tokio::time::Instant;

use super::{Replica, ReplicaConfig, ReplicaError};
use crate::directory::plan;
use crate::peer::transport::PeerIdentity;
use crate::platform::Platform;
use crate::shard::command::Command;
use crate::shard::config::{Retention, Timing};
use crate::shard::types::Member;
use crate::store::disk::DiskLimits;
use crate::store::state::MemoryLimits;
use crate::store::table::ChartAddress;
use crate::testing::transport::{MemoryNetwork, identity};
use crate::testing::{TestKey, WAIT_MAX, commit, ensure_key, eventually, put, request_id, slots_of, token};
use crate::{DIRECTORY, NodeId, SHARD_COUNT, ShardId};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// How many of them most clusters have.
const SIZE: usize = 3;
const SHARD: ShardId = 5;

fn deadline() -> Instant {
    Instant::now() + WAIT_MAX
}

fn slot() -> crate::Slot {
    slots_of(SHARD).unwrap().first
}

/// Folders and network; nodes come and go.
struct Cluster {
    network: MemoryNetwork,
    /// Stays when a test fails: nodes may still write there.
    folder: PathBuf,
    nodes: Vec<Option<Arc<Replica>>>,
    /// All but these have keys.
    keyless: &'static [&'static str],
    /// Whether nodes are started with the addresses of the others.
    join: bool,
    /// How far each node's clock is ahead.
    ahead_ms: [Arc<AtomicU64>; NAMES.len()],
}

impl Cluster {
    async fn start(size: usize, keyless: &'static [&'static str]) -> Self {
        let (network, folder) = (MemoryNetwork::default(), tempfile::tempdir().unwrap().keep());
        let nodes = vec![None; size];
        let mut cluster = Self { network, folder, nodes, keyless, join: true, ahead_ms: Default::default() };
        for at in 0..size {
            cluster.open(at).await;
        }
        cluster
    }

    async fn formed() -> Self {
        Self::formed_of(SIZE, &[]).await
    }

    async fn formed_of(size: usize, keyless: &'static [&'static str]) -> Self {
        Self::formed_with(size, keyless, SHARD_COUNT).await
    }

    async fn formed_with(size: usize, keyless: &'static [&'static str], shards: u16) -> Self {
        let cluster = Self::start(size, keyless).await;
        cluster.node(0).form(Some(size)).await.unwrap();
        cluster.begin_with(shards).await;
        cluster
    }

    /// What `cluster init` does once the groups are formed; done when every node has the shards.
    async fn begin_with(&self, shards: u16) {
        let init = pb::InitCluster {
            request_id: Bytes::copy_from_slice(&request_id("init", Platform::system().now_ms())),
            cluster: "c".to_owned(),
            shards: plan::begin(shards),
            grant: Some(pb::Grant {
                tenant: Bytes::copy_from_slice(&[0; 16]),
                principal: Bytes::copy_from_slice(&token("operator")),
                sealed_grant: Bytes::new(),
            }),
            ..Default::default()
        };
        let init = Command::InitCluster(init).encode(0);
        let done = self.node(0).propose(DIRECTORY, init, deadline()).await.unwrap();
        assert!(matches!(done.result, Some(Answer::Done(_))));
        eventually("the shards", async || {
            self.running().all(|node| node.shard_of(crate::Slot::MAX) == Some(shards)).then_some(())
        })
        .await;
    }

    /// Starts a node.
    async fn open(&mut self, at: usize) {
        self.nodes[at] = Some(self.opening(at).await);
    }

    /// A node that starts; after a stop it may take a moment until its files are free.
    fn opening(&self, at: usize) -> impl Future<Output = Arc<Replica>> + Send + use<> {
        let name = NAMES[at];
        let data = self.folder.join(name);
        let others = NAMES[..self.nodes.len()]
            .iter()
            .filter(|other| self.join && **other != name)
            .map(|other| (*other).to_owned())
            .collect::<Vec<_>>();
        let keyed = !self.keyless.contains(&name);
        let transport = self.network.join_as(name, PeerIdentity { keyed, ..identity(name) });
        let ahead_ms = Arc::clone(&self.ahead_ms[at]);
        let clock = move || Platform::system().now_ms() + ahead_ms.load(Ordering::SeqCst);
        let platform = Platform::new(clock, || Platform::system().random());
        let open = async move || {
            let config = ReplicaConfig {
                leader_sites: Vec::new(),
                keyed_sites_within: None,
                author_key: keyed.then(|| Arc::new(TestKey) as _),
                keyless_snapshots: false,
                upload_idle: Duration::from_secs(60),
                data: data.clone(),
                cluster: "c".to_owned(),
                member: Member { keyed, ..member(name) },
                timing: Timing { heartbeat_ms: 50, election_min_ms: 200, election_max_ms: 400 },
                retention: Retention { snapshot_after_entries: 64, keep_entries: 32, ..Retention::default() },
                disk: DiskLimits { reserve_bytes: 1 << 20, ..DiskLimits::default() },
                memory: MemoryLimits::default(),
                key_check: Bytes::new(),
                describe: Arc::new(pb::NodeStatus::default),
                join: Vec::clone(&others),
            };
            Replica::open(config, Arc::clone(&transport) as _, platform.clone()).await.ok()
        };
        eventually("its files", open)
    }

    async fn stop(&mut self, at: usize) {
        let node = self.nodes[at].take().unwrap();
        node.shutdown().await;
        drop(node);
        self.network.cut(NAMES[at]);
    }

    async fn end(mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].is_some() {
                self.stop(at).await;
            }
        }
        eventually("the last files", async || std::fs::remove_dir_all(&self.folder).ok()).await;
    }

    fn node(&self, at: usize) -> &Replica {
        self.nodes[at].as_deref().unwrap()
    }

    fn running(&self) -> impl Iterator<Item = &Replica> {
        self.nodes.iter().flatten().map(Arc::as_ref)
    }

    /// A running node that leads the shard, and one that does not.
    async fn leader_and_follower(&self, shard: ShardId) -> (usize, usize) {
        let ids = self.nodes.iter().map(|node| node.as_ref().map(|node| node.node_id)).collect::<Vec<_>>();
        let at = |id: NodeId| ids.iter().position(|known| *known == Some(id));
        let leader = eventually("a leader", async || {
            let leaders = self.running().map(|node| node.leader(shard).and_then(|(id, _)| at(id)));
            let leaders = leaders.collect::<Option<Vec<_>>>()?;
            leaders.iter().all(|leader| *leader == leaders[0]).then(|| leaders[0])
        })
        .await;
        (leader, (0..self.nodes.len()).find(|at| *at != leader && self.nodes[*at].is_some()).unwrap())
    }

    /// Behind a barrier every node has the same: rows and roots.
    async fn check_equal(&self, records: usize) {
        let mut found = Vec::new();
        for node in self.running() {
            // A node whose leader was out of reach a moment ago says so for a moment more.
            let moment = eventually("a barrier", async || node.barrier_of(slot(), deadline()).await.ok()).await;
            let seq = moment.seq;
            let rows = node.rows(&moment).chart(&chart(), None, None, seq, 1_000, usize::MAX).unwrap();
            assert_eq!(rows.versions.len(), records);
            let rows = rows.versions.into_iter().map(|stored| (stored.record, stored.version, stored.row.body));
            let status = node.status().into_iter().find(|status| status.shard == SHARD).unwrap();
            assert_eq!((status.seq, status.stopped), (seq, None));
            found.push((seq, rows.collect::<Vec<_>>(), status.recent_roots));
        }
        assert!(found.iter().all(|of_node| *of_node == found[0]), "nodes differ");
    }
}

fn member(name: &str) -> Member {
    let (name, site) = (name.to_owned(), format!("site-{name}"));
    Member { peer_address: name.clone(), client_address: format!("{name}:1"), name, site, keyed: true, code: None }
}

fn chart() -> ChartAddress {
    ChartAddress { slot: slot(), tenant: token("tenant"), chart: token("chart") }
}

async fn propose(node: &Replica, command: Command) -> Answer {
    node.propose(SHARD, command.encode(slot()), deadline()).await.unwrap().result.unwrap()
}

fn commit_of(request: &str, record: &str) -> Command {
    let id = request_id(request, Platform::system().now_ms());
    Command::Commit(commit(id, "chart", "k1", vec![put(record)]))
}

async fn commit_at(node: &Replica, number: usize) -> u64 {
    match propose(node, commit_of(&format!("r{number}"), &format!("obs/{number}"))).await {
        Answer::Committed(committed) => committed.seq,
        _ => panic!("not committed"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_forms_serves_loses_a_node_and_takes_it_back() {
    let mut cluster = Cluster::formed().await;
    // Forming again is fine, from any node.
    cluster.node(1).form(None).await.unwrap();
    for node in cluster.running() {
        eventually("the members", async || (node.members().len() == 3).then_some(())).await;
    }
    let (leader, follower) = cluster.leader_and_follower(SHARD).await;

    let (ours, theirs) = (ensure_key("chart", "k1"), ensure_key("chart", "k2"));
    let first = propose(cluster.node(follower), Command::EnsureChartKey(ours.clone())).await;
    let second = propose(cluster.node(leader), Command::EnsureChartKey(theirs)).await;
    assert!(first == second, "one key wins");
    assert_eq!(commit_at(cluster.node(leader), 1).await, 1);
    assert_eq!(commit_at(cluster.node(follower), 2).await, 2);
    cluster.check_equal(2).await;

    cluster.stop(leader).await;
    let (_, survivor) = cluster.leader_and_follower(SHARD).await;
    for number in 3..100 {
        assert_eq!(commit_at(cluster.node(survivor), number).await, number as u64);
    }
    cluster.check_equal(99).await;

    cluster.open(leader).await;
    cluster.check_equal(99).await;
    assert_eq!(commit_at(cluster.node(leader), 100).await, 100);
    cluster.check_equal(100).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_stop_and_everything_is_there_again() {
    let mut cluster = Cluster::formed().await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    let command = commit_of("once", "obs/once").encode(slot());
    let first = cluster.node(0).propose(SHARD, command.clone(), deadline()).await.unwrap();
    for at in 0..SIZE {
        cluster.stop(at).await;
    }
    for at in 0..SIZE {
        cluster.open(at).await;
    }
    cluster.check_equal(1).await;
    // The same request, after all have restarted, on another node: its first outcome.
    let again = cluster.node(2).propose(SHARD, command, deadline()).await.unwrap();
    assert!(again == first);
    cluster.check_equal(1).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_answered_and_nothing_is_lost() {
    let mut cluster = Cluster::formed().await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    let (leader, _) = cluster.leader_and_follower(SHARD).await;
    let others = (0..SIZE).filter(|at| *at != leader).collect::<Vec<_>>();
    for at in &others {
        cluster.network.cut_off(NAMES[*at]);
    }
    let soon = || Instant::now() + std::time::Duration::from_millis(1_500);
    let command = commit_of("lonely", "obs/lonely").encode(slot());
    let outcome = cluster.node(leader).propose(SHARD, command.clone(), soon()).await;
    // Unknown; unless it had given up leadership before it was asked.
    let unanswered = matches!(outcome, Err(ReplicaError::Unknown | ReplicaError::NoLeader));
    assert!(unanswered, "{:?}", outcome.err());
    let read = cluster.node(leader).barrier(SHARD, soon()).await;
    assert!(matches!(read, Err(ReplicaError::NoQuorum | ReplicaError::NoLeader)), "{:?}", read.err());
    for at in &others {
        cluster.network.reconnect(NAMES[*at]);
    }
    // Asked again, with the same id, until a leader is in reach, it is done once.
    let other = cluster.node(others[0]);
    let again = async || other.propose(SHARD, command.clone(), deadline()).await.ok();
    let outcome = eventually("the outcome", again).await;
    assert!(matches!(outcome.result, Some(Answer::Committed(ref committed)) if committed.seq == 1));
    cluster.check_equal(1).await;
    cluster.stop(others[1]).await;
    cluster.check_equal(1).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_would_stop_every_replica_is_refused() {
    let cluster = Cluster::formed().await;
    let (leader, follower) = cluster.leader_and_follower(SHARD).await;
    for at in [leader, follower] {
        let mut unknown = commit_of("r", "obs/o").encode(slot()).to_vec();
        unknown[1] = 99;
        let refused = cluster.node(at).propose(SHARD, unknown.into(), deadline()).await;
        assert!(matches!(refused, Err(ReplicaError::Malformed)));
    }
    assert_eq!(cluster.node(leader).stopped_group(), None);
    assert_eq!(cluster.node(follower).stopped_group(), None);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lacks_what_is_purged_comes_back_by_a_snapshot() {
    let mut cluster = Cluster::formed().await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    for number in 1..20 {
        commit_at(cluster.node(0), number).await;
    }
    cluster.check_equal(19).await;
    let (_, follower) = cluster.leader_and_follower(SHARD).await;
    let shard_of = |node: &Replica| node.status().into_iter().find(|status| status.shard == SHARD).unwrap();
    let last_index = shard_of(cluster.node(follower)).log_index;
    cluster.stop(follower).await;
    let writer = (follower + 1) % SIZE;
    for number in 20..900 {
        commit_at(cluster.node(writer), number).await;
    }
    eventually("both have purged what it lacks", async || {
        cluster.running().all(|node| shard_of(node).purged_index > last_index).then_some(())
    })
    .await;
    cluster.open(follower).await;
    for number in 900..1_000 {
        commit_at(cluster.node(writer), number).await;
    }
    cluster.check_equal(999).await;
    // Its log begins where the snapshot ended: it did not come from the log.
    assert!(shard_of(cluster.node(follower)).purged_index > last_index);
    // It answers as the others would, for requests from before.
    let again = propose(cluster.node(follower), commit_of("fresh", "obs/fresh")).await;
    assert!(matches!(again, Answer::Committed(_)));
    cluster.check_equal(1_000).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_take_turns_when_a_leader_falls_silent() {
    let mut cluster = Cluster::formed().await;
    propose(cluster.node(0), Command::EnsureChartKey(ensure_key("chart", "k1"))).await;
    let (leader, follower) = cluster.leader_and_follower(SHARD).await;
    // Whoever leads then was not elected by openraft's own timer.
    cluster.running().for_each(|node| node.groups.iter().for_each(|group| group.forbid_elections()));
    cluster.stop(leader).await;
    assert_eq!(commit_at(cluster.node(follower), 1).await, 1);
    cluster.end().await;
}
