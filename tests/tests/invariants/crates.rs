//! What is below the wall links neither a cipher nor anything from above it.

use std::collections::BTreeSet;
use std::process::Command;

use super::source::root;

/// All that the replica crate may name. A new line here is a decision: could it open an envelope?
const REPLICA_MAY_NAME: [&str; 17] = [
    "bytes",
    "charthold-proto",
    "crc32c",
    "futures",
    "getrandom",
    "openraft",
    "parking_lot",
    // Counters and their text form; neither a cipher nor a socket.
    "prometheus-client",
    "prost",
    // A trait, no generator.
    "rand_core",
    "rocksdb",
    "rustix",
    "sha2",
    "thiserror",
    "tokio",
    "tokio-stream",
    "tracing",
];

/// Parts of names of crates that encrypt, agree on keys, or speak to clients.
const NOT_BELOW: [&str; 22] = [
    "aead",
    "aes",
    "aws-lc",
    "boring",
    "chacha",
    "cipher",
    "ctr",
    "ghash",
    "gcm",
    "hkdf",
    "hmac",
    "hyper",
    "native-tls",
    "openssl",
    "poly1305",
    "rcgen",
    "ring",
    "rustls",
    "salsa",
    "sodium",
    "tonic",
    "x25519",
];

fn manifest(folder: &str) -> toml::Table {
    std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap().parse().unwrap()
}

#[test]
fn the_replica_names_no_cipher_and_nothing_from_above() {
    let manifest = manifest("node/replica");
    let named: BTreeSet<&str> = manifest["dependencies"].as_table().unwrap().keys().map(String::as_str).collect();
    assert_eq!(named, BTreeSet::from(REPLICA_MAY_NAME), "node/replica/Cargo.toml");
    let features = manifest["features"].as_table().unwrap();
    let empty = features.values().all(|brings_in| brings_in.as_array().is_some_and(Vec::is_empty));
    assert!(empty, "a feature of node/replica/Cargo.toml brings in a crate: {features:?}");
    for table in ["build-dependencies", "target"] {
        assert!(!manifest.contains_key(table), "node/replica/Cargo.toml has [{table}], which this test does not read");
    }
    let proto = &manifest["dependencies"]["charthold-proto"];
    assert_eq!(proto["features"].as_array().unwrap().as_slice(), [toml::Value::from("internal")]);
    let tests = manifest["dev-dependencies"].as_table().unwrap();
    assert!(tests.keys().all(|name| !name.starts_with("charthold")), "tests reach above the wall too: {tests:?}");
}

/// Bugs on purpose are in a program only if its build asks for them by name.
#[test]
fn nothing_plants_bugs_unasked() {
    let names_them = |value: &toml::Value| value.to_string().contains("planted-bugs");
    for folder in ["", "proto", "client", "tests", "node", "node/replica"] {
        let manifest = manifest(folder);
        let named = manifest.iter().filter(|(table, value)| *table != "features" && names_them(value));
        assert_eq!(named.count(), 0, "{folder}/Cargo.toml");
        let features = manifest.get("features").and_then(toml::Value::as_table).into_iter().flatten();
        let mut by_others = features.filter(|(name, brings_in)| *name != "planted-bugs" && names_them(brings_in));
        assert_eq!(by_others.next(), None, "{folder}/Cargo.toml");
    }
}

/// Not even by way of somebody else.
#[test]
fn the_replica_links_no_cipher() {
    let below = linked("charthold-replica");
    assert!(below.contains("openraft") && below.contains("rocksdb"), "cargo tree says {below:?}");
    let ciphers: Vec<_> = below.iter().filter(|name| NOT_BELOW.iter().any(|part| is_or_has(name, part))).collect();
    assert!(ciphers.is_empty(), "charthold-replica links {ciphers:?}");
    assert!(!below.contains("charthold") && !below.contains("charthold-client"));
    let above = linked("charthold");
    assert!(above.contains("aes-gcm") && above.contains("rustls"), "the search finds nothing at all: {above:?}");
}

/// `ring` is not in `tracing-strings`.
fn is_or_has(name: &str, part: &str) -> bool {
    name.split(['-', '_']).any(|word| word == part) || (part.contains('-') && name.starts_with(part))
}

fn linked(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--package", package, "--edges", "normal"])
        .args(["--prefix", "none", "--format", "{lib}|{p}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| Some(line.split_once('|')?.1.split(' ').next()?.to_owned())).collect()
}

/// What an EHR service embeds has no server, no storage, no cipher of its own.
#[test]
fn the_client_stays_small() {
    let named = linked("charthold-client");
    for unwanted in ["charthold", "charthold-replica", "openraft", "rocksdb", "aes-gcm", "clap"] {
        assert!(!named.contains(unwanted), "charthold-client links {unwanted}");
    }
}
