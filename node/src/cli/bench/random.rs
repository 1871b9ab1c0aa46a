//! Bytes that don't compress, and choices; nothing secret. SplitMix64.

use uuid::Uuid;

pub(super) struct Random(u64);

impl Random {
    /// Each stream of a run is another.
    pub(super) fn new(run: Uuid, stream: u64) -> Self {
        let (high, low) = run.as_u64_pair();
        Self(high ^ low.rotate_left(32) ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `count`, which is not 0.
    pub(super) fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_their_length_and_differ() {
        let mut random = Random::new(Uuid::nil(), 1);
        let (first, second) = (random.bytes(13), random.bytes(13));
        assert_eq!((first.len(), second.len()), (13, 13));
        assert_ne!(first, second);
    }
}
