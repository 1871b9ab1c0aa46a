//! `[shards]`: when a shard is split by itself, and when it leaves a node that is silent.

use serde::Deserialize;

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Shards {
    /// Of the state, on one node; 0: however large.
    pub split_above_bytes: u64,
    /// 0: however busy.
    pub split_above_commits_per_s: u64,
    /// For so long it must be above one of them.
    pub split_after_s: u32,
    /// A node that does not answer for so long loses its replicas to others; 0: never.
    pub replace_after_s: u32,
}

impl Default for Shards {
    fn default() -> Self {
        Self { split_above_bytes: 0, split_above_commits_per_s: 0, split_after_s: 60, replace_after_s: 1_800 }
    }
}
