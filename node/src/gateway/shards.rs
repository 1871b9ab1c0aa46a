//! Shards that are split: recorded in the directory's plan, with who asked for it; the shards follow
//! ([`charthold_replica::replica::slots`]).

use charthold_proto::internal as pb;
use charthold_proto::v1::{ShardSlots, SlotRange, SplitShardRequest, SplitShardResponse};
use charthold_replica::DIRECTORY;
use charthold_replica::directory::plan;
use charthold_replica::shard::command::Command;
use tokio::time::Instant;

use super::Gateway;
use super::error::GatewayError;
use super::nodes::{Audited, Recorded};
use super::validate::Violations;

impl Gateway {
    pub(super) async fn split_shard(
        &self,
        operator: &str,
        request: SplitShardRequest,
        deadline: Instant,
    ) -> Result<SplitShardResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.into_result()?;
        let audited = Audited {
            method: "SplitShard",
            operator,
            context: request.context,
            request_id: &request.request_id,
            said: SplitShardRequest { shard: request.shard, ..Default::default() },
            subject: &request.shard.to_string(),
        };
        let command = |Recorded { request_id, audit_event, fingerprint }: Recorded| {
            Command::SplitShard(pb::SplitShard { request_id, shard: request.shard, audit_event, fingerprint })
        };
        let done = self.record_change(audited, command, deadline).await?;
        tracing::info!(shard = request.shard, "an operator had a shard split");
        let shards = self.cluster_row(deadline).await?.shards;
        Ok(SplitShardResponse {
            answer: self.answer(DIRECTORY, done.seq),
            shards: shards.iter().filter_map(shard_slots).collect(),
        })
    }
}

fn shard_slots(range: &pb::ShardRange) -> Option<ShardSlots> {
    Some(ShardSlots { shard: range.shard, slots: plan::slots_of(range).map(slot_range) })
}

/// As clients see it.
pub(super) fn slot_range(slots: charthold_replica::Slots) -> SlotRange {
    SlotRange { first: slots.first.into(), last: slots.last.into() }
}
