//! Clock, randomness and threads: nothing else below the wall may ask the system for the first two.
//!
//! Clock and randomness are injected, so that a simulation has its own. What openraft leaves to chance (its timers) it
//! asks for without saying on whose behalf: that is drawn here, by the thread.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a node takes from its surroundings. Cheap to clone.
#[derive(Clone)]
pub struct Platform {
    clock: Arc<dyn Fn() -> u64 + Send + Sync>,
    random: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl Platform {
    /// The system's wall clock and random numbers.
    pub fn system() -> Self {
        Self { clock: Arc::new(system_time_ms), random: Arc::new(system_random) }
    }

    /// For tests and simulation.
    pub fn new(
        clock: impl Fn() -> u64 + Send + Sync + 'static,
        random: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self { clock: Arc::new(clock), random: Arc::new(random) }
    }

    /// Wall clock, milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        (self.random)()
    }
}

thread_local! {
    /// What the next draw is made of; nothing: of the system's random numbers.
    static CHANCE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on, whatever is left to chance on this thread follows from the seed.
pub fn seed_chance(seed: u64) {
    CHANCE.set(Some(seed));
}

/// A random number for who cannot be handed a [`Platform`].
pub(crate) fn chance() -> u64 {
    let Some(state) = CHANCE.get() else { return system_random() };
    // SplitMix64 (Steele, Lea, Flood 2014): any seed gives an even sequence.
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    CHANCE.set(Some(state));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Runs what may block, away from the other tasks where the runtime can move them.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn system_time_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

fn system_random() -> u64 {
    getrandom::u64().expect("invariant: the kernel's random source answers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_follows_from_a_seed_by_the_thread() {
        let draw = |seed: Option<u64>| {
            let drawn = std::thread::spawn(move || {
                seed.into_iter().for_each(seed_chance);
                [chance(), chance()]
            });
            drawn.join().unwrap_or_default()
        };
        let one = draw(Some(1));
        assert_eq!(one, draw(Some(1)));
        assert!(one[0] != one[1] && one != draw(Some(2)) && draw(None) != draw(None));
    }
}
