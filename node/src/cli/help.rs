//! `charthold help`: about a command, an error, or a node that ended. Everything it shows is part of the program: at
//! three in the morning there may be no network.

use serde_json::json;

use super::Ctx;
use super::exit::CliError;
use crate::error_pages;

#[derive(clap::Args)]
pub struct Args {
    /// A command; or `error` and its reason, for example NO_QUORUM (without a reason: all of them); or `stopped-node`
    #[arg(value_name = "WORD")]
    words: Vec<String>,
}

pub fn run(args: Args, command: clap::Command, ctx: &Ctx) -> Result<(), CliError> {
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
        ["error"] => error_pages::INDEX.to_owned(),
        ["error", reason] => of_error(reason)?.to_owned(),
        ["stopped-node"] => error_pages::STOPPED_NODE.to_owned(),
        path => of_command(command, path)?,
    };
    ctx.show(|| json!({ "text": text }), || text.trim_end().to_owned())
}

fn of_error(reason: &str) -> Result<&'static str, CliError> {
    let unknown = || CliError::Usage(format!("no error has the reason '{reason}'; charthold help error lists them"));
    error_pages::find(reason).map(|page| page.text).ok_or_else(unknown)
}

fn of_command(mut command: clap::Command, path: &[&str]) -> Result<String, CliError> {
    command.build();
    let mut found = &mut command;
    for word in path {
        found = found.find_subcommand_mut(word).ok_or_else(|| {
            CliError::Usage(format!("no command is named '{}'; charthold help lists them", path.join(" ")))
        })?;
    }
    Ok(found.render_long_help().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::{command, examples};

    #[test]
    fn commands_and_errors_are_explained() {
        assert!(of_command(command(), &[]).unwrap().contains("Exit codes"));
        for path in examples::leaves(&command()) {
            let text = of_command(command(), &path.split(' ').collect::<Vec<_>>()).unwrap();
            assert!(text.contains("Usage: charthold") && text.contains("Examples:"), "{path}: {text}");
        }
        assert!(of_error("no-quorum").unwrap().contains("majority"));
        assert_eq!(of_error("NONSENSE").unwrap_err().exit_code(), 2);
        assert_eq!(of_command(command(), &["record", "nonsense"]).unwrap_err().exit_code(), 2);
    }
}
