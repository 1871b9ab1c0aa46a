//! The directory: the system's own group. Tenants and grants, sealed; the cluster's name.
//!
//! The same group as a shard's, with other commands. Must not know a key: what it keeps are envelopes.

mod machine;
pub mod placement;
pub mod plan;
mod view;

pub use view::DirectoryView;
