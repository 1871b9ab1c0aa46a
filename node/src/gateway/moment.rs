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
        let shard = chart.shard();
        let (as_of, freshness) = (AsOf::parse(as_of, shard)?, parse(freshness)?);
        // A replica that may be stale need not have reached the position.
        if as_of != AsOf::Now && freshness != Freshness::Linearizable {
            return Err(GatewayError::field("freshness", "means nothing beside as_of"));
        }
        let moment = self.replica.moment(shard, freshness, deadline).await?;
        Ok(Moment { seq: as_of.seq(moment.seq)?, ..moment })
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
    Seq(u64),
}

impl AsOf {
    /// Of a request's `as_of`, which may be empty. Positions of other shards say nothing about this one.
    pub fn parse(text: &str, shard: ShardId) -> Result<Self, GatewayError> {
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
        match u16::from_be_bytes([shard_high, shard_low]) == shard {
            true => Ok(Self::Seq(u64::from_be_bytes(seq))),
            false => Err(GatewayError::field("as_of", "is a position of another chart")),
        }
    }

    /// The seq to read at, once a barrier has passed at `current`.
    pub fn seq(self, current: u64) -> Result<u64, GatewayError> {
        match self {
            Self::Now => Ok(current),
            Self::Seq(seq) if seq <= current => Ok(seq),
            Self::Seq(_) => Err(GatewayError::field("as_of", "is a position that the chart's shard has not reached")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn positions_are_read_back() {
        let at = AsOf::parse(&position(3, 77), 3).ok().unwrap();
        assert!(at == AsOf::Seq(77) && AsOf::parse("", 3).ok().unwrap() == AsOf::Now);
        assert_eq!((at.seq(77).ok(), at.seq(100).ok(), AsOf::Now.seq(5).ok()), (Some(77), Some(77), Some(5)));
        assert!(at.seq(76).is_err(), "it lies ahead");
        let position = position(3, 77);
        for bad in ["x", "00", &position[2..], &position.replacen("01", "02", 1), &format!("{position}00")] {
            assert!(AsOf::parse(bad, 3).is_err(), "{bad}");
        }
        assert!(AsOf::parse(&position, 4).is_err(), "of another shard");
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
