//! What an import has done so far, and how it says so.

use indicatif::ProgressBar;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::cli::{exit, output};

/// Counts entries of bundles, but for the two of bundles.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Tally {
    pub bundles: u64,
    pub bundles_refused: u64,
    pub read: u64,
    /// New ones and changed ones.
    pub stored: u64,
    /// Of `stored`: another version was there before.
    pub changed: u64,
    pub already_there: u64,
    pub failed: u64,
}

impl Tally {
    pub fn complete(&self) -> bool {
        self.bundles_refused == 0 && self.failed == 0
    }

    pub fn text(&self) -> String {
        let mut text = format!("{} read, {} stored", grouped(self.read), grouped(self.stored));
        if self.changed > 0 {
            text.push_str(&format!(" ({} of them changed)", grouped(self.changed)));
        }
        text.push_str(&format!(", {} already there", grouped(self.already_there)));
        if self.failed > 0 {
            text.push_str(&format!(", {} failed", grouped(self.failed)));
        }
        if self.bundles_refused > 0 {
            let bundles = if self.bundles_refused == 1 { "bundle" } else { "bundles" };
            text.push_str(&format!("; {} {bundles} refused", grouped(self.bundles_refused)));
        }
        text
    }

    pub fn json(&self) -> Value {
        json!({
            "bundles": self.bundles,
            "bundles_refused": self.bundles_refused,
            "read": self.read,
            "stored": self.stored,
            "changed": self.changed,
            "already_there": self.already_there,
            "failed": self.failed,
        })
    }
}

/// The tally that all workers add to, and its face on a terminal.
pub(super) struct Progress {
    tally: Mutex<Tally>,
    bar: ProgressBar,
}

impl Progress {
    pub fn new(bar: ProgressBar) -> Self {
        Self { tally: Mutex::default(), bar }
    }

    pub fn add(&self, change: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.lock();
        change(&mut tally);
        let message = format!("{} read, {} stored", grouped(tally.read), grouped(tally.stored));
        drop(tally);
        self.bar.set_message(message);
    }

    pub fn tally(&self) -> Tally {
        *self.tally.lock()
    }

    /// A line about what went wrong, without tearing the bar.
    pub fn complain(&self, text: &str) {
        self.bar.suspend(|| output::note(&exit::one_line(text)));
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// `51934` as `51,934`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_digits_by_three() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (51_934, "51,934"),
            (1_234_567, "1,234,567"),
            (100_000, "100,000"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn says_what_was_done() {
        let plain = Tally { bundles: 24, read: 51_934, stored: 51_281, already_there: 653, ..Tally::default() };
        assert_eq!(plain.text(), "51,934 read, 51,281 stored, 653 already there");
        let rough =
            Tally { read: 9, stored: 3, changed: 1, already_there: 4, failed: 2, bundles_refused: 1, bundles: 2 };
        assert_eq!(rough.text(), "9 read, 3 stored (1 of them changed), 4 already there, 2 failed; 1 bundle refused");
        assert!(plain.complete() && !rough.complete());
    }
}
