//! This node's wall clock, compared with its peers'.
//!
//! Log times come from a leader's clock, and requests expire by them: a leader whose clock is far off would refuse good
//! requests, and log time never goes back. So a clock that most others contradict stamps nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::NodeId;
use crate::platform::Platform;

/// How far a clock may be from the majority's.
const OFF_MAX: Duration = Duration::from_secs(2);
/// What was heard longer ago says nothing.
const HEARD_MAX: Duration = Duration::from_secs(10);

/// This node's clock is not to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node's clock is {} ms {} of most other nodes': set it right", .0.unsigned_abs(), if *.0 > 0 { "behind" } else { "ahead" })]
pub struct ClockOff(i64);

pub struct ClusterClock {
    platform: Platform,
    /// What each peer's clock showed, and when it did.
    heard: Mutex<BTreeMap<NodeId, (u64, Instant)>>,
}

impl ClusterClock {
    pub fn new(platform: Platform) -> Self {
        Self { platform, heard: Mutex::default() }
    }

    /// Takes what a peer's clock shows now.
    pub fn hear(&self, node: NodeId, clock_ms: u64) {
        let mut heard = self.heard.lock();
        heard.retain(|_, (_, at)| at.elapsed() < HEARD_MAX);
        heard.insert(node, (clock_ms, Instant::now()));
    }

    #[cfg(test)]
    pub fn heard(&self) -> usize {
        self.heard.lock().len()
    }

    /// This node's clock, whatever the others' show.
    pub fn own_ms(&self) -> u64 {
        self.platform.now_ms()
    }

    /// How far each clock heard lately is ahead of this node's.
    pub fn offsets_ms(&self) -> Vec<(NodeId, i64)> {
        let now_ms = self.platform.now_ms();
        let heard = self.heard.lock();
        let fresh = heard.iter().filter(|(_, (_, at))| at.elapsed() < HEARD_MAX);
        fresh.map(|(node, (clock_ms, at))| (*node, offset_ms(*clock_ms, *at, now_ms))).collect()
    }

    /// This node's clock, unless it is off: not within [`OFF_MAX`] of most of the clocks heard from lately, its own
    /// among them. Clocks of less than a majority of the `members` prove nothing.
    pub fn now_ms(&self, members: usize) -> Result<u64, ClockOff> {
        let now_ms = self.platform.now_ms();
        let mut offsets = vec![0];
        for (clock_ms, at) in self.heard.lock().values().filter(|(_, at)| at.elapsed() < HEARD_MAX) {
            offsets.push(offset_ms(*clock_ms, *at, now_ms));
        }
        if offsets.len() <= members / 2 {
            return Ok(now_ms);
        }
        offsets.sort_unstable();
        // More than half of all are beyond a median; of an even number, the median nearer to this node's counts.
        let (low, high) = (offsets[(offsets.len() - 1) / 2], offsets[offsets.len() / 2]);
        let off_max = OFF_MAX.as_millis() as i64;
        match (low > off_max, high < -off_max) {
            (true, _) => Err(ClockOff(low)),
            (_, true) => Err(ClockOff(high)),
            _ => Ok(now_ms),
        }
    }
}

/// How far a clock that showed this then is ahead of this node's now.
fn offset_ms(clock_ms: u64, at: Instant, now_ms: u64) -> i64 {
    let shows_ms = clock_ms.saturating_add(at.elapsed().as_millis() as u64);
    (i128::from(shows_ms) - i128::from(now_ms)).clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: u64 = 1_000_000;

    /// Whether a clock is refused among peers' that are off it by so many milliseconds.
    fn refused(members: usize, offsets: &[i64]) -> bool {
        let clock = ClusterClock::new(Platform::new(|| NOW, || 0));
        for (node, offset) in offsets.iter().enumerate() {
            clock.hear(node as NodeId, NOW.saturating_add_signed(*offset));
        }
        clock.now_ms(members).is_err()
    }

    #[test]
    fn most_others_must_contradict_it_in_the_same_direction() {
        for (members, offsets, wanted) in [
            (1, &[][..], false),
            (3, &[], false),
            (3, &[0, 100], false),
            (3, &[0, 60_000], false),
            (3, &[-60_000, 60_000], false),
            (3, &[60_000, 50_000], true),
            (3, &[-60_000, -50_000], true),
            // One against one: neither is the majority.
            (3, &[60_000], false),
            (5, &[60_000, 60_000], true),
            (5, &[60_000, 60_000, 0], false),
            (5, &[60_000, 60_000, 60_000], true),
            (5, &[60_000, 60_000, 60_000, 0], true),
            // Three of seven prove nothing.
            (7, &[60_000, 60_000], false),
        ] {
            assert_eq!(refused(members, offsets), wanted, "{offsets:?} of {members}");
        }
        assert!(refused(3, &[i64::MAX, i64::MAX]));
    }

    #[test]
    fn a_jump_is_noticed_before_the_next_word_from_a_peer() {
        let own_ms = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(NOW));
        let shown = std::sync::Arc::clone(&own_ms);
        let clock = ClusterClock::new(Platform::new(move || shown.load(std::sync::atomic::Ordering::SeqCst), || 0));
        clock.hear(1, NOW);
        clock.hear(2, NOW);
        assert_eq!(clock.now_ms(3), Ok(NOW));
        own_ms.store(NOW + 3_600_000, std::sync::atomic::Ordering::SeqCst);
        let error = clock.now_ms(3).unwrap_err().to_string();
        assert!(error.contains("ahead of most"), "{error}");
    }
}
