//! What every answer has: position, durability, where the leader is, a status; and every call: a deadline.

use std::time::Duration;

use charthold_proto::v1::{AnswerContext, Durability, LeaderHint};
use charthold_replica::ShardId;
use charthold_replica::replica::Moment;
use charthold_replica::shard::durability::Durability as OnDisk;
use http::HeaderMap;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::Gateway;
use super::moment::position;

/// A call without a deadline of its own.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// A longer one is cut to this: what waits longer holds room that others need.
const DEADLINE_MAX: Duration = Duration::from_secs(5 * 60);
const TIMEOUT: &str = "grpc-timeout";
/// The gateway gives up a little before the caller does, so that its answer says what is known.
const HEADROOM: Duration = Duration::from_millis(50);

impl Gateway {
    pub(super) fn answer(&self, shard: ShardId, seq: u64) -> Option<AnswerContext> {
        let leader = self.replica.leader(shard).map(|(_, member)| member).unwrap_or_default();
        Some(AnswerContext {
            position: position(shard, seq),
            durability: Durability::Majority as i32,
            leader: Some(LeaderHint { endpoint: leader.client_address, site: leader.site }),
            age_ms_max: 0,
        })
    }

    /// The same for a commit.
    pub(super) fn answer_to_commit(&self, shard: ShardId, seq: u64, durability: OnDisk) -> Option<AnswerContext> {
        let durability = match durability {
            OnDisk::Quorum => Durability::Majority,
            OnDisk::BothKeyed => Durability::BothKeyed,
        };
        self.answer(shard, seq).map(|answer| AnswerContext { durability: durability.into(), ..answer })
    }

    /// The same for a read.
    pub(super) fn answer_from(&self, moment: Moment) -> Option<AnswerContext> {
        // Rounded up: only what is not stale at all is 0 ms old.
        let age_ms_max = u64::try_from(moment.age.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        self.answer(moment.shard, moment.seq).map(|answer| AnswerContext { age_ms_max, ..answer })
    }
}

/// How a call ended, from the head or the trailers of its answer; all that a status says besides is left alone.
pub(super) fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

/// In the extensions of a call: when its caller gives up.
#[derive(Clone, Copy)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// Of a call that comes now, and has so long.
    pub fn after(given: Duration) -> Self {
        Self(Instant::now() + given.min(DEADLINE_MAX))
    }

    /// Of a request: as it was noted, or as its headers say.
    pub fn of(extensions: &http::Extensions, headers: &HeaderMap) -> Self {
        let said = || Self::after(given_timeout(headers).unwrap_or(DEADLINE_DEFAULT));
        extensions.get().copied().unwrap_or_else(said)
    }
}

/// When a call must be answered.
pub fn deadline<T>(request: &tonic::Request<T>) -> Instant {
    let Deadline(end) = Deadline::of(request.extensions(), request.metadata().as_ref());
    end - HEADROOM.min(end.saturating_duration_since(Instant::now()) / 4)
}

/// What the caller gave it, for all of it.
pub fn given_timeout(headers: &HeaderMap) -> Option<Duration> {
    parse_timeout(headers.get(TIMEOUT)?.to_str().ok()?)
}

/// The gRPC-over-HTTP/2 protocol's `Timeout`: up to 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = digits.parse::<u64>().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_deadline_is_the_callers_up_to_5_minutes_or_30_s() {
        let check = |given: Option<&'static str>, seconds_max: u64| {
            let mut request = tonic::Request::new(());
            if let Some(given) = given {
                request.metadata_mut().insert(TIMEOUT, tonic::metadata::MetadataValue::from_static(given));
            }
            let (before, deadline) = (Instant::now(), deadline(&request));
            let (least, most) = (before + Duration::from_secs(seconds_max - 1), Instant::now());
            assert!(least <= deadline && deadline <= most + Duration::from_secs(seconds_max), "{given:?}");
        };
        check(None, 30);
        check(Some("2S"), 2);
        check(Some("5M"), 300);
        check(Some("10M"), 300);
        check(Some("99999999H"), 300);
        check(Some("nonsense"), 30);
    }

    #[test]
    fn what_was_noted_counts_whatever_the_headers_say() {
        let mut request = tonic::Request::new(());
        request.metadata_mut().insert(TIMEOUT, tonic::metadata::MetadataValue::from_static("60S"));
        let end = Instant::now() + Duration::from_secs(8);
        request.extensions_mut().insert(Deadline(end));
        assert_eq!(deadline(&request), end - HEADROOM);
        request.extensions_mut().insert(Deadline(Instant::now() - Duration::from_secs(1)));
        assert!(deadline(&request) < Instant::now(), "it is over");
    }

    #[test]
    fn reads_grpc_timeouts() {
        assert_eq!(parse_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse_timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for bad in ["", "S", "5", "123456789S", "1x", "-1S"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
