//! Clock and randomness, injected: nothing else below the wall may ask the system for either.

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

fn system_time_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

fn system_random() -> u64 {
    getrandom::u64().expect("invariant: the kernel's random source answers")
}
