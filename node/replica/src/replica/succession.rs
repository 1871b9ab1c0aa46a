//! Who asks for votes when a leader has fallen silent.
//!
//! Openraft lets each voter wait for a time of its own, drawn by lot, after the silent leader's lease: most of an outage is
//! that wait, and now and then two draw nearly the same and stand in each other's way. Here the voters take turns, in an
//! order that all of them know: the first asks as soon as the lease is over everywhere, the next a heartbeat later, by when the first has
//! won, or was refused because it lacks entries; after the last it is the first one's turn again. It asks whether it *would* be
//! followed (a pre-vote), so a leader that a majority still hears is not disturbed. Once somebody has campaigned in earnest, and
//! beside all that, it is openraft's own timer that counts.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::leaders::{Leaders, Reason, home};
use crate::shard::group::Group;
use crate::shard::types::Member;
use crate::{NodeId, ShardId};

/// In a heartbeat: how often silence is looked for.
const LOOKS: u32 = 8;

impl Leaders {
    /// From `begin` on, when this node may campaign.
    pub(super) async fn succeed(&self, begin: Instant) {
        tokio::time::sleep_until(begin).await;
        let heartbeat = Duration::from_millis(self.timing.heartbeat_ms);
        // Others may have heard the leader up to a heartbeat later, and keep its lease until then.
        let silence = Duration::from_millis(self.timing.election_max_ms) + heartbeat;
        // By shard: when the leader was heard that this node wants to succeed, and when it last asked.
        let mut asked = BTreeMap::new();
        loop {
            tokio::time::sleep(heartbeat / LOOKS).await;
            // Who would give it away at once is not to take it, unless nobody else does.
            if self.reason().is_some_and(|reason| !matches!(reason, Reason::NoKeys)) {
                continue;
            }
            for group in &self.groups {
                let Some(heard_at) = group.heard_at().filter(|at| at.elapsed() > silence) else { continue };
                if group.leads() || !group.is_here() {
                    continue;
                }
                let Some((turn, turns)) = self.turn(group) else { continue };
                let before = asked.get(&group.shard).filter(|(of, _)| *of == heard_at);
                let due = match before {
                    None => heard_at.elapsed() > silence + heartbeat * turn,
                    // That it asked too early for somebody's lease is not told.
                    Some((_, at)) => Instant::elapsed(at) > heartbeat * turns,
                };
                if due {
                    // Said once for each silence.
                    if before.is_none() {
                        tracing::info!(shard = group.shard, turn, "the leader has fallen silent: asking for votes");
                    }
                    asked.insert(group.shard, (heard_at, Instant::now()));
                    // One that does not take the question must not keep the others from theirs.
                    let _ignored = tokio::time::timeout(heartbeat, group.ask_for_votes()).await;
                }
            }
        }
    }

    /// How many are to ask before this node, and how many in all; none: it is not to ask.
    fn turn(&self, group: &Group) -> Option<(u32, u32)> {
        let (silent, _) = group.leader()?;
        let composition = group.composition();
        let voters = composition.members.into_iter().filter(|(id, _)| composition.voters.contains(id));
        let mut turns = turns(group.shard, voters.collect(), &self.sites);
        turns.retain(|id| *id != silent);
        turns.iter().position(|id| *id == group.node).map(|turn| (turn as u32, turns.len() as u32))
    }
}

/// In which order voters ask: where the leader belongs first, those without keys last.
fn turns(shard: ShardId, mut voters: Vec<(NodeId, Member)>, sites: &[String]) -> Vec<NodeId> {
    let mut turns = Vec::new();
    while let Some(next) = home(shard, voters.clone(), sites).or_else(|| voters.first().map(|(id, _)| *id)) {
        turns.push(next);
        voters.retain(|(id, _)| *id != next);
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_voters_have_a_turn_and_those_without_keys_the_last() {
        let node = |name: &str, site: &str, keyed| {
            let member = Member { name: name.to_owned(), site: site.to_owned(), keyed, ..Member::default() };
            (u64::from(name.as_bytes()[0]), member)
        };
        let nodes = [node("a", "x", true), node("b", "x", true), node("c", "z", true), node("k", "y", false)];
        let of = |shard, sites: &[&str]| {
            let sites = sites.iter().map(|site| (*site).to_owned()).collect::<Vec<_>>();
            turns(shard, nodes.to_vec(), &sites).into_iter().map(|id| char::from(id as u8)).collect::<String>()
        };
        assert_eq!([of(0, &[]), of(1, &[]), of(2, &[])], ["abck", "bcak", "cabk"]);
        assert_eq!([of(0, &["z"]), of(1, &["z"])], ["cabk", "cbak"]);
    }
}
