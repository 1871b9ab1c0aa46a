//! Which slots the shards hold: they follow the directory's plan.
//!
//! Whoever leads a group compares, some times a second, and takes the next step: a shard that is to have less gives the upper
//! part away; a spare one takes what the plan has for it, from a new cluster or from who gave it. Each step stands for
//! itself, whoever leads next goes on where the last one stopped. Between giving and taking nobody holds the slots: for
//! so long, writes to them wait.
//!
//! A replica whose log has what its shard took from another one lets go of that before the giver's log lets go of what was
//! given: who was away for long gets a snapshot of both. With one of the giver alone it would lack the rows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use charthold_proto::internal as pb;
use prost::Message as _;

use crate::directory::{DirectoryView, placement, plan};
use crate::shard::authors::Authors;
use crate::shard::command::Command;
use crate::shard::config::Retention;
use crate::shard::group::Group;
use crate::store::EngineError;
use crate::store::state::Table;
use crate::store::state::flusher::StateStore;
use crate::store::table::handover;
use crate::{DIRECTORY, NodeId, ShardId, Slots};

const STEP_INTERVAL: Duration = Duration::from_millis(100);
/// For one step.
const STEP_MAX: Duration = Duration::from_secs(5);

/// What a node needs to follow the plan.
pub(super) struct PlanFollower {
    groups: Vec<Arc<Group>>,
    state: StateStore,
    authors: Arc<Authors>,
    /// What a log keeps.
    retention: Retention,
}

impl PlanFollower {
    pub fn new(groups: &[Arc<Group>], state: &StateStore, authors: &Arc<Authors>, retention: Retention) -> Self {
        Self { groups: groups.to_vec(), state: state.clone(), authors: Arc::clone(authors), retention }
    }

    /// Takes steps in whatever this node leads, for ever.
    pub async fn run(self) {
        let directory = DirectoryView::new(self.state.clone());
        loop {
            tokio::time::sleep(STEP_INTERVAL).await;
            self.purge_what_was_taken().await;
            let led = self.groups.iter().filter(|group| group.shard != DIRECTORY && group.leads());
            let led = led.filter(|_| self.authors.has_keys()).collect::<Vec<_>>();
            if led.is_empty() {
                continue;
            }
            // Not formed yet, or replaced by a snapshot at this moment: later.
            let Ok(Some(cluster)) = directory.cluster() else { continue };
            futures::future::join_all(led.iter().map(|group| self.take_step(group, &cluster))).await;
        }
    }

    async fn take_step(&self, group: &Group, cluster: &pb::ClusterRow) {
        let held = self.state.slots().of(group.shard);
        let handed_over = |giver| self.handed_over(giver, group.shard);
        match next_step(group.shard, &cluster.shards, held, handed_over) {
            Ok(None) => {}
            Ok(Some((Command::GiveSlots(give), _))) if !self.is_where_taker_is(group, give.to, cluster) => {}
            Ok(Some((command, what))) => self.propose(group, &command, what).await,
            Err(error) => tracing::debug!(shard = group.shard, %error, "cannot see what was given to the shard"),
        }
    }

    /// Whether both shards have come to where they are placed, and that is the same: the rows are where the giver is, and
    /// wherever else the taker were it would wait for them. What moves arrives first, then it gives.
    fn is_where_taker_is(&self, giver: &Group, taker: u32, cluster: &pb::ClusterRow) -> bool {
        if placement::of(cluster, giver.shard.into()).or(placement::of(cluster, taker)).is_none() {
            return true;
        }
        let nodes = self.groups[usize::from(DIRECTORY)].composition().members;
        let is_member = |id| nodes.contains_key(&id);
        let on = |shard| nodes.keys().copied().filter(|id| placement::is_on(cluster, shard, *id, is_member)).collect();
        let (on, of_taker): (BTreeSet<NodeId>, BTreeSet<NodeId>) = (on(giver.shard.into()), on(taker));
        let taker = self.groups.iter().find(|group| u32::from(group.shard) == taker);
        on == of_taker && giver.is_settled_on(&on) && taker.is_some_and(|taker| taker.is_settled_on(&on))
    }

    fn handed_over(&self, giver: ShardId, taker: ShardId) -> Result<Option<handover::Row>, EngineError> {
        let row = self.state.engine().get(Table::Handover, &handover::Key { giver, taker }.encode())?;
        row.map(handover::Row::decode)
            .transpose()
            .map_err(|_| EngineError::new("state", "a row of table handover cannot be decoded"))
    }

    async fn propose(&self, group: &Group, command: &Command, what: &'static str) {
        let Ok(signed) = self.authors.sign(group, &command.encode(0)) else { return };
        match group.propose_here(&signed, STEP_MAX).await {
            Ok((pb::Outcome { result: Some(pb::outcome::Result::Done(_)) }, _)) => {
                tracing::info!(shard = group.shard, "{what}");
            }
            Ok(_) => tracing::error!(
                shard = group.shard,
                "a shard refuses what the directory's plan has for it: a defect, or nodes of different versions; report it"
            ),
            // The next look sees what became of it.
            Err(error) => tracing::debug!(shard = group.shard, %error, "a step of the plan was not taken"),
        }
    }

    async fn purge_what_was_taken(&self) {
        for group in &self.groups {
            let Some(origin) = group.took_by_log() else { continue };
            let giver = self.groups.iter().find(|giver| u32::from(giver.shard) == origin.shard);
            let since = giver.map_or(0, |giver| giver.log_index().saturating_sub(origin.log_index));
            // From before the start: nobody knows how many.
            let since_bytes = giver.map_or(Some(0), |giver| giver.log_bytes_behind(origin.log_index));
            let few = since <= self.retention.keep_entries / 2
                && since_bytes.is_some_and(|bytes| bytes <= self.retention.keep_bytes / 2);
            if !few {
                group.purge_log_beyond(origin.taker_log_index).await;
            }
        }
    }
}

type Step = (Command, &'static str);

/// What a group's leader does next, so that the group holds what the plan has for it.
fn next_step(
    shard: ShardId,
    plan: &[pb::ShardRange],
    held: Option<Slots>,
    handed_over: impl Fn(ShardId) -> Result<Option<handover::Row>, EngineError>,
) -> Result<Option<Step>, EngineError> {
    let Some(range) = plan.iter().find(|range| range.shard == u32::from(shard)) else { return Ok(None) };
    match held {
        None => {
            let given = match ShardId::try_from(range.parent) {
                Ok(parent) if parent != DIRECTORY => match handed_over(parent)? {
                    Some(row) => (row.slots, row.given),
                    None => return Ok(None),
                },
                _ => (plan::slots_of(range).map(Slots::to_pb), None),
            };
            let take = pb::TakeSlots { slots: given.0, given: given.1 };
            Ok(Some((Command::TakeSlots(take), "the shard holds its slots from now on")))
        }
        Some(held) => {
            // A plan that was split twice meanwhile: one part after the other, the uppermost first.
            let parts = plan.iter().filter(|part| part.parent == u32::from(shard));
            let parts = parts.filter_map(|part| Some((part.shard, plan::whole_of(plan, part)?)));
            let upper = parts.filter(|(_, slots)| held.overlaps(*slots)).max_by_key(|(_, slots)| slots.first);
            Ok(upper.map(|(to, slots)| {
                let give = pb::GiveSlots { slots: Some(slots.to_pb()), to };
                (Command::GiveSlots(give), "the shard gave a part of its slots to another one")
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The next step of a shard in a plan that began with one and was split as said, in a few words.
    fn step(splits: &[u32], shard: ShardId, held: Option<(u16, u16)>, handed_over: bool) -> String {
        let begun = plan::begin(1);
        let plan = splits.iter().fold(begun, |plan, shard| plan::split(&plan, *shard).unwrap());
        let held = held.map(|(first, last)| Slots { first, last });
        let row = |giver: ShardId| handover::Row {
            slots: Some(pb::SlotRange { first: 7, last: 8 }),
            given: Some(pb::Given { shard: giver.into(), ..Default::default() }),
        };
        let next = next_step(shard, &plan, held, |giver| Ok(handed_over.then(|| row(giver))));
        match next.unwrap().map(|(command, _)| command) {
            None => "-".to_owned(),
            Some(Command::TakeSlots(take)) => {
                let slots = take.slots.unwrap();
                let from = take.given.map_or(String::new(), |given| format!(" of {}", given.shard));
                format!("take {}-{}{from}", slots.first, slots.last)
            }
            Some(Command::GiveSlots(give)) => {
                let slots = give.slots.unwrap();
                format!("give {}-{} to {}", slots.first, slots.last, give.to)
            }
            Some(_) => panic!("no step"),
        }
    }

    #[test]
    fn a_shard_gets_what_the_plan_has() {
        const ALL: (u16, u16) = (0, 65_535);
        assert_eq!(step(&[], 1, None, false), "take 0-65535");
        assert_eq!(step(&[], 1, Some(ALL), false), "-");
        assert_eq!(step(&[], 2, None, true), "-", "it is spare");
        assert_eq!(step(&[1], 1, Some(ALL), false), "give 32768-65535 to 2");
        assert_eq!(step(&[1], 1, Some((0, 32_767)), false), "-");
        assert_eq!(step(&[1], 2, None, false), "-", "the giver has not given here");
        assert_eq!(step(&[1], 2, None, true), "take 7-8 of 1", "as it was given");
        // It was to be split again before it gave: all goes, then the taker gives a part of it on.
        assert_eq!(step(&[1, 2], 1, Some(ALL), false), "give 32768-65535 to 2");
        assert_eq!(step(&[1, 2], 2, Some((32_768, 65_535)), false), "give 49152-65535 to 3");
        // Twice: one part after the other.
        assert_eq!(step(&[1, 1], 1, Some(ALL), false), "give 32768-65535 to 2");
        assert_eq!(step(&[1, 1], 1, Some((0, 32_767)), false), "give 16384-32767 to 3");
        assert_eq!(step(&[1, 1], 1, Some((0, 16_383)), false), "-");
    }
}
