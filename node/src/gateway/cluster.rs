//! The service `Cluster`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_proto::v1::cluster_server::Cluster;
use charthold_proto::v1::{
    FollowerLag, InitRequest, InitResponse, NodeInfo, Role, Root, ShardStatus, StatusRequest, StatusResponse,
    TopologyRequest, TopologyResponse,
};
use charthold_replica::replica::form::FormError;
use charthold_replica::shard::command::Command;
use charthold_replica::shard::group::GroupStatus;
use charthold_replica::shard::types::Member;
use charthold_replica::{DIRECTORY, NodeId, SHARD_COUNT, slots_of};
use tonic::{Request, Response, Status};

use super::Gateway;
use super::access::{GrantPlace, NO_TENANT};
use super::answer::deadline;
use super::error::GatewayError;
use super::validate::Violations;
use crate::tls::Principal;

pub struct ClusterService(pub Arc<Gateway>);

impl Gateway {
    async fn init(
        &self,
        principal: &Principal,
        request: InitRequest,
        deadline: Instant,
    ) -> Result<InitResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.into_result()?;
        if self.replica.directory().cluster()?.is_some() {
            return Err(GatewayError::AlreadyInitialized);
        }
        let expected = (request.expected_nodes > 0).then_some(request.expected_nodes as usize);
        let formed = tokio::time::timeout_at(deadline.into(), self.replica.form(expected)).await;
        let nodes = formed.map_err(|_| GatewayError::OutcomeUnknown)?.map_err(|error| match error {
            FormError::Unreachable { .. } => GatewayError::NodesMissing(error.to_string()),
            _ => GatewayError::CannotForm(error.to_string()),
        })?;
        let command = self.init_command(principal, &request)?;
        let done = self.propose_to_directory(command, deadline).await?;
        Ok(InitResponse {
            answer: self.answer(DIRECTORY, done.seq),
            cluster: self.replica.cluster.clone(),
            nodes: nodes.iter().map(node_info).collect(),
        })
    }

    fn init_command(&self, principal: &Principal, request: &InitRequest) -> Result<Command, GatewayError> {
        let uri = principal.uri();
        let request_id = uuid::Uuid::now_v7().into_bytes();
        let place = GrantPlace { tenant: None, principal: self.root.principal_token(&uri) };
        let clear = pb::ClearGrant { principal: uri.clone(), roles: vec![Role::Operator as u32] };
        let event = self.audit_event("Init", &uri, &request.context.clone().unwrap_or_default());
        let range = |shard| {
            let (first, last) = slots_of(shard)?;
            Some(pb::ShardRange { shard: shard.into(), first_slot: first.into(), last_slot: last.into() })
        };
        Ok(Command::InitCluster(pb::InitCluster {
            request_id: Bytes::copy_from_slice(&request_id),
            cluster: self.replica.cluster.clone(),
            root_check: self.root.root_check_seal(&self.replica.cluster).into_bytes(),
            shards: (1..=SHARD_COUNT).filter_map(range).collect(),
            grant: Some(pb::Grant {
                tenant: Bytes::copy_from_slice(&NO_TENANT),
                principal: Bytes::copy_from_slice(&place.principal),
                sealed_grant: self.seal_grant(&place, &clear)?,
            }),
            audit_event: self.seal_directory_event(&event, &NO_TENANT, &request_id)?,
            fingerprint: self.directory_fingerprint("Init", &uri, &InitRequest::default()),
        }))
    }

    fn status(&self) -> Result<StatusResponse, GatewayError> {
        let (shards, seq) = (self.replica.status(), self.replica.seq(DIRECTORY));
        Ok(StatusResponse {
            answer: self.answer(DIRECTORY, seq),
            cluster: self.replica.cluster.clone(),
            node_id: node_id(self.replica.node_id),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            initialized: self.replica.directory().cluster()?.is_some(),
            nodes: self.nodes(),
            shards: shards.into_iter().map(shard_status).collect(),
        })
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        let members = self.replica.members();
        match members.is_empty() {
            true => vec![node_info(&(self.replica.node_id, self.replica.member.clone()))],
            false => members.iter().map(node_info).collect(),
        }
    }
}

fn node_id(id: NodeId) -> String {
    format!("{id:016x}")
}

fn node_info((id, member): &(NodeId, Member)) -> NodeInfo {
    NodeInfo {
        id: node_id(*id),
        name: member.name.clone(),
        site: member.site.clone(),
        client_endpoint: member.client_address.clone(),
        peer_endpoint: member.peer_address.clone(),
        keyed: member.keyed,
    }
}

fn shard_status(status: GroupStatus) -> ShardStatus {
    let root = |(seq, hash): &(u64, [u8; 32])| Root { seq: *seq, sha256: Bytes::copy_from_slice(hash) };
    let lag = |(id, behind): &(NodeId, u64)| FollowerLag { node_id: node_id(*id), entries_behind: *behind };
    ShardStatus {
        shard: status.shard.into(),
        leader_node_id: status.leader.map(node_id).unwrap_or_default(),
        term: status.term,
        log_index: status.log_index,
        committed_index: status.committed_index,
        applied_index: status.applied_index,
        seq: status.seq,
        recent_roots: status.recent_roots.iter().map(root).collect(),
        followers: status.followers.iter().map(lag).collect(),
        stopped: status.stopped.unwrap_or_default(),
        purged_index: status.purged_index,
        flushed_index: status.flushed_index,
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    /// Before there are grants, any operator's certificate will do: only who holds the service authority has one.
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let deadline = deadline(request.metadata());
        let principal = self.0.principal(request.extensions())?;
        let Principal::Operator { .. } = &principal else { return Err(GatewayError::Denied.into()) };
        Ok(Response::new(self.0.init(&principal, request.into_inner(), deadline).await?))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let deadline = deadline(request.metadata());
        match self.0.operator(request.extensions(), deadline).await {
            Ok(_) => {}
            // To see that it is not initialized, an operator needs no grant: there are none.
            Err(GatewayError::NotInitialized) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Response::new(self.0.status()?))
    }

    async fn topology(&self, request: Request<TopologyRequest>) -> Result<Response<TopologyResponse>, Status> {
        let deadline = deadline(request.metadata());
        self.0.anybody(request.extensions(), deadline).await?;
        Ok(Response::new(TopologyResponse {
            answer: self.0.answer(DIRECTORY, self.0.replica.seq(DIRECTORY)),
            cluster: self.0.replica.cluster.clone(),
            nodes: self.0.nodes(),
        }))
    }
}
