//! zstd, one frame a record. Contexts are kept per thread because making one costs more than sealing; a frame starts
//! from a reset context, without a dictionary, so nothing of one record shows in the length of another.

use std::cell::RefCell;
use std::io;

use zeroize::Zeroizing;
use zstd::bulk::{Compressor, Decompressor};

/// The fastest: compressing must stay well below the cost of an fsync.
const LEVEL: i32 = 1;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Length of the frame in `out`; none where it does not fit, then `out` holds anything.
pub(super) fn compress_into(clear: &[u8], out: &mut [u8]) -> Option<usize> {
    COMPRESSOR
        .with_borrow_mut(|context| reused(context, || Compressor::new(LEVEL)).ok()?.compress_to_buffer(clear, out).ok())
}

/// Neither allocates nor writes more than the frame states, nor more than `len_max`.
pub(super) fn decompress(data: &[u8], len_max: usize) -> Option<Zeroizing<Vec<u8>>> {
    let len = zstd::decompressed_size(data).and_then(|len| usize::try_from(len).ok()).filter(|len| *len <= len_max)?;
    let mut clear = Zeroizing::new(vec![0; len]);
    let written = DECOMPRESSOR.with_borrow_mut(|context| {
        reused(context, Decompressor::new).ok()?.decompress_to_buffer(data, clear.as_mut_slice()).ok()
    })?;
    (written == len).then_some(clear)
}

fn reused<T>(kept: &mut Option<T>, make: impl FnOnce() -> io::Result<T>) -> io::Result<&mut T> {
    match kept {
        Some(context) => Ok(context),
        None => Ok(kept.insert(make()?)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_does_not_show_in_the_next_one() {
        let secret = b"the diagnosis of somebody else, not to be found out by length".repeat(20);
        let guess = b"the diagnosis of somebody else, not to be found out by length";
        let mut out = [0; 4_096];
        for clear in [&secret[..], guess, &secret, &[7; 1_000], guess] {
            let len = compress_into(clear, &mut out).unwrap();
            assert_eq!(out[..len], zstd::bulk::compress(clear, LEVEL).unwrap());
        }
    }

    #[test]
    fn contexts_survive_what_fails() {
        let clear = [7; 1_000];
        let mut out = [0; 1_000];
        assert_eq!(compress_into(&clear, &mut out[..3]), None);
        let len = compress_into(&clear, &mut out).unwrap();
        assert!(decompress(&out[..len - 1], 1_000).is_none());
        assert!(decompress(&out[..len], 999).is_none());
        assert_eq!(decompress(&out[..len], 1_000).unwrap()[..], clear);
    }
}
