//! ```text
//! cluster    0  →  ClusterRow: name, root check, shards
//! ```
//! One row, written when the cluster is formed. Directory only.

pub use charthold_proto::internal::ClusterRow as Row;

/// The only key.
pub fn encode() -> Vec<u8> {
    vec![0]
}
