//! How many bytes a group's log has behind its entries, roughly: a point for each stretch of some size.
//!
//! Of what was appended since the start. What is older is before all points, and goes when the first of them does.

use std::collections::VecDeque;

/// Bytes from one point to the next, at least: how exact it is.
const STRETCH_BYTES: u64 = 256 << 10;

#[derive(Default)]
pub(super) struct Sizes {
    total_bytes: u64,
    /// An entry's index, and all bytes up to its end.
    points: VecDeque<(u64, u64)>,
}

impl Sizes {
    pub fn append(&mut self, index: u64, entry_bytes: usize) {
        self.total_bytes += entry_bytes as u64;
        if self.points.back().is_none_or(|(_, upto)| self.total_bytes - upto >= STRETCH_BYTES) {
            self.points.push_back((index, self.total_bytes));
        }
    }

    pub fn truncate(&mut self, from: u64) {
        self.points.truncate(self.points.partition_point(|(index, _)| *index < from));
        self.total_bytes = self.points.back().map_or(0, |(_, upto)| *upto);
    }

    pub fn purge(&mut self, before: u64) {
        self.points.drain(..self.points.partition_point(|(index, _)| *index < before));
    }

    /// Bytes of what follows an entry; none where that was not counted.
    pub fn behind(&self, index: u64) -> Option<u64> {
        self.points.front().filter(|(first, _)| *first <= index)?;
        let next = self.points.partition_point(|(point, _)| *point < index);
        Some(self.points.get(next).map_or(0, |(_, upto)| self.total_bytes - upto))
    }

    /// The newest entry with that many bytes behind it.
    pub fn last_with_behind(&self, bytes: u64) -> Option<u64> {
        let end = self.points.partition_point(|(_, upto)| self.total_bytes - upto >= bytes);
        end.checked_sub(1).map(|last| self.points[last].0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Append(usize),
        /// Of those that are there, in thousandths.
        Truncate(usize),
        Purge(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (1..600_000_usize).prop_map(Step::Append),
            1 => (800..1_000_usize).prop_map(Step::Truncate),
            1 => (0..500_usize).prop_map(Step::Purge),
        ]
    }

    proptest! {
        #[test]
        fn it_is_as_exact_as_a_stretch_and_an_entry(steps in prop::collection::vec(step(), 1..200)) {
            let (mut sizes, mut first, mut entries) = (Sizes::default(), 1, VecDeque::new());
            for step in steps {
                match step {
                    Step::Append(bytes) => {
                        sizes.append(first + entries.len() as u64, bytes);
                        entries.push_back(bytes as u64);
                    }
                    Step::Truncate(part) => {
                        entries.truncate(entries.len() * part / 1_000);
                        sizes.truncate(first + entries.len() as u64);
                    }
                    Step::Purge(part) => {
                        let gone = entries.len() * part / 1_000;
                        entries.drain(..gone);
                        first += gone as u64;
                        sizes.purge(first);
                    }
                }
                let exact = |index: u64| entries.iter().skip((index + 1 - first) as usize).sum::<u64>();
                // A truncation cuts off what follows a point, too.
                let error_max = 3 * (STRETCH_BYTES + 600_000);
                for index in first..first + entries.len() as u64 {
                    let Some(behind) = sizes.behind(index) else {
                        // In front of the first point: no more than a stretch, so near the log's beginning.
                        prop_assert!(exact(first - 1) - exact(index) <= error_max, "{} is not counted", index);
                        continue;
                    };
                    prop_assert!(behind <= exact(index));
                    prop_assert!(behind + error_max >= exact(index), "of {}", index);
                }
                let last = sizes.last_with_behind(1 << 20);
                prop_assert!(last.is_none_or(|last| last >= first && exact(last) >= 1 << 20));
                // What stays when all up to there goes.
                prop_assert!(exact(last.unwrap_or(first - 1)) <= (1 << 20) + error_max);
            }
        }
    }
}
