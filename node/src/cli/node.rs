//! `charthold node list | add | drain | remove`: the cluster's nodes. Needs an operator's profile.
//!
//! A command that begins something that takes a while waits until it is done, and says how far it is: it may be cut, and
//! what it began goes on.

use std::time::{Duration, Instant};

use charthold_client::{Client, Error};
use serde_json::{Value, json};

use super::Ctx;
use super::cluster::report::Report;
use super::cluster::{json, screen};
use super::exit::CliError;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What a node that is to be removed gets to give away what it leads. Then it is removed all the same.
const DRAIN_MAX: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// All nodes, and how they are
    List,
    /// Take a running node that belongs to no cluster yet into this one; waits until it votes in every
    /// shard that is not placed on others
    Add {
        /// Where it listens for its peers
        #[arg(value_name = "HOST:PORT")]
        peer_endpoint: String,
        /// Give up waiting after this; the node goes on catching up
        #[arg(long, value_name = "N", default_value_t = 3_600)]
        wait_seconds: u64,
    },
    /// Have a node lead nothing until it is restarted, before it is stopped; waits until it leads nothing
    Drain {
        /// As its configuration names it
        name: String,
        /// It may lead again
        #[arg(long)]
        undo: bool,
        /// Give up waiting after this
        #[arg(long, value_name = "N", default_value_t = 60)]
        wait_seconds: u64,
    },
    /// Take a node out for ever, whether it runs or not; waits until no shard counts on it
    Remove {
        /// As its configuration names it
        name: String,
        /// Give up waiting after this; the cluster goes on leaving it out
        #[arg(long, value_name = "N", default_value_t = 600)]
        wait_seconds: u64,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let client = ctx.client()?;
    match args.command {
        Command::List => {
            let report = look(&client).await?;
            ctx.show(|| as_json(&report), || screen::nodes(&report))
        }
        Command::Add { peer_endpoint, wait_seconds } => add(&client, ctx, &peer_endpoint, wait_seconds).await,
        Command::Drain { name, undo: true, .. } => Ok(client.admin().drain_node(&name, true).await?),
        Command::Drain { name, undo: false, wait_seconds } => {
            client.admin().drain_node(&name, false).await?;
            drained(&client, ctx, &name, Duration::from_secs(wait_seconds)).await
        }
        Command::Remove { name, wait_seconds } => remove(&client, ctx, &name, wait_seconds).await,
    }
}

async fn look(client: &Client) -> Result<Report, CliError> {
    Ok(Report::new(client.admin().status_of_all().await?))
}

fn as_json(report: &Report) -> Value {
    let row = |node| {
        let mut row = json::node(node);
        row["leads"] = json!(report.leads(&node.id));
        row["votes"] = json!(report.votes(&node.id));
        row
    };
    report.nodes().iter().map(row).collect()
}

async fn add(client: &Client, ctx: &Ctx, peer_endpoint: &str, wait_seconds: u64) -> Result<(), CliError> {
    let node = client.admin().add_node(peer_endpoint).await?;
    ctx.note(&format!("node {} of site {} was added; it gets its replicas", node.name, node.site));
    let done = |report: &Report| {
        let (votes, shards) = (report.votes(&node.id), report.placed(&node.id));
        let behind = report.entries_behind(&node.id);
        (votes == shards, format!("votes in {votes} of {shards} shards, {behind} entries behind"))
    };
    wait(client, ctx, Duration::from_secs(wait_seconds), done).await
}

async fn drained(client: &Client, ctx: &Ctx, name: &str, limit: Duration) -> Result<(), CliError> {
    let done = |report: &Report| {
        let node = report.nodes().iter().find(|node| node.name == name);
        let leads = node.map_or(0, |node| report.leads(&node.id));
        (leads == 0, format!("leads {leads} shards"))
    };
    wait(client, ctx, limit, done).await
}

async fn remove(client: &Client, ctx: &Ctx, name: &str, wait_seconds: u64) -> Result<(), CliError> {
    let begun = Instant::now();
    match client.admin().drain_node(name, false).await {
        Ok(()) => match drained(client, ctx, name, DRAIN_MAX).await {
            Ok(()) | Err(CliError::Failed(_)) => {}
            Err(error) => return Err(error),
        },
        Err(error @ (Error::Denied | Error::Unauthenticated { .. })) => return Err(error.into()),
        // No node is called that any more, or none ever was: the removal tells.
        Err(Error::Invalid { .. }) => {}
        Err(error) => ctx.note(&format!("it is removed without being drained: {error}")),
    }
    let id = match client.admin().remove_node(name).await {
        Ok(id) => id,
        Err(error) => {
            if matches!(error, Error::CannotChange { .. }) {
                // It stays: so it may lead again.
                client.admin().drain_node(name, true).await?;
            }
            return Err(error.into());
        }
    };
    let done = |report: &Report| {
        let counted = |shard: &u32| {
            let view = report.leader(*shard).map(|(_, view)| view);
            view.is_none_or(|view| view.voter_node_ids.contains(&id) || view.learner_node_ids.contains(&id))
        };
        let left = report.shards().iter().filter(|shard| counted(shard)).count();
        (left == 0, format!("{left} shards still count it among their replicas"))
    };
    wait(client, ctx, Duration::from_secs(wait_seconds).saturating_sub(begun.elapsed()), done).await
}

/// Looks until it is done; says how far it is whenever that has changed.
pub(super) async fn wait(
    client: &Client,
    ctx: &Ctx,
    limit: Duration,
    done: impl Fn(&Report) -> (bool, String),
) -> Result<(), CliError> {
    let (begun, mut said) = (Instant::now(), String::new());
    loop {
        let (is_done, how_far) = match look(client).await {
            Ok(report) => done(&report),
            // Leaders change meanwhile, and a gateway may be the one that goes.
            Err(error) => (false, error.to_string()),
        };
        if how_far != said {
            ctx.note(&how_far);
            said = how_far;
        }
        if is_done {
            return Ok(());
        }
        if begun.elapsed() > limit {
            return Err(CliError::Failed(format!("not done after {} s: {said}", limit.as_secs())));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
