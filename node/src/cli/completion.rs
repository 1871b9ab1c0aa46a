//! `charthold completion bash | zsh | fish`: the script that completes commands and options in a shell.

use super::Ctx;
use super::exit::CliError;

#[derive(clap::Args)]
pub struct Args {
    /// The shell that the script is for
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl From<Shell> for clap_complete::Shell {
    fn from(shell: Shell) -> Self {
        match shell {
            Shell::Bash => Self::Bash,
            Shell::Zsh => Self::Zsh,
            Shell::Fish => Self::Fish,
        }
    }
}

pub fn run(args: Args, command: clap::Command, ctx: &Ctx) -> Result<(), CliError> {
    ctx.write(&script(args.shell, command))
}

fn script(shell: Shell, mut command: clap::Command) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(clap_complete::Shell::from(shell), &mut command, "charthold", &mut script);
    script
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::ValueEnum as _;

    use super::*;
    use crate::cli::{command, examples};

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell, command())).unwrap();
            for path in examples::leaves(&command()) {
                let word = path.split(' ').next_back().unwrap();
                assert!(script.contains(word), "{shell:?} knows no {path}");
            }
            assert!(script.contains("if-version"), "{shell:?} knows no options");
        }
    }
}
