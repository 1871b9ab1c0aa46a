//! Holes in a table's blob files, and when they are closed.
//!
//! RocksDB collects blobs' garbage by moving what lives in the oldest files whenever a compaction passes by, garbage or
//! not (`blob_garbage_collection_age_cutoff`, `advanced_options.h`). Where rows are only added, that is nothing but
//! work: it took a quarter of a node's CPU time under load. So it is off until a third of a table's blobs is garbage,
//! and then on until a tenth is. Files in which nothing lives go by themselves.

use std::sync::atomic::{AtomicBool, Ordering};

const OPEN_PERCENT: u64 = 33;
const CLOSED_PERCENT: u64 = 10;
/// Less is not worth the work.
const GARBAGE_BYTES_MIN: u64 = 256 << 20;

/// RocksDB's options while holes are closed: all files, and without waiting for a compaction that passes by.
const CLOSING: [(&str, &str); 3] = [
    ("enable_blob_garbage_collection", "true"),
    ("blob_garbage_collection_age_cutoff", "1.0"),
    ("blob_garbage_collection_force_threshold", "0.1"),
];
const LEAVING: [(&str, &str); 1] = [("enable_blob_garbage_collection", "false")];

/// Of one table. It is opened with [`LEAVING`].
#[derive(Default)]
pub struct Holes {
    closing: AtomicBool,
}

impl Holes {
    /// The options to set now, if any are, for blob files of this size, of which so much is garbage. Once they are set,
    /// [`Self::are_set`] is to be told.
    pub fn options(&self, files_bytes: u64, garbage_bytes: u64) -> Option<&'static [(&'static str, &'static str)]> {
        let closing = self.closing.load(Ordering::Relaxed);
        let at_least = |percent: u64| garbage_bytes.saturating_mul(100) >= files_bytes.saturating_mul(percent);
        let close = match closing {
            false => garbage_bytes >= GARBAGE_BYTES_MIN && at_least(OPEN_PERCENT),
            true => at_least(CLOSED_PERCENT) && garbage_bytes > 0,
        };
        match (closing, close) {
            (false, true) => Some(&CLOSING),
            (true, false) => Some(&LEAVING),
            _ => None,
        }
    }

    pub fn are_set(&self) {
        self.closing.fetch_xor(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_closed_from_a_third_to_a_tenth() {
        let (holes, gib) = (Holes::default(), 1 << 30);
        assert_eq!(holes.options(0, 0), None);
        assert_eq!(holes.options(gib, gib / 4), None);
        assert_eq!(holes.options(gib / 2, gib / 5), None, "too little for the work");
        assert_eq!(holes.options(gib, gib / 2), Some(CLOSING.as_slice()));
        assert_eq!(holes.options(gib, gib / 2), Some(CLOSING.as_slice()), "until they are set");
        holes.are_set();
        assert_eq!(holes.options(gib, gib / 5), None);
        assert_eq!(holes.options(gib, gib / 20), Some(LEAVING.as_slice()));
        holes.are_set();
        assert_eq!(holes.options(gib, gib / 5), None);
        assert!(holes.options(gib, gib).is_some());
        holes.are_set();
        assert_eq!(holes.options(0, 0), Some(LEAVING.as_slice()));
    }
}
