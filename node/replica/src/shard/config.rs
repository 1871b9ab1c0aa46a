//! openraft's settings, each with its reason.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use crate::ShardId;

/// Added to the election timeout after a restart: covers what the clock of a peer may run faster meanwhile.
const RESTART_MARGIN: Duration = Duration::from_millis(250);

/// What may differ between clusters. Must be the same on every node of one: the lease has no other margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Above the slowest round trip between sites plus an fsync: it is also the life of a heartbeat's call.
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    pub election_max_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 250, election_min_ms: 750, election_max_ms: 1_250 }
    }
}

impl Timing {
    /// How long after its start a node neither votes nor campaigns: it has forgotten which leader it promised to wait
    /// for before it stopped, and a vote within that time could elect a second one beside it.
    pub fn restart_silence(&self) -> Duration {
        Duration::from_millis(self.election_max_ms) + RESTART_MARGIN
    }

    /// How long a leader may be out of reach before callers are told to go elsewhere. If it has died, they had better wait:
    /// another one is elected within that time, as a rule.
    pub fn unreached_max(&self) -> Duration {
        2 * self.restart_silence()
    }

    /// How long after a majority confirmed it a leader may answer without asking again, to whom that is enough. Nobody
    /// else is elected within the lease, `election_max_ms`, by any clock that runs at most 1 / 0.7 as fast as its own.
    pub fn lease_read_max(&self) -> Duration {
        Duration::from_millis(self.election_max_ms * 7 / 10)
    }
}

/// How long the log is, and how fast a replica that needs more than the log is brought up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Entries after which a group's state is flushed and its older log may go.
    pub snapshot_after_entries: u64,
    /// Entries that stay though they may go: a replica that lacks no more than these catches up from the log, which
    /// costs far less than a snapshot.
    pub keep_entries: u64,
    /// Bytes of a group's log from which on the oldest go, however few entries that leaves. Not while the log is held for whoever
    /// gets a snapshot; and what was there at a start goes when as many have followed.
    pub keep_bytes: u64,
    /// Of all snapshots that a node sends together.
    pub snapshot_bytes_per_s: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            snapshot_after_entries: 16_384,
            keep_entries: 16_384,
            keep_bytes: 1 << 30,
            snapshot_bytes_per_s: 64 << 20,
        }
    }
}

/// Purging is a write of its own: not for every few entries.
const PURGE_BATCH_MAX: u64 = 256;

/// The settings of one group.
pub fn raft_config(
    shard: ShardId,
    timing: &Timing,
    retention: &Retention,
) -> Result<Arc<Config>, openraft::ConfigError> {
    let config = Config {
        cluster_name: format!("shard-{shard}"),
        heartbeat_interval: timing.heartbeat_ms,
        election_timeout_min: timing.election_min_ms,
        election_timeout_max: timing.election_max_ms,
        // Entries leave the leader before its own flush. A leader that lost its unflushed tail and took up the same
        // term again could give a log id to other data, and followers compare ids only.
        enable_leader_restore: Some(false),
        // A node that comes back from isolation asks first, and disturbs nobody.
        enable_pre_vote: Some(true),
        // A leader that lost its quorum must stop keeping the others loyal (openraft #2080: partial partitions).
        quorum_loss_probe_interval: Some(2 * timing.election_max_ms),
        // Elections are off until the restart rule allows them: see Timing::restart_silence.
        enable_elect: false,
        // Large batches: the log reader caps them in bytes.
        max_payload_entries: 1_024,
        max_append_entries: Some(1_024),
        // A redundant heartbeat right after an append is dropped.
        heartbeat_min_interval: Some(timing.heartbeat_ms / 4),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(retention.snapshot_after_entries),
        max_in_snapshot_log_to_keep: retention.keep_entries,
        purge_batch_size: PURGE_BATCH_MAX.min(retention.snapshot_after_entries),
        // A follower's lag alone must not make openraft fall back to a snapshot.
        replication_lag_threshold: u64::MAX,
        // Of a whole transfer: ours go on while they make progress, see super::transfer.
        install_snapshot_timeout: u64::MAX / 2,
        // Bounded queues: proposals wait in the gateway, not here.
        api_channel_size: Some(4_096),
        notification_channel_size: Some(65_536),
        state_machine_channel_size: Some(1_024),
        ..Config::default()
    };
    Ok(Arc::new(config.validate()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_settings_that_safety_rests_on() {
        let timing = Timing::default();
        let config = raft_config(1, &timing, &Retention::default()).unwrap();
        assert_eq!(config.enable_leader_restore, Some(false));
        assert_eq!(config.enable_pre_vote, Some(true));
        assert!(config.quorum_loss_probe_interval.unwrap() >= 2 * config.election_timeout_max);
        assert!(!config.enable_elect);
        assert!(timing.restart_silence() > Duration::from_millis(config.election_timeout_max));
    }
}
