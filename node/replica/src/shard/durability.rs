//! Commits that are durable at every site with keys before they are answered.
//!
//! A wait on the leader, after the majority and before the answer; never another quorum: what Raft commits, and who may
//! lead, stays as it is. When a site does not keep up for a while, the leader goes on without it and says so in every
//! answer, until the site has caught up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::types::{LogId, Member, Raft};
use crate::{NodeId, ShardId};

/// Where an answered commit is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On more than half of the voters.
    Quorum,
    /// And at every site with keys.
    BothKeyed,
}

/// A site that was left behind counts again once it has what it was last waited for, and lacks no more entries than this.
const BEHIND_MAX: u64 = 100;

/// What a group's leader knows of the sites with keys.
pub struct KeyedSites {
    shard: ShardId,
    /// How long a commit waits for them; nothing: not at all.
    within: Option<Duration>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// Up to this index all is on disk at every site with keys; of what is in the log in this term.
    reached: u64,
    term: u64,
    /// While it goes on without a site: the last index that it waited for.
    degraded: Option<u64>,
    /// By index.
    waiting: BTreeMap<u64, Vec<oneshot::Sender<Durability>>>,
}

impl KeyedSites {
    pub fn new(shard: ShardId, within: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { shard, within, progress: Mutex::default() })
    }

    /// Follows the group, as long as it runs, if anybody is to wait.
    pub fn follow(self: &Arc<Self>, node: NodeId, raft: &Raft) {
        if self.within.is_none() {
            return;
        }
        let (sites, mut metrics) = (Arc::clone(self), raft.metrics());
        tokio::spawn(async move {
            while metrics.changed().await.is_ok() {
                let metrics = metrics.borrow_watched();
                let membership = metrics.membership_config.membership();
                let voters = membership.voter_ids().filter_map(|id| Some((id, membership.get_node(&id)?)));
                match &metrics.replication {
                    Some(matched) if metrics.current_leader == Some(node) => {
                        let last = metrics.last_log_index.unwrap_or(0);
                        sites.advance(metrics.current_term, reached(voters, matched), last);
                    }
                    _ => sites.stop_leading(),
                }
            }
        });
    }

    /// Waits until a committed entry is on disk at every site with keys, if it is worth waiting; at most for `left`.
    pub async fn confirm(&self, entry: &LogId, left: Duration) -> Durability {
        let Some(within) = self.within else { return Durability::Quorum };
        let (term, index) = (entry.leader_id.term, entry.index);
        let confirmed = {
            let mut progress = self.progress.lock();
            if term == progress.term && index <= progress.reached {
                return Durability::BothKeyed;
            }
            if progress.degraded.is_some() {
                return Durability::Quorum;
            }
            let (waiter, confirmed) = oneshot::channel();
            progress.waiting.entry(index).or_default().push(waiter);
            confirmed
        };
        match tokio::time::timeout(within.min(left), confirmed).await {
            Ok(durability) => durability.unwrap_or(Durability::Quorum),
            // Its caller had no more time: that says nothing of the sites.
            Err(_) if left < within => Durability::Quorum,
            Err(_) => {
                self.degrade(within);
                Durability::Quorum
            }
        }
    }

    /// Whether the leader goes on without a site that it should wait for.
    pub fn is_degraded(&self) -> bool {
        self.progress.lock().degraded.is_some()
    }

    fn advance(&self, term: u64, reached: u64, last: u64) {
        let mut progress = self.progress.lock();
        (progress.term, progress.reached) = (term, reached);
        let still_waiting = progress.waiting.split_off(&(reached + 1));
        answer(std::mem::replace(&mut progress.waiting, still_waiting), Durability::BothKeyed);
        if progress.degraded.is_some_and(|waited_for| reached >= waited_for) && reached + BEHIND_MAX >= last {
            progress.degraded = None;
            tracing::info!(
                shard = self.shard,
                "every site with keys has caught up: commits wait for all of them again"
            );
        }
    }

    fn degrade(&self, waited: Duration) {
        let mut progress = self.progress.lock();
        if progress.degraded.is_none() {
            let waited_for = progress.waiting.last_key_value().map_or(progress.reached + 1, |(index, _)| *index);
            progress.degraded = Some(waited_for);
            tracing::warn!(
                shard = self.shard,
                waited_ms = waited.as_millis() as u64,
                "a site with keys does not keep up: commits are answered without it until it has caught up; start its \
                 nodes, or look at the network to them"
            );
        }
        answer(std::mem::take(&mut progress.waiting), Durability::Quorum);
    }

    fn stop_leading(&self) {
        let mut progress = self.progress.lock();
        progress.reached = 0;
        progress.degraded = None;
        answer(std::mem::take(&mut progress.waiting), Durability::Quorum);
    }
}

fn answer(waiting: BTreeMap<u64, Vec<oneshot::Sender<Durability>>>, durability: Durability) {
    for waiter in waiting.into_values().flatten() {
        // Whoever gave up has its answer.
        let _gone = waiter.send(durability);
    }
}

/// The index up to which each site with keys has a replica that has all of it on disk.
fn reached<'a>(voters: impl Iterator<Item = (NodeId, &'a Member)>, matched: &BTreeMap<NodeId, Option<LogId>>) -> u64 {
    let mut sites = BTreeMap::<&str, u64>::new();
    for (id, member) in voters.filter(|(_, member)| member.keyed) {
        let index = matched.get(&id).copied().flatten().map_or(0, |log_id| log_id.index);
        let best = sites.entry(&member.site).or_default();
        *best = index.max(*best);
    }
    sites.into_values().min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::types::LeaderId;
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn entry(term: u64, index: u64) -> LogId {
        LogId::new(<LeaderId as openraft::vote::RaftLeaderId>::new(term, 1), index)
    }

    fn all(voters: &[(NodeId, Member)]) -> impl Iterator<Item = (NodeId, &Member)> {
        voters.iter().map(|(id, member)| (*id, member))
    }

    #[test]
    fn each_keyed_site_counts_by_its_best_node() {
        let voter = |id: NodeId, site: &str, keyed| (id, Member { site: site.to_owned(), keyed, ..Member::default() });
        let voters = [voter(1, "a", true), voter(2, "a", true), voter(3, "b", true), voter(4, "c", false)];
        let matched = |indexes: &[(NodeId, u64)]| {
            let at = |(id, index): &(NodeId, u64)| (*id, Some(entry(1, *index)));
            indexes.iter().map(at).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(reached(all(&voters), &matched(&[(1, 5), (2, 9), (3, 7), (4, 1)])), 7);
        assert_eq!(reached(all(&voters), &matched(&[(1, 5), (2, 6), (3, 7)])), 6);
        assert_eq!(reached(all(&voters), &matched(&[(1, 5), (2, 6), (4, 9)])), 0);
        assert_eq!(reached(all(&voters[3..]), &matched(&[(4, 9)])), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_site_that_stays_behind_is_waited_for_once() {
        let within = Duration::from_secs(5);
        let sites = KeyedSites::new(1, Some(within));
        sites.advance(1, 10, 10);
        assert_eq!(sites.confirm(&entry(1, 10), LONG).await, Durability::BothKeyed);
        let waiting = tokio::spawn({
            let sites = Arc::clone(&sites);
            async move { sites.confirm(&entry(1, 11), LONG).await }
        });
        tokio::time::sleep(within / 2).await;
        sites.advance(1, 11, 12);
        assert_eq!(waiting.await.unwrap(), Durability::BothKeyed);

        let begun = tokio::time::Instant::now();
        assert_eq!(sites.confirm(&entry(1, 12), Duration::from_secs(1)).await, Durability::Quorum);
        assert!(!sites.is_degraded(), "its caller was in a hurry");
        let begun = begun + begun.elapsed();
        assert_eq!(sites.confirm(&entry(1, 12), LONG).await, Durability::Quorum);
        assert_eq!((begun.elapsed(), sites.is_degraded()), (within, true));
        assert_eq!(sites.confirm(&entry(1, 13), LONG).await, Durability::Quorum);
        assert_eq!(begun.elapsed(), within, "nobody waits for it again");
        sites.advance(1, 11, 13);
        assert!(sites.is_degraded(), "little is not nothing");
        sites.advance(1, 14, 14 + BEHIND_MAX + 1);
        assert!(sites.is_degraded());
        sites.advance(1, 15, 15 + BEHIND_MAX);
        assert!(!sites.is_degraded());
        assert_eq!(sites.confirm(&entry(1, 15), LONG).await, Durability::BothKeyed);
    }

    #[tokio::test]
    async fn who_does_not_lead_any_more_keeps_nobody_waiting() {
        let sites = KeyedSites::new(1, Some(Duration::from_secs(60)));
        let waiting = tokio::spawn({
            let sites = Arc::clone(&sites);
            async move { sites.confirm(&entry(1, 5), LONG).await }
        });
        while sites.progress.lock().waiting.is_empty() {
            tokio::task::yield_now().await;
        }
        sites.stop_leading();
        assert_eq!(waiting.await.unwrap(), Durability::Quorum);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_reached_in_an_older_term_says_nothing() {
        let sites = KeyedSites::new(1, Some(LONG / 2));
        sites.advance(1, 100, 100);
        assert_eq!(sites.confirm(&entry(2, 95), Duration::from_secs(1)).await, Durability::Quorum);
        sites.advance(2, 95, 95);
        assert_eq!(sites.confirm(&entry(2, 95), LONG).await, Durability::BothKeyed);
    }

    #[tokio::test]
    async fn without_the_policy_nobody_waits() {
        assert_eq!(KeyedSites::new(1, None).confirm(&entry(1, 7), LONG).await, Durability::Quorum);
    }
}
