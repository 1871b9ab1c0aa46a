//! `charthold man`: manual pages, one for each command, as packages and administrators install them.

use std::path::PathBuf;

use serde_json::json;

use super::Ctx;
use super::exit::CliError;

#[derive(clap::Args)]
pub struct Args {
    /// The folder for the pages; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: Args, command: clap::Command, ctx: &Ctx) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::file(&args.out, &error);
    std::fs::create_dir_all(&args.out).map_err(failed)?;
    let pages = pages(command).map_err(failed)?;
    for (name, page) in &pages {
        let path = args.out.join(name);
        std::fs::write(&path, page).map_err(|error| CliError::file(&path, &error))?;
    }
    let paths: Vec<String> = pages.iter().map(|(name, _)| args.out.join(name).display().to_string()).collect();
    ctx.show(|| json!({ "files": paths }), || paths.join("\n"))
}

/// File names and what is in them: the program's page, then each command's.
fn pages(command: clap::Command) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = without_help_commands(command);
    command.build();
    let mut pages = Vec::new();
    render(command, &mut pages)?;
    Ok(pages)
}

fn render(command: clap::Command, pages: &mut Vec<(String, Vec<u8>)>) -> std::io::Result<()> {
    let below: Vec<clap::Command> = command.get_subcommands().filter(|it| !it.is_hide_set()).cloned().collect();
    let source = concat!("charthold ", env!("CARGO_PKG_VERSION"));
    let page = clap_mangen::Man::new(command).source(source).manual("Charthold");
    let mut text = Vec::new();
    page.render(&mut text)?;
    pages.push((page.get_filename(), text));
    below.into_iter().try_for_each(|command| render(command, pages))
}

/// `charthold record help` needs no page beside `charthold record`.
fn without_help_commands(command: clap::Command) -> clap::Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help_commands)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::{command, examples};

    #[test]
    fn every_command_has_its_page() {
        let pages = pages(command()).unwrap();
        let named = |name: &str| {
            let page = pages.iter().find(|(file, _)| file == &format!("{name}.1"));
            String::from_utf8(page.unwrap_or_else(|| panic!("no page {name}")).1.clone()).unwrap()
        };
        let whole = named("charthold");
        assert!(whole.contains("Exit codes") && whole.contains("CHARTHOLD_PROFILE"), "{whole}");
        for path in examples::leaves(&command()) {
            let page = named(&format!("charthold-{}", path.replace(' ', "-")));
            assert!(page.contains(".SH DESCRIPTION") && page.contains("Examples"), "{path}: {page}");
        }
        assert!(!pages.iter().any(|(file, _)| file.ends_with("-help.1") && file != "charthold-help.1"));
    }

    #[test]
    fn pages_are_files() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("man1");
        let context = charthold_client::RequestContext::default();
        let ctx = Ctx { output: crate::cli::Output::Json, profile: None, progress: false, context };
        run(Args { out: out.clone() }, command(), &ctx).unwrap();
        let page = std::fs::read_to_string(out.join("charthold-record-put.1")).unwrap();
        assert!(page.contains(".TH charthold-record-put 1"), "{page}");
    }
}
