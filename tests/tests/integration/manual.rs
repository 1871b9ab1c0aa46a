//! What the program says about itself, without a cluster: completion, manual pages, what errors mean.

use std::process::{Command, Stdio};

use charthold_tests::harness::{Finished, command};

fn run(arguments: &[&str]) -> Finished {
    Finished::new(command(arguments).output().unwrap())
}

/// As a shell takes it: a script with a mistake in it is none.
#[test]
fn completion_is_a_script() {
    for (shell, check) in [("bash", "bash -n"), ("zsh", "zsh -n"), ("fish", "fish -n")] {
        let script = run(&["completion", shell]).ok();
        assert!(script.stdout.len() > 1_000 && script.stderr.is_empty(), "{shell}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("charthold");
        std::fs::write(&file, &script.stdout).unwrap();
        let (program, option) = check.split_once(' ').unwrap();
        // A shell that is not installed checks nothing.
        if let Ok(checked) = Command::new(program).arg(option).arg(&file).stdin(Stdio::null()).output() {
            assert!(checked.status.success(), "{shell}: {}", String::from_utf8_lossy(&checked.stderr));
        }
    }
    assert_eq!(run(&["completion", "cmd"]).code, 2);
}

#[test]
fn manual_pages_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    let written = run(&["man", "--out", out.to_str().unwrap()]).ok();
    let files: Vec<&str> = written.text().lines().collect();
    assert!(files.len() > 20 && files.iter().all(|file| std::path::Path::new(file).exists()), "{files:?}");
    let page = std::fs::read_to_string(out.join("charthold-record-put.1")).unwrap();
    assert!(page.contains("if\\-version") && page.contains("charthold record put \\-\\-patient p1"), "{page}");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = run(&["man", "--out", file.to_str().unwrap()]);
    assert_eq!((refused.code, refused.stderr.contains("file")), (1, true), "{refused:?}");
}

#[test]
fn errors_are_explained_without_a_network() {
    let page = run(&["help", "error", "no-quorum"]).ok();
    assert!(page.text().starts_with("# NO_QUORUM") && page.text().contains("What the operator does"), "{page:?}");
    assert!(run(&["help", "error"]).ok().text().contains("OUTCOME_UNKNOWN"));
    assert!(run(&["help", "stopped-node"]).ok().text().contains("durability is lost"));
    assert!(run(&["help", "record", "put"]).ok().text().contains("--if-version"));
    assert_eq!(run(&["help", "error", "NONSENSE"]).code, 2);
    assert_eq!(run(&["help", "nonsense"]).code, 2);
}

#[test]
fn help_tells_the_exit_codes() {
    let help = run(&["--help"]).ok();
    for line in ["0  done", "2  wrong usage", "3  not found", "4  a precondition", "5  unavailable"] {
        assert!(help.text().contains(line), "{line}: {}", help.text());
    }
    assert!(run(&["bench", "--help"]).ok().text().contains("Examples:"));
}
