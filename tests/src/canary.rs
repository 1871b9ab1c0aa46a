//! Looks for what no file and no log line may hold: texts of patients, in the forms in which bytes usually leak.
//!
//! A text is looked for as it is, as UTF-16, in hexadecimal digits, in base64 (at each of its three alignments) and as
//! the lists and escapes that Rust's `Debug` makes of bytes. Of a long text three windows are enough: its begin, its
//! middle, its end.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use serde_json::Value;

/// Anything shorter occurs by chance in a few hundred megabytes of ciphertext.
const SECRET_BYTES_MIN: usize = 5;
/// Of any text: shorter ones are words that a program may say for another reason.
const TEXT_BYTES_MIN: usize = 12;
const WINDOW_BYTES: usize = 16;

/// Texts that must not be found.
#[derive(Default)]
pub struct Texts(BTreeSet<Vec<u8>>);

impl Texts {
    /// A name, an identifier, an id: worth a search even if it is short.
    pub fn secret(&mut self, text: &str) {
        if text.len() >= SECRET_BYTES_MIN {
            self.windows(text.as_bytes());
        }
        if let Ok(id) = uuid::Uuid::parse_str(text) {
            self.0.insert(id.as_bytes().to_vec());
            self.windows(id.simple().to_string().as_bytes());
        }
    }

    /// Any text of a record.
    pub fn text(&mut self, text: &str) {
        if text.len() >= TEXT_BYTES_MIN {
            self.windows(text.as_bytes());
        }
    }

    /// Every text in a resource, and more closely its id, names, identifiers, addresses and telephone numbers.
    pub fn resource(&mut self, body: &[u8]) {
        let resource: Value = serde_json::from_slice(body).expect("a resource");
        self.secret(resource["id"].as_str().expect("its id"));
        if resource["resourceType"] == "Patient" {
            for part in ["name", "identifier", "telecom", "address"] {
                for element in resource[part].as_array().into_iter().flatten() {
                    // Systems and codes are everybody's.
                    let own = ["family", "given", "text", "value", "line"].map(|member| &element[member]);
                    own.into_iter().for_each(|value| each_text(value, &mut |text| self.secret(text)));
                }
            }
        }
        each_text(&resource, &mut |text| self.text(text));
    }

    fn windows(&mut self, text: &[u8]) {
        let last = text.len().saturating_sub(WINDOW_BYTES);
        for start in [0, last / 2, last] {
            self.0.insert(text[start..text.len().min(start + WINDOW_BYTES)].to_vec());
        }
    }
}

fn each_text(value: &Value, each: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => each(text),
        Value::Array(items) => items.iter().for_each(|item| each_text(item, each)),
        Value::Object(members) => members.values().for_each(|member| each_text(member, each)),
        _ => {}
    }
}

/// Finds texts in files.
pub struct Scan {
    automaton: AhoCorasick,
    /// What each pattern stands for.
    patterns: Vec<(Form, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    Plain,
    Utf16Little,
    Utf16Big,
    HexLower,
    HexUpper,
    Base64,
    /// `[74, 111, 115]`
    List,
    /// `Ad\xc3\xa1n`
    Escaped,
}

impl Scan {
    pub fn new(texts: &Texts) -> Self {
        let mut forms: HashMap<Vec<u8>, (Form, Vec<u8>)> = HashMap::new();
        for text in &texts.0 {
            for (form, bytes) in forms_of(text) {
                forms.entry(bytes).or_insert((form, text.clone()));
            }
        }
        let (needles, patterns): (Vec<_>, Vec<_>) = forms.into_iter().unzip();
        Self { automaton: AhoCorasick::new(&needles).expect("the automaton"), patterns }
    }

    pub fn patterns(&self) -> usize {
        self.patterns.len()
    }

    /// What is found, each text and form once, in words.
    pub fn bytes(&self, bytes: &[u8]) -> Vec<(Form, String)> {
        let found: BTreeSet<usize> =
            self.automaton.find_overlapping_iter(bytes).map(|hit| hit.pattern().as_usize()).collect();
        let name = |pattern: usize| {
            let (form, text) = &self.patterns[pattern];
            (*form, String::from_utf8_lossy(text).into_owned())
        };
        found.into_iter().map(name).collect()
    }

    /// One line for each text found in a file, and how many bytes were read.
    pub fn files(&self, files: &[PathBuf]) -> (Vec<String>, u64) {
        let (mut lines, mut read) = (Vec::new(), 0);
        for file in files {
            let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            read += bytes.len() as u64;
            let found = self.bytes(&bytes).into_iter();
            lines.extend(found.map(|(form, text)| format!("{}: {text:?} as {form:?}", file.display())));
        }
        (lines, read)
    }
}

/// Every file below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry of a folder").path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

/// A text as a leak might write it.
pub fn forms_of(text: &[u8]) -> Vec<(Form, Vec<u8>)> {
    let list: Vec<String> = text.iter().map(u8::to_string).collect();
    let mut forms = vec![
        (Form::Plain, text.to_vec()),
        (Form::HexLower, hex::encode(text).into_bytes()),
        (Form::HexUpper, hex::encode_upper(text).into_bytes()),
        (Form::List, list.join(", ").into_bytes()),
    ];
    if let Ok(text) = std::str::from_utf8(text) {
        let units = || text.encode_utf16();
        forms.push((Form::Utf16Little, units().flat_map(u16::to_le_bytes).collect()));
        forms.push((Form::Utf16Big, units().flat_map(u16::to_be_bytes).collect()));
    }
    if !text.is_ascii() {
        forms.push((Form::Escaped, text.escape_ascii().to_string().into_bytes()));
    }
    for skip in 0..3 {
        // Whole groups only: the bits of a part of one depend on what follows.
        let groups = text.get(skip..).unwrap_or_default();
        let groups = &groups[..groups.len() / 3 * 3];
        if groups.len() >= 6 {
            forms.push((Form::Base64, BASE64.encode(groups).into_bytes()));
        }
    }
    forms
}
