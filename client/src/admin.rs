//! The calls of operators and tenant admins: tenants, grants, the cluster itself.

use std::time::{Duration, SystemTime};

use charthold_proto::v1;
use charthold_proto::v1::cluster_client::ClusterClient;
use charthold_proto::v1::tenants_client::TenantsClient;
use tonic::{Response, Status};
use uuid::Uuid;

use crate::retry::{Attempt, Call, Route};
use crate::types::{new_request_id, system_time};
use crate::{Client, ClusterStatus, Error, SlotRange, request};

/// Of a page, when all pages are wanted anyway.
const PAGE_ROWS: u32 = 1_000;

/// Tenants, grants and the cluster itself; from [`Client::admin`].
///
/// ```no_run
/// use charthold_client::{Client, Profile, RequestContext, Role};
///
/// # async fn example() -> Result<(), charthold_client::Error> {
/// let operator = Client::connect(&Profile::load("operator.toml")?)?.with_context(RequestContext::new("ops/ada"));
/// let tenant = operator.admin().create_tenant("General Hospital").await?;
/// let service = format!("spiffe://prod/tenant/{}/service/ehr", tenant.uid);
/// operator.admin().add_grant(&service, &[Role::Reader, Role::Writer]).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Makes a tenant, with keys of its own. For operators.
    pub async fn create_tenant(&self, name: &str) -> Result<Tenant, Error> {
        self.create_tenant_with_id(new_request_id(), name).await
    }

    /// Like [`Admin::create_tenant`]; the same id makes the same tenant once.
    pub async fn create_tenant_with_id(&self, request_id: Uuid, name: &str) -> Result<Tenant, Error> {
        let message = v1::CreateTenantRequest {
            context: self.context(),
            request_id: request_id.to_string(),
            name: name.to_owned(),
        };
        let answer = self
            .run(Route::Any, Some(request_id), |attempt| {
                let request = request(&message, attempt.timeout);
                async move {
                    let mut stub = TenantsClient::new(attempt.channel);
                    stub.create_tenant(request).await.map(Response::into_inner)
                }
            })
            .await?;
        Ok(Tenant::from_proto(answer.tenant.unwrap_or_default()))
    }

    /// All tenants. For operators.
    pub async fn list_tenants(&self) -> Result<Vec<Tenant>, Error> {
        let mut message =
            v1::ListTenantsRequest { context: self.context(), page_size: PAGE_ROWS, page_token: String::new() };
        let mut tenants = Vec::new();
        loop {
            let answer = self
                .run(Route::Any, None, |attempt| {
                    let request = request(&message, attempt.timeout);
                    async move {
                        TenantsClient::new(attempt.channel).list_tenants(request).await.map(Response::into_inner)
                    }
                })
                .await?;
            tenants.extend(answer.tenants.into_iter().map(Tenant::from_proto));
            message.page_token = answer.next_page_token;
            if message.page_token.is_empty() {
                return Ok(tenants);
            }
        }
    }

    /// Gives a principal (the URI of its certificate) these roles, in place of those it had.
    pub async fn add_grant(&self, principal: &str, roles: &[Role]) -> Result<(), Error> {
        let request_id = new_request_id();
        let message = v1::AddGrantRequest {
            context: self.context(),
            request_id: request_id.to_string(),
            principal: principal.to_owned(),
            roles: roles.iter().map(|role| role.to_proto().into()).collect(),
        };
        self.run(Route::Any, Some(request_id), |attempt| {
            let request = request(&message, attempt.timeout);
            async move { TenantsClient::new(attempt.channel).add_grant(request).await.map(Response::into_inner) }
        })
        .await
        .map(|_| ())
    }

    /// The grants of a tenant, or without one those of the operators.
    pub async fn list_grants(&self, tenant_uid: Option<&str>) -> Result<Vec<Grant>, Error> {
        let mut message = v1::ListGrantsRequest {
            context: self.context(),
            tenant_uid: tenant_uid.unwrap_or_default().to_owned(),
            page_size: PAGE_ROWS,
            page_token: String::new(),
        };
        let mut grants = Vec::new();
        loop {
            let answer = self
                .run(Route::Any, None, |attempt| {
                    let request = request(&message, attempt.timeout);
                    async move {
                        TenantsClient::new(attempt.channel).list_grants(request).await.map(Response::into_inner)
                    }
                })
                .await?;
            grants.extend(answer.grants.into_iter().map(Grant::from_proto));
            message.page_token = answer.next_page_token;
            if message.page_token.is_empty() {
                return Ok(grants);
            }
        }
    }

    /// Takes all roles from a principal.
    pub async fn remove_grant(&self, principal: &str) -> Result<(), Error> {
        let request_id = new_request_id();
        let message = v1::RemoveGrantRequest {
            context: self.context(),
            request_id: request_id.to_string(),
            principal: principal.to_owned(),
        };
        self.run(Route::Any, Some(request_id), |attempt| {
            let request = request(&message, attempt.timeout);
            async move { TenantsClient::new(attempt.channel).remove_grant(request).await.map(Response::into_inner) }
        })
        .await
        .map(|_| ())
    }

    /// Forms the cluster of the profile's first gateway and the nodes that its configuration names; 0 expects all of
    /// them. It begins with so many shards, or with 0 as many as the gateway thinks fit. Once in a cluster's life; the
    /// caller becomes its first operator. Safe to repeat after [`Error::Unavailable`].
    pub async fn init(&self, expected_nodes: u32, shards: u32) -> Result<Topology, Error> {
        let message = v1::InitRequest { context: self.context(), expected_nodes, shards };
        let answer = self
            .run(Route::First, None, |attempt| {
                let request = request(&message, attempt.timeout);
                async move { ClusterClient::new(attempt.channel).init(request).await.map(Response::into_inner) }
            })
            .await?;
        Ok(Topology::new(answer.cluster, answer.nodes))
    }

    /// What some node, the nearest that answers, knows of every shard and node. For operators.
    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        self.status_by(Route::Any, false).await
    }

    /// The same, with what every node says of itself: a node that cannot be reached is shown as such.
    pub async fn status_of_all(&self) -> Result<ClusterStatus, Error> {
        self.status_by(Route::Any, true).await
    }

    /// What the node behind this endpoint knows; asked once, without retries.
    pub async fn status_of(&self, endpoint: &str) -> Result<ClusterStatus, Error> {
        self.status_by(Route::Only(endpoint), false).await
    }

    async fn status_by(&self, route: Route<'_>, all_nodes: bool) -> Result<ClusterStatus, Error> {
        let message = v1::StatusRequest { context: self.context(), all_nodes };
        let answer = self
            .run(route, None, |attempt| {
                let request = request(&message, attempt.timeout);
                async move { ClusterClient::new(attempt.channel).status(request).await.map(Response::into_inner) }
            })
            .await?;
        Ok(ClusterStatus::from_proto(answer))
    }

    /// Takes the node that listens for peers at `host:port`, and belongs to no cluster yet, into this one. It catches up
    /// in the background; [`Admin::status`] tells which shards it votes in. For operators.
    pub async fn add_node(&self, peer_endpoint: &str) -> Result<Node, Error> {
        let request_id = new_request_id();
        let message = v1::AddNodeRequest {
            context: self.context(),
            request_id: request_id.to_string(),
            peer_endpoint: peer_endpoint.to_owned(),
        };
        let answer = self
            .run(Route::Any, Some(request_id), |attempt| {
                let request = request(&message, attempt.timeout);
                async move { ClusterClient::new(attempt.channel).add_node(request).await.map(Response::into_inner) }
            })
            .await?;
        Ok(Node::from_proto(answer.node.unwrap_or_default()))
    }

    /// Takes a node, by its name, out of the cluster for ever, and gives its id. A repeat changes nothing. For operators.
    pub async fn remove_node(&self, node: &str) -> Result<String, Error> {
        let request_id = new_request_id();
        let message = v1::RemoveNodeRequest {
            context: self.context(),
            request_id: request_id.to_string(),
            node: node.to_owned(),
        };
        self.run(Route::Any, Some(request_id), |attempt| {
            let request = request(&message, attempt.timeout);
            async move { ClusterClient::new(attempt.channel).remove_node(request).await.map(Response::into_inner) }
        })
        .await
        .map(|answer| answer.node_id)
    }

    /// Has a node, by its name, give away what it leads and lead nothing, until it is restarted; or lead again, with
    /// `undo`. Returns at once. For operators.
    pub async fn drain_node(&self, node: &str, undo: bool) -> Result<(), Error> {
        let message = v1::DrainNodeRequest { context: self.context(), node: node.to_owned(), undo };
        self.run(Route::Any, None, |attempt| {
            let request = request(&message, attempt.timeout);
            async move { ClusterClient::new(attempt.channel).drain_node(request).await.map(Response::into_inner) }
        })
        .await
        .map(|_| ())
    }

    /// Has a shard give the upper half of what it holds to a spare one, and gives who holds what then. The shards follow in
    /// a moment, while they serve; [`Admin::status`] tells. A repeat splits again. For operators.
    pub async fn split_shard(&self, shard: u32) -> Result<Vec<(u32, SlotRange)>, Error> {
        let request_id = new_request_id();
        let message = v1::SplitShardRequest { context: self.context(), request_id: request_id.to_string(), shard };
        let answer = self
            .run(Route::Any, Some(request_id), |attempt| {
                let request = request(&message, attempt.timeout);
                async move { ClusterClient::new(attempt.channel).split_shard(request).await.map(Response::into_inner) }
            })
            .await?;
        let held = |held: v1::ShardSlots| Some((held.shard, SlotRange::from_proto(held.slots)?));
        Ok(answer.shards.into_iter().filter_map(held).collect())
    }

    /// Where all shards that hold charts would best be, with so many replicas each, an odd number from 3 on; 0: on every node.
    /// None on the nodes that are to be left, by their names. Changes nothing. For operators.
    pub async fn plan_shards(&self, replicas: u32, leave: &[String]) -> Result<Vec<PlannedShard>, Error> {
        let message = v1::PlanShardsRequest { context: self.context(), replicas, leave_nodes: leave.to_vec() };
        let answer = self
            .run(Route::Any, None, |attempt| {
                let request = request(&message, attempt.timeout);
                async move { ClusterClient::new(attempt.channel).plan_shards(request).await.map(Response::into_inner) }
            })
            .await?;
        Ok(answer.shards.into_iter().map(PlannedShard::from_proto).collect())
    }

    /// Has shards be on these nodes, by their ids; none: on every node. The others stay where they are. From now on a shard
    /// is to have so many replicas, also when a node goes for ever. Returns at once: they follow while they serve, and
    /// [`Admin::status_of_all`] tells. For operators.
    pub async fn place_shards(&self, placements: &[(u32, Vec<String>)], replicas: u32) -> Result<(), Error> {
        let request_id = new_request_id();
        let placed =
            |(shard, node_ids): &(u32, Vec<String>)| v1::ShardPlacement { shard: *shard, node_ids: node_ids.clone() };
        let message = v1::PlaceShardsRequest {
            context: self.context(),
            request_id: request_id.to_string(),
            placements: placements.iter().map(placed).collect(),
            replicas,
        };
        self.run(Route::Any, Some(request_id), |attempt| {
            let request = request(&message, attempt.timeout);
            async move { ClusterClient::new(attempt.channel).place_shards(request).await.map(Response::into_inner) }
        })
        .await
        .map(|_| ())
    }

    /// Has every replica of a shard (0: the directory) read all its rows, as of one place of its log, and gives the check's
    /// id. Returns at once; [`Admin::status_of_all`] tells what they come to. For operators.
    pub async fn check_rows(&self, shard: u32) -> Result<String, Error> {
        let message = v1::CheckRowsRequest { context: self.context(), shard };
        self.run(Route::Any, None, |attempt| {
            let request = request(&message, attempt.timeout);
            async move { ClusterClient::new(attempt.channel).check_rows(request).await.map(Response::into_inner) }
        })
        .await
        .map(|answer| answer.check_id)
    }

    /// Has the cluster use the newest format that all its nodes know, and gives it. A repeat changes nothing. For operators.
    pub async fn raise_format(&self) -> Result<u32, Error> {
        let request_id = new_request_id();
        let message = v1::RaiseFormatRequest { context: self.context(), request_id: request_id.to_string() };
        self.run(Route::Any, Some(request_id), |attempt| {
            let request = request(&message, attempt.timeout);
            async move { ClusterClient::new(attempt.channel).raise_format(request).await.map(Response::into_inner) }
        })
        .await
        .map(|answer| answer.format)
    }

    /// Where the gateways are. For everyone with a grant.
    pub async fn topology(&self) -> Result<Topology, Error> {
        let message = v1::TopologyRequest { context: self.context() };
        let answer = self
            .run(Route::Any, None, |attempt| {
                let request = request(&message, attempt.timeout);
                async move { ClusterClient::new(attempt.channel).topology(request).await.map(Response::into_inner) }
            })
            .await?;
        Ok(Topology::new(answer.cluster, answer.nodes))
    }

    fn context(&self) -> Option<v1::RequestContext> {
        Some(self.client.context.to_proto())
    }

    async fn run<T, F, Fut>(&self, route: Route<'_>, request_id: Option<Uuid>, attempt: F) -> Result<T, Error>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let deadline: Duration = self.client.deadline;
        let traceparent = self.client.traceparent.as_ref();
        self.client.cluster.run(Call { route, deadline, request_id, traceparent }, attempt).await
    }
}

/// An organisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// 32 hexadecimal digits.
    pub uid: String,
    /// What it is called.
    pub name: String,
    /// When it was made.
    pub created_at: Option<SystemTime>,
}

impl Tenant {
    fn from_proto(tenant: v1::Tenant) -> Self {
        Self { uid: tenant.uid, name: tenant.name, created_at: system_time(tenant.created_at) }
    }
}

/// What a grant allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Reads records.
    Reader,
    /// Commits. Does not read: grant both where both are needed.
    Writer,
    /// Grants within its tenant.
    TenantAdmin,
    /// Runs the cluster, makes tenants and grants; for operators only.
    Operator,
}

impl Role {
    fn to_proto(self) -> v1::Role {
        match self {
            Self::Reader => v1::Role::Reader,
            Self::Writer => v1::Role::Writer,
            Self::TenantAdmin => v1::Role::TenantAdmin,
            Self::Operator => v1::Role::Operator,
        }
    }

    fn from_proto(role: v1::Role) -> Option<Self> {
        match role {
            v1::Role::Unspecified => None,
            v1::Role::Reader => Some(Self::Reader),
            v1::Role::Writer => Some(Self::Writer),
            v1::Role::TenantAdmin => Some(Self::TenantAdmin),
            v1::Role::Operator => Some(Self::Operator),
        }
    }
}

/// What a principal may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The URI of its certificate.
    pub principal: String,
    /// Roles that this version of the library does not know are left out.
    pub roles: Vec<Role>,
    /// When it was given.
    pub created_at: Option<SystemTime>,
}

impl Grant {
    fn from_proto(grant: v1::Grant) -> Self {
        let roles = grant.roles().filter_map(Role::from_proto).collect();
        Self { principal: grant.principal, roles, created_at: system_time(grant.created_at) }
    }
}

/// Where a shard is and would be, see [`Admin::plan_shards`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedShard {
    /// Which shard.
    pub shard: u32,
    /// The ids of the nodes that it is on, in order of their names.
    pub now_node_ids: Vec<String>,
    /// Of those that it would be on.
    pub then_node_ids: Vec<String>,
}

impl PlannedShard {
    fn from_proto(planned: v1::PlannedShard) -> Self {
        let v1::PlannedShard { shard, now_node_ids, then_node_ids } = planned;
        Self { shard, now_node_ids, then_node_ids }
    }
}

/// Where a cluster's nodes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The cluster's name.
    pub cluster: String,
    /// Keyless ones among them.
    pub nodes: Vec<Node>,
}

impl Topology {
    fn new(cluster: String, nodes: Vec<v1::NodeInfo>) -> Self {
        Self { cluster, nodes: nodes.into_iter().map(Node::from_proto).collect() }
    }
}

/// One process at one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// 16 hexadecimal digits.
    pub id: String,
    /// As its configuration names it.
    pub name: String,
    /// Where it is.
    pub site: String,
    /// `host:port` for clients; empty for a keyless node.
    pub client_endpoint: String,
    /// `host:port` for other nodes.
    pub peer_endpoint: String,
    /// Whether it holds the root key and serves clients.
    pub keyed: bool,
}

impl Node {
    pub(crate) fn from_proto(node: v1::NodeInfo) -> Self {
        Self {
            id: node.id,
            name: node.name,
            site: node.site,
            client_endpoint: node.client_endpoint,
            peer_endpoint: node.peer_endpoint,
            keyed: node.keyed,
        }
    }
}
