//! The workspace's own source, ready to be searched: without tests, comments and what is inside string literals.

use std::path::{Path, PathBuf};

/// One file of a crate.
pub struct Source {
    /// From the root of the workspace, with slashes.
    pub path: String,
    /// What the compiler makes the product of: tests and comments are gone, string literals are empty. Lines keep
    /// their numbers.
    pub code: String,
    /// Lines that are not tests'.
    pub lines: usize,
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Everything that is shipped: all crates but this one.
pub fn product() -> Vec<Source> {
    let folders = ["proto/src", "node/src", "node/replica/src", "client/src"];
    let sources: Vec<Source> = folders.iter().flat_map(|folder| under(folder)).collect();
    assert!(sources.len() > 80, "the source was not found: {} files", sources.len());
    sources
}

/// The files below a folder, but those that are tests as a whole.
pub fn under(folder: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    collect(&root().join(folder), &mut paths);
    paths.sort();
    let whole_tests = whole_tests(&paths);
    let shipped = paths.iter().filter(|path| !whole_tests.iter().any(|test| path.starts_with(test)));
    let sources: Vec<Source> = shipped.map(|path| read(path)).collect();
    assert!(!sources.is_empty(), "{folder} holds no source");
    sources
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// Files and folders that `#[cfg(test)] mod name;` brings in.
fn whole_tests(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut tests = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (index, _) in lines.iter().enumerate().filter(|(_, line)| **line == "#[cfg(test)]") {
            let mut following = lines[index + 1..].iter();
            let named = following.clone().find_map(|line| line.strip_prefix("#[path = \"")?.strip_suffix("\"]"));
            let item = following.find(|line| !line.starts_with("#[")).copied().unwrap_or_default();
            let is_module = item.starts_with("mod ") || item.starts_with("pub");
            let module = item.split("mod ").nth(1).and_then(|rest| rest.strip_suffix(';'));
            let Some(module) = module.filter(|_| is_module) else { continue };
            let folder = path.parent().unwrap();
            let beside = match path.file_stem().unwrap().to_str().unwrap() {
                "mod" | "lib" | "main" => folder.to_owned(),
                stem => folder.join(stem),
            };
            tests.push(beside.join(module));
            tests.push(beside.join(format!("{module}.rs")));
            tests.extend(named.filter(|_| lines[index + 1].starts_with("#[path")).map(|name| folder.join(name)));
        }
    }
    tests
}

fn read(path: &Path) -> Source {
    let text = std::fs::read_to_string(path).unwrap();
    // Comments first: what looks like an item's end may stand in a text.
    let code = without_tests(&without_comments(&text));
    let tests = code.lines().filter(|line| *line == TEST_LINE).count();
    let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    Source { path, lines: text.lines().count() - tests, code: code.replace(TEST_LINE, "") }
}

/// Stands for each line of a test, so that the others keep their numbers.
const TEST_LINE: &str = "\u{1}";

/// Cuts items that are compiled for tests only: from the attribute to the end of the item at the same indentation.
fn without_tests(text: &str) -> String {
    let mut kept = Vec::new();
    // How the item under way ends, and whether its first line is still to come: that one may be all of it.
    let mut under_way: Option<(String, bool)> = None;
    for line in text.lines() {
        if let Some((end, at_start)) = &mut under_way {
            let whole_item = *at_start && line.ends_with(';');
            *at_start &= line.trim_start().starts_with("#[");
            if line == end.as_str() || whole_item {
                under_way = None;
            }
            kept.push(TEST_LINE);
        } else if line.trim_start().starts_with("#[cfg(test)]") {
            under_way = Some((format!("{}}}", " ".repeat(indentation(line))), true));
            kept.push(TEST_LINE);
        } else {
            kept.push(line);
        }
    }
    kept.join("\n")
}

pub fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Blanks comments and the content of string and character literals; keeps line ends.
pub fn without_comments(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let (token_bytes, kept) = match bytes[at] {
            b'/' if rest.starts_with("//") => (rest.find('\n').unwrap_or(rest.len()), ""),
            b'/' if rest.starts_with("/*") => (rest.find("*/").map_or(rest.len(), |end| end + 2), ""),
            b'r' if !ends_in_word(&code) && raw_string(rest).is_some() => (raw_string(rest).unwrap(), "\"\""),
            b'"' => (string(rest), "\"\""),
            b'\'' => character(rest),
            _ => {
                let length = rest.chars().next().unwrap().len_utf8();
                code.push_str(&rest[..length]);
                at += length;
                continue;
            }
        };
        code.push_str(kept);
        code.extend(rest[..token_bytes].chars().filter(|character| *character == '\n'));
        at += token_bytes;
    }
    code
}

fn ends_in_word(code: &str) -> bool {
    code.chars().next_back().is_some_and(|last| last.is_alphanumeric() || last == '_')
}

fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
    rest[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    Some(rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()))
}

/// A character literal; or a lifetime, of which only the quote is taken.
fn character(rest: &str) -> (usize, &'static str) {
    let inside = &rest[1..];
    let close = match inside.strip_prefix('\\') {
        Some(escaped) => escaped.char_indices().skip(1).find(|(_, it)| *it == '\'').map(|(at, _)| at + 2),
        None => inside.char_indices().nth(1).filter(|(_, it)| *it == '\'').map(|(at, _)| at + 1),
    };
    close.map_or((1, "'"), |length| (length + 1, "' '"))
}

#[test]
fn reads_rust_as_the_compiler_does() {
    let check = |text: &str, expected: &str| assert_eq!(without_comments(text), expected);
    check("a // b\nc", "a \nc");
    check("a /* b\n */ c", "a \n c");
    check("f(\"// x \\\" y\") + 1", "f(\"\") + 1");
    check("r#\"a \" // b\"# c", "\"\" c");
    check("for<'a> '\"' 'x' '\\'' b", "for<'a> ' ' ' ' ' ' b");
    check("br\"unsafe\"", "br\"\"");
    let cut = |text: &str| without_tests(text).replace(TEST_LINE, "-");
    assert_eq!(cut("a\n#[cfg(test)]\nmod tests {\n    x\n}\nb"), "a\n-\n-\n-\n-\nb");
    assert_eq!(cut("#[cfg(test)]\nmod tests;\nb"), "-\n-\nb");
    assert_eq!(cut("    #[cfg(test)]\n    fn f() {\n    }\n    g"), "-\n".repeat(3) + "    g");
}
