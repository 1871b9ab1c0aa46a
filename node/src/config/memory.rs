//! `[memory]`: how much of what a node could hold it holds.

use serde::Deserialize;

/// In bytes. What a node needs beside it is in ARCHITECTURE.md, "Memory".
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// What was read of the state and stays.
    pub cache_bytes: u64,
    /// What was written and gathers until it is flushed; for a moment up to four times that is held.
    pub flush_bytes: u64,
    /// Requests that are under way, each held four times at most; of one tenant three quarters of it. More are refused.
    pub requests_bytes: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20, flush_bytes: 64 << 20, requests_bytes: 64 << 20 }
    }
}
