//! `charthold shard list | split | plan | apply | check`: the shards and their replicas. Needs an operator's profile.
//!
//! ```text
//! mod.rs    the arguments, roots              rows.rs   what replicas' rows come to
//! plan.rs   where shards would best be        apply.rs  has them be there
//! ```

mod apply;
mod plan;
mod rows;

use std::time::{Duration, Instant};

use charthold_client::SlotRange;

use super::Ctx;
use super::cluster::report::{Agreement, Report};
use super::cluster::{json, screen};
use super::exit::CliError;

const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// For replicas that write, until they have a root at one seq.
const ROOTS_WAIT: Duration = Duration::from_secs(30);

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
    /// Give the upper half of what a shard holds to a spare one, while both serve
    Split {
        /// As `shard list` shows it
        shard: u32,
        /// How long to wait until both hold their halves
        #[arg(long, value_name = "N", default_value_t = 30)]
        wait_seconds: u64,
    },
    /// Show where shards would best be: on different sites, evenly over the nodes, with as few moves as that takes
    Plan(plan::Wish),
    /// Place shards as `shard plan` shows it, or one as you say, while they serve; waits until they are there
    Apply(apply::Args),
    /// Compare every shard's replicas, while they serve: the Merkle roots over all that they have recorded, at one seq.
    /// Ends with exit code 1 if two differ, or if some replica cannot be compared
    Check {
        /// Have every replica read all its rows, too, and compare what they come to: as long as it takes to read the disks
        #[arg(long)]
        rows: bool,
        /// How long to wait until all replicas can be compared: 30 if you say nothing; with `--rows`, until they are read
        #[arg(long, value_name = "N")]
        wait_seconds: Option<u64>,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let client = ctx.client()?;
    let look = async || Ok::<_, CliError>(Report::new(client.admin().status_of_all().await?));
    let (rows, wait) = match args.command {
        Command::Check { rows, wait_seconds } => (rows, wait_seconds.map(Duration::from_secs)),
        Command::Split { shard, wait_seconds } => {
            let planned = client.admin().split_shard(shard).await?;
            until_held(&planned, Duration::from_secs(wait_seconds), &look).await?;
            let report = look().await?;
            return ctx.show(|| json::shards(&report), || screen::shards(&report));
        }
        Command::Plan(wish) => return plan::run(&client, &wish, ctx).await,
        Command::Apply(args) => return apply::run(&client, args, ctx).await,
        Command::List => {
            let report = look().await?;
            return ctx.show(|| json::shards(&report), || screen::shards(&report));
        }
    };
    let begun = Instant::now();
    loop {
        let report = look().await?;
        let verdict = verdict(&report);
        if verdict.is_err() && begun.elapsed() < wait.unwrap_or(ROOTS_WAIT) && !differs(&report) {
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        }
        if rows && verdict.is_ok() {
            return rows::check(&client, wait, ctx).await;
        }
        ctx.show(|| json::shards(&report), || screen::shards(&report))?;
        return verdict;
    }
}

/// Waits until the leaders of all shards hold what is planned.
async fn until_held(
    planned: &[(u32, SlotRange)],
    limit: Duration,
    look: &impl AsyncFn() -> Result<Report, CliError>,
) -> Result<(), CliError> {
    let begun = Instant::now();
    loop {
        let report = look().await?;
        let holds = |(shard, slots): &&(u32, SlotRange)| {
            report.leader(*shard).is_some_and(|(_, view)| view.slots == Some(*slots))
        };
        let Some((shard, _)) = planned.iter().find(|planned| !holds(planned)) else { return Ok(()) };
        if begun.elapsed() > limit {
            let what = format!("shard {shard} does not hold its part yet: it will; charthold shard list shows it");
            return Err(CliError::Failed(what));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
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
