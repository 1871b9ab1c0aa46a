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
        Self { heartbeat_ms: 250, election_min_ms: 1_000, election_max_ms: 1_500 }
    }
}

impl Timing {
    /// How long after its start a node neither votes nor campaigns: it has forgotten which leader it promised to wait
    /// for before it stopped, and a vote within that time could elect a second one beside it.
    pub fn restart_silence(&self) -> Duration {
        Duration::from_millis(self.election_max_ms) + RESTART_MARGIN
    }
}

/// The settings of one group.
pub fn raft_config(shard: ShardId, timing: &Timing) -> Result<Arc<Config>, openraft::ConfigError> {
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
        // The log is kept whole: a follower that was away for however long catches up from it. Purging comes together
        // with snapshots that can be streamed.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // A follower's lag alone must not make openraft fall back to a snapshot.
        replication_lag_threshold: u64::MAX,
        // Only the total of a transfer, which has its own deadline by chunk once it exists.
        install_snapshot_timeout: 600_000,
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
        let config = raft_config(1, &timing).unwrap();
        assert_eq!(config.enable_leader_restore, Some(false));
        assert_eq!(config.enable_pre_vote, Some(true));
        assert!(config.quorum_loss_probe_interval.unwrap() >= 2 * config.election_timeout_max);
        assert!(!config.enable_elect);
        assert!(timing.restart_silence() > Duration::from_millis(config.election_timeout_max));
        assert_eq!(config.snapshot_policy, SnapshotPolicy::Never);
    }
}
