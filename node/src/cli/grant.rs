//! `charthold grant add | list | remove`: who may do what. Needs an operator's or a tenant admin's profile.

use charthold_client::{Grant, Role};
use serde_json::{Value, json};

use super::exit::CliError;
use super::{Ctx, output};

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Give a principal roles, in place of what it had
    Add {
        /// The URI in its certificate: spiffe://CLUSTER/tenant/UID/service/NAME or spiffe://CLUSTER/operator/NAME
        principal: String,
        /// May be repeated
        #[arg(long = "role", value_enum, required = true, value_name = "ROLE")]
        roles: Vec<RoleName>,
    },
    /// The grants of a tenant, or of the operators
    List {
        /// The tenant's uid; without it, the operators' grants
        #[arg(long, value_name = "UID")]
        tenant: Option<String>,
    },
    /// Take all of a principal's roles away
    Remove {
        /// The URI in its certificate
        principal: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RoleName {
    /// Reads records
    Reader,
    /// Commits; does not read
    Writer,
    /// Grants within its tenant
    TenantAdmin,
    /// Runs the cluster, makes tenants and grants; reads no record
    Operator,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Reader => Self::Reader,
            RoleName::Writer => Self::Writer,
            RoleName::TenantAdmin => Self::TenantAdmin,
            RoleName::Operator => Self::Operator,
        }
    }
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let client = ctx.client()?;
    match args.command {
        Command::Add { principal, roles } => {
            let roles: Vec<Role> = roles.into_iter().map(Role::from).collect();
            client.admin().add_grant(&principal, &roles).await?;
            ctx.note("granted; effective on every gateway within seconds");
            Ok(())
        }
        Command::List { tenant } => {
            let grants = client.admin().list_grants(tenant.as_deref()).await?;
            ctx.show(|| grants.iter().map(as_json).collect(), || as_table(&grants))
        }
        Command::Remove { principal } => {
            client.admin().remove_grant(&principal).await?;
            ctx.note("removed; effective on every gateway within seconds");
            Ok(())
        }
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Reader => "reader",
        Role::Writer => "writer",
        Role::TenantAdmin => "tenant-admin",
        Role::Operator => "operator",
        _ => "unknown",
    }
}

fn as_json(grant: &Grant) -> Value {
    let roles: Vec<&str> = grant.roles.iter().copied().map(role_name).collect();
    json!({ "principal": grant.principal, "roles": roles, "created_at": output::time(grant.created_at) })
}

fn as_table(grants: &[Grant]) -> String {
    let row = |grant: &Grant| {
        let roles: Vec<&str> = grant.roles.iter().copied().map(role_name).collect();
        vec![grant.principal.clone(), roles.join(","), output::time(grant.created_at).unwrap_or_default()]
    };
    output::table(&["PRINCIPAL", "ROLES", "CREATED"], &[], grants.iter().map(row))
}
