//! `charthold cert revoke`: writes an authority's revocation lists. Works on files only, like all of `cert`.

use std::path::PathBuf;

use serde_json::json;

use super::Ctx;
use super::exit::CliError;
use crate::tls::Authority;
use crate::tls::revocation::LIST_VALID_DAYS;

#[derive(clap::Args)]
pub struct Args {
    /// The folder of the authorities, where the lists are kept
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// A certificate that counts no more; may be repeated. Without any, the lists are made or renewed
    #[arg(long, value_name = "FILE")]
    cert: Vec<PathBuf>,
}

pub fn run(args: &Args, ctx: &Ctx) -> Result<(), CliError> {
    let lists = Authority::load(&args.ca)?.revoke(&args.ca, &args.cert)?;
    let paths: Vec<String> = lists.iter().map(|path| path.display().to_string()).collect();
    ctx.note(&format!(
        "Copy them to every node, to where `crl` in its [tls] says. Renew them within {LIST_VALID_DAYS} days: \
         `charthold cert revoke --ca {}`",
        args.ca.display()
    ));
    ctx.show(|| json!({ "files": paths }), || paths.join("\n"))
}
