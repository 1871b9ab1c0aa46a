//! What `--help` and the manual pages show below the options: an example or two of every command, and the exit codes.
//!
//! A test parses each example as a command line, so that none of them rots, and fails for a command without one.

use clap::Command;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: it would fail again
  2  wrong usage
  3  not found
  4  a precondition did not hold: somebody was faster
  5  unavailable, or the outcome is unknown: worth trying again

An error names its reason, for example NO_QUORUM. What it means and what to do: charthold help error NO_QUORUM";

/// Of each command that does something, in the order of `charthold --help`.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "dev",
        &[
            "charthold dev",
            "charthold dev --sites 3 --keyless 1 --data /tmp/keyless",
            "charthold dev --sites 5 --data /tmp/five --load tests/fixtures/patients",
        ],
    ),
    (
        "start",
        &[
            "charthold start --config /etc/charthold/a1.toml",
            "charthold start --config a1.toml --set raft.heartbeat_ms=100",
        ],
    ),
    ("cluster init", &["charthold cluster init --profile operator.toml --nodes 3"]),
    (
        "cluster status",
        &[
            "charthold cluster status --profile operator.toml",
            "charthold cluster status --profile operator.toml --check",
        ],
    ),
    ("cluster raise-format", &["charthold cluster raise-format --profile operator.toml"]),
    ("node list", &["charthold node list --profile operator.toml"]),
    ("node add", &["charthold node add d1.example:7401 --profile operator.toml"]),
    ("node drain", &["charthold node drain a1 --profile operator.toml", "charthold node drain a1 --undo"]),
    ("node remove", &["charthold node remove d1 --profile operator.toml"]),
    ("site list", &["charthold site list --profile operator.toml"]),
    ("shard list", &["charthold shard list --profile operator.toml"]),
    ("shard split", &["charthold shard split 1 --profile operator.toml"]),
    (
        "shard plan",
        &["charthold shard plan --profile operator.toml", "charthold shard plan --replicas 3 --profile operator.toml"],
    ),
    (
        "shard apply",
        &[
            "charthold shard apply --replicas 3 --profile operator.toml",
            "charthold shard apply --leave e1 --profile operator.toml",
            "charthold shard apply --shard 2 --nodes a1,b1,c1 --profile operator.toml",
        ],
    ),
    (
        "shard check",
        &["charthold shard check --profile operator.toml", "charthold shard check --rows --profile operator.toml"],
    ),
    ("tenant create", &["charthold tenant create \"General Hospital\""]),
    ("tenant list", &["charthold tenant list --output json"]),
    ("grant add", &["charthold grant add spiffe://prod/tenant/UID/service/ehr --role reader --role writer"]),
    ("grant list", &["charthold grant list", "charthold grant list --tenant UID"]),
    ("grant remove", &["charthold grant remove spiffe://prod/tenant/UID/service/ehr"]),
    ("cert create-ca", &["charthold cert create-ca --cluster prod --out authorities"]),
    (
        "cert create-node",
        &[
            "charthold cert create-node --ca authorities --name a1 --site a --dns a1.example --out a1",
            "charthold cert create-node --ca authorities --name c1 --site c --keyless --out c1",
        ],
    ),
    (
        "cert create-client",
        &[
            "charthold cert create-client --ca authorities --operator ada --out ada",
            "charthold cert create-client --ca authorities --tenant 0123456789abcdef0123456789abcdef --service ehr --out ehr",
        ],
    ),
    (
        "cert revoke",
        &["charthold cert revoke --ca authorities --cert ehr/client.crt", "charthold cert revoke --ca authorities"],
    ),
    ("key create-root", &["charthold key create-root --out root.key"]),
    (
        "record put",
        &[
            "charthold record put --patient p1 --type Patient --id p1 --must-not-exist --file patient.json",
            "charthold record put --patient p1 --type Observation --id o1 --if-version 3 < observation.json",
        ],
    ),
    (
        "record get",
        &[
            "charthold record get --patient p1 --type Patient --id p1",
            "charthold record get --patient p1 --type Patient --id p1 --version 1 --output json",
        ],
    ),
    (
        "record list",
        &[
            "charthold record list --patient p1 --type Observation",
            "charthold record list --patient p1 --from 2015 --to 2020 --newest",
        ],
    ),
    ("record history", &["charthold record history --patient p1 --type Patient --id p1"]),
    ("record delete", &["charthold record delete --patient p1 --type Observation --id o1 --if-version 4"]),
    ("chart find", &["charthold chart find --system http://hospital.example/mrn --value 8881207"]),
    (
        "chart export",
        &[
            "charthold chart export p1 --out p1.ndjson",
            "charthold chart export Practitioner --kind shared > practitioners.ndjson",
        ],
    ),
    ("import", &["charthold import bundles/ more.ndjson.zst --jobs 8"]),
    (
        "bench",
        &[
            "charthold bench --writers 16 --readers 16 --seconds 60",
            "charthold bench --rate 500 --reads 80 --size 512,2048,65536 --seconds 60 --histogram run1.hgrm",
            "charthold bench --operator-profile operator.toml --authority authorities --output json",
        ],
    ),
    (
        "completion",
        &[
            "charthold completion bash > ~/.local/share/bash-completion/completions/charthold",
            "charthold completion zsh > ~/.zfunc/_charthold",
            "charthold completion fish > ~/.config/fish/completions/charthold.fish",
        ],
    ),
    ("man", &["charthold man --out ~/.local/share/man/man1"]),
    ("help", &["charthold help record put", "charthold help error NO_QUORUM", "charthold help stopped-node"]),
];

/// The same command, with examples below each that does something and the exit codes below the whole.
pub fn attach(command: Command) -> Command {
    attach_below(command, "").after_help(EXIT_CODES)
}

fn attach_below(command: Command, above: &str) -> Command {
    command.mut_subcommands(|below| {
        let path = joined(above, below.get_name());
        let examples = EXAMPLES.iter().find(|(of, _)| *of == path);
        let below = attach_below(below, &path);
        match examples {
            Some((_, lines)) => below.after_help(format!("Examples:\n  {}", lines.join("\n  "))),
            None => below,
        }
    })
}

fn joined(above: &str, name: &str) -> String {
    if above.is_empty() { name.to_owned() } else { format!("{above} {name}") }
}

#[cfg(test)]
pub use tests::leaves;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::command;

    /// The commands that do something, as they are typed.
    pub fn leaves(command: &Command) -> Vec<String> {
        let mut paths = Vec::new();
        collect(command, "", &mut paths);
        paths
    }

    fn collect(command: &Command, above: &str, paths: &mut Vec<String>) {
        for below in command.get_subcommands() {
            let path = joined(above, below.get_name());
            match below.has_subcommands() {
                true => collect(below, &path, paths),
                false => paths.push(path),
            }
        }
    }

    /// Words of a line as a shell has them, up to where its output or input goes, or a comment.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for character in line.chars() {
            match character {
                '"' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                '<' | '>' | '|' | '#' | ';' if !quoted => break,
                other => words.last_mut().unwrap().push(other),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn every_command_has_an_example_that_is_one() {
        let leaves = leaves(&command());
        for path in &leaves {
            let named = EXAMPLES.iter().any(|(of, lines)| of == path && !lines.is_empty());
            assert!(named, "`charthold {path}` has no example: add one to EXAMPLES in node/src/cli/examples.rs");
        }
        for (path, lines) in EXAMPLES {
            assert!(leaves.iter().any(|leaf| leaf == path), "there is no command `charthold {path}`");
            for line in *lines {
                assert!(line.starts_with(&format!("charthold {path}")), "not about {path}: {line}");
                if let Err(error) = command().try_get_matches_from(words(line)) {
                    panic!("{line}\n{error}");
                }
            }
        }
    }

    #[test]
    fn documents_show_commands_that_there_are() {
        let pages = crate::error_pages::PAGES.iter().map(|page| page.text);
        let guides = [include_str!("../../../README.md"), include_str!("../../../docs/first-patient.md")];
        let mut seen = 0;
        for line in pages.chain(guides).flat_map(str::lines) {
            let line = line.strip_prefix("$ ").unwrap_or(line);
            if !line.starts_with("charthold ") {
                continue;
            }
            seen += 1;
            let words = words(&line.replace("UID", "0123456789abcdef0123456789abcdef"));
            if let Err(error) = command().try_get_matches_from(words) {
                let shown = error.kind() == clap::error::ErrorKind::DisplayHelp;
                assert!(shown, "{line}\n{error}");
            }
        }
        assert!(seen > 20, "only {seen} commands were found");
    }

    #[test]
    fn every_command_and_option_is_explained() {
        fn check(command: &Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} is not explained");
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let explained = argument.get_help().is_some() || argument.get_long_help().is_some();
                let possible = argument.get_possible_values();
                let choices = !possible.is_empty() && possible.iter().all(|value| value.get_help().is_some());
                assert!(explained || choices, "{path}: {} is not explained", argument.get_id());
            }
            for below in command.get_subcommands() {
                check(below, &format!("{path} {}", below.get_name()));
            }
        }
        check(&command(), "charthold");
    }
}
