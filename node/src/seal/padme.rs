//! Padmé: lengths rounded up so that they tell little, for at most 12 % more (Nikitin et al., PETS 2019).

/// `len` with its last E − S bits rounded up to zero, E = ⌊log2 len⌋, S = ⌊log2 E⌋ + 1.
pub fn padded_len(len: usize) -> usize {
    if len < 2 {
        return len;
    }
    let exponent = len.ilog2();
    let zero_bits = exponent - (exponent.ilog2() + 1);
    len.next_multiple_of(1 << zero_bits)
}

#[cfg(test)]
mod tests {
    use super::padded_len;

    #[test]
    fn follows_the_paper() {
        for (len, padded) in
            [(0, 0), (1, 1), (2, 2), (8, 8), (9, 10), (100, 104), (1_105, 1_152), (4_194_309, 4_325_376)]
        {
            assert_eq!(padded_len(len), padded, "{len}");
        }
    }

    #[test]
    fn costs_at_most_12_percent_and_is_stable() {
        for len in (1..200_000).chain((8 << 20) - 1_000..(8 << 20) + 1_000) {
            let padded = padded_len(len);
            assert!(padded >= len && padded - len <= len * 12 / 100, "{len} → {padded}");
            assert_eq!(padded_len(padded), padded);
        }
    }
}
