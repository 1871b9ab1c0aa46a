//! Nodes that come, go, and give way: the operators' part of the service `Cluster`.
//!
//! A change that the directory's leader would make is recorded in the directory's ledger, with who asked for it; then the
//! directory's membership follows, and all shards follow that ([`charthold_replica::replica::members`]).

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_proto::v1::{
    AddNodeRequest, AddNodeResponse, DrainNodeRequest, DrainNodeResponse, RemoveNodeRequest, RemoveNodeResponse,
    RequestContext,
};
use charthold_replica::replica::members::{ChangeError, MemberChange};
use charthold_replica::shard::command::Command;
use charthold_replica::shard::types::Member;
use charthold_replica::{DIRECTORY, NodeId};
use prost::Message;
use tokio::time::Instant;

use super::Gateway;
use super::access::NO_TENANT;
use super::error::GatewayError;
use super::placement;
use super::status::{node_id, node_info};
use super::validate::{self, Violations};

impl From<ChangeError> for GatewayError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Refused(why) => Self::CannotChange(why),
            ChangeError::Unreachable(why) => Self::NodesMissing(why.to_string()),
            ChangeError::Unknown => Self::OutcomeUnknown,
        }
    }
}

/// A change as its audit event tells it.
pub(super) struct Audited<'a, Said> {
    pub method: &'a str,
    pub operator: &'a str,
    pub context: Option<RequestContext>,
    pub request_id: &'a str,
    pub said: Said,
    pub subject: &'a str,
}

/// What its command has of that.
pub(super) struct Recorded {
    pub request_id: Bytes,
    pub audit_event: Bytes,
    pub fingerprint: Bytes,
}

fn is_retired(row: &pb::ClusterRow, id: NodeId) -> bool {
    row.retired_nodes.iter().any(|node| node.id == id)
}

impl Gateway {
    pub(super) async fn add_node(
        &self,
        operator: &str,
        request: AddNodeRequest,
        deadline: Instant,
    ) -> Result<AddNodeResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.id("peer_endpoint", &request.peer_endpoint);
        violations.into_result()?;
        let (id, member) = self.replica.find_candidate(&request.peer_endpoint).await?;
        let row = self.cluster_row(deadline).await?;
        if is_retired(&row, id) {
            let why = format!("node {} was removed for ever: give it an empty data directory", member.name);
            return Err(GatewayError::CannotChange(why));
        }
        self.replica.may_change_member(MemberChange::Add(id, member.clone()), deadline).await?;
        let said = AddNodeRequest { peer_endpoint: request.peer_endpoint.clone(), ..Default::default() };
        let audited = Audited {
            method: "AddNode",
            operator,
            context: request.context,
            request_id: &request.request_id,
            said,
            subject: &member.name,
        };
        let done = self.record_change(audited, |recorded| change_node(recorded, None), deadline).await?;
        self.replica.change_member(MemberChange::Add(id, member.clone()), deadline).await?;
        tracing::info!(node = member.name, site = member.site, "a node was added: it catches up, then it votes");
        Ok(AddNodeResponse { answer: self.answer(DIRECTORY, done.seq), node: Some(node_info(&(id, member))) })
    }

    pub(super) async fn remove_node(
        &self,
        operator: &str,
        request: RemoveNodeRequest,
        deadline: Instant,
    ) -> Result<RemoveNodeResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.id("node", &request.node);
        violations.into_result()?;
        let (id, member) = match self.named(&request.node, deadline).await {
            Ok(found) => found,
            Err(unknown @ GatewayError::Invalid(_)) => {
                return self.removed_before(&request.node, deadline).await?.ok_or(unknown);
            }
            Err(error) => return Err(error),
        };
        self.replica.may_change_member(MemberChange::Remove(id), deadline).await?;
        let cluster = self.cluster_row(deadline).await?;
        if !cluster.placements.is_empty() {
            placement::check_removal(&cluster, &self.replica.survey().await, id)?;
        }
        let said = RemoveNodeRequest { node: request.node.clone(), ..Default::default() };
        let audited = Audited {
            method: "RemoveNode",
            operator,
            context: request.context,
            request_id: &request.request_id,
            said,
            subject: &member.name,
        };
        let retired = pb::RetiredNode { id, name: member.name.clone() };
        let done = self.record_change(audited, |recorded| change_node(recorded, Some(retired)), deadline).await?;
        if !is_retired(&self.cluster_row(deadline).await?, id) {
            // A repeat that came so late that another node has this name by now.
            return self.removed_before(&request.node, deadline).await?.ok_or(GatewayError::OutcomeUnknown);
        }
        self.replica.change_member(MemberChange::Remove(id), deadline).await?;
        tracing::info!(node = member.name, site = member.site, "a node was removed: it is never admitted again");
        Ok(RemoveNodeResponse { answer: self.answer(DIRECTORY, done.seq), node_id: node_id(id) })
    }

    /// A repeat after an answer that was lost: it is as was asked.
    async fn removed_before(&self, name: &str, deadline: Instant) -> Result<Option<RemoveNodeResponse>, GatewayError> {
        let row = self.cluster_row(deadline).await?;
        let last = row.retired_nodes.iter().rfind(|node| node.name == name);
        Ok(last.map(|node| RemoveNodeResponse {
            answer: self.answer(DIRECTORY, self.replica.seq(DIRECTORY)),
            node_id: node_id(node.id),
        }))
    }

    /// Not recorded: it changes nothing that outlives the node's next start.
    pub(super) async fn drain_node(
        &self,
        request: DrainNodeRequest,
        deadline: Instant,
    ) -> Result<DrainNodeResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.id("node", &request.node);
        violations.into_result()?;
        let (id, member) = self.named(&request.node, deadline).await?;
        self.replica.tell_to_give_way(id, !request.undo).await?;
        tracing::info!(node = member.name, drained = !request.undo, "an operator told a node whether to lead");
        Ok(DrainNodeResponse { answer: self.answer(DIRECTORY, self.replica.seq(DIRECTORY)) })
    }

    /// The member with this name, as the directory has it now.
    async fn named(&self, name: &str, deadline: Instant) -> Result<(NodeId, Member), GatewayError> {
        self.replica.barrier(DIRECTORY, deadline).await?;
        let found = self.replica.members().into_iter().find(|(_, member)| member.name == name);
        found.ok_or_else(|| GatewayError::field("node", "is not a node of this cluster"))
    }

    /// Not older than the call.
    pub(super) async fn cluster_row(&self, deadline: Instant) -> Result<pb::ClusterRow, GatewayError> {
        self.replica.barrier(DIRECTORY, deadline).await?;
        self.replica.directory().cluster()?.ok_or(GatewayError::NotInitialized)
    }

    /// Has the directory record a change, once.
    pub(super) async fn record_change(
        &self,
        change: Audited<'_, impl Message>,
        command: impl FnOnce(Recorded) -> Command,
        deadline: Instant,
    ) -> Result<pb::Done, GatewayError> {
        let request_id = validate::request_id(change.request_id)?;
        let event = pb::AuditEvent {
            subject: change.subject.to_owned(),
            ..self.audit_event(change.method, change.operator, &change.context.unwrap_or_default())
        };
        let recorded = Recorded {
            request_id: Bytes::copy_from_slice(&request_id),
            audit_event: self.seal_directory_event(&event, &NO_TENANT, &request_id)?,
            fingerprint: self.directory_fingerprint(change.method, change.operator, &change.said),
        };
        self.propose_to_directory(command(recorded), deadline).await
    }
}

fn change_node(
    Recorded { request_id, audit_event, fingerprint }: Recorded,
    retired: Option<pb::RetiredNode>,
) -> Command {
    Command::ChangeNode(pb::ChangeNode { request_id, retired, audit_event, fingerprint })
}
