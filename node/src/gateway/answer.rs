//! What every answer has: position, durability, where the leader is; and every call: a deadline.

use std::time::{Duration, Instant};

use charthold_proto::v1::{AnswerContext, Durability, LeaderHint};
use charthold_replica::ShardId;
use http::HeaderMap;
use tonic::metadata::MetadataMap;

use super::Gateway;

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
        })
    }
}

/// Opaque outside: version 1 | shard 2 | seq 8, in hex.
fn position(shard: ShardId, seq: u64) -> String {
    hex::encode([&[1_u8][..], &shard.to_be_bytes(), &seq.to_be_bytes()].concat())
}

/// When a call must be answered.
pub fn deadline(metadata: &MetadataMap) -> Instant {
    let limit = timeout(metadata.as_ref());
    Instant::now() + limit.saturating_sub(HEADROOM.min(limit / 4))
}

/// What a call that comes now has.
pub(super) fn timeout(headers: &HeaderMap) -> Duration {
    let given = headers.get(TIMEOUT).and_then(|value| parse_timeout(value.to_str().ok()?));
    given.unwrap_or(DEADLINE_DEFAULT).min(DEADLINE_MAX)
}

/// Says what is left of it.
pub(super) fn set_timeout(headers: &mut HeaderMap, left: Duration) {
    // At most 5 minutes: 6 digits of milliseconds.
    headers.insert(TIMEOUT, format!("{}m", left.min(DEADLINE_MAX).as_millis()).try_into().expect("invariant: ASCII"));
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
    use super::*;

    #[test]
    fn what_is_left_is_told_onwards() {
        let mut headers = HeaderMap::new();
        assert_eq!(timeout(&headers), DEADLINE_DEFAULT);
        for left in [Duration::from_millis(1), Duration::from_secs(7), DEADLINE_MAX] {
            set_timeout(&mut headers, left);
            assert_eq!(timeout(&headers), left);
        }
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
