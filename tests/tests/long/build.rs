//! Builds of the program that differ from the one beside the tests, by the cargo and into the target folder of this one.

use std::path::Path;
use std::process::Command;

/// Of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

pub fn cargo(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(arguments).current_dir(folder);
    command
}

/// What is beside the tests, as it was.
pub fn again() {
    let all = ["build", "--locked", "--workspace", "--all-targets"];
    assert!(cargo(root(), &all).status().unwrap().success(), "building as it was");
}
