//! Formats: what nodes send each other and write into logs, counted as one number that grows.
//!
//! A node works in any format from [`OLDEST`] to [`NEWEST`]. A cluster uses one, which its directory knows: all its nodes
//! know that one, and none sends or writes what came later. So nodes are upgraded one after the other while the cluster
//! serves, and put back if need be. Once all know a newer format an operator raises the cluster's, and from then on a node
//! that does not know it is refused.
//!
//! ```text
//! 1  commands without authors
//! 2
//! 3  commands RaiseFormat and CheckRows
//! 4  entries have a code of the leader that wrote them
//! 5  shards are placed on part of the nodes
//! ```

use charthold_proto::internal as pb;

pub const OLDEST: u32 = 2;
pub const NEWEST: u32 = 5;

/// Of a cluster that names none: formed before formats were counted.
const UNNAMED: u32 = 2;
/// Replicas can be told to read and compare all their rows.
pub const CHECKS_ROWS: u32 = 3;
/// What a leader with keys wrote has its code: nodes wrote them before that, but not all did.
pub const SIGNS_ENTRIES: u32 = 4;
/// Shards can be placed on a part of the nodes.
pub const PLACES_SHARDS: u32 = 5;

/// What a cluster uses.
pub fn of(cluster: &pb::ClusterRow) -> u32 {
    named(cluster.format)
}

/// What a message that may be older than this field says.
pub fn named(format: u32) -> u32 {
    if format == 0 { UNNAMED } else { format }
}

/// How a row names it: as a version that knew no names would have left it.
pub fn to_row(format: u32) -> u32 {
    if format == UNNAMED { 0 } else { format }
}

/// Whether this version can be in a cluster that uses it.
pub fn is_known(format: u32) -> bool {
    (OLDEST..=NEWEST).contains(&format)
}
