//! Bytes that somebody made of valid ones: what a decoder must refuse, or take for what it is, and never fall over.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// A place is a share of the length, so that it stays one while the bytes shrink and grow.
#[derive(Clone, Debug)]
enum Change {
    Flip {
        at: Index,
        bit: u8,
    },
    Set {
        at: Index,
        to: u8,
    },
    Insert {
        at: Index,
        bytes: Vec<u8>,
    },
    Remove {
        from: Index,
        to: Index,
    },
    Double {
        from: Index,
        to: Index,
    },
    CutOff {
        at: Index,
    },
    /// The end of another valid one in place of this one's.
    Splice {
        at: Index,
        other: usize,
        from: Index,
    },
}

fn change(seeds: usize) -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), 0..8_u8).prop_map(|(at, bit)| Change::Flip { at, bit }),
        // Lengths, tags and signs at their ends.
        3 => (at(), select(vec![0x00_u8, 0x01, 0x0f, 0x10, 0x7f, 0x80, 0xff])).prop_map(|(at, to)| Change::Set { at, to }),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Change::Insert { at, bytes }),
        // A number as large as any.
        1 => at().prop_map(|at| Change::Insert { at, bytes: vec![0xff; 9] }),
        2 => (at(), at()).prop_map(|(from, to)| Change::Remove { from, to }),
        2 => (at(), at()).prop_map(|(from, to)| Change::Double { from, to }),
        1 => at().prop_map(|at| Change::CutOff { at }),
        1 => (at(), 0..seeds, at()).prop_map(|(at, other, from)| Change::Splice { at, other, from }),
    ]
}

/// One of the seeds after a few changes.
pub fn mutated(seeds: Vec<Bytes>) -> impl Strategy<Value = Bytes> {
    let count = seeds.len();
    (0..count, prop::collection::vec(change(count), 1..5)).prop_map(move |(seed, changes)| {
        let mut bytes = seeds[seed].to_vec();
        for change in changes {
            apply(&mut bytes, change, &seeds);
        }
        bytes.into()
    })
}

fn apply(bytes: &mut Vec<u8>, change: Change, seeds: &[Bytes]) {
    // One past the end is a place too.
    let place = |at: Index, length: usize| at.index(length + 1);
    let range = |from: Index, to: Index, length: usize| {
        let (from, to) = (place(from, length), place(to, length));
        from.min(to)..from.max(to)
    };
    match change {
        Change::Flip { .. } | Change::Set { .. } if bytes.is_empty() => {}
        Change::Flip { at, bit } => {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        Change::Set { at, to } => {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        Change::Insert { at, bytes: inserted } => {
            let at = place(at, bytes.len());
            bytes.splice(at..at, inserted);
        }
        Change::Remove { from, to } => drop(bytes.drain(range(from, to, bytes.len()))),
        Change::Double { from, to } => {
            let range = range(from, to, bytes.len());
            let (end, doubled) = (range.end, bytes[range].to_vec());
            bytes.splice(end..end, doubled);
        }
        Change::CutOff { at } => bytes.truncate(place(at, bytes.len())),
        Change::Splice { at, other, from } => {
            bytes.truncate(place(at, bytes.len()));
            let other = &seeds[other];
            bytes.extend_from_slice(&other[place(from, other.len())..]);
        }
    }
}
