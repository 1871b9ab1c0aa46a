//! A group without rows on this node: its shard is placed on others, or was until now.
//!
//! A replica that is taken out of its group becomes *vacant*: the shard's rows go, the log stays, and with it whom this node
//! voted for and what it acknowledged. So nothing is forgotten that Raft relies on, and the node may come back at any time.
//! Until then it takes no entries: it could not apply them. When it is a member again, it fetches all rows from the
//! leader ([`super::fetch`]), and only then takes part.
//!
//! ```text
//! member → taken out → closed (what is under way ends) → vacant → member again, fetches → member
//! ```
//! Knows nothing of where shards are to be: that is [`crate::replica::placement`]'s.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use openraft::async_runtime::WatchReceiver;

use super::codec;
use super::fetch::Fetched;
use super::group::{Group, GroupError};
use super::transfer;
use super::types::{LogId, Vote};
use crate::NodeId;

/// Whether a group is to be here, and whether it takes entries.
pub(super) struct Presence {
    placed: AtomicBool,
    closed: AtomicBool,
}

impl Default for Presence {
    /// A group is to be everywhere until something else is heard.
    fn default() -> Self {
        Self { placed: AtomicBool::new(true), closed: AtomicBool::new(false) }
    }
}

impl Group {
    /// Whether the rows are not here.
    pub fn is_vacant(&self) -> bool {
        self.progress.read().vacant
    }

    /// Whether the shard is to have a replica here.
    pub fn is_placed(&self) -> bool {
        self.presence.placed.load(Ordering::Relaxed)
    }

    pub fn set_placed(&self, placed: bool) {
        self.presence.placed.store(placed, Ordering::Relaxed);
    }

    /// Whether this replica is one to read and to write at: it is to be here, or leads yet, and has rows.
    pub fn is_here(&self) -> bool {
        !self.is_vacant() && (self.is_placed() || self.leads())
    }

    /// Takes no entries, until that is undone: what it has taken before is applied in a moment.
    pub fn close(&self, closed: bool) {
        self.presence.closed.store(closed, Ordering::SeqCst);
    }

    /// Whether it may take entries of a leader, or a snapshot.
    pub(super) fn takes_part(&self) -> bool {
        !self.presence.closed.load(Ordering::SeqCst) && !self.is_vacant()
    }

    /// Whom this replica follows, or which vote it gave last.
    pub(crate) fn vote(&self) -> Vote {
        self.raft().server_metrics().borrow_watched().vote
    }

    /// How far this replica has come.
    pub(crate) fn applied(&self) -> Option<LogId> {
        self.progress.read().log_id.as_ref().map(codec::log_id_from_pb)
    }

    /// Whether a node is a member by what is committed. While that is being changed, it may be.
    pub(super) fn may_have_member(&self, node: NodeId) -> bool {
        let committed = self.known_committed();
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        stored.log_id() > &committed || stored.membership().get_node(&node).is_some()
    }

    /// Lets go of the rows. The caller has seen that this node is no member, and has closed the group long enough before.
    pub async fn vacate(&self) -> Result<(), GroupError> {
        self.raft().runtime_config().elect(false);
        let vacated = self.raft().with_state_machine(|machine| async move { machine.vacate() }.boxed()).await;
        let stopped = |why: String| GroupError::Stopped(why);
        vacated.map_err(|fatal| stopped(fatal.to_string()))?.map_err(|error| stopped(error.to_string()))
    }

    /// Takes all rows, as the group's leader gave them.
    pub async fn fill(&self, fetched: Fetched) -> Result<(), GroupError> {
        let stopped = |why: &dyn std::fmt::Display| GroupError::Stopped(why.to_string());
        let (vote, snapshot) = transfer::to_install(fetched).map_err(|error| stopped(&error))?;
        let installed = self.raft().install_full_snapshot(vote, snapshot).await;
        installed.map_err(|error| stopped(&error))?;
        match self.is_vacant() {
            false => Ok(()),
            true => Err(stopped(&"what was fetched is not newer than what was here")),
        }
    }
}
