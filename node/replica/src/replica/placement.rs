//! Which shards are here: this node's replicas follow the directory.
//!
//! A group whose shard is placed on other nodes stays a member until its leader takes it out ([`super::members`]). Once the leader
//! says that it is none, it lets go of its rows; when it is to be here again, it waits until it is a member, and fetches them. Each
//! step stands for itself, after a restart too ([`crate::shard::vacancy`]).

use std::time::Duration;

use tokio::time::Instant;

use super::whereabouts::Whereabouts;
use crate::directory::{DirectoryView, placement};
use crate::peer::leadership::Led;
use crate::platform::blocking;
use crate::shard::fetch::fetch;
use crate::shard::group::{Confirmed, Group};
use crate::shard::vacancy;
use crate::store::incoming::Incoming;
use crate::{DIRECTORY, NodeId};

const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What was taken before a group was closed is applied within this.
const CLOSED_FOR: Duration = Duration::from_secs(2);
/// For a leader's answer.
const ASK_MAX: Duration = Duration::from_secs(2);

/// What a node needs to follow.
pub(super) struct PlacementFollower {
    node: NodeId,
    whereabouts: Whereabouts,
    incoming: Incoming,
    elects_from: Instant,
}

impl PlacementFollower {
    /// `elects_from`: this node may campaign.
    pub fn new(node: NodeId, whereabouts: &Whereabouts, incoming: &Incoming, elects_from: Instant) -> Self {
        Self { node, whereabouts: whereabouts.clone(), incoming: incoming.clone(), elects_from }
    }

    /// Follows for ever.
    pub async fn run(self) {
        tokio::join!(self.look(), self.follow());
    }

    /// Keeps what others of this node ask at every call: which shards are to be here, which it leads.
    async fn look(&self) {
        let directory = DirectoryView::new(self.whereabouts.state.clone());
        loop {
            let led = self.whereabouts.groups.iter().filter(|group| group.leads());
            let led = led.map(|group| Led { shard: group.shard, term: group.vote().leader_id.term });
            self.whereabouts.leadership.note_leads(led.collect());
            // Not formed yet, or replaced by a snapshot at this moment: later.
            if let Ok(Some(cluster)) = directory.cluster() {
                let is_member = |id| self.whereabouts.group(DIRECTORY).member(id).is_some();
                for group in &self.whereabouts.groups {
                    group.set_placed(placement::is_on(&cluster, group.shard.into(), self.node, is_member));
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn follow(&self) {
        let shards = self.whereabouts.groups.iter().filter(|group| group.shard != DIRECTORY);
        futures::future::join_all(shards.map(|group| self.follow_with(group))).await;
    }

    /// Each group for itself: to fetch a large shard takes long.
    async fn follow_with(&self, group: &Group) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            match (group.is_placed(), group.is_vacant()) {
                (false, false) if !group.leads() => self.leave(group).await,
                (true, true) => self.return_to(group).await,
                (true, false) if Instant::now() > self.elects_from => group.allow_elections_again(),
                _ => {}
            }
        }
    }

    async fn leave(&self, group: &Group) {
        if !self.is_taken_out(group).await {
            return;
        }
        group.close(true);
        tokio::time::sleep(CLOSED_FOR).await;
        if self.is_taken_out(group).await && !group.is_placed() && !self.has_to_hand_over(group) {
            match group.vacate().await {
                Ok(()) => tracing::info!(shard = group.shard, "the shard is on other nodes: its rows here are gone"),
                Err(error) => tracing::error!(shard = group.shard, %error, "cannot let go of a shard's rows"),
            }
        }
        group.close(false);
    }

    /// What cannot be read now is read the next time.
    fn has_to_hand_over(&self, group: &Group) -> bool {
        blocking(|| vacancy::has_to_hand_over(group.shard, &self.whereabouts.state)).unwrap_or(true)
    }

    /// By what is committed, as the leader says whom a majority has confirmed just now.
    async fn is_taken_out(&self, group: &Group) -> bool {
        let answer = self.whereabouts.ask_leader(group.shard, Confirmed::Now, ASK_MAX).await;
        answer.is_ok_and(|(_, answer)| !answer.member)
    }

    async fn return_to(&self, group: &Group) {
        // It does not begin to give before.
        let answer = self.whereabouts.ask_leader(group.shard, Confirmed::Now, ASK_MAX).await;
        if !answer.is_ok_and(|(_, answer)| answer.member) {
            return;
        }
        let Ok((leader, member)) = self.whereabouts.keyed_leader(group.shard) else { return };
        let client = self.whereabouts.peers.client(leader, &member.peer_address);
        let fetched = match fetch(&client, self.node, group.shard, &self.incoming, group.applied()).await {
            Ok(fetched) => fetched,
            Err(error) => return tracing::info!(shard = group.shard, %error, "the shard's rows were not fetched yet"),
        };
        match group.fill(leader, fetched).await {
            Ok(()) => tracing::info!(shard = group.shard, "the shard has a replica here"),
            Err(error) => tracing::warn!(shard = group.shard, %error, "the shard's rows were fetched, and not taken"),
        }
    }
}
