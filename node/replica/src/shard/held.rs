//! What is not purged while a replica gets a snapshot: what it will lack when it has it.
//!
//! A snapshot is of when its transfer began. Were the log purged meanwhile, and a log may be shorter than what is
//! written in that time, whoever has received one would need the next one, for ever. So a group announces no position
//! to purge up to while it sends, and a while longer, for the receiver to get the rest from the log.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{SHARD_COUNT, ShardId};

/// For the receiver to get what was written since.
const CATCH_UP: Duration = Duration::from_secs(5);
/// A log is held no longer, whoever still tries: it would fill the disk.
const HELD_MAX: Duration = Duration::from_secs(60 * 60);

/// By group.
#[derive(Default)]
pub struct HeldLogs([Mutex<Held>; SHARD_COUNT as usize + 1]);

#[derive(Default)]
struct Held {
    transfers: usize,
    /// Without a pause.
    since: Option<Instant>,
    /// After the last one.
    until: Option<Instant>,
}

impl Held {
    fn is_held(&self) -> bool {
        self.transfers > 0 || self.until.is_some_and(|until| until > Instant::now())
    }
}

impl HeldLogs {
    /// A transfer begins; it ends when what is given here is dropped.
    pub fn hold(&self, shard: ShardId) -> Hold<'_> {
        let held = &self.0[usize::from(shard)];
        let mut of_group = held.lock();
        if !of_group.is_held() {
            of_group.since = Some(Instant::now());
        }
        of_group.transfers += 1;
        Hold(held)
    }

    /// Whether nothing may be purged of a group's log now.
    pub fn is_held(&self, shard: ShardId) -> bool {
        let of_group = self.0[usize::from(shard)].lock();
        of_group.is_held() && of_group.since.is_some_and(|since| since.elapsed() < HELD_MAX)
    }
}

#[must_use]
pub struct Hold<'a>(&'a Mutex<Held>);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut held = self.0.lock();
        held.transfers -= 1;
        held.until = Some(Instant::now() + CATCH_UP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_log_is_held_for_as_long_as_it_is_needed_and_not_for_ever() {
        let logs = HeldLogs::default();
        assert!(!logs.is_held(1));
        let (one, two) = (logs.hold(1), logs.hold(1));
        drop(one);
        tokio::time::advance(2 * CATCH_UP).await;
        assert!(logs.is_held(1) && !logs.is_held(2));
        drop(two);
        assert!(logs.is_held(1), "the rest comes from the log");
        tokio::time::advance(CATCH_UP).await;
        assert!(!logs.is_held(1));
        // One try after the other, none of which ends well.
        let mut begun = Duration::ZERO;
        while begun < HELD_MAX {
            assert!(begun.is_zero() || logs.is_held(1));
            drop(logs.hold(1));
            tokio::time::advance(CATCH_UP / 2).await;
            begun += CATCH_UP / 2;
        }
        assert!(!logs.is_held(1));
        tokio::time::advance(2 * CATCH_UP).await;
        let _again = logs.hold(1);
        assert!(logs.is_held(1));
    }
}
