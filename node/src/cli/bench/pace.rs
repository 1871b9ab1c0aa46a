//! When the calls of an open loop start: every 1/rate seconds, whatever the cluster does.
//!
//! It runs on a thread of its own, since the runtime's timer is too coarse for it. A call that nobody is free to take
//! waits here, and carries the moment that it was due at: its latency begins there.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::figures::Kind;
use super::random::Random;

/// How long it sleeps without looking whether the run was stopped.
const NAP_MAX: Duration = Duration::from_millis(50);

/// A call that is to start.
pub(super) struct Due {
    pub(super) kind: Kind,
    pub(super) at: Instant,
}

pub(super) struct Pace {
    pub(super) begin: Instant,
    pub(super) until: Instant,
    pub(super) rate: u32,
    pub(super) reads_percent: u8,
    pub(super) random: Random,
}

impl Pace {
    /// Hands out calls until the end; those that were due and not taken go to `unsent`.
    pub(super) fn run(mut self, calls: &mpsc::Sender<Due>, stop: &CancellationToken, mut unsent: impl FnMut(Due)) {
        for number in 0.. {
            let at = self.begin + offset(number, self.rate);
            if at >= self.until {
                return;
            }
            let reads = self.random.below(100) < self.reads_percent.into();
            let due = Due { kind: if reads { Kind::Read } else { Kind::Write }, at };
            sleep_until(at, stop);
            match (stop.is_cancelled(), Instant::now() < self.until) {
                // Stopped before it was due: nothing is missing.
                (true, _) if Instant::now() < at => return,
                (false, true) => {
                    if let Err(refused) = calls.blocking_send(due) {
                        unsent(refused.0);
                    }
                }
                _ => unsent(due),
            }
        }
    }
}

/// Of a call's start from the first one's.
fn offset(number: u64, rate: u32) -> Duration {
    let (rate, whole) = (u64::from(rate), number / u64::from(rate));
    Duration::from_secs(whole) + Duration::from_nanos((number % rate) * 1_000_000_000 / rate)
}

fn sleep_until(at: Instant, stop: &CancellationToken) {
    loop {
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() || stop.is_cancelled() {
            return;
        }
        std::thread::sleep(left.min(NAP_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_evenly_spread() {
        assert_eq!(offset(0, 7), Duration::ZERO);
        assert_eq!(offset(7, 7), Duration::from_secs(1));
        assert_eq!(offset(3, 4), Duration::from_millis(750));
        assert_eq!(offset(1_000_000 * 86_400 + 1, 1_000_000), Duration::new(86_400, 1_000));
    }
}
