//! `charthold tenant create | list`: organisations that keep records. Needs an operator's profile.

use charthold_client::Tenant;
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
    /// Make a tenant, with keys of its own
    Create {
        /// 1 to 128 bytes
        name: String,
    },
    /// All tenants
    List,
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let client = ctx.client()?;
    match args.command {
        Command::Create { name } => {
            let tenant = client.admin().create_tenant(&name).await?;
            ctx.show(|| as_json(&tenant), || tenant.uid.clone())
        }
        Command::List => {
            let tenants = client.admin().list_tenants().await?;
            ctx.show(|| tenants.iter().map(as_json).collect(), || as_table(&tenants))
        }
    }
}

fn as_json(tenant: &Tenant) -> Value {
    json!({ "uid": tenant.uid, "name": tenant.name, "created_at": output::time(tenant.created_at) })
}

fn as_table(tenants: &[Tenant]) -> String {
    let row = |tenant: &Tenant| {
        vec![tenant.uid.clone(), tenant.name.clone(), output::time(tenant.created_at).unwrap_or_default()]
    };
    output::table(&["UID", "NAME", "CREATED"], &[], tenants.iter().map(row))
}
