//! The service `Tenants`.

use std::sync::Arc;

use bytes::Bytes;
use charthold_proto::internal as pb;
use charthold_proto::v1::tenants_server::Tenants;
use charthold_proto::v1::{
    AddGrantRequest, AddGrantResponse, CreateTenantRequest, CreateTenantResponse, Grant, ListGrantsRequest,
    ListGrantsResponse, ListTenantsRequest, ListTenantsResponse, RemoveGrantRequest, RemoveGrantResponse,
    RequestContext, Role, Tenant,
};
use charthold_replica::DIRECTORY;
use charthold_replica::shard::command::Command;
use pb::outcome::Result as Answer;
use prost::Message;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::Gateway;
use super::access::{GrantPlace, NO_TENANT, roles_of};
use super::answer::deadline;
use super::error::GatewayError;
use super::page::Cursor;
use super::record::{refusal, timestamp};
use super::validate::{self, Violations};
use crate::seal::{Address, TenantKeys, Token};
use crate::tls::Principal;
use crate::tls::identity::parse_tenant;

pub struct TenantsService(pub Arc<Gateway>);

/// Who changes whose grant, and how: what its audit event says.
struct GrantChange<'a> {
    method: &'a str,
    granter: &'a Principal,
    grantee: &'a Principal,
    context: Option<RequestContext>,
    roles: &'a [i32],
    request_id: &'a [u8; 16],
}

impl Gateway {
    /// Proposes a command of the directory.
    pub(super) async fn propose_to_directory(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<pb::Done, GatewayError> {
        match self.replica.propose(DIRECTORY, command.encode(0), deadline).await?.result {
            Some(Answer::Done(done)) => Ok(done),
            Some(Answer::Refused(refused)) => Err(refusal(&refused)),
            _ => Err(GatewayError::Internal),
        }
    }

    /// Tells a repeated request of the directory from a reuse of its id.
    pub(super) fn directory_fingerprint(&self, method: &str, principal: &str, said: &impl Message) -> Bytes {
        let said = hex::encode(said.encode_to_vec());
        let token = self.root.principal_token(&format!("fingerprint {method} {said} {principal}"));
        Bytes::copy_from_slice(&token)
    }

    async fn create_tenant(
        &self,
        principal: &str,
        request: CreateTenantRequest,
        deadline: Instant,
    ) -> Result<CreateTenantResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.id("name", &request.name);
        violations.into_result()?;
        let request_id = validate::request_id(&request.request_id)?;
        // Made of the request id, so that a repeated request names the same tenant.
        let uid: Token = self.root.principal_token(&format!("tenant uid {}", hex::encode(request_id)));
        let wrapped = TenantKeys::generate(uid).wrap(&self.root);
        let event = pb::AuditEvent {
            subject: request.name.clone(),
            ..self.audit_event("CreateTenant", principal, &request.context.unwrap_or_default())
        };
        let said = CreateTenantRequest { name: request.name.clone(), ..Default::default() };
        let sealed_name = self.root.seal_bytes(&Address::of_name(uid), request.name.as_bytes())?;
        let command = Command::PutTenant(pb::PutTenant {
            request_id: Bytes::copy_from_slice(&request_id),
            tenant: Bytes::copy_from_slice(&uid),
            sealed_name: sealed_name.into_bytes(),
            tenant_key: wrapped.tenant_key,
            audit_key: wrapped.audit_key,
            address_secret: wrapped.address_secret,
            audit_event: self.seal_directory_event(&event, &uid, &request_id)?,
            fingerprint: self.directory_fingerprint("CreateTenant", principal, &said),
        });
        let done = self.propose_to_directory(command, deadline).await?;
        let tenant =
            Tenant { uid: hex::encode(uid), name: request.name, created_at: Some(timestamp(done.log_time_ms)) };
        Ok(CreateTenantResponse { answer: self.answer(DIRECTORY, done.seq), tenant: Some(tenant) })
    }

    async fn list_tenants(
        &self,
        principal: &str,
        request: ListTenantsRequest,
        deadline: Instant,
    ) -> Result<ListTenantsResponse, GatewayError> {
        let rows_max = validate::page_size(request.page_size)?;
        let query = ListTenantsRequest::default();
        let place = GrantPlace { tenant: None, principal: self.root.principal_token(principal) };
        let cursor = self.read_page_token(&place, "ListTenants", &query, &request.page_token)?;
        let after = cursor.and_then(|cursor| Token::try_from(cursor.next.as_slice()).ok());
        let seq = self.replica.barrier(DIRECTORY, deadline).await?;
        let rows = self.replica.directory().tenants(after.as_ref(), rows_max)?;
        let next = match rows.last() {
            Some((uid, _)) if rows.len() == rows_max => {
                let cursor = Cursor { as_of_seq: seq, next: uid.to_vec() };
                self.write_page_token(&place, "ListTenants", &query, cursor)?
            }
            _ => String::new(),
        };
        let tenant = |(uid, row): &(Token, pb::TenantRow)| {
            let name = self.root.open_bytes(&Address::of_name(*uid), &row.sealed_name)?;
            let name = String::from_utf8(name.expose().to_vec()).map_err(|_| GatewayError::Damaged)?;
            let created_at = Some(timestamp(row.log_time_ms));
            Ok::<_, GatewayError>(Tenant { uid: hex::encode(uid), name, created_at })
        };
        Ok(ListTenantsResponse {
            answer: self.answer(DIRECTORY, seq),
            tenants: rows.iter().map(tenant).collect::<Result<_, _>>()?,
            next_page_token: next,
        })
    }

    /// Where a granted principal's grant is, and its sealed event.
    async fn grantee(&self, change: GrantChange<'_>, deadline: Instant) -> Result<(GrantPlace, Bytes), GatewayError> {
        let unknown = || GatewayError::field("principal", "is of a tenant that does not exist");
        let place = self.grant_place(change.grantee, deadline).await?.ok_or_else(unknown)?;
        let event = pb::AuditEvent {
            subject: change.grantee.uri(),
            roles: change.roles.iter().map(|role| *role as u32).collect(),
            ..self.audit_event(change.method, &change.granter.uri(), &change.context.unwrap_or_default())
        };
        let event = self.seal_directory_event(&event, &place.key().tenant, change.request_id)?;
        Ok((place, event))
    }

    async fn add_grant(
        &self,
        granter: &Principal,
        grantee: &Principal,
        request: AddGrantRequest,
        deadline: Instant,
    ) -> Result<AddGrantResponse, GatewayError> {
        let request_id = validate::request_id(&request.request_id)?;
        check_roles(grantee, &request)?;
        let said = AddGrantRequest {
            principal: request.principal.clone(),
            roles: request.roles.clone(),
            ..Default::default()
        };
        let change = GrantChange {
            method: "AddGrant",
            granter,
            grantee,
            context: request.context,
            roles: &request.roles,
            request_id: &request_id,
        };
        let (place, audit_event) = self.grantee(change, deadline).await?;
        let clear =
            pb::ClearGrant { principal: grantee.uri(), roles: request.roles.iter().map(|role| *role as u32).collect() };
        let key = place.key();
        let command = Command::PutGrant(pb::PutGrant {
            request_id: Bytes::copy_from_slice(&request_id),
            grant: Some(pb::Grant {
                tenant: Bytes::copy_from_slice(&key.tenant),
                principal: Bytes::copy_from_slice(&key.principal),
                sealed_grant: self.seal_grant(&place, &clear)?,
            }),
            audit_event,
            fingerprint: self.directory_fingerprint("AddGrant", &granter.uri(), &said),
        });
        let done = self.propose_to_directory(command, deadline).await?;
        self.access.forget(grantee);
        Ok(AddGrantResponse { answer: self.answer(DIRECTORY, done.seq) })
    }

    async fn remove_grant(
        &self,
        granter: &Principal,
        grantee: &Principal,
        request: RemoveGrantRequest,
        deadline: Instant,
    ) -> Result<RemoveGrantResponse, GatewayError> {
        let request_id = validate::request_id(&request.request_id)?;
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.into_result()?;
        let said = RemoveGrantRequest { principal: request.principal.clone(), ..Default::default() };
        let (context, request_id) = (request.context, &request_id);
        let change = GrantChange { method: "RemoveGrant", granter, grantee, context, roles: &[], request_id };
        let (place, audit_event) = self.grantee(change, deadline).await?;
        let key = place.key();
        let command = Command::RemoveGrant(pb::RemoveGrant {
            request_id: Bytes::copy_from_slice(request_id),
            tenant: Bytes::copy_from_slice(&key.tenant),
            principal: Bytes::copy_from_slice(&key.principal),
            audit_event,
            fingerprint: self.directory_fingerprint("RemoveGrant", &granter.uri(), &said),
        });
        let done = self.propose_to_directory(command, deadline).await?;
        self.access.forget(grantee);
        Ok(RemoveGrantResponse { answer: self.answer(DIRECTORY, done.seq) })
    }

    async fn list_grants(
        &self,
        principal: &Principal,
        of: Token,
        request: ListGrantsRequest,
        deadline: Instant,
    ) -> Result<ListGrantsResponse, GatewayError> {
        let rows_max = validate::page_size(request.page_size)?;
        let query = ListGrantsRequest { tenant_uid: request.tenant_uid.clone(), ..Default::default() };
        let caller = self.grant_place(principal, deadline).await?.ok_or(GatewayError::Denied)?;
        let cursor = self.read_page_token(&caller, "ListGrants", &query, &request.page_token)?;
        let after = cursor.and_then(|cursor| Token::try_from(cursor.next.as_slice()).ok());
        let seq = self.replica.barrier(DIRECTORY, deadline).await?;
        let tenant = match of == NO_TENANT {
            true => None,
            false => Some(self.keyring.tenant(&of, deadline).await?.ok_or(GatewayError::absent())?),
        };
        let rows = self.replica.directory().grants(&of, after.as_ref(), rows_max)?;
        let next = match rows.last() {
            Some((key, _)) if rows.len() == rows_max => {
                let cursor = Cursor { as_of_seq: seq, next: key.principal.to_vec() };
                self.write_page_token(&caller, "ListGrants", &query, cursor)?
            }
            _ => String::new(),
        };
        let grants = rows.iter().map(|(key, row)| {
            let place = GrantPlace { tenant: tenant.clone(), principal: key.principal };
            let clear = self.open_grant(&place, row)?;
            let roles = roles_of(&clear).into_iter().map(|role| role as i32).collect();
            let created_at = Some(timestamp(row.log_time_ms));
            Ok::<_, GatewayError>(Grant { principal: clear.principal, roles, created_at })
        });
        Ok(ListGrantsResponse {
            answer: self.answer(DIRECTORY, seq),
            grants: grants.collect::<Result<_, _>>()?,
            next_page_token: next,
        })
    }

    /// A principal of this cluster, as a request names it.
    fn named_principal(&self, uri: &str) -> Result<Principal, GatewayError> {
        let invalid = |description| GatewayError::field("principal", description);
        let principal = Principal::parse(uri).map_err(|_| {
            invalid("is no spiffe://<cluster>/tenant/<uid>/service/<name> or spiffe://<cluster>/operator/<name>")
        })?;
        match principal.cluster() == self.replica.cluster {
            true => Ok(principal),
            false => Err(invalid("is of another cluster")),
        }
    }
}

fn tenant_of(principal: &Principal) -> Token {
    match principal {
        Principal::Operator { .. } => NO_TENANT,
        Principal::Service { tenant, .. } => *tenant,
    }
}

/// An operator can be an operator and nothing else: it reads no record.
fn check_roles(grantee: &Principal, request: &AddGrantRequest) -> Result<(), GatewayError> {
    let mut violations = Violations::default();
    violations.context(request.context.as_ref());
    violations.check(!request.roles.is_empty(), "roles", "are required");
    for role in &request.roles {
        let fits = matches!(
            (Role::try_from(*role), grantee),
            (Ok(Role::Operator), Principal::Operator { .. })
                | (Ok(Role::Reader | Role::Writer | Role::TenantAdmin), Principal::Service { .. })
        );
        violations.check(fits, "roles", "an operator can be OPERATOR only, and nobody else can");
    }
    violations.into_result()
}

#[tonic::async_trait]
impl Tenants for TenantsService {
    async fn create_tenant(
        &self,
        request: Request<CreateTenantRequest>,
    ) -> Result<Response<CreateTenantResponse>, Status> {
        let deadline = deadline(&request);
        let principal = self.0.operator(request.extensions(), deadline).await?;
        Ok(Response::new(self.0.create_tenant(&principal, request.into_inner(), deadline).await?))
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        let deadline = deadline(&request);
        let principal = self.0.operator(request.extensions(), deadline).await?;
        Ok(Response::new(self.0.list_tenants(&principal, request.into_inner(), deadline).await?))
    }

    async fn add_grant(&self, request: Request<AddGrantRequest>) -> Result<Response<AddGrantResponse>, Status> {
        let deadline = deadline(&request);
        let grantee = self.0.named_principal(&request.get_ref().principal)?;
        let granter = self.0.granter(request.extensions(), &tenant_of(&grantee), deadline).await?;
        Ok(Response::new(self.0.add_grant(&granter, &grantee, request.into_inner(), deadline).await?))
    }

    async fn list_grants(&self, request: Request<ListGrantsRequest>) -> Result<Response<ListGrantsResponse>, Status> {
        let deadline = deadline(&request);
        let of = match request.get_ref().tenant_uid.as_str() {
            "" => NO_TENANT,
            uid => parse_tenant(uid).ok_or(GatewayError::field("tenant_uid", "is not 32 hexadecimal digits"))?,
        };
        let principal = self.0.granter(request.extensions(), &of, deadline).await?;
        Ok(Response::new(self.0.list_grants(&principal, of, request.into_inner(), deadline).await?))
    }

    async fn remove_grant(
        &self,
        request: Request<RemoveGrantRequest>,
    ) -> Result<Response<RemoveGrantResponse>, Status> {
        let deadline = deadline(&request);
        let grantee = self.0.named_principal(&request.get_ref().principal)?;
        let granter = self.0.granter(request.extensions(), &tenant_of(&grantee), deadline).await?;
        Ok(Response::new(self.0.remove_grant(&granter, &grantee, request.into_inner(), deadline).await?))
    }
}
