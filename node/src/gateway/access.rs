//! Principals and grants: who is calling, and may they.
//!
//! Identity comes from the certificate's URI SAN alone; rights from grants in the directory. A grant that this node has
//! not applied yet is looked for behind a read barrier before a caller is denied, so that a grant works at once. A grant
//! that it has is believed while the directory was confirmed lately ([`super::server`] does so every second), so that a
//! removed one stops working everywhere within seconds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use charthold_proto::internal as pb;
use charthold_proto::v1::Role;
use charthold_replica::DIRECTORY;
use charthold_replica::planted::{self, Bug};
use charthold_replica::store::table::grant;
use moka::sync::Cache;
use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;
use tonic::Extensions;

use super::Gateway;
use super::error::GatewayError;
use crate::seal::{Address, Kind, TenantKeys, Token};
use crate::tls::{ClientIdentity, Principal};

/// How long a grant is believed: the longest that a removed one still works on another gateway.
const BELIEVED: Duration = Duration::from_secs(2);
const PRINCIPALS_MAX: u64 = 10_000;
/// How long after a barrier of the directory this node's grants are believed without another.
const CURRENT_FOR: Duration = Duration::from_secs(5);

/// The tenant of the operators' grants.
pub const NO_TENANT: Token = [0; 16];

/// What was found of principals lately.
pub struct Access {
    roles: Cache<Principal, Arc<Vec<Role>>>,
    /// When this node last had all of the directory.
    current_at: Mutex<Option<Instant>>,
}

impl Default for Access {
    fn default() -> Self {
        Self::new()
    }
}

impl Access {
    pub fn new() -> Self {
        let roles = Cache::builder().max_capacity(PRINCIPALS_MAX).time_to_live(BELIEVED).build();
        Self { roles, current_at: Mutex::new(None) }
    }

    /// A barrier of the directory has passed, begun at `at`.
    pub fn note_current(&self, at: Instant) {
        *self.current_at.lock() = Some(at);
    }

    /// Whether this node's directory is new enough to believe a grant that it has: one removed meanwhile must not
    /// work on, on a node that is cut off from the directory.
    fn is_current(&self) -> bool {
        self.current_at.lock().is_some_and(|at| at.elapsed() < CURRENT_FOR)
    }

    /// After a change that this gateway made.
    pub fn forget(&self, principal: &Principal) {
        self.roles.invalidate(principal);
    }
}

/// A service of a tenant, with the tenant's keys.
pub struct Caller {
    pub tenant: Arc<TenantKeys>,
    pub principal: String,
    pub roles: Arc<Vec<Role>>,
}

impl Caller {
    pub fn reads(&self) -> bool {
        self.roles.contains(&Role::Reader)
    }
}

impl Gateway {
    /// Who is calling, as the certificate says.
    pub fn principal<'a>(&self, extensions: &'a Extensions) -> Result<&'a Principal, GatewayError> {
        match extensions.get::<ClientIdentity>() {
            Some(ClientIdentity::Known(principal)) if principal.cluster() == self.replica.cluster => Ok(principal),
            Some(ClientIdentity::Known(_)) => Err(GatewayError::Unauthenticated("it is of another cluster")),
            _ => Err(GatewayError::Unauthenticated(
                "it needs one URI SAN, spiffe://<cluster>/tenant/<uid>/service/<name> or \
                 spiffe://<cluster>/operator/<name>",
            )),
        }
    }

    /// A service that holds a role on its tenant's charts.
    pub async fn service(
        &self,
        extensions: &Extensions,
        role: Role,
        deadline: Instant,
    ) -> Result<Caller, GatewayError> {
        let principal = self.principal(extensions)?;
        let Principal::Service { tenant, .. } = principal else { return Err(GatewayError::Denied) };
        self.require_initialized()?;
        let tenant = self.keyring.tenant(tenant, deadline).await?.ok_or(GatewayError::Denied)?;
        let roles = self.roles(principal, role, deadline).await?;
        Ok(Caller { tenant, principal: principal.uri(), roles })
    }

    /// An operator that is granted to be one.
    pub async fn operator(&self, extensions: &Extensions, deadline: Instant) -> Result<String, GatewayError> {
        let principal = self.principal(extensions)?;
        let Principal::Operator { .. } = principal else { return Err(GatewayError::Denied) };
        self.require_initialized()?;
        self.roles(principal, Role::Operator, deadline).await?;
        Ok(principal.uri())
    }

    /// Whoever may grant for a tenant: operators, and its admins for themselves.
    pub async fn granter(
        &self,
        extensions: &Extensions,
        of: &Token,
        deadline: Instant,
    ) -> Result<Principal, GatewayError> {
        let principal = self.principal(extensions)?;
        self.require_initialized()?;
        match principal {
            Principal::Operator { .. } => self.roles(principal, Role::Operator, deadline).await?,
            Principal::Service { tenant, .. } if tenant == of => {
                self.roles(principal, Role::TenantAdmin, deadline).await?
            }
            Principal::Service { .. } => return Err(GatewayError::Denied),
        };
        Ok(principal.clone())
    }

    /// Anybody with any grant.
    pub async fn anybody(&self, extensions: &Extensions, deadline: Instant) -> Result<(), GatewayError> {
        let principal = self.principal(extensions)?;
        self.require_initialized()?;
        match self.find_roles(principal, |roles| !roles.is_empty(), deadline).await?.is_empty() {
            true => Err(GatewayError::Denied),
            false => Ok(()),
        }
    }

    pub fn require_initialized(&self) -> Result<(), GatewayError> {
        // Once is for good.
        if !self.initialized.load(Ordering::Relaxed) {
            self.replica.directory().cluster()?.ok_or(GatewayError::NotInitialized)?;
            self.initialized.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn roles(
        &self,
        principal: &Principal,
        wanted: Role,
        deadline: Instant,
    ) -> Result<Arc<Vec<Role>>, GatewayError> {
        let roles = self.find_roles(principal, |roles| roles.contains(&wanted), deadline).await?;
        match roles.contains(&wanted) || planted::has(Bug::GrantUnchecked) {
            true => Ok(roles),
            false => Err(GatewayError::Denied),
        }
    }

    /// A principal's roles: as believed, as this node has them, or as the directory's leader has them; the first that
    /// is enough.
    async fn find_roles(
        &self,
        principal: &Principal,
        enough: impl Fn(&[Role]) -> bool,
        deadline: Instant,
    ) -> Result<Arc<Vec<Role>>, GatewayError> {
        if let Some(roles) = self.access.roles.get(principal).filter(|roles| enough(roles)) {
            return Ok(roles);
        }
        let mut roles = match self.access.is_current() {
            true => self.read_roles(principal, deadline).await?,
            false => Vec::new(),
        };
        if !enough(&roles) {
            self.replica.barrier(DIRECTORY, deadline).await?;
            roles = self.read_roles(principal, deadline).await?;
        }
        let roles = Arc::new(roles);
        self.access.roles.insert(principal.clone(), Arc::clone(&roles));
        Ok(roles)
    }

    async fn read_roles(&self, principal: &Principal, deadline: Instant) -> Result<Vec<Role>, GatewayError> {
        let uri = principal.uri();
        let Some(place) = self.grant_place(principal, deadline).await? else { return Ok(Vec::new()) };
        let Some(row) = self.replica.directory().grant(&place.key())? else { return Ok(Vec::new()) };
        let clear = self.open_grant(&place, &row)?;
        // The envelope is bound to the token; a token that meets another name would be a collision.
        if clear.principal != uri {
            return Err(GatewayError::Damaged);
        }
        Ok(roles_of(&clear))
    }

    /// Where a principal's grant is; nothing if its tenant does not exist.
    pub async fn grant_place(
        &self,
        principal: &Principal,
        deadline: Instant,
    ) -> Result<Option<GrantPlace>, GatewayError> {
        let uri = principal.uri();
        Ok(match principal {
            Principal::Operator { .. } => Some(GrantPlace { tenant: None, principal: self.root.principal_token(&uri) }),
            Principal::Service { tenant, .. } => self.keyring.tenant(tenant, deadline).await?.map(|tenant| {
                let principal = tenant.principal_token(&uri);
                GrantPlace { tenant: Some(tenant), principal }
            }),
        })
    }

    pub fn seal_grant(&self, place: &GrantPlace, clear: &pb::ClearGrant) -> Result<bytes::Bytes, GatewayError> {
        let clear = clear.encode_to_vec();
        let sealed = match &place.tenant {
            Some(tenant) => tenant.seal_grant(&place.principal, &clear)?,
            None => self.root.seal_bytes(&operator_address(Kind::Grant, place.principal), &clear)?,
        };
        Ok(sealed.into_bytes())
    }

    pub fn open_grant(&self, place: &GrantPlace, row: &pb::GrantRow) -> Result<pb::ClearGrant, GatewayError> {
        let clear = match &place.tenant {
            Some(tenant) => tenant.open_grant(&place.principal, &row.sealed_grant)?,
            None => self.root.open_bytes(&operator_address(Kind::Grant, place.principal), &row.sealed_grant)?,
        };
        pb::ClearGrant::decode(clear.expose()).map_err(|_| GatewayError::Damaged)
    }
}

/// Where a grant is kept, and whose keys seal it.
pub struct GrantPlace {
    /// Nothing: an operator's.
    pub tenant: Option<Arc<TenantKeys>>,
    pub principal: Token,
}

impl GrantPlace {
    pub fn key(&self) -> grant::Key {
        grant::Key { tenant: self.tenant.as_ref().map_or(NO_TENANT, |tenant| tenant.uid), principal: self.principal }
    }
}

pub fn roles_of(clear: &pb::ClearGrant) -> Vec<Role> {
    clear.roles.iter().filter_map(|role| Role::try_from(*role as i32).ok()).collect()
}

/// Where what belongs to an operator is sealed.
pub fn operator_address(kind: Kind, principal: Token) -> Address {
    Address::of_principal(kind, NO_TENANT, principal)
}
