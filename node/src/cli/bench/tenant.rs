//! A tenant of the run's own, with a service that may read and write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use charthold_client::{Chart, Client, Error, Profile, RecordId, Role};
use tokio::time::Instant;
use uuid::Uuid;

use super::load::RECORD_TYPE;
use crate::cli::exit::CliError;
use crate::cli::{Ctx, profile};
use crate::tls::{Authority, Principal, Validity};

/// A new grant is effective on every gateway within this.
const GRANT_TIMEOUT: Duration = Duration::from_secs(15);
const GRANT_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The certificates go with it; the tenant stays.
pub(super) struct Tenant {
    pub(super) client: Client,
    _certificates: Scratch,
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // In the system's temporary folder: what cannot be removed is not in the way.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Tenant {
    pub(super) async fn make(ctx: &Ctx, operator: &Path, authority: &Path, run: Uuid) -> Result<Self, CliError> {
        let operator = profile::load(operator)?;
        let authority = Authority::load(authority)?;
        let client = profile::connect(&operator)?.with_context(ctx.context.clone());
        let tenant = client.admin().create_tenant(&format!("bench-{run}")).await?;
        let uid = crate::cli::dev::parse_tenant(&tenant.uid)?;
        let scratch = Scratch(std::env::temp_dir().join(format!("charthold-bench-{run}")));
        authority.service(&uid, "bench", &scratch.0, Validity::default())?;
        let principal = Principal::service(authority.cluster(), &uid, "bench")
            .map_err(|error| CliError::Failed(error.to_string()))?;
        client.admin().add_grant(&principal.uri(), &[Role::Reader, Role::Writer]).await?;
        let service = Profile {
            authority: scratch.0.join("service-ca.crt"),
            certificate: scratch.0.join("client.crt"),
            key: scratch.0.join("client.key"),
            tenant: Some(tenant.uid),
            ..operator
        };
        let client = profile::connect(&service)?.with_context(ctx.context.clone());
        wait_for_grant(&client).await?;
        Ok(Self { client, _certificates: scratch })
    }
}

/// Or the first seconds would be counted as refused.
async fn wait_for_grant(client: &Client) -> Result<(), CliError> {
    let deadline = Instant::now() + GRANT_TIMEOUT;
    loop {
        match client.get(&Chart::shared("bench"), &RecordId::new(RECORD_TYPE, "0")).await {
            Ok(_) | Err(Error::NotFound { .. }) => return Ok(()),
            Err(Error::Denied) if Instant::now() < deadline => tokio::time::sleep(GRANT_POLL_INTERVAL).await,
            Err(error) => return Err(error.into()),
        }
    }
}
