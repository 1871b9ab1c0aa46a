//! Latencies and errors of calls, as they come.

use std::collections::BTreeMap;
use std::time::Duration;

use charthold_client::Error;
use hdrhistogram::Histogram;

use crate::cli::exit::{CliError, reason};

/// Latencies are kept to the microsecond and to three digits, up to this; a longer one counts as this.
const LATENCY_MICROS_MAX: u64 = 60 * 60 * 1_000_000;
const DIGITS: u8 = 3;

/// A call that got no answer that the cluster gave: what became of it, where an error's reason would stand.
pub(super) const NO_ANSWER: &str = "UNAVAILABLE";
/// Under way when Ctrl-C came.
pub(super) const CUT_OFF: &str = "CUT_OFF";
/// Due in an open loop, and never sent: as many as may be were under way until the end.
pub(super) const NOT_SENT: &str = "NOT_SENT";

/// What was measured of one kind of call.
pub(super) struct Figures {
    pub(super) latency_micros: Histogram<u64>,
    /// Of those, what was answered before the time was over: a rate must not count what came later.
    pub(super) in_time: u64,
    pub(super) errors: BTreeMap<&'static str, u64>,
}

impl Figures {
    pub(super) fn new() -> Result<Self, CliError> {
        let latency_micros = Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, DIGITS)
            .map_err(|error| CliError::Failed(format!("histogram: {error}")))?;
        Ok(Self { latency_micros, in_time: 0, errors: BTreeMap::new() })
    }

    pub(super) fn answered(&mut self, latency: Duration, in_time: bool) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latency_micros.saturating_record(micros.max(1));
        self.in_time += u64::from(in_time);
    }

    pub(super) fn failed(&mut self, error: &Error) {
        self.missed(reason(error).unwrap_or(NO_ANSWER));
    }

    pub(super) fn missed(&mut self, why: &'static str) {
        *self.errors.entry(why).or_default() += 1;
    }
}

/// Of writes and reads.
pub(super) struct Both {
    pub(super) writes: Figures,
    pub(super) reads: Figures,
}

impl Both {
    pub(super) fn new() -> Result<Self, CliError> {
        Ok(Self { writes: Figures::new()?, reads: Figures::new()? })
    }

    pub(super) fn of(&mut self, kind: Kind) -> &mut Figures {
        match kind {
            Kind::Write => &mut self.writes,
            Kind::Read => &mut self.reads,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    Read,
}
