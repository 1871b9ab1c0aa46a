//! Every way in which links between nodes can be cut, one after the other.
//!
//! The rule (Cloudflare's outage of 2020-11-02 is why it is worth one): while some majority of the nodes reach each other
//! all, every shard takes writes, whatever else is cut.

use std::time::Duration;

use serde::Serialize;

use super::nemesis;
use super::{Setup, World, on_own_thread, verdict};
use crate::chaos::Violation;

/// From the cut to a write that was asked for since: a leader that lost its majority has to notice, another to be elected.
const RULE_MAX: Duration = Duration::from_secs(30);
/// So long links stay cut, and more: who led a moment ago may have had answers under way.
const CUT_FOR: Duration = Duration::from_secs(8);

/// Which ways: the bits of a number are the links that it cuts.
#[derive(Clone, Debug)]
pub struct Plan {
    pub setup: Setup,
    pub cuts: std::ops::Range<u32>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub nodes: usize,
    pub graphs: usize,
    /// Of them, those with a majority that reach each other all.
    pub with_majority: usize,
    /// And those that took writes.
    pub met: usize,
    /// The longest time without.
    pub longest_ms: u64,
    pub operations: usize,
    pub simulated_seconds: u64,
    pub seconds: f64,
    pub digest: String,
    pub violations: usize,
    #[serde(skip)]
    pub found: Vec<Violation>,
}

/// How many ways there are.
pub fn count(nodes: usize) -> u32 {
    1 << nemesis::links(nodes).count()
}

pub fn run(plan: &Plan) -> Report {
    let plan = plan.clone();
    on_own_thread(move || {
        let (mut world, mut nemesis) = World::formed(&plan.setup);
        let (mut found, mut with_majority, mut met, mut longest) = (Vec::new(), 0, 0, Duration::ZERO);
        for cut in plan.cuts.clone() {
            nemesis::cut_links(&mut world.sim, &world.nodes, cut);
            if has_connected_majority(plan.setup.nodes, cut) {
                with_majority += 1;
                let first = world.time_to_writes();
                world.run_for(CUT_FOR);
                match first.zip(world.time_to_writes()) {
                    Some((first, later)) => (met, longest) = (met + 1, longest.max(first).max(later)),
                    None => found.push(not_met(plan.setup.nodes, cut, "while a majority reaches each other")),
                }
            } else {
                world.run_for(CUT_FOR);
            }
            nemesis.mend(&mut world.sim);
            if world.time_to_writes().is_none() {
                found.push(not_met(plan.setup.nodes, cut, "after all was mended"));
            }
        }
        world.settle();
        let mut history = world.workload.take();
        found.extend(verdict::violations(&world.nodes, &mut history, world.digest.errors()));
        Report {
            seed: plan.setup.seed,
            nodes: plan.setup.nodes,
            graphs: plan.cuts.len(),
            with_majority,
            met,
            longest_ms: longest.as_millis() as u64,
            operations: history.len(),
            simulated_seconds: world.sim.elapsed().as_secs(),
            seconds: world.begun.elapsed().as_secs_f64(),
            digest: format!("{:016x}", world.digest.value()),
            violations: found.len(),
            found,
        }
    })
}

fn not_met(nodes: usize, cut: u32, when: &str) -> Violation {
    let cut = nemesis::links(nodes).enumerate().filter(|(bit, _)| cut >> bit & 1 == 1);
    let links = cut.map(|(_, (one, other))| format!("{}-{}", super::NAMES[one], super::NAMES[other]));
    let detail = format!("{when}; cut: {}", links.collect::<Vec<_>>().join(" "));
    Violation { what: "a shard takes no writes", key: String::new(), detail }
}

/// Whether more than half of the nodes reach each other all.
fn has_connected_majority(nodes: usize, cut: u32) -> bool {
    let is_cut = |one: usize, other: usize| {
        let bit = nemesis::links(nodes).position(|link| link == (one.min(other), one.max(other)));
        bit.is_some_and(|bit| cut >> bit & 1 == 1)
    };
    (0..1_u32 << nodes).filter(|set| set.count_ones() as usize > nodes / 2).any(|set| {
        let within = (0..nodes).filter(|node| set >> node & 1 == 1).collect::<Vec<_>>();
        within.iter().all(|one| within.iter().all(|other| one == other || !is_cut(*one, *other)))
    })
}

impl World {
    /// How long it takes from now until each shard has taken a write.
    pub(super) fn time_to_writes(&mut self) -> Option<Duration> {
        let begin = self.sim.elapsed();
        while !self.workload.writes_since(begin) {
            if self.sim.elapsed() > begin + RULE_MAX {
                return None;
            }
            self.step();
        }
        Some(self.sim.elapsed() - begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_connected_or_not() {
        assert_eq!((count(3), count(5)), (8, 1_024));
        assert!(has_connected_majority(5, 0) && !has_connected_majority(5, count(5) - 1));
        // Of three any two suffice: only if all links are cut there are none.
        assert_eq!((0..8).filter(|cut| has_connected_majority(3, *cut)).count(), 7);
        // a-b is cut, and c-d: a, c, e still reach each other. Without a-e and b-e, too, no three do.
        let cut = |pairs: &[(usize, usize)]| {
            let bit = |pair| 1 << nemesis::links(5).position(|link| link == pair).unwrap();
            pairs.iter().copied().map(bit).sum::<u32>()
        };
        assert!(has_connected_majority(5, cut(&[(0, 1), (2, 3)])));
        assert!(!has_connected_majority(5, cut(&[(0, 1), (2, 3), (0, 4), (1, 4), (0, 2), (1, 3)])));
    }
}
