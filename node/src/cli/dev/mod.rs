//! `charthold dev`: a whole cluster on this machine, to try things out and to develop against.
//!
//! Owns: the order of a start (files, processes, initialization, tenant, profiles, load) and what is said meanwhile.
//! What is on disk is in `folder.rs`, the processes are in `nodes.rs`. It does everything as an operator at a terminal
//! would: there is no back door into a node.

mod folder;
mod nodes;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use charthold_client::{Chart, Client, Error, Profile, RecordId, Role};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

pub(crate) use self::folder::parse_tenant;
use self::folder::{Folder, PlannedNode};
use self::nodes::{Ended, Nodes};
use super::exit::CliError;
use super::{Ctx, import, output};

/// Letters for sites, and ports that stay in one range.
const SITES_MAX: i64 = 9;
/// The highest port is the base port + 10 a site.
const BASE_PORT_MAX: i64 = 65_000;
const START_TIMEOUT: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const TENANT_NAME: &str = "dev";

#[derive(clap::Args)]
pub struct Args {
    /// Keep everything here; the same folder again resumes
    #[arg(long, value_name = "DIR", default_value = "./charthold-dev")]
    data: PathBuf,
    /// How many sites, with one node each [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=SITES_MAX))]
    sites: Option<u8>,
    /// How many of them, the last ones, have no keys: they vote and store, and cannot read [default: 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=SITES_MAX))]
    keyless: Option<u8>,
    /// The first node's client port; peers on the next, operations on the one after, other nodes 10 further
    /// [default: 7400]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=BASE_PORT_MAX))]
    base_port: Option<u16>,
    /// Import these FHIR bundles, files or folders, once the cluster is up
    #[arg(long, value_name = "PATH", num_args = 1..)]
    load: Vec<PathBuf>,
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let mut folder = Folder::open(&args.data, args.sites, args.keyless, args.base_port)?;
    folder.prepare()?;
    let mut nodes = Nodes::start(&folder)?;
    let served = serve(&mut folder, &mut nodes, &mut signals, args.load, ctx).await;
    ctx.note("stopping the nodes");
    let hurry = Box::pin(signals.next());
    let killed = nodes.stop(hurry).await;
    if !killed.is_empty() {
        ctx.note(&format!("{} did not stop in time and had to be killed", killed.join(", ")));
    }
    served
}

/// From started processes to Ctrl-C.
async fn serve(
    folder: &mut Folder,
    nodes: &mut Nodes,
    signals: &mut Signals,
    load: Vec<PathBuf>,
    ctx: &Ctx,
) -> Result<(), CliError> {
    tokio::select! {
        biased;
        () = signals.next() => return Ok(()),
        ended = nodes.next_end() => return Err(did_not_start(&ended)),
        up = bring_up(folder, ctx) => up?,
    }
    let (folder, started) = (&*folder, processes(folder, nodes));
    let finish = async {
        let loaded = match load.is_empty() {
            true => Ok(()),
            false => {
                let args = import::Args { paths: load, jobs: import::JOBS_DEFAULT };
                Box::pin(import::run(args, &ctx.with_profile(folder.client_profile()))).await
            }
        };
        if let Err(error) = &loaded {
            ctx.note(&format!("the cluster runs, but not everything was loaded: {error}"));
        }
        announce(folder, &started, ctx)?;
        loaded
    };
    tokio::pin!(finish);
    let mut finished = None;
    loop {
        tokio::select! {
            biased;
            () = signals.next() => return finished.unwrap_or(Ok(())),
            ended = nodes.next_end() => note_end(&ended, ctx),
            done = &mut finish, if finished.is_none() => finished = Some(done),
        }
    }
}

fn note_end(ended: &Ended, ctx: &Ctx) {
    let config = ended.folder.join("config.toml");
    ctx.note(&format!("node {} ended ({}). It is not started again by itself; to start it:", ended.name, ended.how()));
    ctx.note(&format!("  {} start --config {}", program(), config.display()));
}

fn did_not_start(ended: &Ended) -> CliError {
    let log = ended.folder.join("node.log");
    output::note(&ended.last_words());
    CliError::Failed(format!("node {} did not start ({}), see {}", ended.name, ended.how(), log.display()))
}

/// A cluster that is initialized, has all its leaders, a tenant, and a client that may read and write.
async fn bring_up(folder: &mut Folder, ctx: &Ctx) -> Result<(), CliError> {
    let operator = ctx.with_profile(folder.operator_profile()).client()?;
    let nodes = folder.plan.nodes();
    ctx.note(&format!("starting {} under {}", names(&nodes), folder.path().display()));
    let nodes = folder.plan.keyed_nodes();
    for node in &nodes {
        until(&format!("node {} does not answer", node.name), || answers(&operator, node)).await?;
    }
    if folder.plan.tenant.is_none() {
        let expected = u32::from(folder.plan.sites);
        match operator.admin().init(expected, 0).await {
            Ok(_) | Err(Error::AlreadyInitialized) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for node in &nodes {
        until(&format!("node {} knows no leader of some shard", node.name), || has_leaders(&operator, node)).await?;
    }
    let uid = match folder.plan.tenant.clone() {
        Some(uid) => uid,
        None => make_tenant(&operator).await?,
    };
    let principal = folder.prepare_client(&uid)?;
    if folder.plan.tenant.is_none() {
        operator.admin().add_grant(&principal, &[Role::Reader, Role::Writer]).await?;
        folder.plan.tenant = Some(uid);
        folder.save()?;
    }
    // Each gateway learns of the grant in its own time.
    for node in &nodes {
        let client = client_of(folder, node, ctx)?;
        until(&format!("the client may not read at node {}", node.name), || may_read(&client)).await?;
    }
    Ok(())
}

/// Repeats a check until it holds. An error of the check is remembered as the reason.
async fn until<F: Future<Output = Result<bool, Error>>>(
    otherwise: &str,
    mut check: impl FnMut() -> F,
) -> Result<(), CliError> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let last = check().await;
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let why = last.err().map(|error| format!(": {error}")).unwrap_or_default();
            let seconds = START_TIMEOUT.as_secs();
            return Err(CliError::Unavailable(format!("{otherwise} after {seconds} s{why}")));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Any answer will do: before the initialization there is nobody who may ask anything.
async fn answers(operator: &Client, node: &PlannedNode) -> Result<bool, Error> {
    match status_of(operator, node).await {
        Err(error @ (Error::Unavailable { .. } | Error::Unauthenticated { .. })) => Err(error),
        _ => Ok(true),
    }
}

async fn status_of(operator: &Client, node: &PlannedNode) -> Result<charthold_client::ClusterStatus, Error> {
    operator.with_deadline(Duration::from_secs(2)).admin().status_of(&node.client.to_string()).await
}

/// An operator's grant included: without it there is no answer.
async fn has_leaders(operator: &Client, node: &PlannedNode) -> Result<bool, Error> {
    let status = status_of(operator, node).await?;
    Ok(!status.shards.is_empty() && status.shards.iter().all(|shard| shard.leader_node_id.is_some()))
}

/// The service's client, for one gateway only.
fn client_of(folder: &Folder, node: &PlannedNode, ctx: &Ctx) -> Result<Client, CliError> {
    let profile = super::profile::load(&folder.client_profile())?;
    let profile = Profile { endpoints: vec![node.client.to_string()], ..profile };
    Ok(super::profile::connect(&profile)?.with_context(ctx.context.clone()))
}

async fn may_read(client: &Client) -> Result<bool, Error> {
    let read =
        client.with_deadline(Duration::from_secs(5)).get(&Chart::shared("dev"), &RecordId::new("Probe", "1")).await;
    match read {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// The one of an earlier start that was cut short, or a new one.
async fn make_tenant(operator: &Client) -> Result<String, CliError> {
    let tenants = operator.admin().list_tenants().await?;
    if let Some(tenant) = tenants.into_iter().find(|tenant| tenant.name == TENANT_NAME) {
        return Ok(tenant.uid);
    }
    Ok(operator.admin().create_tenant(TENANT_NAME).await?.uid)
}

fn names(nodes: &[PlannedNode]) -> String {
    nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The nodes with their process ids.
fn processes(folder: &Folder, nodes: &Nodes) -> Vec<(PlannedNode, Option<u32>)> {
    folder.plan.nodes().into_iter().map(|node| (node.clone(), nodes.process_id(&node.name))).collect()
}

fn announce(folder: &Folder, nodes: &[(PlannedNode, Option<u32>)], ctx: &Ctx) -> Result<(), CliError> {
    let as_json = || {
        let node = |(node, process): &(PlannedNode, Option<u32>)| {
            json!({
                "name": node.name, "site": node.site, "keyed": node.keyed,
                "client": node.keyed.then(|| node.client.to_string()),
                "peer": node.peer.to_string(), "ops": node.ops.to_string(), "process": process,
            })
        };
        json!({
            "ready": true,
            "nodes": nodes.iter().map(node).collect::<Vec<_>>(),
            "operator_profile": folder.operator_profile(),
            "client_profile": folder.client_profile(),
            "tenant": folder.plan.tenant,
        })
    };
    ctx.show(as_json, || as_text(folder, nodes))
}

fn as_text(folder: &Folder, nodes: &[(PlannedNode, Option<u32>)]) -> String {
    let row = |(node, process): &(PlannedNode, Option<u32>)| {
        let process = process.map(|id| id.to_string()).unwrap_or_default();
        let log = folder.node(node).join("node.log").display().to_string();
        let clients = if node.keyed { node.client.to_string() } else { "none: it has no keys".to_owned() };
        vec![node.name.clone(), node.site.clone(), clients, process, log]
    };
    let table = output::table(&["NODE", "SITE", "CLIENTS", "PROCESS", "LOG"], &[3], nodes.iter().map(row));
    let (program, client) = (program(), folder.client_profile().display().to_string());
    let operator = folder.operator_profile().display().to_string();
    let last = nodes.last().map(|(node, _)| folder.node(node).join("node.pid").display().to_string());
    format!(
        "{table}\n\nready; Ctrl-C stops it, the same command resumes it. Try in another terminal:\n\
         \x20 {program} --profile {operator} cluster status\n\
         \x20 echo '{{\"resourceType\":\"Observation\",\"id\":\"o1\"}}' | {program} --profile {client} record put \
         --patient p1 --type Observation --id o1\n\
         \x20 kill -9 $(cat {}); {program} --profile {client} record get --patient p1 --type Observation --id o1",
        last.unwrap_or_default()
    )
}

/// As it was called, for commands to copy.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "charthold".to_owned())
}

/// What asks us to stop.
struct Signals {
    kinds: [Signal; 3],
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let catch = |kind| signal(kind).map_err(|error| CliError::Failed(format!("catching signals: {error}")));
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(catch);
        Ok(Self { kinds: [interrupt?, terminate?, hangup?] })
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.kinds;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
