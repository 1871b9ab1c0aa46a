//! The plan: which shard is to hold which slots. The shards follow it, see [`crate::replica::slots`].
//!
//! It begins with some shards of equal size and changes by splits only: the upper half of a shard's slots goes to one that is
//! spare. So a shard's part only ever gets smaller, and who reads an old plan does nothing wrong.

use charthold_proto::internal::{ShardRange, SlotRange};

use crate::{SHARD_COUNT, Slots};

/// What a new cluster begins with, unless somebody says otherwise. A shard is one log, and commits of several share little: with
/// 64 under way on two cores, one of 1 KiB costs 808 µs of processor time with eight shards, 530 with two.
pub const SHARDS_AT_FIRST: u16 = 2;

/// What a new cluster begins with.
pub fn begin(shards: u16) -> Vec<ShardRange> {
    Slots::evenly(shards).map(|(shard, slots)| range(shard.into(), slots, 0)).collect()
}

/// The plan with a shard split; nothing if there is no such shard, it has one slot only, or none is spare.
pub fn split(plan: &[ShardRange], shard: u32) -> Option<Vec<ShardRange>> {
    let whole = plan.iter().find(|range| range.shard == shard)?;
    let (lower, upper) = slots_of(whole)?.halves()?;
    let spare = (1..=u32::from(SHARD_COUNT)).find(|spare| !has(plan, *spare))?;
    let others = plan.iter().filter(|range| range.shard != shard).copied();
    let mut shards = others.collect::<Vec<_>>();
    shards.extend([range(shard, lower, whole.parent), range(spare, upper, shard)]);
    shards.sort_by_key(|range| range.shard);
    Some(shards)
}

/// Whether a shard holds anything.
pub fn has(plan: &[ShardRange], shard: u32) -> bool {
    plan.iter().any(|range| range.shard == shard)
}

pub fn slots_of(range: &ShardRange) -> Option<Slots> {
    Slots::from_pb(&SlotRange { first: range.first_slot, last: range.last_slot })
}

/// What a shard has, by the plan, together with what it is to give on.
pub fn whole_of(plan: &[ShardRange], range: &ShardRange) -> Option<Slots> {
    let own = slots_of(range)?;
    let parts = plan.iter().filter(|part| part.parent == range.shard).filter_map(|part| whole_of(plan, part));
    Some(parts.fold(own, |whole, part| Slots { last: whole.last.max(part.last), ..whole }))
}

fn range(shard: u32, slots: Slots, parent: u32) -> ShardRange {
    ShardRange { shard, first_slot: slots.first.into(), last_slot: slots.last.into(), parent }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn brief(plan: &[ShardRange]) -> Vec<(u32, u32, u32, u32)> {
        plan.iter().map(|range| (range.shard, range.first_slot, range.last_slot, range.parent)).collect()
    }

    #[test]
    fn splits_make_two_of_one_until_none_is_spare() {
        let two = begin(2);
        assert_eq!(brief(&two), [(1, 0, 32_767, 0), (2, 32_768, 65_535, 0)]);
        let three = split(&two, 1).unwrap();
        assert_eq!(brief(&three), [(1, 0, 16_383, 0), (2, 32_768, 65_535, 0), (3, 16_384, 32_767, 1)]);
        let four = split(&three, 3).unwrap();
        assert_eq!(brief(&four)[2..], [(3, 16_384, 24_575, 1), (4, 24_576, 32_767, 3)]);
        assert_eq!(whole_of(&four, &four[2]), Some(Slots { first: 16_384, last: 32_767 }));
        assert_eq!(whole_of(&four, &four[0]), Some(Slots { first: 0, last: 32_767 }));
        assert!(split(&two, 3).is_none(), "no such shard");
        assert!(split(&begin(SHARD_COUNT), 1).is_none(), "none is spare");
        assert!(split(&[range(1, Slots { first: 7, last: 7 }, 0)], 1).is_none(), "a slot is not split");
    }
}
