//! Every reason that a gateway can give stands in the .proto files, which are what a foreign client is written from.

use std::collections::BTreeSet;

use super::source::root;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// Words in capitals, as reasons are.
fn reasons_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|character: char| !character.is_ascii_uppercase() && character != '_');
    words.filter(|word| word.len() > 4).collect()
}

#[test]
fn every_reason_is_documented() {
    let source = read("node/src/gateway/error.rs");
    let given = source.lines().filter(|line| line.contains("=> (Code::"));
    let given: BTreeSet<&str> = given.filter_map(|line| line.split('"').nth(1)).collect();
    assert!(given.len() >= 15 && given.contains("OUTCOME_UNKNOWN"), "{given:?}");
    let common = read("proto/charthold/v1/common.proto");
    let documented = reasons_in(&common);
    let missing: Vec<_> = given.difference(&documented).collect();
    assert!(missing.is_empty(), "proto/charthold/v1/common.proto does not name {missing:?}");
}
