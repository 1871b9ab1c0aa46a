//! `charthold key create-root`: the key that wraps all others.

use std::path::PathBuf;

use serde_json::json;

use super::Ctx;
use super::exit::CliError;
use crate::seal::create_root_key_file;

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a root key. All keyed nodes of a cluster share it; whoever loses it loses every record
    CreateRoot {
        /// Must not exist yet; outside every data directory
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let Command::CreateRoot { out } = args.command;
    create_root_key_file(&out).map_err(|error| CliError::Failed(error.to_string()))?;
    ctx.note("Without this file no record of the cluster can be read: keep a copy where the data is not.");
    ctx.show(|| json!({ "files": [&out] }), || out.display().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use charthold_client::RequestContext;

    use super::*;
    use crate::cli::Output;

    #[tokio::test]
    async fn a_root_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("root.key");
        let ctx = Ctx { output: Output::Json, profile: None, progress: false, context: RequestContext::default() };
        let create = || run(Args { command: Command::CreateRoot { out: out.clone() } }, &ctx);
        create().await.unwrap();
        let key = std::fs::read(&out).unwrap();
        assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o177, 0);
        assert_eq!(create().await.unwrap_err().exit_code(), 1);
        assert_eq!(std::fs::read(&out).unwrap(), key);
    }
}
