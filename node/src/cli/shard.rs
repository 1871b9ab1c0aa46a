//! `charthold shard list | check`: the shards and their replicas. Needs an operator's profile.

use std::time::{Duration, Instant};

use super::Ctx;
use super::cluster::report::{Agreement, Report};
use super::cluster::{json, screen};
use super::exit::CliError;

const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Each shard: who leads, who votes, how far the others are behind
    List,
    /// Compare every shard's replicas, while they serve: the Merkle roots over all that they have recorded, at one seq.
    /// Ends with exit code 1 if two differ, or if some replica cannot be compared
    Check {
        /// How long to wait until all replicas can be compared
        #[arg(long, value_name = "N", default_value_t = 30)]
        wait_seconds: u64,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let client = ctx.client()?;
    let look = async || Ok::<_, CliError>(Report::new(client.admin().status_of_all().await?));
    let Command::Check { wait_seconds } = args.command else {
        let report = look().await?;
        return ctx.show(|| json::shards(&report), || screen::shards(&report));
    };
    let (begun, limit) = (Instant::now(), Duration::from_secs(wait_seconds));
    loop {
        let report = look().await?;
        let verdict = verdict(&report);
        if verdict.is_err() && begun.elapsed() < limit && !differs(&report) {
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        }
        ctx.show(|| json::shards(&report), || screen::shards(&report))?;
        return verdict;
    }
}

fn differs(report: &Report) -> bool {
    report.shards().iter().any(|shard| matches!(report.agreement(*shard), Agreement::Differs { .. }))
}

/// Every replica of every shard has recorded the same.
fn verdict(report: &Report) -> Result<(), CliError> {
    for shard in report.shards() {
        match report.agreement(shard) {
            Agreement::Equal { .. } => {}
            Agreement::Differs { seq } => {
                let what = format!("shard {shard}: replicas differ, they have other Merkle roots at seq {seq}");
                return Err(CliError::Failed(what));
            }
            Agreement::Unknown => {
                return Err(CliError::Failed(format!("shard {shard}: no seq at which all replicas have a root")));
            }
        }
    }
    match report.nodes().iter().find(|node| report.node(&node.id).is_err()) {
        Some(node) => {
            Err(CliError::Failed(format!("node {} does not answer: its replicas were not compared", node.name)))
        }
        None => Ok(()),
    }
}
