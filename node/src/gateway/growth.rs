//! Shards that outgrow their bounds are split by themselves, while there are spare ones.
//!
//! Each node looks at the shards that it leads, again and again: how many outcomes each has recorded since, and how large it
//! is. Slots are a keyed hash of charts, so a shard has the share of a node's state that it has of the slots there. One that
//! was over a bound at every look for the time that the configuration says is split as an operator would split it: in the
//! directory's plan and ledger. Not before all hold what they are to hold, and while all nodes are there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use charthold_proto::internal as pb;
use charthold_proto::v1::{RequestContext, SplitShardRequest};
use charthold_replica::directory::plan;
use charthold_replica::{ShardId, Slots};
use tokio::time::Instant;

use super::Gateway;
use super::audit::BY_ITSELF;
use super::error::GatewayError;
use super::placement::check_held;
use crate::config::Shards;

/// Looks within the time that a shard must be over a bound.
const LOOKS: u32 = 6;
const SPLIT_MAX: Duration = Duration::from_secs(10);
/// In the ledger, of a split.
const WHY: &str = "the shard outgrew its bound";

/// Looks for ever.
pub async fn watch(gateway: Arc<Gateway>, bounds: Shards) {
    let mut growth = Growth { bounds, before: BTreeMap::new() };
    loop {
        tokio::time::sleep(Duration::from_secs(bounds.split_after_s.into()) / LOOKS).await;
        match gateway.shards_led().map(|seen| growth.look(&seen)) {
            Ok(Some(shard)) => {
                if let Err(error) = gateway.split_by_itself(shard).await {
                    tracing::warn!(shard, %error, "a shard that outgrew its bound was not split: it will be tried again");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "shards were not looked at; they will be"),
        }
    }
}

/// One shard at one look.
#[derive(Clone, Copy)]
struct Seen {
    shard: ShardId,
    at: Instant,
    /// Outcomes that it has recorded.
    seq: u64,
    bytes: u64,
}

struct Growth {
    bounds: Shards,
    /// The look before, and at how many in a row a shard was over a bound.
    before: BTreeMap<ShardId, (Seen, u32)>,
}

impl Growth {
    /// The shard that is to be split now. One that is not seen, since it is not to be judged here, begins anew.
    fn look(&mut self, seen: &[Seen]) -> Option<ShardId> {
        let before = std::mem::take(&mut self.before);
        for now in seen {
            let last = before.get(&now.shard);
            let is_over = last.is_some_and(|(last, _)| self.is_over(last, now));
            let times = if is_over { last.map_or(0, |(_, times)| *times) + 1 } else { 0 };
            self.before.insert(now.shard, (*now, times));
        }
        let due = seen.iter().filter(|now| self.before.get(&now.shard).is_some_and(|(_, times)| *times >= LOOKS));
        let due = due.max_by_key(|now| now.bytes).map(|now| now.shard)?;
        // Whatever is over its bound after that must be so for as long again.
        self.before.clear();
        Some(due)
    }

    fn is_over(&self, last: &Seen, now: &Seen) -> bool {
        let over = |bound: u64, value: f64| bound > 0 && value > bound as f64;
        let per_s = now.seq.saturating_sub(last.seq) as f64 / now.at.duration_since(last.at).as_secs_f64().max(0.001);
        over(self.bounds.split_above_commits_per_s, per_s) || over(self.bounds.split_above_bytes, now.bytes as f64)
    }
}

impl Gateway {
    /// The shards that this node leads, that hold what they are to hold, and that can be split.
    fn shards_led(&self) -> Result<Vec<Seen>, GatewayError> {
        let Some(cluster) = self.replica.directory().cluster()? else { return Ok(Vec::new()) };
        let (status, state_bytes) = (self.replica.status(), self.replica.state_bytes());
        let here = status.iter().filter(|of| !of.vacant).filter_map(|of| of.slots).map(count).sum::<u64>();
        let seen = |range: &pb::ShardRange| {
            let of = status.iter().find(|of| u32::from(of.shard) == range.shard)?;
            let slots = of.slots.filter(|held| plan::slots_of(range) == Some(*held))?;
            let leads = of.leader == Some(self.replica.node_id) && plan::split(&cluster.shards, range.shard).is_some();
            let bytes = (u128::from(state_bytes) * u128::from(count(slots))).checked_div(here.into())? as u64;
            leads.then(|| Seen { shard: of.shard, at: Instant::now(), seq: of.seq, bytes })
        };
        Ok(cluster.shards.iter().filter_map(seen).collect())
    }

    async fn split_by_itself(&self, shard: ShardId) -> Result<(), GatewayError> {
        // A node that is away would have to get the new shard as a snapshot; and it may be one that is being upgraded.
        let nodes = self.replica.survey().await;
        if let Some(away) = nodes.iter().find(|node| node.status.is_err()) {
            return Err(GatewayError::NodesMissing(format!("node {} does not answer", away.member.name)));
        }
        check_held(&self.replica.directory().cluster()?.ok_or(GatewayError::NotInitialized)?, &nodes)?;
        tracing::info!(shard, "a shard is over its bound: it is split");
        let context = RequestContext { actor: BY_ITSELF.to_owned(), reason: WHY.to_owned(), ..Default::default() };
        let request = SplitShardRequest {
            context: Some(context),
            request_id: uuid::Uuid::now_v7().to_string(),
            shard: shard.into(),
        };
        self.split_shard(BY_ITSELF, request, Instant::now() + SPLIT_MAX).await.map(drop)
    }
}

fn count(slots: Slots) -> u64 {
    u64::from(slots.last) - u64::from(slots.first) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(split_above_bytes: u64, split_above_commits_per_s: u64) -> Growth {
        let bounds = Shards { split_above_bytes, split_above_commits_per_s, ..Shards::default() };
        Growth { bounds, before: BTreeMap::new() }
    }

    /// Two shards, looked at every ten seconds: how much the first records between looks, how large both are.
    fn looks(growth: &mut Growth, each: &[(u64, [u64; 2])]) -> Vec<Option<ShardId>> {
        let (begin, mut seq) = (Instant::now(), 0);
        let look = |(number, (more, bytes)): (usize, &(u64, [u64; 2]))| {
            seq += more;
            let at = begin + Duration::from_secs(10) * number as u32;
            growth.look(&[Seen { shard: 1, at, seq, bytes: bytes[0] }, Seen { shard: 2, at, seq: 0, bytes: bytes[1] }])
        };
        each.iter().enumerate().map(look).collect()
    }

    #[test]
    fn who_is_over_a_bound_for_long_is_split_once() {
        let busy = looks(&mut growth(0, 100), &[(2_000, [1, 1]); 9]);
        assert_eq!(busy, [None, None, None, None, None, None, Some(1), None, None]);
        let large = looks(&mut growth(50, 0), &[(0, [60, 70]); 8]);
        assert_eq!(large[6], Some(2), "the larger one first");
        assert_eq!(looks(&mut growth(0, 0), &[(9_000, [60, 70]); 9]), [None; 9], "no bounds");
        let mut bursts = [(2_000, [1, 1]); 9];
        bursts[5].0 = 10;
        assert_eq!(looks(&mut growth(0, 100), &bursts), [None; 9]);
    }

    #[test]
    fn what_is_not_seen_begins_anew() {
        let mut growth = growth(0, 100);
        looks(&mut growth, &[(2_000, [1, 1]); 6]);
        assert_eq!(growth.look(&[]), None);
        assert_eq!(looks(&mut growth, &[(2_000, [1, 1]); 2]), [None, None]);
    }
}
