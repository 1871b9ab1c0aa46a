//! What this node does once a file of its state is damaged: hands over what it leads, waits until it may go, and goes. The
//! next start makes the state anew ([`super::refill`]).
//!
//! Until then it serves what it can: a damaged block is no reason to vote no more. It goes when all other nodes are there,
//! well, and enough to go on alone; one node at a time. If a group has stopped over it and it may not go, it ends with what
//! it has: after the start the group votes again, until it comes to the same row.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use super::stores::Stores;
use crate::metrics::METRICS;
use crate::peer::disks::ClusterDisks;
use crate::shard::group::Group;
use crate::store::disk::DiskLevel;
use crate::store::set_aside::{Mark, SetAside};
use crate::store::state::flusher::StateStore;
use crate::{DIRECTORY, NodeId};

const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// No sooner. Twice what a peer's word counts for, and more: if another one goes because it has not heard of this damage
/// yet, its own last word is too old by now. And what this one led is led by others.
const GO_AFTER: Duration = Duration::from_secs(25);

pub(super) struct Damage {
    node: NodeId,
    groups: Vec<Arc<Group>>,
    state: StateStore,
    disks: Arc<ClusterDisks>,
    set_aside: SetAside,
    given_up: Arc<OnceLock<String>>,
}

impl Damage {
    pub fn new(stores: &Stores, groups: &[Arc<Group>], disks: &Arc<ClusterDisks>) -> Self {
        Self {
            node: stores.data.node_id,
            groups: groups.to_vec(),
            state: stores.state.clone(),
            disks: Arc::clone(disks),
            set_aside: stores.set_aside.clone(),
            given_up: Arc::default(),
        }
    }

    /// Set when the node is to end: what is wrong with the state.
    pub fn given_up(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.given_up)
    }

    /// Ends when the state is given up.
    pub async fn watch(self) {
        let why = loop {
            match self.state.engine().damage() {
                Some(why) => break why.to_owned(),
                None => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        };
        tracing::error!(
            why,
            "a file of the state is damaged, or rows are missing: this node ends when all others are well, and its next \
             start has the state made anew by them; if a file is damaged, check the disk"
        );
        METRICS.state_damaged.set(1);
        self.disks.note_damage();
        let mut since = Instant::now();
        while since.elapsed() < GO_AFTER || !(self.may_go() || self.is_over()) {
            tokio::time::sleep(LOOK_INTERVAL).await;
            // Only what was told for so long counts.
            if self.disks.own() != DiskLevel::Damaged {
                since = Instant::now();
            }
        }
        if self.may_go() {
            self.mark(&why);
        }
        let _first = self.given_up.set(why);
    }

    fn mark(&self, why: &str) {
        let members = self.groups[usize::from(DIRECTORY)].members();
        let peers = members.into_iter().filter(|(id, _)| *id != self.node).map(|(_, member)| member.peer_address);
        let mark = Mark { detail: why.to_owned(), peers: peers.collect() };
        if let Err(error) = self.set_aside.mark(&mark) {
            tracing::error!(%error, "the damaged state cannot be marked: it is used again at the next start");
        }
    }

    /// Nothing is left to wait for.
    fn is_over(&self) -> bool {
        self.groups.iter().any(|group| group.stopped().is_some())
    }

    /// All others are well, and enough to go on alone: who gives a state leads.
    fn may_go(&self) -> bool {
        let members = self.groups[usize::from(DIRECTORY)].members();
        let ids = members.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        let enough = |group: &Arc<Group>| others_are_a_majority(self.node, &group.composition().voters);
        self.disks.may_go(self.node, &ids) && self.groups.iter().filter(|group| !group.is_vacant()).all(enough)
    }
}

fn others_are_a_majority(node: NodeId, voters: &BTreeSet<NodeId>) -> bool {
    voters.iter().filter(|id| **id != node).count() > voters.len() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_needed_stays() {
        for (voters, wanted) in [
            (&[][..], false),
            (&[1], false),
            (&[1, 2], false),
            (&[1, 2, 3], true),
            (&[2, 3], true),
            (&[1, 2, 3, 4], true),
            (&[2], true),
        ] {
            assert_eq!(others_are_a_majority(1, &voters.iter().copied().collect()), wanted, "{voters:?}");
        }
    }
}
