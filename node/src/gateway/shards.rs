//! Shards that are split: recorded in the directory's plan, with who asked for it; the shards follow
//! ([`charthold_replica::replica::slots`]). And shards whose replicas are compared.

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_proto::v1::{
    CheckRowsRequest, CheckRowsResponse, ShardSlots, SlotRange, SplitShardRequest, SplitShardResponse,
};
use charthold_replica::directory::plan;
use charthold_replica::shard::command::Command;
use charthold_replica::{DIRECTORY, ShardId, format};
use tokio::time::Instant;

use super::error::GatewayError;
use super::nodes::{Audited, Recorded};
use super::validate::Violations;
use super::{Gateway, formats};

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

impl Gateway {
    /// Not recorded: it changes nothing, and tells nothing of a record.
    pub(super) async fn check_rows(
        &self,
        request: CheckRowsRequest,
        deadline: Instant,
    ) -> Result<CheckRowsResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.into_result()?;
        let cluster = self.cluster_row(deadline).await?;
        formats::check(&cluster, format::CHECKS_ROWS)?;
        let planned =
            |shard: &u32| *shard == u32::from(DIRECTORY) || cluster.shards.iter().any(|of| of.shard == *shard);
        let shard = Some(request.shard).filter(planned).and_then(|shard| ShardId::try_from(shard).ok());
        let shard = shard.ok_or_else(|| GatewayError::field("shard", "is none that holds anything"))?;
        let check_id = uuid::Uuid::now_v7();
        let command = Command::CheckRows(pb::CheckRows { check_id: Bytes::copy_from_slice(check_id.as_bytes()) });
        self.replica.propose(shard, command.encode(0), deadline).await?;
        tracing::info!(shard, check = %check_id, "an operator had a shard's rows checked");
        Ok(CheckRowsResponse {
            answer: self.answer(DIRECTORY, self.replica.seq(DIRECTORY)),
            check_id: check_id.to_string(),
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
