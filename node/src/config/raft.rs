//! `[raft]`: how the groups elect, keep their logs, and when a commit is answered.

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Raft {
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    pub election_max_ms: u64,
    pub snapshot_after_entries: u64,
    pub keep_entries: u64,
    pub keep_bytes: u64,
    pub snapshot_bytes_per_s: u64,
    /// Sites at which leaders should be, near the clients; none: spread over all. Equal on all nodes.
    pub leader_sites: Vec<String>,
    /// What a commit waits for. Equal on all nodes.
    pub durability: Durability,
    /// With `both-keyed`: how long.
    pub degrade_after_ms: u64,
    pub keyless_snapshots: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    #[default]
    Quorum,
    BothKeyed,
}

impl Default for Raft {
    fn default() -> Self {
        Self {
            heartbeat_ms: 250,
            election_min_ms: 750,
            election_max_ms: 1250,
            snapshot_after_entries: 16_384,
            keep_entries: 16_384,
            keep_bytes: 1 << 30,
            snapshot_bytes_per_s: 64 << 20,
            leader_sites: Vec::new(),
            durability: Durability::Quorum,
            degrade_after_ms: 5_000,
            keyless_snapshots: false,
        }
    }
}
