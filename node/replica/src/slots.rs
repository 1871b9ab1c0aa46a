//! Slots, ranges of them, and which shard holds which on this node.
//!
//! A shard's range is a part of its state: it changes by what its log says, and so on each replica in its own time. Owns
//! this node's view of all of them. Must not know how a range changes: that is [`crate::shard::apply`]'s.
//!
//! On one node no two shards ever hold the same slot: rows are found by their slot, and two logs would write them.

use std::sync::atomic::{AtomicU64, Ordering};

use charthold_proto::internal as pb;

use crate::{SHARD_COUNT, ShardId, all_shards};

/// A chart's place among the shards.
pub type Slot = u16;

/// How many slots there are.
const SLOT_COUNT: u32 = 1 << 16;
const GROUPS: usize = SHARD_COUNT as usize + 1;

/// Slots from the first to the last, both included: never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    pub first: Slot,
    pub last: Slot,
}

impl Slots {
    pub fn from_pb(range: &pb::SlotRange) -> Option<Self> {
        let (first, last) = (Slot::try_from(range.first).ok()?, Slot::try_from(range.last).ok()?);
        (first <= last).then_some(Self { first, last })
    }

    pub fn to_pb(self) -> pb::SlotRange {
        pb::SlotRange { first: self.first.into(), last: self.last.into() }
    }

    pub fn contains(self, slot: Slot) -> bool {
        (self.first..=self.last).contains(&slot)
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// All slots, dealt out evenly to the first shards.
    pub fn evenly(shards: u16) -> impl Iterator<Item = (ShardId, Self)> {
        let start = move |shard: u16| u32::from(shard) * SLOT_COUNT / u32::from(shards);
        (0..shards).map(move |shard| {
            let (first, last) = (start(shard) as Slot, (start(shard + 1) - 1) as Slot);
            (1 + shard, Self { first, last })
        })
    }

    /// The lower and the upper half; nothing of a single slot.
    pub fn halves(self) -> Option<(Self, Self)> {
        let middle = self.first + (self.last - self.first) / 2;
        (middle < self.last).then_some((Self { last: middle, ..self }, Self { first: middle + 1, ..self }))
    }
}

/// What each shard holds on this node: what its applied row says, at hand.
#[derive(Default)]
pub struct SlotMap([AtomicU64; GROUPS]);

/// In an entry of the map: the shard holds slots; its rows are on other nodes.
const HELD: u64 = 1 << 32;
const VACANT: u64 = 1 << 33;

impl SlotMap {
    pub fn set(&self, shard: ShardId, slots: Option<Slots>) {
        let held = slots.map_or(0, |slots| HELD | u64::from(slots.first) << 16 | u64::from(slots.last));
        self.0[usize::from(shard)].store(held, Ordering::Release);
    }

    /// From now on the shard holds nothing here, whatever it holds elsewhere.
    pub fn set_vacant(&self, shard: ShardId) {
        self.0[usize::from(shard)].store(VACANT, Ordering::Release);
    }

    pub fn is_vacant(&self, shard: ShardId) -> bool {
        self.0[usize::from(shard)].load(Ordering::Acquire) == VACANT
    }

    pub fn of(&self, shard: ShardId) -> Option<Slots> {
        let held = self.0[usize::from(shard)].load(Ordering::Acquire);
        (held & HELD != 0).then_some(Slots { first: (held >> 16) as Slot, last: held as Slot })
    }

    /// The shard that holds a slot; none while it goes from one to another, and before there are shards.
    pub fn shard_of(&self, slot: Slot) -> Option<ShardId> {
        all_shards().find(|shard| self.of(*shard).is_some_and(|slots| slots.contains(slot)))
    }

    /// Another shard than this one that holds some of these slots.
    pub fn other_holder(&self, shard: ShardId, slots: Slots) -> Option<ShardId> {
        all_shards().find(|other| *other != shard && self.of(*other).is_some_and(|held| held.overlaps(slots)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn shards_share_all_slots_evenly() {
        for shards in 1..=SHARD_COUNT {
            let map = SlotMap::default();
            assert_eq!(map.shard_of(0), None);
            for (shard, slots) in Slots::evenly(shards) {
                assert_eq!(map.other_holder(shard, slots), None);
                map.set(shard, Some(slots));
                assert_eq!(map.of(shard), Some(slots));
                assert!(u32::from(slots.last - slots.first).abs_diff(SLOT_COUNT / u32::from(shards)) <= 1);
            }
            let held = (0..=Slot::MAX).map(|slot| map.shard_of(slot).unwrap());
            assert_eq!(held.max(), Some(shards), "every slot has a shard");
            assert_eq!(map.shard_of(Slot::MAX), Some(shards));
        }
    }

    #[test]
    fn halves_are_the_whole() {
        let (lower, upper) = Slots { first: 0, last: Slot::MAX }.halves().unwrap();
        assert_eq!((lower, upper), (Slots { first: 0, last: 32_767 }, Slots { first: 32_768, last: Slot::MAX }));
        assert_eq!(Slots { first: 6, last: 7 }.halves().unwrap().0, Slots { first: 6, last: 6 });
        assert_eq!(Slots { first: 7, last: 7 }.halves(), None);
    }

    #[test]
    fn whoever_holds_a_slot_too_is_found() {
        let (map, all) = (SlotMap::default(), Slots { first: 0, last: 99 });
        map.set(1, Some(all));
        assert_eq!(map.other_holder(1, all), None);
        for (first, last, found) in [(0, 0, true), (99, 200, true), (100, 200, false), (40, 50, true)] {
            assert_eq!(map.other_holder(2, Slots { first, last }).is_some(), found, "{first} to {last}");
        }
        map.set(1, None);
        assert_eq!(map.other_holder(2, all), None);
        assert!(!map.is_vacant(1));
        map.set_vacant(1);
        assert!(map.is_vacant(1) && map.of(1).is_none());
    }

    #[test]
    fn what_comes_from_elsewhere_is_checked() {
        let of = |first, last| Slots::from_pb(&pb::SlotRange { first, last });
        assert_eq!(of(1, 2), Some(Slots { first: 1, last: 2 }));
        assert_eq!([of(2, 1), of(0, 65_536), of(65_536, 65_536)], [None; 3]);
    }
}
