//! The part of a keyed node that talks to clients: who are you, may you; seal, open; errors to gRPC status.
//!
//! The only place where a record is in clear, and where keys are. Must not know Raft, storage or sockets: it proposes
//! commands and reads rows through [`Replica`], and is given authenticated connections.
//!
//! # Layout
//! - [`server`]: the gRPC server with health and reflection
//! - [`charts`], [`tenants`], [`cluster`]: the services, a file each; [`read`], [`list`], [`commit`], [`status`]: what
//!   they do
//! - [`nodes`]: which nodes there are, and which lead; [`shards`], [`growth`]: what shards hold; [`placement`]: which nodes
//!   they are on
//! - [`find`]: charts by an identifier; [`sweep`]: what is left over in their index
//! - [`connections`]: how long each connection lasts, and what it may cost; [`bodies`]: the same of requests and answers
//! - [`admission`]: how many calls at once, fair among tenants
//! - [`access`]: principals and grants; [`keyring`]: tenants' and charts' keys
//! - [`moment`]: which state a read shows
//! - [`documents`]: what is larger than a body may be, part by part
//! - [`validate`]: limits on what comes in; [`record`]: sealing and opening records; [`page`]: page tokens
//! - [`error`]: everything that can be answered instead; [`malformed`]: what the gRPC library refuses;
//!   [`observe`]: requests measured and traced

pub mod access;
mod admission;
mod answer;
mod audit;
mod bodies;
mod charts;
mod clinical_date;
mod cluster;
mod commit;
mod connections;
mod documents;
pub mod error;
mod find;
mod formats;
pub mod growth;
mod keyring;
mod list;
mod malformed;
mod moment;
mod nodes;
mod observe;
mod page;
mod pipeline;
pub mod placement;
mod read;
mod record;
pub mod server;
mod shards;
mod status;
pub mod sweep;
mod tenants;
mod validate;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use charthold_replica::replica::Replica;
use tokio::sync::Semaphore;

use self::access::Access;
use self::documents::Documents;
use self::keyring::Keyring;
use crate::seal::RootKey;

/// Ordered lists that are made at once: each looks at a whole chart, and the others' turn must come.
const SORTS_MAX: usize = 4;

/// What all services of a gateway share.
pub struct Gateway {
    pub(crate) replica: Arc<Replica>,
    pub(crate) root: Arc<RootKey>,
    pub(crate) keyring: Keyring,
    pub(crate) access: Access,
    /// Whether the cluster was seen to be.
    initialized: AtomicBool,
    body_bytes_max: AtomicUsize,
    pub(crate) sorts: Arc<Semaphore>,
    pub(crate) documents: Documents,
}

impl Gateway {
    pub fn new(replica: Arc<Replica>, root: RootKey, body_bytes_max: usize, document_bytes_max: u64) -> Arc<Self> {
        let root = Arc::new(root);
        Arc::new(Self {
            keyring: Keyring::new(Arc::clone(&replica), Arc::clone(&root)),
            access: Access::new(),
            replica,
            root,
            initialized: AtomicBool::new(false),
            body_bytes_max: AtomicUsize::new(body_bytes_max),
            sorts: Arc::new(Semaphore::new(SORTS_MAX)),
            documents: Documents::new(document_bytes_max),
        })
    }

    /// What a record's body may have.
    pub(crate) fn body_bytes_max(&self) -> usize {
        self.body_bytes_max.load(Ordering::Relaxed)
    }

    /// For commits from here on.
    pub fn set_body_bytes_max(&self, bytes: usize) {
        self.body_bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// Whether this gateway's root key is the cluster's; nothing while the cluster's is not known here.
    pub fn check_root_key(&self) -> Result<Option<()>, RootKeyMismatch> {
        let unreadable = |error: &dyn std::fmt::Display| RootKeyMismatch(error.to_string());
        let Some(row) = self.replica.directory().cluster().map_err(|error| unreadable(&error))? else {
            return Ok(None);
        };
        let checked = self.root.root_check_open(&self.replica.cluster, &row.root_check);
        checked.map(Some).map_err(|error| unreadable(&error))
    }
}

/// The root key is not the cluster's: this node could seal what no other opens.
#[derive(Debug, thiserror::Error)]
#[error("the root key of this node is not the cluster's: {0}")]
pub struct RootKeyMismatch(String);
