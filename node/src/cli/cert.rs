//! `charthold cert create-ca | create-node | create-client | revoke`: authorities and certificates. Works on files only;
//! nothing here talks to a cluster.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::builder::RangedI64ValueParser;
use serde_json::json;

use super::Ctx;
use super::exit::CliError;
use crate::config;
use crate::seal::Token;
use crate::tls::authority::{AUTHORITY_VALID_DAYS, LEAF_VALID_DAYS};
use crate::tls::identity::parse_tenant;
use crate::tls::{Authority, AuthorityError, Validity};

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a cluster's two authorities: one for nodes among each other, one for clients and what they connect to
    #[command(name = "create-ca")]
    Authority {
        /// 1 to 32 of a-z, 0-9, '.', '_', '-'
        #[arg(long, value_name = "NAME")]
        cluster: String,
        /// The folder for them; keep it off the nodes
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make a node's certificates
    #[command(name = "create-node")]
    Node(NodeArgs),
    /// Make the certificate of an operator, or of a tenant's service
    #[command(name = "create-client")]
    Client(ClientArgs),
    /// Revoke certificates, or renew the revocation lists: a node honours them within seconds of getting them
    Revoke(super::cert_revoke::Args),
}

#[derive(clap::Args)]
struct NodeArgs {
    /// The folder of the authorities
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// As in the node's configuration
    #[arg(long)]
    name: String,
    /// As in the node's configuration
    #[arg(long)]
    site: String,
    /// A name that clients reach the node by; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    dns: Vec<String>,
    /// An address that clients reach the node by; may be repeated
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    ip: Vec<IpAddr>,
    /// A node without keys, which stores and votes: it gets no certificate for clients, so --dns and --ip are not used
    #[arg(long)]
    keyless: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("who").required(true).args(["operator", "tenant"])))]
struct ClientArgs {
    /// The folder of the authorities
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// For a person who operates the cluster
    #[arg(long, value_name = "NAME", conflicts_with = "service")]
    operator: Option<String>,
    /// For a service of this tenant
    #[arg(long, value_name = "UID", requires = "service", value_parser = tenant)]
    tenant: Option<Tenant>,
    /// The name of that service
    #[arg(long, value_name = "NAME", requires = "tenant")]
    service: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(clap::Args)]
struct Target {
    /// The folder for the files, which must not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long the certificate is valid
    #[arg(long, value_name = "N", default_value_t = LEAF_VALID_DAYS, value_parser = days())]
    days: u32,
}

#[derive(Clone, Copy)]
struct Tenant(Token);

fn days() -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(1..=i64::from(AUTHORITY_VALID_DAYS))
}

fn tenant(text: &str) -> Result<Tenant, &'static str> {
    parse_tenant(text).map(Tenant).ok_or("a tenant's uid is 32 hex digits in lower case (`charthold tenant list`)")
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    match args.command {
        Command::Authority { cluster, out } => {
            Authority::create(&cluster, &out)?;
            ctx.note(
                "The .key files make nodes and clients: keep this folder off the nodes, and a copy in a safe place.",
            );
            show(ctx, &out, &["peer-ca.crt", "peer-ca.key", "service-ca.crt", "service-ca.key"])
        }
        Command::Node(args) => create_node(&args, ctx),
        Command::Client(args) => create_client(&args, ctx),
        Command::Revoke(args) => super::cert_revoke::run(&args, ctx),
    }
}

fn create_node(args: &NodeArgs, ctx: &Ctx) -> Result<(), CliError> {
    for (option, name) in [("--name", &args.name), ("--site", &args.site)] {
        if !config::is_name(name) {
            return Err(CliError::Usage(format!(
                "{option} must be 1 to {} of a-z, 0-9 and -",
                config::NAME_LENGTH_MAX
            )));
        }
    }
    let out = &args.target.out;
    let authority = Authority::load(&args.ca)?;
    authority.node(&args.name, !args.keyless, &args.dns, &args.ip, out, Validity::days(args.target.days))?;
    ctx.note(&format!("For the node's configuration:\n\n{}", configuration(args)));
    match args.keyless {
        true => show(ctx, out, &["peer-ca.crt", "peer.crt", "peer.key"]),
        false => {
            show(ctx, out, &["peer-ca.crt", "peer.crt", "peer.key", "service-ca.crt", "service.crt", "service.key"])
        }
    }
}

/// The part that names the node and its files, relative to a configuration that lies beside them.
fn configuration(args: &NodeArgs) -> String {
    let files = |kind: &str| format!("{{ ca = \"{kind}-ca.crt\", cert = \"{kind}.crt\", key = \"{kind}.key\" }}");
    let mut text = format!("name = \"{}\"\nsite = \"{}\"\n[tls]\npeer = {}\n", args.name, args.site, files("peer"));
    if !args.keyless {
        text.push_str(&format!("service = {}\n", files("service")));
    }
    text
}

fn create_client(args: &ClientArgs, ctx: &Ctx) -> Result<(), CliError> {
    let (out, valid) = (&args.target.out, Validity::days(args.target.days));
    let authority = Authority::load(&args.ca)?;
    match (&args.operator, &args.tenant, &args.service) {
        (Some(name), None, None) => authority.operator(name, out, valid)?,
        (None, Some(tenant), Some(name)) => authority.service(&tenant.0, name, out, valid)?,
        _ => return Err(CliError::Usage("either --operator, or --tenant with --service".to_owned())),
    }
    show(ctx, out, &["service-ca.crt", "client.crt", "client.key"])
}

fn show(ctx: &Ctx, out: &Path, files: &[&str]) -> Result<(), CliError> {
    let paths: Vec<String> = files.iter().map(|file| out.join(file).display().to_string()).collect();
    ctx.show(|| json!({ "files": paths }), || paths.join("\n"))
}

impl From<AuthorityError> for CliError {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Name(_)
            | AuthorityError::DnsName(_)
            | AuthorityError::Address(_)
            | AuthorityError::NoAddress => Self::Usage(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use charthold_client::RequestContext;
    use clap::Parser;

    use super::*;
    use crate::cli::Output;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// The exit code of a line, in which `DIR` stands for the folder.
    async fn check(folder: &Path, line: &str) -> u8 {
        let line = line.replace("DIR", folder.to_str().unwrap());
        let args = match Line::try_parse_from(std::iter::once("cert").chain(line.split(' '))) {
            Ok(line) => line.args,
            Err(error) => return error.exit_code() as u8,
        };
        let ctx = Ctx { output: Output::Json, profile: None, progress: false, context: RequestContext::default() };
        run(args, &ctx).await.map_or_else(|error| error.exit_code(), |()| 0)
    }

    #[tokio::test]
    async fn a_cluster_gets_its_certificates() {
        let folder = tempfile::tempdir().unwrap();
        let tenant = "ab".repeat(16);
        for line in [
            "create-ca --cluster c1 --out DIR/ca",
            "create-node --ca DIR/ca --name a1 --site a --dns localhost,a1.lan --ip 127.0.0.1 --ip ::1 --out DIR/a1",
            "create-node --ca DIR/ca --name k1 --site k --keyless --out DIR/k1",
            "create-client --ca DIR/ca --operator ada --out DIR/ada",
            &format!("create-client --ca DIR/ca --tenant {tenant} --service ehr --days 30 --out DIR/ehr"),
            "revoke --ca DIR/ca",
            "revoke --ca DIR/ca --cert DIR/ehr/client.crt --cert DIR/a1/peer.crt",
        ] {
            assert_eq!(check(folder.path(), line).await, 0, "{line}");
        }
        for file in
            ["ca/peer-ca.key", "a1/service.crt", "k1/peer.crt", "ada/client.key", "ehr/service-ca.crt", "ca/peer.crl"]
        {
            assert!(folder.path().join(file).exists(), "{file}");
        }
        assert!(!folder.path().join("k1/service.crt").exists());
    }

    #[tokio::test]
    async fn wrong_usage_ends_with_2_and_what_failed_with_1() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check(folder.path(), "create-ca --cluster c1 --out DIR/ca").await, 0);
        let tenant = "ab".repeat(16);
        for line in [
            "create-ca --cluster C/1 --out DIR/x",
            "create-node --ca DIR/ca --name a1 --site a --out DIR/x",
            "create-node --ca DIR/ca --name a1 --site a --ip 0.0.0.0 --out DIR/x",
            "create-node --ca DIR/ca --name A1 --site a --dns localhost --out DIR/x",
            "create-node --ca DIR/ca --name a1 --site a/b --dns localhost --out DIR/x",
            "create-client --ca DIR/ca --out DIR/x",
            "create-client --ca DIR/ca --tenant ab --service ehr --out DIR/x",
            "create-client --ca DIR/ca --operator ada --days 0 --out DIR/x",
            &format!("create-client --ca DIR/ca --tenant {tenant} --out DIR/x"),
            &format!("create-client --ca DIR/ca --tenant {tenant} --service ehr --operator ada --out DIR/x"),
            "create-client --ca DIR/ca --operator ada --service ehr --out DIR/x",
        ] {
            assert_eq!(check(folder.path(), line).await, 2, "{line}");
        }
        assert!(!folder.path().join("x").exists());
        assert_eq!(check(folder.path(), "create-ca --cluster c1 --out DIR/ca").await, 1);
        assert_eq!(check(folder.path(), "create-client --ca DIR/none --operator ada --out DIR/x").await, 1);
        assert_eq!(check(folder.path(), "create-ca --cluster c1 --out DIR/other").await, 0);
        assert_eq!(check(folder.path(), "create-client --ca DIR/other --operator ada --out DIR/ada").await, 0);
        assert_eq!(
            check(folder.path(), "revoke --ca DIR/ca --cert DIR/ada/client.crt").await,
            1,
            "another authority's"
        );
        assert_eq!(check(folder.path(), "revoke --ca DIR/ca --cert DIR/none").await, 1);
        assert!(!folder.path().join("ca/service.crl").exists());
    }
}
