//! The command line: one binary, `charthold <noun> <verb>`.
//!
//! Owns: arguments, what is printed, exit codes. Each command is a file, with its `Args` and its `run`; it asks the
//! cluster through `charthold-client` like any other client, and knows nothing of the gateway's inside. Data goes to
//! stdout, everything else to stderr (`output.rs`); how a command ends is in `exit.rs`.

pub mod bench;
pub mod cert;
pub mod cert_revoke;
pub mod chart;
pub mod cluster;
pub mod completion;
pub mod dev;
mod examples;
pub mod exit;
pub mod grant;
pub mod help;
pub mod import;
pub mod key;
pub mod man;
pub mod node;
pub mod output;
pub mod profile;
pub mod record;
pub mod shard;
pub mod site;
pub mod start;
pub mod tenant;

use std::path::PathBuf;
use std::process::ExitCode;

use charthold_client::{Client, RequestContext};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use self::exit::CliError;
pub use self::output::Output;

/// A store for patient records: sealed before they are replicated, at several sites.
#[derive(Parser)]
#[command(name = "charthold", version, max_term_width = 120, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    shared: SharedArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct SharedArgs {
    /// How to reach the cluster: endpoints, certificates, tenant. `charthold dev` writes two
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CHARTHOLD_PROFILE",
        hide_env_values = true,
        help_heading = "Shared options"
    )]
    profile: Option<PathBuf>,
    /// The form of what is printed
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORM",
        env = "CHARTHOLD_OUTPUT",
        hide_env_values = true,
        help_heading = "Shared options"
    )]
    output: Output,
    /// Who acts, for the audit [default: the name you are logged in with]
    #[arg(
        long,
        global = true,
        value_name = "USER",
        env = "CHARTHOLD_ACTOR",
        hide_env_values = true,
        help_heading = "Shared options"
    )]
    actor: Option<String>,
    /// Why, for the audit: for example TREATMENT, OPERATIONS, EMERGENCY
    #[arg(
        long,
        global = true,
        value_name = "WORD",
        env = "CHARTHOLD_PURPOSE",
        hide_env_values = true,
        help_heading = "Shared options"
    )]
    purpose: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole cluster on this machine, to try things out
    Dev(dev::Args),
    /// Run one node
    Start(start::Args),
    /// Form a cluster, or see how it is
    Cluster(cluster::Args),
    /// Nodes: which there are, one more, one less, one that leads nothing
    Node(node::Args),
    /// Sites, with their nodes
    Site(site::Args),
    /// Shards: who leads and votes, and whether all replicas agree
    Shard(shard::Args),
    /// Organisations that keep records
    Tenant(tenant::Args),
    /// Who may do what
    Grant(grant::Args),
    /// Certificate authorities and certificates
    Cert(cert::Args),
    /// The root key
    Key(key::Args),
    /// Single records
    Record(record::Args),
    /// Whole charts
    Chart(chart::Args),
    /// Read FHIR bundles into charts: .json, .ndjson, also .zst, files or folders
    Import(import::Args),
    /// Put load on a running cluster and measure it
    Bench(bench::Args),
    /// Make the script that completes commands in a shell
    Completion(completion::Args),
    /// Write the manual pages
    Man(man::Args),
    /// Explain a command, an error, or why a node ended
    Help(help::Args),
}

/// The whole command line, with its examples.
fn command() -> clap::Command {
    examples::attach(Cli::command())
}

/// What every command is given.
#[derive(Clone)]
pub struct Ctx {
    pub output: Output,
    pub profile: Option<PathBuf>,
    /// Progress bars are wanted: somebody watches.
    pub progress: bool,
    /// Sent with every request.
    pub context: RequestContext,
}

impl Ctx {
    /// Connects as the profile says.
    pub fn client(&self) -> Result<Client, CliError> {
        Ok(profile::connect(&self.profile()?)?.with_context(self.context.clone()))
    }

    /// The profile that was named.
    pub fn profile(&self) -> Result<charthold_client::Profile, CliError> {
        let path = self.profile.as_deref().ok_or_else(|| {
            CliError::Usage("which cluster? Name a profile with --profile FILE or CHARTHOLD_PROFILE".to_owned())
        })?;
        profile::load(path)
    }

    /// The same for another profile.
    pub fn with_profile(&self, profile: PathBuf) -> Self {
        Self { profile: Some(profile), ..self.clone() }
    }

    /// Data: one answer, as the form that was asked for.
    pub fn show(
        &self,
        json: impl FnOnce() -> serde_json::Value,
        table: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        output::show(self.output, json, table)
    }

    /// Data, byte for byte.
    pub fn write(&self, bytes: &[u8]) -> Result<(), CliError> {
        output::write(bytes)
    }

    /// A line for the person who waits.
    pub fn note(&self, text: &str) {
        output::note(text);
    }
}

/// The whole program: reads the arguments, runs the command, says how it ended.
pub fn main() -> ExitCode {
    // Records and keys are in this process's memory; a core file would put them on a disk.
    forbid_core_dumps();
    let parsed = command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        // Clap's own code for wrong usage is 2 as well; help and version end with 0.
        Err(error) => error.exit(),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, CliError::OutputClosed) {
                output::error(&exit::last_line(&error));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), CliError> {
    check_processor()?;
    let ctx = Ctx {
        output: cli.shared.output,
        profile: cli.shared.profile,
        progress: output::progress_wanted(),
        context: context(cli.shared.actor, cli.shared.purpose),
    };
    let command = match cli.command {
        // A node sets up its log as its configuration says.
        Command::Start(args) => return start::run(args),
        other => other,
    };
    crate::telemetry::init_command().map_err(|error| CliError::Usage(error.to_string()))?;
    let runtime = runtime()?;
    let done = runtime.block_on(dispatch(command, &ctx));
    // A thread that waits for stdin would hold up the end of the program.
    runtime.shutdown_background();
    done
}

async fn dispatch(command: Command, ctx: &Ctx) -> Result<(), CliError> {
    match command {
        Command::Dev(args) => Box::pin(dev::run(args, ctx)).await,
        Command::Start(args) => start::run(args),
        Command::Cluster(args) => Box::pin(cluster::run(args, ctx)).await,
        Command::Tenant(args) => Box::pin(tenant::run(args, ctx)).await,
        Command::Node(args) => Box::pin(node::run(args, ctx)).await,
        Command::Site(args) => Box::pin(site::run(args, ctx)).await,
        Command::Shard(args) => Box::pin(shard::run(args, ctx)).await,
        Command::Grant(args) => Box::pin(grant::run(args, ctx)).await,
        Command::Cert(args) => cert::run(args, ctx).await,
        Command::Key(args) => key::run(args, ctx).await,
        Command::Record(args) => Box::pin(record::run(args, ctx)).await,
        Command::Chart(args) => Box::pin(chart::run(args, ctx)).await,
        Command::Import(args) => Box::pin(import::run(args, ctx)).await,
        Command::Bench(args) => Box::pin(bench::run(args, ctx)).await,
        Command::Completion(args) => completion::run(args, self::command(), ctx),
        Command::Man(args) => man::run(args, self::command(), ctx),
        Command::Help(args) => help::run(args, self::command(), ctx),
    }
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Failed(format!("cannot start threads: {error}")))
}

fn context(actor: Option<String>, purpose: Option<String>) -> RequestContext {
    let logged_in = || std::env::var("USER").ok().filter(|user| !user.is_empty());
    RequestContext {
        purpose_of_use: purpose.unwrap_or_default(),
        origin: "charthold command line".to_owned(),
        ..RequestContext::new(actor.or_else(logged_in).unwrap_or_else(|| "unknown".to_owned()))
    }
}

/// What RocksDB was compiled to use (`.cargo/config.toml`). Without it a node would die of a signal in its first write.
fn check_processor() -> Result<(), CliError> {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("sse4.2") || !std::arch::is_x86_feature_detected!("pclmulqdq") {
        let needed = "this processor has no SSE 4.2 or no PCLMULQDQ: it must be an x86-64 of 2010 or later, and a virtual \
                      machine must be shown both";
        return Err(CliError::Failed(needed.to_owned()));
    }
    Ok(())
}

/// Both are needed: the limit does not hold where the kernel pipes cores to a program, and only the second keeps other
/// processes of the same user from reading this one's memory.
fn forbid_core_dumps() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // A sandbox may forbid either; no reason not to run.
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn wrong_usage_ends_with_2() {
        let wrong: [&[&str]; 10] = [
            &[],
            &["nonsense"],
            &["start"],
            &["record", "get", "--type", "Patient", "--id", "1"],
            &["record", "get", "--patient", "1", "--shared", "Practitioner", "--type", "Patient", "--id", "1"],
            &["record", "put", "--patient", "1", "--type", "T", "--id", "1", "--must-not-exist", "--if-version", "2"],
            &["record", "put", "--patient", "1", "--type", "T", "--id", "1", "--if-version", "0"],
            &["grant", "add", "spiffe://c/operator/o"],
            &["cluster", "status", "--output", "xml"],
            &["dev", "--sites", "0"],
        ];
        for arguments in wrong {
            let error = Cli::try_parse_from(std::iter::once("charthold").chain(arguments.iter().copied())).err();
            assert_eq!(error.map(|error| error.exit_code()), Some(2), "{arguments:?}");
        }
    }

    #[test]
    fn a_command_without_a_profile_is_wrong_usage() {
        let ctx = Ctx { output: Output::Table, profile: None, progress: false, context: RequestContext::default() };
        assert_eq!(ctx.profile().err().unwrap().exit_code(), 2);
    }
}
