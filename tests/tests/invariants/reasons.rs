//! The reasons that a gateway can give are one set, in five places: what it answers, what a foreign client is written
//! from, the pages, their index, and the pages that are in the program.

use std::collections::BTreeSet;

use charthold::error_pages::PAGES;

use super::source::root;

/// What a new reason needs. Printed whole, so that nobody has to look for it.
const WHAT_TO_DO: &str = "\
a reason is in five places:
  1. node/src/gateway/error.rs        GatewayError::code_and_reason: the code and the reason
  2. proto/charthold/v1/common.proto  the table on top: code, reason, details, what to do
  3. docs/errors/REASON.md            its page: copy another and answer the same questions
  4. docs/errors/README.md            its row in the index
  5. node/src/error_pages.rs          its name in PAGES, so that `charthold help error REASON` shows it
and if a caller should act on it, in charthold-client's Error and node/src/cli/exit.rs";

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

fn is_reason(word: &str) -> bool {
    word.len() > 2 && word.chars().all(|character| character.is_ascii_uppercase() || character == '_')
}

/// Code and reason of every error that a gateway makes: `Self::X => (Code::Unavailable, "NO_LEADER"),`.
fn given() -> BTreeSet<(String, String)> {
    let source = read("node/src/gateway/error.rs");
    let arms = source.lines().filter(|line| line.contains("(Code::") && line.contains("=> "));
    arms.map(|line| {
        let code = line.split("Code::").nth(1).unwrap().split(',').next().unwrap();
        (in_capitals(code), line.split('"').nth(1).unwrap().to_owned())
    })
    .collect()
}

/// `FailedPrecondition` → `FAILED_PRECONDITION`.
fn in_capitals(name: &str) -> String {
    let mut capitals = String::new();
    for character in name.chars() {
        if character.is_ascii_uppercase() && !capitals.is_empty() {
            capitals.push('_');
        }
        capitals.push(character.to_ascii_uppercase());
    }
    capitals
}

/// The table of common.proto: a code, then one or several reasons.
fn documented() -> BTreeSet<(String, String)> {
    let text = read("proto/charthold/v1/common.proto");
    let rows = text.lines().skip_while(|line| !(line.contains("code") && line.contains("reason"))).skip(1);
    let rows = rows.map(|line| line.trim_start_matches("//")).take_while(|line| line.starts_with("   "));
    let mut pairs = BTreeSet::new();
    for row in rows {
        let mut words = row.split_whitespace();
        let code = words.next().unwrap();
        for word in words {
            let reason = word.trim_end_matches(',');
            if is_reason(reason) {
                pairs.insert((code.to_owned(), reason.to_owned()));
            }
            if !word.ends_with(',') {
                break;
            }
        }
    }
    pairs
}

fn reasons(pairs: &BTreeSet<(String, String)>) -> BTreeSet<String> {
    pairs.iter().map(|(_, reason)| reason.clone()).collect()
}

#[track_caller]
fn check(where_: &str, found: &BTreeSet<String>, expected: &BTreeSet<String>) {
    let missing: Vec<_> = expected.difference(found).collect();
    let unknown: Vec<_> = found.difference(expected).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "{where_}: missing {missing:?}, and no gateway gives {unknown:?}\n\n{WHAT_TO_DO}"
    );
}

#[test]
fn every_reason_is_in_all_its_places() {
    let given = given();
    let expected = reasons(&given);
    assert!(expected.len() >= 15 && expected.contains("OUTCOME_UNKNOWN"), "{expected:?}");

    let documented = documented();
    check("proto/charthold/v1/common.proto", &reasons(&documented), &expected);
    let other_code: Vec<_> = given.difference(&documented).collect();
    assert!(other_code.is_empty(), "common.proto has another code for {other_code:?}\n\n{WHAT_TO_DO}");

    let pages = std::fs::read_dir(root().join("docs/errors")).unwrap();
    let pages = pages.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pages = pages.filter_map(|name| name.strip_suffix(".md").filter(|name| *name != "README").map(str::to_owned));
    check("docs/errors", &pages.collect(), &expected);

    let index = read("docs/errors/README.md");
    let rows = index.lines().filter_map(|line| line.strip_prefix("| [")?.split(']').next());
    check("docs/errors/README.md", &rows.map(str::to_owned).collect(), &expected);

    let in_the_program = PAGES.iter().map(|page| page.reason.to_owned()).collect();
    check("node/src/error_pages.rs", &in_the_program, &expected);
}

/// Who reads one in the middle of the night finds the same questions answered on each.
#[test]
fn every_page_answers_the_same_questions() {
    let codes = documented();
    for page in PAGES {
        let questions =
            ["**Did anything happen?**", "**What the caller does.**", "**What the operator does.**", "**Example**"];
        for question in questions {
            assert!(page.text.contains(question), "docs/errors/{}.md does not say: {question}", page.reason);
        }
        for (code, _) in codes.iter().filter(|(_, reason)| reason == page.reason) {
            let said = page.text.contains(&format!("`{code}`"));
            assert!(said, "docs/errors/{}.md does not name the code {code}", page.reason);
        }
    }
}

/// What the command line calls an error is the name of a page.
#[test]
fn the_command_line_knows_the_same_reasons() {
    let source = read("node/src/cli/exit.rs");
    let named = source.lines().filter(|line| line.contains("ClientError::") && line.contains("=> \""));
    let named: BTreeSet<&str> = named.filter_map(|line| line.split('"').nth(1)).collect();
    assert!(named.len() >= 15, "{named:?}");
    let unknown: Vec<_> = named.iter().filter(|name| !PAGES.iter().any(|page| page.reason == **name)).collect();
    assert!(unknown.is_empty(), "no page is about {unknown:?}\n\n{WHAT_TO_DO}");
}
