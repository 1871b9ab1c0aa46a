//! `charthold cluster init | status | raise-format`: forms a cluster; shows how it is, on one screen; ends an upgrade.
//!
//! ```text
//! mod.rs     the arguments, init            report.rs    what the nodes said, and what follows from it
//! screen.rs  a report for people            findings.rs  what is wrong, and what to do about it
//! json.rs    a report for programs
//! ```

pub(super) mod findings;
pub(super) mod json;
pub(super) mod report;
pub(super) mod screen;

use charthold_client::Node;
use serde_json::{Value, json};

use self::report::Report;
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
    /// Form the cluster of the profile's first node and those that its configuration names; once
    Init {
        /// How many nodes must be there; 0: all that the configuration names
        #[arg(long, value_name = "N", default_value_t = 0)]
        nodes: u32,
        /// How many shards to begin with, up to 8; 0: 2. Any of them can be split later
        #[arg(long, value_name = "N", default_value_t = 0)]
        shards: u32,
    },
    /// End an upgrade: have the cluster use the newest format that all its nodes know. An older version cannot be put back
    /// after that. Every node must answer
    RaiseFormat,
    /// Nodes and shards: who leads, how far everyone is, whether replicas agree, and what is wrong
    Status {
        /// End with exit code 1 when something is wrong, for a cron job or a deployment that waits
        #[arg(long)]
        check: bool,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let client = ctx.client()?;
    match args.command {
        Command::Init { nodes, shards } => {
            let topology = client.admin().init(nodes, shards).await?;
            let as_json = || {
                let nodes: Vec<Value> = topology.nodes.iter().map(json::node).collect();
                json!({ "cluster": topology.cluster, "nodes": nodes })
            };
            ctx.show(as_json, || {
                let row = |node: &Node| vec![node.name.clone(), node.site.clone(), node.id.clone()];
                output::table(&["NODE", "SITE", "ID"], &[], topology.nodes.iter().map(row))
            })
        }
        Command::RaiseFormat => {
            let format = client.admin().raise_format().await?;
            ctx.show(|| json!({ "format": format }), || format!("the cluster uses format {format}"))
        }
        Command::Status { check } => {
            let report = Report::new(client.admin().status_of_all().await?);
            let findings = findings::of(&report);
            ctx.show(|| json::report(&report, &findings), || screen::report(&report, &findings))?;
            match findings.len() {
                0 => Ok(()),
                _ if !check => Ok(()),
                1 => Err(CliError::Failed("something is wrong".to_owned())),
                count => Err(CliError::Failed(format!("{count} things are wrong"))),
            }
        }
    }
}
