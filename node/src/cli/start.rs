//! `charthold start`: one node, until it is told to stop.
//!
//! Owns: the flags that override the configuration, and the order in which a process is made ready. What a node does is
//! in `crate::node`.

use std::path::PathBuf;

use super::exit::CliError;
use crate::config::{self, Config, ConfigError};
use crate::reload::ConfigSource;

#[derive(clap::Args)]
pub struct Args {
    /// The node's configuration
    #[arg(long, value_name = "FILE", env = "CHARTHOLD_CONFIG", hide_env_values = true)]
    config: PathBuf,
    /// Use another value for a key of the configuration: --set raft.heartbeat_ms=100. Lists are separated by commas
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
    /// Stop when the process that started this one ends. `charthold dev` uses it, so that no node outlives it
    #[arg(long, hide = true)]
    stop_with_parent: bool,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

pub fn run(args: Args) -> Result<(), CliError> {
    if args.stop_with_parent {
        stop_with_parent()?;
    }
    let config = Config::load(&args.config, &args.set).map_err(refused)?;
    crate::telemetry::init(config.log.format).map_err(|error| CliError::Failed(error.to_string()))?;
    for name in config::unknown_variables() {
        tracing::warn!(
            name,
            "this environment variable is no key of the configuration and is ignored: look for a spelling mistake"
        );
    }
    let source = ConfigSource { path: args.config, flags: args.set };
    super::runtime()?.block_on(crate::node::run(config, source)).map_err(ended)
}

/// The last line of a node that ended by itself.
fn ended(error: crate::node::NodeError) -> CliError {
    CliError::Failed(format!("{error} (charthold help stopped-node)"))
}

/// A mistake in a flag is wrong usage; one in the file is not the caller's line.
fn refused(error: ConfigError) -> CliError {
    match &error {
        ConfigError::UnknownKey { origin, .. } | ConfigError::Invalid { origin, .. } if origin == config::FLAG => {
            CliError::Usage(error.to_string())
        }
        _ => CliError::Failed(error.to_string()),
    }
}

/// The parent's death is then a SIGTERM to this process.
fn stop_with_parent() -> Result<(), CliError> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| CliError::Failed(format!("cannot watch the parent process: {error}")))
}
