//! The cluster's format ([`charthold_replica::format`]): raised once all nodes know a newer one.

use charthold_proto::internal as pb;
use charthold_proto::v1::{RaiseFormatRequest, RaiseFormatResponse};
use charthold_replica::replica::observe::NodeView;
use charthold_replica::shard::command::Command;
use charthold_replica::{DIRECTORY, format};
use tokio::time::Instant;

use super::Gateway;
use super::error::GatewayError;
use super::nodes::{Audited, Recorded};
use super::validate::Violations;

/// Refuses what not every node of the cluster would understand.
pub(super) fn check(cluster: &pb::ClusterRow, needed: u32) -> Result<(), GatewayError> {
    let used = format::of(cluster);
    match used >= needed {
        true => Ok(()),
        false => Err(GatewayError::CannotChange(format!(
            "the cluster uses format {used}, this needs {needed}: upgrade all nodes, then charthold cluster raise-format"
        ))),
    }
}

impl Gateway {
    pub(super) async fn raise_format(
        &self,
        operator: &str,
        request: RaiseFormatRequest,
        deadline: Instant,
    ) -> Result<RaiseFormatResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.into_result()?;
        let used = format::of(&self.cluster_row(deadline).await?);
        if used >= format::NEWEST {
            let answer = self.answer(DIRECTORY, self.replica.seq(DIRECTORY));
            return Ok(RaiseFormatResponse { answer, format: used });
        }
        let newest = newest_known(&self.replica.survey().await, used)?;
        let audited = Audited {
            method: "RaiseFormat",
            operator,
            context: request.context,
            request_id: &request.request_id,
            said: RaiseFormatRequest::default(),
            subject: &newest.to_string(),
        };
        let command = |Recorded { request_id, audit_event, fingerprint }: Recorded| {
            Command::RaiseFormat(pb::RaiseFormat { request_id, format: newest, audit_event, fingerprint })
        };
        let done = self.record_change(audited, command, deadline).await?;
        let used = format::of(&self.cluster_row(deadline).await?);
        tracing::info!(
            format = used,
            "an operator raised the cluster's format: older versions are refused from now on"
        );
        Ok(RaiseFormatResponse { answer: self.answer(DIRECTORY, done.seq), format: used })
    }
}

/// The newest format that all nodes know, which is newer than what is used; each must say so.
fn newest_known(nodes: &[NodeView], used: u32) -> Result<u32, GatewayError> {
    let mut newest = format::NEWEST;
    let mut older = Vec::new();
    for node in nodes {
        let name = node.member.name.as_str();
        let known = node.status.as_ref().map(|status| format::named(status.format_max));
        let known = known.map_err(|why| {
            GatewayError::CannotChange(format!("node {name} does not say which formats it knows: {why}"))
        })?;
        newest = newest.min(known);
        if known <= used {
            older.push(name);
        }
    }
    match older.as_slice() {
        [] => Ok(newest),
        older => Err(GatewayError::CannotChange(format!(
            "the cluster uses format {used}, and so far these nodes know no newer one: {}; upgrade them first",
            older.join(", ")
        ))),
    }
}
