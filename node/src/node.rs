//! One node: its replica, and if it is keyed its gateway, started in order and ended together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use charthold_proto::internal as pb;
use charthold_replica::platform::Platform;
use charthold_replica::replica::{Replica, ReplicaConfig};
use charthold_replica::shard::config::{Retention, Timing};
use charthold_replica::shard::inbound::Describe;
use charthold_replica::shard::types::Member;
use charthold_replica::store::StoreError;
use charthold_replica::store::disk::DiskLimits;
use charthold_replica::store::state::MemoryLimits;
use charthold_replica::trace;

use crate::config::{Config, ConfigError, Durability};
use crate::gateway::{Gateway, RootKeyMismatch, growth, placement, server, sweep};
use crate::health::{self, Health, NOTICE};
use crate::open_files;
use crate::ops::{self, Ops};
use crate::process;
use crate::reload::{Clients, ConfigSource, Reloader, Watch};
use crate::seal::{RootKey, RootKeyError, provider_from_uri};
use crate::telemetry::otlp::Exporter;
use crate::telemetry::sampling::Sampler;
use crate::tls::{PeerTransport, ServiceLimits, ServiceListener, TlsError, TlsFiles};

const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// How long a clock may be off until the node ends: others lead then, and requests no longer end up here.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(3);
/// What running calls get to end at a stop.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Why a node did not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    RootKey(#[from] RootKeyError),
    #[error(transparent)]
    OtherRootKey(#[from] RootKeyMismatch),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the peer certificate is of node {found} ({found_kind}), this node is {name} ({kind})")]
    Certificate { found: String, found_kind: &'static str, name: String, kind: &'static str },
    #[error("the replica of shard {shard} has stopped: {why}")]
    ReplicaStopped { shard: u16, why: String },
    #[error(
        "this node was removed from the cluster, for ever: stop it, or give it an empty data directory and add it anew"
    )]
    Removed,
    #[error("the state is damaged ({0}): check the disk and start this node again, its peers give it a new one")]
    StateDamaged(String),
    #[error("{0}")]
    Clock(String),
    #[error("cannot listen on {address} (listen.ops): {source}")]
    Ops { address: SocketAddr, source: std::io::Error },
    #[error("cannot export traces to telemetry.otlp_endpoint: {0}")]
    Collector(tonic::transport::Error),
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
}

/// Runs a node until it is told to stop by SIGTERM or SIGINT, or cannot go on.
pub async fn run(config: Config, source: ConfigSource) -> Result<(), NodeError> {
    if cfg!(feature = "planted-bugs") {
        tracing::info!("this build has bugs on purpose, to test the tests: it is not for data");
    }
    let stop = stop_signal().map_err(NodeError::Signals)?;
    let open_files_max = open_files::raise_limit();
    let watch = Watch::begin(source, &config).map_err(NodeError::Signals)?;
    let exporter = export_traces(&config)?;
    let root = config.keys.root.as_deref().map(|uri| provider_from_uri(uri)?.load()).transpose()?;
    let address = config.listen.ops;
    let ops_port = ops::bind(address).await.map_err(|source| NodeError::Ops { address, source })?;
    let health = Arc::new(Health::default());
    let transport = Arc::new(PeerTransport::bind(config.listen.peer, &config.tls.peer)?);
    tokio::pin!(stop);
    // It may take long: a state that is made anew waits for peers.
    let replica = tokio::select! {
        opened = open_replica(&config, root.as_ref(), &transport, &health) => opened?,
        () = &mut stop => return Ok(()),
    };
    let ops = Ops::new(&config, Arc::clone(&replica), Arc::clone(&health));
    let ops = tokio::spawn(ops::serve(ops_port, ops));
    // While the gateway still serves and forwards: clients notice nothing.
    let stop = async {
        stop.await;
        tracing::info!("told to stop: not ready from now on, handing over leadership");
        health.drain();
        tokio::time::sleep(NOTICE).await;
        replica.hand_over().await;
    };
    let reloader = |config: Config, clients| Reloader::new(watch, config, transport, clients);
    let ended = match root {
        Some(root) => run_keyed(config, &replica, root, &health, open_files_max, reloader, stop).await,
        None => {
            let reloading = reloader(config, None).run();
            tokio::select! {
                () = stop => Ok(()),
                stopped = watch_replica(&replica) => Err(stopped),
                () = health::watch_keyless(&replica, &health) => Ok(()),
                () = reloading => Ok(()),
            }
        }
    };
    tracing::info!("stopping");
    replica.shutdown().await;
    ops.abort();
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    // It stays open: an engine that is closed on one thread while the process ends on another may find parts of itself
    // gone already, and abort.
    std::mem::forget(Arc::clone(&replica));
    ended
}

/// Begins to trace, if a collector is named.
fn export_traces(config: &Config) -> Result<Option<Exporter>, NodeError> {
    let Some(endpoint) = &config.telemetry.otlp_endpoint else { return Ok(None) };
    let Some(finished) = trace::collect(Platform::system().random()) else { return Ok(None) };
    Exporter::start(endpoint, &config.name, finished).map(Some).map_err(NodeError::Collector)
}

async fn open_replica(
    config: &Config,
    root: Option<&RootKey>,
    transport: &Arc<PeerTransport>,
    health: &Arc<Health>,
) -> Result<Arc<Replica>, NodeError> {
    let identity = transport.identity().clone();
    check_certificate(config, &identity)?;
    let member = Member {
        name: config.name.clone(),
        site: config.site.clone(),
        peer_address: config.advertised_peer(),
        client_address: if root.is_some() { config.advertised_client() } else { String::new() },
        keyed: root.is_some(),
        // Whoever takes it in vouches for it.
        code: None,
    };
    let replica_config = ReplicaConfig {
        data: config.data.clone(),
        cluster: identity.cluster.clone(),
        member,
        timing: Timing {
            heartbeat_ms: config.raft.heartbeat_ms,
            election_min_ms: config.raft.election_min_ms,
            election_max_ms: config.raft.election_max_ms,
        },
        retention: Retention {
            snapshot_after_entries: config.raft.snapshot_after_entries,
            keep_entries: config.raft.keep_entries,
            keep_bytes: config.raft.keep_bytes,
            snapshot_bytes_per_s: config.raft.snapshot_bytes_per_s,
        },
        disk: DiskLimits {
            reserve_bytes: config.disk.reserve_bytes,
            stall_warn: Duration::from_millis(config.disk.stall_warn_ms),
            stall_max: Duration::from_millis(config.disk.stall_max_ms),
        },
        memory: MemoryLimits {
            cache_bytes: config.memory.cache_bytes as usize,
            flush_bytes: config.memory.flush_bytes as usize,
        },
        join: config.join.clone(),
        key_check: root.map(|root| key_check(root, &identity.cluster)).unwrap_or_default(),
        describe: describe(config, Arc::clone(health)),
        upload_idle: Duration::from_millis(config.limits.upload_idle_ms),
        leader_sites: config.raft.leader_sites.clone(),
        keyed_sites_within: (config.raft.durability == Durability::BothKeyed)
            .then(|| Duration::from_millis(config.raft.degrade_after_ms)),
        author_key: root.map(|root| Arc::new(root.author_key(&identity.cluster)) as _),
        keyless_snapshots: config.raft.keyless_snapshots,
    };
    let replica = Replica::open(replica_config, Arc::clone(transport) as _, Platform::system()).await?;
    tracing::info!(
        cluster = identity.cluster,
        node = config.name,
        site = config.site,
        id = %format_args!("{:016x}", replica.node_id),
        peer = %config.listen.peer,
        ops = %config.listen.ops,
        version = env!("CARGO_PKG_VERSION"),
        "node started"
    );
    Ok(replica)
}

/// What of this node's status the replica does not know.
fn describe(config: &Config, health: Arc<Health>) -> Describe {
    let (data, certificates) = (config.data.clone(), ops::certificates(config));
    Arc::new(move || {
        let disk = process::disk(&data).unwrap_or_default();
        let expiry = |(port, files): &(&str, TlsFiles)| {
            let expires_at = files.expires_at().ok()?;
            Some(pb::CertificateExpiry { port: (*port).to_owned(), expires_at })
        };
        pb::NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            disk_total_bytes: disk.total_bytes,
            disk_free_bytes: disk.free_bytes,
            resident_bytes: process::usage().resident_bytes,
            certificates: certificates.iter().filter_map(expiry).collect(),
            not_ready: health.ready().err().unwrap_or_default(),
            ..Default::default()
        }
    })
}

async fn run_keyed(
    config: Config,
    replica: &Arc<Replica>,
    root: RootKey,
    health: &Arc<Health>,
    open_files_max: Option<u64>,
    reloader: impl FnOnce(Config, Option<Clients>) -> Reloader,
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    let limits = &config.limits;
    let document_bytes_max = u64::from(limits.document_bytes_max);
    let gateway = Gateway::new(Arc::clone(replica), root, limits.body_bytes_max as usize, document_bytes_max);
    // Known already, or learnt from the leader: either way nothing is served under another root key.
    gateway.check_root_key()?;
    let Some(files) = &config.tls.service else { return Ok(()) };
    let mut limits = ServiceLimits::default();
    limits.connections_max = open_files::connections_within(open_files_max, limits.connections_max);
    let listener = ServiceListener::bind(config.listen.client, files, limits)?;
    tracing::info!(client = %listener.local_address(), "serving clients");
    let sweep_after = Duration::from_secs(u64::from(config.limits.index_sweep_after_s));
    let sweeping = tokio::spawn(sweep::run(Arc::clone(&gateway), sweep_after));
    let growing = tokio::spawn(growth::watch(Arc::clone(&gateway), config.shards));
    let replacing = tokio::spawn(placement::watch(Arc::clone(&gateway), config.shards.replace_after_s));
    let clients = Clients { gateway: Arc::clone(&gateway), certificates: listener.certificates() };
    let sampler = Sampler::new(config.telemetry.sample_ratio);
    let requests_bytes_max = config.memory.requests_bytes;
    let reloading = reloader(config, Some(clients)).run();
    let (drain, drained) = tokio::sync::oneshot::channel::<()>();
    let served =
        server::serve(Arc::clone(&gateway), Arc::clone(health), sampler, requests_bytes_max, listener, async {
            let _either_way = drained.await;
        });
    tokio::pin!(served);
    let ended = tokio::select! {
        () = stop => Ok(()),
        stopped = watch_replica(replica) => Err(stopped),
        mismatch = watch_root_key(&gateway) => Err(mismatch.into()),
        () = &mut served => return Ok(()),
        () = reloading => Ok(()),
    };
    sweeping.abort();
    growing.abort();
    replacing.abort();
    drop(drain);
    if tokio::time::timeout(DRAIN_MAX, served).await.is_err() {
        tracing::warn!(
            limit_s = DRAIN_MAX.as_secs(),
            "some calls did not end in time and were cut: clients repeat them"
        );
    }
    ended
}

/// What nodes with the same root key say alike, so that a cluster is never formed with two; tells nothing of the key.
fn key_check(root: &RootKey, cluster: &str) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&root.principal_token(&format!("key check {cluster}")))
}

/// The configuration and the certificate must speak of the same node.
fn check_certificate(
    config: &Config,
    identity: &charthold_replica::peer::transport::PeerIdentity,
) -> Result<(), NodeError> {
    let kind = |keyed| if keyed { "keyed" } else { "keyless" };
    let keyed = config.keys.root.is_some();
    match identity.name == config.name && identity.keyed == keyed {
        true => Ok(()),
        false => Err(NodeError::Certificate {
            found: identity.name.clone(),
            found_kind: kind(identity.keyed),
            name: config.name.clone(),
            kind: kind(keyed),
        }),
    }
}

/// Ends when a group has stopped, or may not lead: a node that is half dead would only be in the way.
async fn watch_replica(replica: &Replica) -> NodeError {
    let mut clock_off = ClockOffFor::default();
    loop {
        if let Some(why) = replica.gave_up_state() {
            return NodeError::StateDamaged(why);
        }
        // Over a damaged state it is given up in a moment.
        if let Some((shard, why)) = replica.stopped_group()
            && !replica.is_damaged()
        {
            return NodeError::ReplicaStopped { shard, why };
        }
        if replica.was_removed() {
            return NodeError::Removed;
        }
        let error = replica.clock_error();
        if let (true, Some(why)) = (clock_off.too_long(error.is_some()), error) {
            return NodeError::Clock(why);
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// How long a clock was seen to be off, look after look. Time in which this process did not run does not count: when it
/// goes on, it first hears what its peers' clocks showed while it was stopped.
#[derive(Default)]
struct ClockOffFor(Duration);

impl ClockOffFor {
    /// Takes what a look saw, one every [`WATCH_INTERVAL`].
    fn too_long(&mut self, is_off: bool) -> bool {
        self.0 = if is_off { self.0 + WATCH_INTERVAL } else { Duration::ZERO };
        self.0 > CLOCK_OFF_MAX
    }
}

/// Ends when the cluster turns out to have another root key; waits for ever once it has ours.
async fn watch_root_key(gateway: &Gateway) -> RootKeyMismatch {
    loop {
        match gateway.check_root_key() {
            Err(mismatch) => return mismatch,
            Ok(Some(())) => std::future::pending().await,
            Ok(None) => tokio::time::sleep(WATCH_INTERVAL).await,
        }
    }
}

fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_too_long_if_every_look_for_so_long_says_so() {
        let looks = (CLOCK_OFF_MAX.as_millis() / WATCH_INTERVAL.as_millis()) as usize;
        let mut off = ClockOffFor::default();
        assert!((0..looks).all(|_| !off.too_long(true)));
        assert!(!off.too_long(false));
        assert!((0..looks).all(|_| !off.too_long(true)));
        assert!(off.too_long(true));
    }
}
