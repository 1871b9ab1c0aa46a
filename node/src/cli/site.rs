//! `charthold site list`: the sites, with their nodes. Needs an operator's profile.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Ctx;
use super::cluster::report::Report;
use super::cluster::screen;
use super::exit::CliError;

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Each site: its nodes, how many of them answer, how many shards they lead
    List,
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let Command::List = args.command;
    let report = Report::new(ctx.client()?.admin().status_of_all().await?);
    ctx.show(|| as_json(&report), || screen::sites(&report))
}

fn as_json(report: &Report) -> Value {
    let mut sites = BTreeMap::<&str, Vec<Value>>::new();
    for node in report.nodes() {
        let (up, leads) = (report.node(&node.id).is_ok(), report.leads(&node.id));
        let row = json!({ "node": node.name, "keyed": node.keyed, "up": up, "leads": leads });
        sites.entry(&node.site).or_default().push(row);
    }
    sites.into_iter().map(|(site, nodes)| json!({ "site": site, "nodes": nodes })).collect()
}
