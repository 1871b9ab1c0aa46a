//! What must have a bound has one: queues, files, functions.

use super::source::{Source, indentation, product};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

fn none(offenders: Vec<String>, rule: &str) {
    assert!(offenders.is_empty(), "{rule}:\n{}", offenders.join("\n"));
}

/// A queue without a limit is memory without a limit, and a latency that nobody sees.
#[test]
fn every_channel_is_bounded() {
    let words = [
        "unbounded_",
        "unbounded(",
        "::unbounded",
        "Unbounded",
        "std::sync::mpsc",
        "crossbeam",
        "flume",
        "async_channel",
    ];
    let found = product().into_iter().flat_map(|source| {
        let lines: Vec<String> = source.code.lines().map(str::to_owned).collect();
        let hits = lines
            .into_iter()
            .enumerate()
            .filter(|(_, line)| words.iter().any(|word| line.replace("Bound::Unbounded", "").contains(word)));
        hits.map(move |(index, line)| format!("{}:{}: {}", source.path, index + 1, line.trim())).collect::<Vec<_>>()
    });
    none(found.collect(), "a channel without a bound");
}

#[test]
fn files_are_short() {
    let long = product().into_iter().filter(|source| source.lines > FILE_LINES_MAX);
    none(
        long.map(|it| format!("{}: {} lines", it.path, it.lines)).collect(),
        "files of more than 500 lines, tests apart",
    );
}

#[test]
fn functions_are_short() {
    let long = product().into_iter().flat_map(|source| {
        functions(&source)
            .into_iter()
            .filter(|(_, _, lines)| *lines > FUNCTION_LINES_MAX)
            .map(move |(line, name, lines)| format!("{}:{line}: {name} has {lines} lines", source.path))
            .collect::<Vec<_>>()
    });
    none(long.collect(), "functions of more than 70 lines");
}

/// First line, name and lines of each function. The source is formatted, so a function ends at a brace with its own
/// indentation.
fn functions(source: &Source) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = source.code.lines().collect();
    let mut functions = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = name_of_function(line) else { continue };
        let end = format!("{}}}", " ".repeat(indentation(line)));
        let without_body = |line: &str| indentation(line) <= indentation(lines[start]) && line.ends_with(';');
        let mut following = lines[start..].iter().enumerate();
        let Some((length, last)) = following
            .find(|(_, line)| **line == end || line.ends_with('}') && line.contains("fn ") || without_body(line))
        else {
            panic!("{}:{}: where does {name} end?", source.path, start + 1)
        };
        if *last == end {
            functions.push((start + 1, name.to_owned(), length + 1));
        }
    }
    functions
}

fn name_of_function(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    for word in ["pub(super) ", "pub(crate) ", "pub ", "const ", "async "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    rest.strip_prefix("fn ")?.split(['(', '<']).next()
}

#[test]
fn functions_are_found() {
    let found: Vec<_> = product().iter().flat_map(functions).collect();
    assert!(found.len() > 500, "only {}", found.len());
    assert!(found.iter().any(|(_, name, _)| name == "abort_on_lost_durability"));
}
