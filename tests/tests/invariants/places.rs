//! Each library is spoken to in one place, and `apply` speaks to nobody.

use super::source::{Source, product, under};

/// Lines of code where `word` stands, unless in one of `places`.
fn strays(word: &str, places: &[&str]) -> Vec<String> {
    let outside = |source: &&Source| !places.iter().any(|place| source.path.starts_with(place));
    product().iter().filter(outside).flat_map(|source| hits(source, word)).collect()
}

fn hits(source: &Source, word: &str) -> Vec<String> {
    let lines = source.code.lines().enumerate();
    let found = lines.filter(|(_, line)| stands_in(line, word));
    found.map(|(index, line)| format!("{}:{}: {}", source.path, index + 1, line.trim())).collect()
}

/// As a word of its own at its start: `not_unsafe` is not `unsafe`.
fn stands_in(line: &str, word: &str) -> bool {
    // With the quote of a lifetime: `'static` is no `static`.
    let is_word = |character: Option<char>| character.is_some_and(|it| it.is_alphanumeric() || "_'".contains(it));
    let mut starts = line.match_indices(word).map(|(at, _)| at);
    let open_end = word.ends_with(|last: char| !last.is_alphanumeric() && last != '_');
    starts.any(|at| {
        !is_word(line[..at].chars().next_back()) && (open_end || !is_word(line[at + word.len()..].chars().next()))
    })
}

#[track_caller]
fn only_in(word: &str, places: &[&str]) {
    let strays = strays(word, places);
    assert!(strays.is_empty(), "`{word}` belongs in {places:?} only:\n{}", strays.join("\n"));
    let at_home =
        places.iter().any(|place| product().iter().any(|it| it.path.starts_with(place) && !hits(it, word).is_empty()));
    assert!(
        at_home || places.is_empty(),
        "`{word}` is not even in {places:?}: does this test still search for the right thing?"
    );
}

#[test]
fn raft_is_named_in_shard_only() {
    only_in("openraft", &["node/replica/src/shard/"]);
}

#[test]
fn rocksdb_is_named_in_store_only() {
    only_in("rocksdb", &["node/replica/src/store/"]);
}

/// Errors are made into statuses at the edge, in one match. Peers have frames of their own and need none.
#[test]
fn statuses_are_named_at_the_edge_only() {
    let names_status = |source: &Source| !hits(source, "tonic").is_empty() && !hits(source, "Status").is_empty();
    let files: Vec<String> = product().into_iter().filter(names_status).map(|source| source.path).collect();
    assert!(files.iter().any(|path| path == "node/src/gateway/error.rs"), "{files:?}");
    let edge = ["node/src/gateway/", "node/replica/src/peer/", "client/src/"];
    let strays: Vec<_> = files.iter().filter(|path| !edge.iter().any(|place| path.starts_with(place))).collect();
    assert!(strays.is_empty(), "tonic's Status belongs in {edge:?} only: {strays:?}");
}

/// A pure function of state and entry. Its batch is given to it, and it gives outcomes back.
#[test]
fn apply_names_no_clock_no_chance_no_key_and_no_disk() {
    let forbidden = [
        "Instant",
        "SystemTime",
        "UNIX_EPOCH",
        "Platform",
        "platform",
        "sleep",
        "getrandom",
        "rand",
        "random",
        "Uuid",
        "Key::generate",
        "seal",
        "Sealed",
        "Clear",
        "std::fs",
        "std::io",
        "std::net",
        "std::env",
        "std::thread",
        "std::process",
        "File",
        "async",
        "await",
        "tokio",
        "spawn",
        "rocksdb",
        "openraft",
        "HashMap",
        "HashSet",
        "thread_local",
        "static",
        "AtomicU64",
        "AtomicUsize",
        "Mutex",
        "RwLock",
        "RefCell",
    ];
    let mut sources = under("node/replica/src/shard/apply");
    sources.extend(under("node/replica/src/directory").into_iter().filter(|it| it.path.ends_with("machine.rs")));
    assert!(sources.len() >= 6);
    let found: Vec<String> =
        sources.iter().flat_map(|source| forbidden.iter().flat_map(|word| hits(source, word))).collect();
    assert!(found.is_empty(), "apply must depend on state and entry alone:\n{}", found.join("\n"));
}

#[test]
fn unsafe_is_nowhere() {
    only_in("unsafe", &[]);
}

/// What panics on a value that is merely absent is not handled.
#[test]
fn nothing_is_unwrapped() {
    for word in ["unwrap()", "unwrap_err()", "unwrap_unchecked()", "expect_err(", "todo!(", "unimplemented!(", "dbg!("]
    {
        let strays = strays(word, &[]);
        assert!(strays.is_empty(), "`{word}`:\n{}", strays.join("\n"));
    }
}

/// Nothing is printed but by the command line's own output; nothing else may write where data is read.
#[test]
fn only_output_prints() {
    for word in ["println!(", "print!(", "eprintln!(", "eprint!("] {
        let strays = strays(word, &["node/src/cli/output.rs"]);
        assert!(strays.is_empty(), "`{word}`:\n{}", strays.join("\n"));
    }
}
