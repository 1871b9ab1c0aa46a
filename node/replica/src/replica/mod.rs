//! One node's groups put together: what the gateway calls.
//!
//! Owns starting in the right order, finding leaders, forwarding one hop. Must not know what it carries.

mod barrier;
#[cfg(test)]
mod cluster_tests;
mod damage;
mod distance;
pub mod documents;
pub mod form;
pub mod index_rows;
mod leaders;
mod log_bounds;
pub mod members;
pub mod observe;
pub mod peers;
mod placement;
mod propose;
mod refill;
mod roster;
pub mod rows;
pub mod slots;
mod source;
pub mod stores;
mod succession;
mod whereabouts;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use charthold_proto::internal as pb;
use tokio::time::Instant;

use self::barrier::Barriers;
use self::damage::Damage;
use self::distance::Distances;
use self::leaders::Leaders;
use self::observe::Observer;
use self::peers::Peers;
use self::placement::PlacementFollower;
use self::refill::Refill;
use self::roster::DirectoryRoster;
use self::slots::PlanFollower;
use self::stores::Stores;
use self::whereabouts::Whereabouts;
use crate::directory::DirectoryView;
use crate::peer::clock::ClusterClock;
use crate::peer::disks::ClusterDisks;
use crate::peer::hello::{Greeter, Roster};
use crate::peer::leadership::Leadership;
use crate::peer::registry::Registry;
use crate::peer::transport::Transport;
use crate::platform::{Platform, blocking};
use crate::shard::authors::{AuthorKey, Authors};
use crate::shard::codec;
use crate::shard::config::{Retention, Timing};
use crate::shard::group::{Conditions, Group, GroupStores};
use crate::shard::inbound::{Describe, Inbound, RowStores};
use crate::shard::network::GroupNetwork;
use crate::shard::status::GroupStatus;
use crate::shard::transfer::Outgoing;
use crate::shard::types::Member;
use crate::store::StoreError;
use crate::store::disk::{Disk, DiskLevel, DiskLimits};
use crate::store::identity::DataDirectory;
use crate::store::log::group::GroupLog;
use crate::store::state::MemoryLimits;
use crate::store::state::flusher::StateStore;
use crate::{DIRECTORY, NodeId, ShardId, Slot, format};

pub use self::barrier::{Freshness, Moment, Place};
pub use self::propose::{Proposed, ReplicaError};

/// How soon a new member is connected to.
const REACH_INTERVAL: Duration = Duration::from_secs(1);

/// What a replica is started with.
pub struct ReplicaConfig {
    pub data: PathBuf,
    pub cluster: String,
    pub member: Member,
    pub timing: Timing,
    pub retention: Retention,
    pub disk: DiskLimits,
    pub memory: MemoryLimits,
    /// Peer addresses of the nodes to form a cluster with.
    pub join: Vec<String>,
    /// Opaque here: equal on nodes with the same root key, empty on a keyless one.
    pub key_check: Bytes,
    /// What is known of this node above the replica, for its status.
    pub describe: Describe,
    /// An upload that gets no part for this long is dropped.
    pub upload_idle: Duration,
    /// Where leaders should be; none: anywhere.
    pub leader_sites: Vec<String>,
    /// How long a commit waits until it is on disk at every site with keys; nothing: a majority is enough.
    pub keyed_sites_within: Option<Duration>,
    /// Of a node with keys.
    pub author_key: Option<Arc<dyn AuthorKey>>,
    /// Whether a snapshot is taken from a node without keys.
    pub keyless_snapshots: bool,
}

/// A node's groups, running.
pub struct Replica {
    pub node_id: NodeId,
    pub cluster: String,
    pub member: Member,
    groups: Vec<Arc<Group>>,
    whereabouts: Whereabouts,
    barriers: Barriers,
    peers: Arc<Peers>,
    transport: Arc<dyn Transport>,
    greeter: Arc<Greeter>,
    authors: Arc<Authors>,
    join: Vec<String>,
    started: Instant,
    timing: Timing,
    state: StateStore,
    observer: Arc<Observer>,
    given_up: Arc<OnceLock<String>>,
    server: tokio::task::JoinHandle<()>,
    sweep: tokio::task::JoinHandle<()>,
    /// Held: the lock on the data directory.
    _data: DataDirectory,
}

impl Replica {
    /// Opens the data directory, repairs what a crash left, starts all groups and the peers' connections.
    pub async fn open(
        config: ReplicaConfig,
        transport: Arc<dyn Transport>,
        platform: Platform,
    ) -> Result<Arc<Self>, StoreError> {
        let stores = Stores::open(&config, &platform)?;
        let (state, set_aside) = (stores.state.clone(), stores.set_aside.clone());
        let started = match check_format(&stores) {
            Ok(()) => Self::start(config, stores, transport, platform).await,
            Err(error) => Err(error),
        };
        if let (Err(_), Some(why)) = (&started, state.engine().damage()) {
            set_aside.mark_found(why)?;
        }
        started
    }

    /// The same, with its stores open.
    pub async fn start(
        config: ReplicaConfig,
        stores: Stores,
        transport: Arc<dyn Transport>,
        platform: Platform,
    ) -> Result<Arc<Self>, StoreError> {
        let started = Instant::now();
        let node_id = stores.data.node_id;
        let roster = Arc::new(DirectoryRoster::default());
        let greeter = Arc::new(new_greeter(&config, &stores, platform, Arc::clone(&roster) as _));
        let peers = Arc::new(Peers::new(Arc::clone(&transport)));
        peers.set_greeter(Arc::clone(&greeter));
        let (disks, leadership) = (Arc::clone(&greeter.disks), Arc::clone(&greeter.leadership));
        let conditions = new_conditions(&config, &greeter);
        let outgoing = Arc::new(Outgoing::new(config.retention.snapshot_bytes_per_s));
        let logs = open_logs(&stores)?;
        refill_state(&config, &stores, &logs, &peers, &transport, &greeter).await?;
        let groups = start_groups(&config, &stores, logs, &peers, &outgoing, &conditions).await?;
        roster.begin(Arc::clone(&groups[usize::from(DIRECTORY)]), DirectoryView::new(stores.state.clone()));
        let elects_from = started + config.timing.restart_silence();
        let observer = Arc::new(new_observer(&config, &stores, &groups, &peers, &greeter, started));
        let (clock, key) = (Arc::clone(&greeter.clock), config.author_key);
        let authors = Arc::new(Authors::new(node_id, key, clock, roster, config.keyless_snapshots));
        let bounds = log_bounds::keep(groups.clone(), Arc::clone(&outgoing), config.retention.keep_bytes);
        let inbound = new_inbound(&groups, &stores, outgoing, &leadership, &authors, elects_from, &observer);
        let server = crate::peer::server::serve(Arc::clone(&transport), Arc::clone(&greeter), Arc::new(inbound));
        let reach_out = reach_members(Arc::clone(&observer));
        let whereabouts = Whereabouts::new(&groups, &leadership, &peers, &stores.state);
        let follow = members::follow_directory(whereabouts.clone());
        let placement = PlacementFollower::new(node_id, &whereabouts, &stores.incoming, elects_from);
        let damage = Damage::new(&stores, &groups, &disks);
        let given_up = damage.given_up();
        let leaders = Leaders::new(&whereabouts, disks, config.leader_sites, config.timing);
        let plan = PlanFollower::new(&groups, &stores.state, &authors, config.retention);
        let server = tokio::spawn(async move {
            let leaders = leaders.run(elects_from);
            tokio::join!(server, reach_out, leaders, damage.watch(), follow, plan.run(), placement.run(), bounds).0
        });
        allow_elections_later(groups.clone(), stores.disk, elects_from);
        let (state, idle) = (stores.state.clone(), config.upload_idle);
        let sweep = tokio::spawn(documents::sweep(groups.clone(), Arc::clone(&authors), state, idle));
        Ok(Arc::new(Self {
            node_id,
            cluster: config.cluster,
            member: config.member,
            barriers: Barriers::start(&whereabouts),
            whereabouts,
            groups,
            peers,
            transport,
            greeter,
            authors,
            join: config.join,
            started,
            timing: config.timing,
            state: stores.state,
            observer,
            given_up,
            server,
            sweep,
            _data: stores.data,
        }))
    }

    fn group(&self, shard: ShardId) -> &Arc<Group> {
        &self.groups[usize::from(shard)]
    }

    /// A shard's leader, as far as this node knows.
    pub fn leader(&self, shard: ShardId) -> Option<(NodeId, Member)> {
        self.whereabouts.leader(shard)
    }

    /// The cluster's nodes; empty before it is formed.
    pub fn members(&self) -> Vec<(NodeId, Member)> {
        self.group(DIRECTORY).members()
    }

    pub fn directory(&self) -> DirectoryView {
        DirectoryView::new(self.state.clone())
    }

    /// The shard that holds a slot, as far as this node is; none while the slot goes from one to another.
    pub fn shard_of(&self, slot: Slot) -> Option<ShardId> {
        self.whereabouts.shard_of(slot)
    }

    /// Whether a shard has a replica here that is asked.
    pub fn is_here(&self, shard: ShardId) -> bool {
        self.whereabouts.is_here(shard)
    }

    /// The first shard that has yet to take the slots that it begins with; none if the cluster has none yet, either.
    pub fn shard_to_be_opened(&self) -> Option<ShardId> {
        let cluster = self.directory().cluster().ok().flatten()?;
        let begins = cluster.shards.iter().filter(|range| range.parent == 0);
        let mut begins = begins.filter_map(|range| ShardId::try_from(range.shard).ok());
        begins.find(|shard| self.is_here(*shard) && self.state.slots().of(*shard).is_none())
    }

    /// Recorded outcomes of a shard on this node.
    pub fn seq(&self, shard: ShardId) -> u64 {
        self.group(shard).seq()
    }

    pub fn status(&self) -> Vec<GroupStatus> {
        self.groups.iter().map(|group| group.status()).collect()
    }

    /// The first group that has stopped, and why. A node with a stopped group is half dead: it should end.
    pub fn stopped_group(&self) -> Option<(ShardId, String)> {
        self.groups.iter().find_map(|group| Some((group.shard, group.stopped()?)))
    }

    /// What is wrong with a file of the state, if this node is to end over it: its next start makes the state anew.
    pub fn gave_up_state(&self) -> Option<String> {
        self.given_up.get().cloned()
    }

    /// What all rows of this node take, about.
    pub fn state_bytes(&self) -> u64 {
        self.state.engine().figures().live_bytes
    }

    /// Whether a file of the state was found damaged.
    pub fn is_damaged(&self) -> bool {
        self.state.engine().damage().is_some()
    }

    /// Why this node's clock is not to be used, if it is not. It stamps nothing then; if that lasts it should end.
    pub fn clock_error(&self) -> Option<String> {
        let members = self.group(DIRECTORY).member_count();
        self.greeter.clock.now_ms(members).err().map(|error| error.to_string())
    }

    /// Whether most of the nodes that this one takes for the cluster's say that it is none of them.
    pub fn was_removed(&self) -> bool {
        let members = self.members();
        let refused_by = self.greeter.refused_by.lock();
        let refusing = members.iter().filter(|(id, _)| refused_by.contains(id)).count();
        refusing > members.len() / 2
    }

    /// What this node's disk permits, and how many bytes are left there.
    pub fn disk(&self) -> (DiskLevel, u64) {
        (self.greeter.disks.own(), self.greeter.disks.own_room_bytes())
    }

    /// Gives away what this node leads, all at once, so that its stop costs no election timeout.
    pub async fn hand_over(&self) {
        let willing = |node, _| self.greeter.leadership.willing_for(node).is_some();
        let hand_over = async |group: &Group| match group.successor(willing) {
            Some(_) => group.hand_over_to(willing).await,
            None => group.hand_over_to(|_, _| true).await,
        };
        futures::future::join_all(self.groups.iter().map(|group| hand_over(group))).await;
    }

    /// Stops all groups, flushes the state.
    pub async fn shutdown(&self) {
        self.server.abort();
        self.sweep.abort();
        self.greeter.registry.keep().await;
        for group in &self.groups {
            group.shutdown().await;
        }
        blocking(|| self.state.stop());
    }
}

/// Refuses a state of a format that this version does not know, before anything is done with it.
fn check_format(stores: &Stores) -> Result<(), StoreError> {
    let cluster = DirectoryView::new(stores.state.clone()).cluster()?;
    match cluster.as_ref().map(format::of).filter(|used| !format::is_known(*used)) {
        Some(used) => Err(StoreError::Format(used)),
        None => Ok(()),
    }
}

/// What this node says of itself in every handshake, and what it hears.
fn new_greeter(config: &ReplicaConfig, stores: &Stores, platform: Platform, roster: Arc<dyn Roster>) -> Greeter {
    Greeter {
        cluster: config.cluster.clone(),
        member: codec::member_to_pb(stores.data.node_id, &config.member),
        start: stores.start,
        key_check: config.key_check.clone(),
        roster,
        registry: Registry::new(Arc::clone(&stores.log_engine), stores.log.clone()),
        clock: Arc::new(ClusterClock::new(platform)),
        disks: Arc::new(ClusterDisks::new(Arc::clone(&stores.disk))),
        leadership: Arc::new(Leadership::new(config.member.keyed)),
        log: stores.log.clone(),
        refused_by: Default::default(),
        callers: Default::default(),
    }
}

/// Gets the rows that the state lacks and the logs no longer have.
async fn refill_state(
    config: &ReplicaConfig,
    stores: &Stores,
    logs: &[GroupLog],
    peers: &Peers,
    transport: &Arc<dyn Transport>,
    greeter: &Arc<Greeter>,
) -> Result<(), StoreError> {
    let refill = Refill {
        stores,
        peers,
        transport: Arc::clone(transport),
        greeter: Arc::clone(greeter),
        join: &config.join,
        from_keyless: config.keyless_snapshots || !config.member.keyed,
        describe: Arc::clone(&config.describe),
    };
    refill.run(logs).await
}

fn new_inbound(
    groups: &[Arc<Group>],
    stores: &Stores,
    outgoing: Arc<Outgoing>,
    leadership: &Arc<Leadership>,
    authors: &Arc<Authors>,
    elects_from: Instant,
    observer: &Arc<Observer>,
) -> Inbound {
    let observer = Arc::clone(observer);
    let describe: Describe = Arc::new(move || observer.describe());
    let stores = RowStores { state: stores.state.clone(), incoming: stores.incoming.clone(), outgoing };
    let (leadership, authors) = (Arc::clone(leadership), Arc::clone(authors));
    Inbound::new(groups.to_vec(), stores, leadership, authors, elects_from, describe)
}

fn new_observer(
    config: &ReplicaConfig,
    stores: &Stores,
    groups: &[Arc<Group>],
    peers: &Arc<Peers>,
    greeter: &Greeter,
    started: Instant,
) -> Observer {
    Observer {
        node: stores.data.node_id,
        started,
        groups: groups.to_vec(),
        peers: Arc::clone(peers),
        clock: Arc::clone(&greeter.clock),
        leadership: Arc::clone(&greeter.leadership),
        distances: Distances::new(Duration::from_millis(config.timing.heartbeat_ms)),
        log_engine: Arc::clone(&stores.log_engine),
        state: stores.state.clone(),
        above: Arc::clone(&config.describe),
    }
}

fn new_conditions(config: &ReplicaConfig, greeter: &Greeter) -> Arc<Conditions> {
    let (clock, disks) = (Arc::clone(&greeter.clock), Arc::clone(&greeter.disks));
    Conditions::new(clock, disks, config.keyed_sites_within, config.author_key.clone())
}

fn open_logs(stores: &Stores) -> Result<Vec<GroupLog>, StoreError> {
    let open = |shard| GroupLog::open(shard, Arc::clone(&stores.log_engine), stores.log.clone());
    Ok(stores.groups.clone().map(open).collect::<Result<_, _>>()?)
}

async fn start_groups(
    config: &ReplicaConfig,
    stores: &Stores,
    logs: Vec<GroupLog>,
    peers: &Arc<Peers>,
    outgoing: &Arc<Outgoing>,
    conditions: &Arc<Conditions>,
) -> Result<Vec<Arc<Group>>, StoreError> {
    let mut groups = Vec::new();
    for log in logs {
        let shard = log.shard();
        let (state, incoming) = (stores.state.clone(), stores.incoming.clone());
        let network = GroupNetwork::new(log.clone(), Arc::clone(peers), Arc::clone(outgoing));
        let stored = GroupStores { log, state, incoming, outgoing: Arc::clone(outgoing) };
        let conditions = Arc::clone(conditions);
        let (node, timing, retention) = (stores.data.node_id, &config.timing, &config.retention);
        let group = Group::start(shard, node, timing, retention, stored, network, conditions).await;
        let group = group.map_err(|source| StoreError::Io { path: config.data.clone(), source })?;
        groups.push(Arc::new(group));
    }
    Ok(groups)
}

/// Keeps connections to all members, also while no group has anything to tell them: they hear this node's marks there.
async fn reach_members(observer: Arc<Observer>) {
    loop {
        // Whoever is asked is connected to.
        observer.measure_round_trips().await;
        tokio::time::sleep(REACH_INTERVAL).await;
    }
}

/// From then on a node whose state was made anew is as good as the others.
fn allow_elections_later(groups: Vec<Arc<Group>>, disk: Arc<Disk>, at: Instant) {
    tokio::spawn(async move {
        tokio::time::sleep_until(at).await;
        groups.iter().for_each(|group| group.allow_elections());
        disk.note_refilling(false);
    });
}

/// A node as the status shows it.
pub fn member_to_pb(id: NodeId, member: &Member) -> pb::Member {
    codec::member_to_pb(id, member)
}
