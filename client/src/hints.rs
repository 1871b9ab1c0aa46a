//! Which gateway answered that it leads which chart's shard: a bounded memory of hints.
//!
//! Keeps a hash in place of the chart, so that no patient's id lingers here; two charts of one hash only share a wrong
//! hint, which costs a hop. Two generations bound it: when the young one is full the old one is dropped.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex};

use crate::{Chart, lock};

/// Of each of the two generations.
const HINTS_MAX: usize = 5_000;

#[derive(Default)]
pub(crate) struct Hints {
    hasher: RandomState,
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<u64, Arc<str>>,
    old: HashMap<u64, Arc<str>>,
}

impl Hints {
    /// The endpoint that led the chart's shard when it was last asked.
    pub(crate) fn get(&self, chart: &Chart) -> Option<Arc<str>> {
        let key = self.hasher.hash_one(chart);
        let mut generations = lock(&self.generations);
        if let Some(endpoint) = generations.young.get(&key) {
            return Some(Arc::clone(endpoint));
        }
        let endpoint = generations.old.remove(&key)?;
        generations.insert(key, Arc::clone(&endpoint));
        Some(endpoint)
    }

    /// An answer named the leader; an empty name says that it is not known, and is no news.
    pub(crate) fn learn(&self, chart: &Chart, endpoint: &str) {
        if !endpoint.is_empty() && self.get(chart).is_none_or(|known| *known != *endpoint) {
            lock(&self.generations).insert(self.hasher.hash_one(chart), endpoint.into());
        }
    }

    pub(crate) fn forget(&self, chart: &Chart) {
        let key = self.hasher.hash_one(chart);
        let mut generations = lock(&self.generations);
        generations.young.remove(&key);
        generations.old.remove(&key);
    }
}

impl Generations {
    fn insert(&mut self, key: u64, endpoint: Arc<str>) {
        if self.young.len() >= HINTS_MAX && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_forgets_and_stays_bounded() {
        let hints = Hints::default();
        let chart = |n: usize| Chart::patient(format!("p{n}"));
        for n in 0..3 * HINTS_MAX {
            hints.learn(&chart(n), "a:1");
            hints.learn(&chart(0), "b:1");
        }
        assert_eq!(hints.get(&chart(0)).as_deref(), Some("b:1"), "what is used stays");
        assert_eq!(hints.get(&chart(1)), None, "what is not goes");
        let generations = lock(&hints.generations);
        assert!(generations.young.len() <= HINTS_MAX && generations.old.len() <= HINTS_MAX);
        drop(generations);

        hints.learn(&chart(0), "");
        assert_eq!(hints.get(&chart(0)).as_deref(), Some("b:1"), "no news is no news");
        hints.forget(&chart(0));
        assert_eq!(hints.get(&chart(0)), None);
    }
}
