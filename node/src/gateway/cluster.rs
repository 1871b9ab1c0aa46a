//! The service `Cluster`.

use std::sync::Arc;

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_proto::v1::cluster_server::Cluster;
use charthold_proto::v1::{
    AddNodeRequest, AddNodeResponse, CheckRowsRequest, CheckRowsResponse, DrainNodeRequest, DrainNodeResponse,
    InitRequest, InitResponse, PlaceShardsRequest, PlaceShardsResponse, PlanShardsRequest, PlanShardsResponse,
    RaiseFormatRequest, RaiseFormatResponse, RemoveNodeRequest, RemoveNodeResponse, Role, SplitShardRequest,
    SplitShardResponse, StatusRequest, StatusResponse, TopologyRequest, TopologyResponse,
};
use charthold_replica::directory::plan::{self, SHARDS_AT_FIRST};
use charthold_replica::replica::form::FormError;
use charthold_replica::shard::command::Command;
use charthold_replica::{DIRECTORY, SHARD_COUNT, format};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::Gateway;
use super::access::{GrantPlace, NO_TENANT};
use super::answer::deadline;
use super::error::GatewayError;
use super::status::node_info;
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
        let shards = if request.shards == 0 { SHARDS_AT_FIRST.into() } else { request.shards };
        let description = format!("are {shards}, of 1 to {SHARD_COUNT}");
        violations.check(shards <= SHARD_COUNT.into(), "shards", description);
        violations.into_result()?;
        if self.replica.directory().cluster()?.is_some() {
            return Err(GatewayError::AlreadyInitialized);
        }
        let expected = (request.expected_nodes > 0).then_some(request.expected_nodes as usize);
        let formed = tokio::time::timeout_at(deadline, self.replica.form(expected)).await;
        let formed = formed.map_err(|_| GatewayError::OutcomeUnknown)?.map_err(|error| match error {
            FormError::Unreachable { .. } => GatewayError::NodesMissing(error.to_string()),
            _ => GatewayError::CannotForm(error.to_string()),
        })?;
        let command = self.init_command(principal, &request, shards as u16, formed.format)?;
        let done = self.propose_to_directory(command, deadline).await?;
        Ok(InitResponse {
            answer: self.answer(DIRECTORY, done.seq),
            cluster: self.replica.cluster.clone(),
            nodes: formed.members.iter().map(node_info).collect(),
        })
    }

    fn init_command(
        &self,
        principal: &Principal,
        request: &InitRequest,
        shards: u16,
        format: u32,
    ) -> Result<Command, GatewayError> {
        let uri = principal.uri();
        let request_id = uuid::Uuid::now_v7().into_bytes();
        let place = GrantPlace { tenant: None, principal: self.root.principal_token(&uri) };
        let clear = pb::ClearGrant { principal: uri.clone(), roles: vec![Role::Operator as u32] };
        let event = self.audit_event("Init", &uri, &request.context.clone().unwrap_or_default());
        Ok(Command::InitCluster(pb::InitCluster {
            request_id: Bytes::copy_from_slice(&request_id),
            cluster: self.replica.cluster.clone(),
            root_check: self.root.root_check_seal(&self.replica.cluster).into_bytes(),
            shards: plan::begin(shards),
            grant: Some(pb::Grant {
                tenant: Bytes::copy_from_slice(&NO_TENANT),
                principal: Bytes::copy_from_slice(&place.principal),
                sealed_grant: self.seal_grant(&place, &clear)?,
            }),
            audit_event: self.seal_directory_event(&event, &NO_TENANT, &request_id)?,
            fingerprint: self.directory_fingerprint("Init", &uri, &InitRequest::default()),
            format: format::to_row(format),
        }))
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    /// Before there are grants, any operator's certificate will do: only who holds the service authority has one.
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let deadline = deadline(&request);
        let principal = self.0.principal(request.extensions())?.clone();
        let Principal::Operator { .. } = &principal else { return Err(GatewayError::Denied.into()) };
        Ok(Response::new(self.0.init(&principal, request.into_inner(), deadline).await?))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let deadline = deadline(&request);
        match self.0.operator(request.extensions(), deadline).await {
            Ok(_) => {}
            // To see that it is not initialized, an operator needs no grant: there are none.
            Err(GatewayError::NotInitialized) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Response::new(self.0.status(request.into_inner()).await?))
    }

    async fn topology(&self, request: Request<TopologyRequest>) -> Result<Response<TopologyResponse>, Status> {
        let deadline = deadline(&request);
        self.0.anybody(request.extensions(), deadline).await?;
        Ok(Response::new(TopologyResponse {
            answer: self.0.answer(DIRECTORY, self.0.replica.seq(DIRECTORY)),
            cluster: self.0.replica.cluster.clone(),
            nodes: self.0.nodes(),
        }))
    }

    async fn add_node(&self, request: Request<AddNodeRequest>) -> Result<Response<AddNodeResponse>, Status> {
        let deadline = deadline(&request);
        let operator = self.0.operator(request.extensions(), deadline).await?;
        Ok(Response::new(self.0.add_node(&operator, request.into_inner(), deadline).await?))
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Result<Response<RemoveNodeResponse>, Status> {
        let deadline = deadline(&request);
        let operator = self.0.operator(request.extensions(), deadline).await?;
        Ok(Response::new(self.0.remove_node(&operator, request.into_inner(), deadline).await?))
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        let deadline = deadline(&request);
        self.0.operator(request.extensions(), deadline).await?;
        Ok(Response::new(self.0.drain_node(request.into_inner(), deadline).await?))
    }

    async fn split_shard(&self, request: Request<SplitShardRequest>) -> Result<Response<SplitShardResponse>, Status> {
        let deadline = deadline(&request);
        let operator = self.0.operator(request.extensions(), deadline).await?;
        Ok(Response::new(self.0.split_shard(&operator, request.into_inner(), deadline).await?))
    }

    async fn plan_shards(&self, request: Request<PlanShardsRequest>) -> Result<Response<PlanShardsResponse>, Status> {
        let deadline = deadline(&request);
        self.0.operator(request.extensions(), deadline).await?;
        Ok(Response::new(self.0.plan_shards(request.into_inner(), deadline).await?))
    }

    async fn place_shards(
        &self,
        request: Request<PlaceShardsRequest>,
    ) -> Result<Response<PlaceShardsResponse>, Status> {
        let deadline = deadline(&request);
        let operator = self.0.operator(request.extensions(), deadline).await?;
        Ok(Response::new(self.0.place_shards(&operator, request.into_inner(), deadline).await?))
    }

    async fn check_rows(&self, request: Request<CheckRowsRequest>) -> Result<Response<CheckRowsResponse>, Status> {
        let deadline = deadline(&request);
        self.0.operator(request.extensions(), deadline).await?;
        Ok(Response::new(self.0.check_rows(request.into_inner(), deadline).await?))
    }

    async fn raise_format(
        &self,
        request: Request<RaiseFormatRequest>,
    ) -> Result<Response<RaiseFormatResponse>, Status> {
        let deadline = deadline(&request);
        let operator = self.0.operator(request.extensions(), deadline).await?;
        Ok(Response::new(self.0.raise_format(&operator, request.into_inner(), deadline).await?))
    }
}
