//! How this node is, for who looks at it: its status, its gauges; and how all nodes are, one question to each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use futures::future::join_all;
use prost::Message as _;
use tokio::time::Instant;

use super::Replica;
use super::distance::Distances;
use super::peers::Peers;
use crate::metrics::METRICS;
use crate::peer::Lane;
use crate::peer::client::CallFailure;
use crate::peer::clock::ClusterClock;
use crate::peer::frame::Kind;
use crate::peer::leadership::Leadership;
use crate::shard::group::Group;
use crate::shard::inbound::Describe;
use crate::shard::status::GroupStatus;
use crate::shard::types::Member;
use crate::store::figures::{EngineFigures, LEVELS};
use crate::store::log::LogEngine;
use crate::store::state::flusher::StateStore;
use crate::{DIRECTORY, NodeId, Slots, format};

/// For one node's answer: a dead one must not hold up what the others say for long.
const ASK_MAX: Duration = Duration::from_secs(2);
/// For an echo; a peer that needs longer has no round trip to show.
const ECHO_MAX: Duration = Duration::from_secs(1);

/// A node of the cluster, and what it says of itself, or why it says nothing.
pub struct NodeView {
    pub id: NodeId,
    pub member: Member,
    pub status: Result<pb::NodeStatus, String>,
}

/// Looks at this node's parts.
pub struct Observer {
    pub(super) node: NodeId,
    pub(super) started: Instant,
    pub(super) groups: Vec<Arc<Group>>,
    pub(super) peers: Arc<Peers>,
    pub(super) clock: Arc<ClusterClock>,
    pub(super) leadership: Arc<Leadership>,
    pub(super) distances: Distances,
    pub(super) log_engine: Arc<dyn LogEngine>,
    pub(super) state: StateStore,
    /// What is known above the replica: version, disk, certificates.
    pub(super) above: Describe,
}

impl Observer {
    fn others(&self) -> Vec<(NodeId, Member)> {
        let members = self.groups[usize::from(DIRECTORY)].members();
        members.into_iter().filter(|(id, _)| *id != self.node).collect()
    }

    /// Since this node's start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// This node's own status.
    pub fn describe(&self) -> pb::NodeStatus {
        let up = |id: NodeId, member: &Member| self.peers.client(id, &member.peer_address).is_connected();
        let others = self.others();
        pb::NodeStatus {
            node: self.node,
            uptime_ms: self.uptime().as_millis() as u64,
            clock_offset_ms: median(self.clock.offsets_ms().into_iter().map(|(_, offset_ms)| offset_ms).collect()),
            connected: others.iter().filter(|(id, member)| up(*id, member)).map(|(id, _)| *id).collect(),
            groups: self.groups.iter().map(|group| group_to_pb(self.status_of(group))).collect(),
            gives_way: self.leadership.was_told(),
            format_max: format::NEWEST,
            ..(self.above)()
        }
    }

    /// A group's status; who leads one that is vacant here, others tell.
    fn status_of(&self, group: &Group) -> GroupStatus {
        let status = group.status();
        let leader = if status.vacant { self.leadership.leader_of(status.shard) } else { status.leader };
        GroupStatus { leader, ..status }
    }

    /// Sets the gauges that nobody keeps up by himself.
    pub fn refresh_metrics(&self) {
        let members = self.groups[usize::from(DIRECTORY)].members();
        let names: BTreeMap<NodeId, String> = members.into_iter().map(|(id, member)| (id, member.name)).collect();
        self.refresh_raft(&names);
        refresh_engine("log", &self.log_engine.figures());
        refresh_engine("state", &self.state.engine().figures());
        let peer = &METRICS.peer;
        // Of who is no member any more nothing stays.
        peer.connected.clear();
        for (id, member) in self.others() {
            let client = self.peers.client(id, &member.peer_address);
            for (lane, word) in [(Lane::Control, "control"), (Lane::Bulk, "bulk")] {
                let labels = [("lane", word.to_owned()), ("peer", member.name.clone())];
                peer.connected.get_or_create(&labels).set(client.is_up(lane).into());
            }
        }
        peer.clock_offset.clear();
        for (id, offset_ms) in self.clock.offsets_ms() {
            if let Some(name) = names.get(&id) {
                peer.clock_offset.get_or_create(&[("peer", name.clone())]).set(offset_ms as f64 / 1_000.0);
            }
        }
    }

    fn refresh_raft(&self, names: &BTreeMap<NodeId, String>) {
        let raft = &METRICS.raft;
        // Followers are known where the leader is: what another node led until now is not ours to tell.
        raft.follower_lag.clear();
        for status in self.groups.iter().map(|group| self.status_of(group)) {
            let of = [("shard", status.shard)];
            raft.leader.get_or_create(&of).set((status.leader == Some(self.node)).into());
            raft.has_leader.get_or_create(&of).set(status.leader.is_some().into());
            raft.term.get_or_create(&of).set(status.term as i64);
            raft.log_index.get_or_create(&of).set(status.log_index as i64);
            raft.committed_index.get_or_create(&of).set(status.committed_index as i64);
            raft.applied_index.get_or_create(&of).set(status.applied_index as i64);
            raft.seq.get_or_create(&of).set(status.seq as i64);
            raft.degraded.get_or_create(&of).set(status.degraded.into());
            raft.stopped.get_or_create(&of).set(status.stopped.is_some().into());
            for (id, behind) in status.followers {
                let Some(name) = names.get(&id) else { continue };
                let labels = [("shard", status.shard.to_string()), ("peer", name.clone())];
                raft.follower_lag.get_or_create(&labels).set(behind as i64);
            }
        }
    }

    /// Measures the way to every other node once.
    pub(super) async fn measure_round_trips(&self) {
        let measure = async |(id, member): (NodeId, Member)| {
            let client = self.peers.client(id, &member.peer_address);
            let began = Instant::now();
            let echo = client.call(Lane::Control, Kind::Echo, DIRECTORY, Bytes::new(), ECHO_MAX).await;
            let (round_trip, labels) = (&METRICS.peer.round_trip, [("peer", member.name.clone())]);
            match echo {
                Ok(_) => {
                    let took = began.elapsed();
                    self.distances.note(id, &member.name, took);
                    round_trip.get_or_create(&labels).set(took.as_secs_f64());
                }
                Err(_) => _ = round_trip.remove(&labels),
            }
        };
        let others = self.others();
        for name in self.distances.forget_all_but(|node| others.iter().any(|(id, _)| *id == node)) {
            METRICS.peer.round_trip.remove(&[("peer", name)]);
        }
        join_all(others.into_iter().map(measure)).await;
    }
}

impl Replica {
    /// This node's own status, and its gauges.
    pub fn observer(&self) -> &Observer {
        &self.observer
    }

    /// Asks every node how it is, all at once. Before the cluster is formed there is this node only.
    pub async fn survey(&self) -> Vec<NodeView> {
        let own = NodeView { id: self.node_id, member: self.member.clone(), status: Ok(self.observer.describe()) };
        let ask = async |(id, member): (NodeId, Member)| {
            let client = self.peers.client(id, &member.peer_address);
            let answer = client.call(Lane::Control, Kind::NodeStatus, DIRECTORY, Bytes::new(), ASK_MAX).await;
            let status = answer.map_err(|failure| match failure {
                CallFailure::NotConnected | CallFailure::Broken => "not connected".to_owned(),
                failure => failure.to_string(),
            });
            let decoded = |bytes| pb::NodeStatus::decode(bytes).map_err(|_| "its answer cannot be read".to_owned());
            NodeView { id, member, status: status.and_then(decoded) }
        };
        let mut views = join_all(self.observer.others().into_iter().map(ask)).await;
        views.push(own);
        views.sort_by(|one, other| one.member.name.cmp(&other.member.name));
        views
    }
}

fn refresh_engine(name: &'static str, figures: &EngineFigures) {
    let (gauges, of) = (&METRICS.engine, [("engine", name)]);
    gauges.live_bytes.get_or_create(&of).set(figures.live_bytes as i64);
    gauges.files_bytes.get_or_create(&of).set(figures.files_bytes as i64);
    gauges.memtable_bytes.get_or_create(&of).set(figures.memtable_bytes as i64);
    gauges.cache_bytes.get_or_create(&of).set(figures.cache_bytes as i64);
    gauges.compaction_pending_bytes.get_or_create(&of).set(figures.compaction_pending_bytes as i64);
    gauges.compactions_running.get_or_create(&of).set(figures.compactions_running as i64);
    gauges.writes_stopped.get_or_create(&of).set(figures.writes_stopped.into());
    for (level, tables) in LEVELS.into_iter().zip(figures.level_tables) {
        gauges.level_files.get_or_create(&[("engine", name), ("level", level)]).set(tables as i64);
    }
}

fn group_to_pb(status: GroupStatus) -> pb::GroupStatus {
    let root = |(seq, hash): &(u64, [u8; 32])| pb::SeqRoot { seq: *seq, sha256: Bytes::copy_from_slice(hash) };
    let lag = |(node, behind): &(NodeId, u64)| pb::Lag { node: *node, entries_behind: *behind };
    pb::GroupStatus {
        shard: status.shard.into(),
        leader: status.leader.unwrap_or(0),
        term: status.term,
        log_index: status.log_index,
        committed_index: status.committed_index,
        applied_index: status.applied_index,
        purged_index: status.purged_index,
        flushed_index: status.flushed_index,
        seq: status.seq,
        recent_roots: status.recent_roots.iter().map(root).collect(),
        followers: status.followers.iter().map(lag).collect(),
        stopped: status.stopped.unwrap_or_default(),
        degraded: status.degraded,
        slots: status.slots.map(Slots::to_pb),
        rows_check: status.rows_check,
        learners: status.composition.learners().collect(),
        voters: status.composition.voters.into_iter().collect(),
        vacant: status.vacant,
    }
}

/// Of how far the others' clocks are ahead: what this one's is behind of most.
fn median(mut offsets: Vec<i64>) -> Option<i64> {
    offsets.sort_unstable();
    offsets.get(offsets.len() / 2).copied()
}
