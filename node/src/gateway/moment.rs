//! Which state a read shows: how current it must be, or as of which position.

use std::time::Duration;

use charthold_proto::v1;
use charthold_replica::ShardId;
use charthold_replica::replica::{Freshness, Moment};
use tokio::time::Instant;
use v1::freshness::Mode;

use super::Gateway;
use super::error::GatewayError;
use super::record::Chart;

const POSITION_VERSION: u8 = 1;
const STALE_MS_MAX: u32 = 3_600_000;

impl Gateway {
    /// Passes a barrier; answers the moment that a request is to be answered as of.
    pub(super) async fn moment_to_read(
        &self,
        chart: &Chart,
        as_of: &str,
        freshness: Option<&v1::Freshness>,
        deadline: Instant,
    ) -> Result<Moment, GatewayError> {
        let (as_of, freshness) = (AsOf::parse(as_of)?, parse(freshness)?);
        // A replica that may be stale need not have reached the position.
        if as_of != AsOf::Now && freshness != Freshness::Linearizable {
            return Err(GatewayError::field("freshness", "means nothing beside as_of"));
        }
        let moment = self.replica.moment_of(chart.address.slot, freshness, deadline).await?;
        let had = |shard, seq| self.replica.had(&moment, shard, seq);
        Ok(Moment { seq: as_of.seq((moment.shard, moment.seq), had)?, ..moment })
    }
}

fn parse(freshness: Option<&v1::Freshness>) -> Result<Freshness, GatewayError> {
    let Some(freshness) = freshness else { return Ok(Freshness::Linearizable) };
    match freshness.mode {
        Some(Mode::Lease(true)) => Ok(Freshness::Lease),
        Some(Mode::StaleMsMax(ms @ 1..=STALE_MS_MAX)) => Ok(Freshness::Stale(Duration::from_millis(ms.into()))),
        Some(Mode::StaleMsMax(_)) => {
            let description = format!("is not between 1 and {STALE_MS_MAX}");
            Err(GatewayError::field("freshness.stale_ms_max", description))
        }
        Some(Mode::Lease(false)) => Err(GatewayError::field("freshness.lease", "is true or not there")),
        None => Err(GatewayError::field("freshness", "has no mode that is known")),
    }
}

/// Opaque outside: version 1 | shard 2 | seq 8, in hex.
pub(super) fn position(shard: ShardId, seq: u64) -> String {
    hex::encode([&[POSITION_VERSION][..], &shard.to_be_bytes(), &seq.to_be_bytes()].concat())
}

/// Which state a read is to show.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AsOf {
    Now,
    Position(ShardId, u64),
}

impl AsOf {
    /// Of a request's `as_of`, which may be empty.
    pub fn parse(text: &str) -> Result<Self, GatewayError> {
        if text.is_empty() {
            return Ok(Self::Now);
        }
        let mut bytes = [0; 11];
        let malformed = || GatewayError::field("as_of", "is no position that an answer gave");
        hex::decode_to_slice(text, &mut bytes).map_err(|_| malformed())?;
        let [version, shard_high, shard_low, seq @ ..] = bytes;
        if version != POSITION_VERSION {
            return Err(malformed());
        }
        Ok(Self::Position(u16::from_be_bytes([shard_high, shard_low]), u64::from_be_bytes(seq)))
    }

    /// The seq to read at, once a barrier has passed where a shard is now. Positions of other shards say nothing about this
    /// one, but for those from before it was split from them (`had`).
    pub fn seq(
        self,
        (shard, current): (ShardId, u64),
        had: impl Fn(ShardId, u64) -> bool,
    ) -> Result<u64, GatewayError> {
        match self {
            Self::Now => Ok(current),
            Self::Position(of, seq) if of == shard && seq <= current || had(of, seq) => Ok(seq),
            Self::Position(of, _) if of == shard => {
                Err(GatewayError::field("as_of", "is a position that the chart's shard has not reached"))
            }
            Self::Position(..) => Err(GatewayError::field("as_of", "is a position of another chart")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn positions_are_read_back() {
        let at = AsOf::parse(&position(3, 77)).ok().unwrap();
        assert!(at == AsOf::Position(3, 77) && AsOf::parse("").ok().unwrap() == AsOf::Now);
        let seq = |as_of: AsOf, shard, current| as_of.seq((shard, current), |of, seq| of == 3 && seq <= 80).ok();
        assert_eq!([seq(at, 3, 77), seq(at, 3, 100), seq(AsOf::Now, 3, 5)], [Some(77), Some(77), Some(5)]);
        assert_eq!(seq(at, 5, 90), Some(77), "of the shard that it was split from");
        let later = AsOf::Position(3, 81);
        assert_eq!([seq(later, 5, 90), seq(AsOf::Position(4, 7), 5, 90)], [None; 2], "of another shard");
        assert_eq!(seq(later, 3, 80), None, "it lies ahead");
        let position = position(3, 77);
        for bad in ["x", "00", &position[2..], &position.replacen("01", "02", 1), &format!("{position}00")] {
            assert!(AsOf::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn freshness_is_one_of_three() {
        let parsed = |mode| parse(Some(&v1::Freshness { mode })).ok();
        assert_eq!(parse(None).ok(), Some(Freshness::Linearizable));
        assert_eq!(parsed(Some(Mode::Lease(true))), Some(Freshness::Lease));
        assert_eq!(parsed(Some(Mode::StaleMsMax(1))), Some(Freshness::Stale(Duration::from_millis(1))));
        assert_eq!(parsed(Some(Mode::StaleMsMax(3_600_000))), Some(Freshness::Stale(Duration::from_secs(3_600))));
        let bad = [None, Some(Mode::Lease(false)), Some(Mode::StaleMsMax(0)), Some(Mode::StaleMsMax(3_600_001))];
        assert_eq!(bad.map(parsed), [None; 4]);
    }
}
