//! Where bundles come from: files and folders, one bundle's text at a time.
//!
//! Owns: which files count, decompression, the size limit of a bundle, the line of an NDJSON file. It must not know
//! what a bundle is. `.json` holds one bundle, `.ndjson` one a line; either may end in `.zst`.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;

use crate::cli::exit::CliError;

/// Of one bundle, decompressed.
pub(super) const BUNDLE_BYTES_MAX: usize = 64 << 20;
/// How much memory a compressed file may ask its decoder for, as a power of two: zstd's own default.
const WINDOW_LOG_MAX: u32 = 27;
const FOLDER_DEPTH_MAX: usize = 64;

/// Names the place of a bundle to the person who has to mend it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Origin {
    file: Arc<Path>,
    /// From 1; `None` where the file is one bundle.
    line: Option<u64>,
}

#[cfg(test)]
impl Origin {
    pub fn new(file: &Path) -> Self {
        Self { file: file.into(), line: None }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ", line {line}"))
    }
}

/// A bundle that could not be had.
pub(super) struct Unreadable {
    pub origin: Origin,
    pub reason: String,
}

pub(super) struct Text {
    pub origin: Origin,
    pub bytes: Vec<u8>,
}

pub(super) struct Source {
    files: VecDeque<Arc<Path>>,
    open: Option<Open>,
    bar: ProgressBar,
    bundle_bytes_max: usize,
}

struct Open {
    origin: Origin,
    reader: Box<dyn BufRead + Send>,
}

impl Source {
    /// Finds the files now, so that a path that does not exist stops the import before it starts.
    pub fn find(paths: &[PathBuf], bar: ProgressBar) -> Result<Self, CliError> {
        let mut files = Vec::new();
        let mut bytes_total = 0;
        for path in paths {
            let metadata = path.metadata().map_err(|error| CliError::file(path, &error))?;
            if metadata.is_dir() {
                let before = files.len();
                find_in_folder(path, 0, &mut files, &mut bytes_total)?;
                if files.len() == before {
                    return Err(CliError::Failed(format!("{}: holds no .json or .ndjson file", path.display())));
                }
            } else if Form::of(path).is_some() {
                bytes_total += metadata.len();
                files.push(path.as_path().into());
            } else {
                let text = "neither .json nor .ndjson, nor one of these with .zst";
                return Err(CliError::Usage(format!("{}: {text}", path.display())));
            }
        }
        bar.set_length(bytes_total);
        Ok(Self { files: files.into(), open: None, bar, bundle_bytes_max: BUNDLE_BYTES_MAX })
    }

    /// The next bundle's text; after an error, what comes behind it.
    pub fn next(&mut self) -> Option<Result<Text, Unreadable>> {
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => {
                    let file = self.files.pop_front()?;
                    match Open::new(&file, &self.bar) {
                        Ok(open) => open,
                        Err(error) => return Some(Err(unreadable(Origin { file, line: None }, &error))),
                    }
                }
            };
            let found = match open.origin.line {
                None => Some(open.whole(self.bundle_bytes_max)),
                Some(_) => open.line(self.bundle_bytes_max),
            };
            let Some(found) = found else { continue };
            // A file that can't be read on is left; one whose line is too long goes on behind that line.
            let goes_on = !matches!(found, Err(Refused::Io(_)));
            let origin = open.origin.clone();
            if let (true, Some(line)) = (goes_on, &mut open.origin.line) {
                *line += 1;
                self.open = Some(open);
            }
            return match found {
                Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) && origin.line.is_some() => continue,
                Ok(bytes) => Some(Ok(Text { origin, bytes })),
                Err(Refused::Io(error)) => Some(Err(unreadable(origin, &error))),
                Err(Refused::TooLarge) => {
                    let reason = format!("a bundle of more than {} bytes", self.bundle_bytes_max);
                    Some(Err(Unreadable { origin, reason }))
                }
            };
        }
    }
}

fn unreadable(origin: Origin, error: &std::io::Error) -> Unreadable {
    let reason = match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the compressed data ends too early".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    Unreadable { origin, reason }
}

enum Refused {
    Io(std::io::Error),
    TooLarge,
}

struct Form {
    lines: bool,
    compressed: bool,
}

impl Form {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        let plain = name.strip_suffix(".zst");
        let (stem, compressed) = (plain.unwrap_or(&name), plain.is_some());
        match stem.rsplit_once('.')?.1 {
            "json" => Some(Self { lines: false, compressed }),
            "ndjson" => Some(Self { lines: true, compressed }),
            _ => None,
        }
    }
}

/// Sorted, so that two runs go the same way. Links to folders are not followed: they could lead round in a circle.
fn find_in_folder(
    folder: &Path,
    depth: usize,
    files: &mut Vec<Arc<Path>>,
    bytes_total: &mut u64,
) -> Result<(), CliError> {
    if depth > FOLDER_DEPTH_MAX {
        return Err(CliError::Failed(format!("{}: folders nested too deep", folder.display())));
    }
    let failed = |error| CliError::file(folder, &error);
    let mut entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            find_in_folder(&path, depth + 1, files, bytes_total)?;
        } else if Form::of(&path).is_some() {
            let metadata = path.metadata().map_err(|error| CliError::file(&path, &error))?;
            if metadata.is_file() {
                *bytes_total += metadata.len();
                files.push(path.into());
            }
        }
    }
    Ok(())
}

impl Open {
    fn new(file: &Arc<Path>, bar: &ProgressBar) -> std::io::Result<Self> {
        let form = Form::of(file).unwrap_or(Form { lines: false, compressed: false });
        let raw = bar.wrap_read(File::open(file)?);
        let reader: Box<dyn BufRead + Send> = if form.compressed {
            let mut decoder = zstd::stream::read::Decoder::new(raw)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Box::new(BufReader::new(decoder))
        } else {
            Box::new(BufReader::new(raw))
        };
        Ok(Self { origin: Origin { file: file.clone(), line: form.lines.then_some(1) }, reader })
    }

    fn whole(&mut self, bytes_max: usize) -> Result<Vec<u8>, Refused> {
        let mut bytes = Vec::new();
        self.reader.by_ref().take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(Refused::Io)?;
        if bytes.len() > bytes_max { Err(Refused::TooLarge) } else { Ok(bytes) }
    }

    /// `None`: the file ends.
    fn line(&mut self, bytes_max: usize) -> Option<Result<Vec<u8>, Refused>> {
        let mut bytes = Vec::new();
        let limit = bytes_max as u64 + 1;
        match self.reader.by_ref().take(limit).read_until(b'\n', &mut bytes) {
            Ok(0) => None,
            Ok(_) if bytes.len() <= bytes_max || bytes.ends_with(b"\n") => Some(Ok(bytes)),
            Ok(_) => Some(self.skip_line().map_or_else(|error| Err(Refused::Io(error)), |()| Err(Refused::TooLarge))),
            Err(error) => Some(Err(Refused::Io(error))),
        }
    }

    fn skip_line(&mut self) -> std::io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.reader.consume(used);
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn source(folder: &tempfile::TempDir, bundle_bytes_max: usize) -> Source {
        let source = Source::find(&[folder.path().to_owned()], ProgressBar::hidden()).unwrap();
        Source { bundle_bytes_max, ..source }
    }

    /// As `file line: text` or `file line: error`.
    fn describe(next: Result<Text, Unreadable>) -> String {
        let (origin, text) = match next {
            Ok(text) => (text.origin, String::from_utf8(text.bytes).unwrap().trim_end().to_owned()),
            Err(error) => (error.origin, error.reason),
        };
        let name = origin.file.file_name().unwrap().to_string_lossy().into_owned();
        format!("{name}{}: {text}", origin.line.map_or(String::new(), |line| format!(" {line}")))
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    fn zst(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 3).unwrap()
    }

    #[test]
    fn reads_files_and_lines_in_order() {
        let folder = folder(&[
            ("b.json", b"{ 1\n }"),
            ("a/x.ndjson", b"one\n\n  \ntwo\r\nthree"),
            ("c.json.zst", &zst(b"{3}")),
            ("D.NDJSON.ZST", &[zst(b"four\nfi"), zst(b"ve\n")].concat()),
            ("notes.txt", b"no"),
        ]);
        let mut source = source(&folder, 100);
        let found: Vec<String> = std::iter::from_fn(|| source.next().map(describe)).collect();
        assert_eq!(
            found,
            [
                "D.NDJSON.ZST 1: four",
                "D.NDJSON.ZST 2: five",
                "x.ndjson 1: one",
                "x.ndjson 4: two",
                "x.ndjson 5: three",
                "b.json: { 1\n }",
                "c.json.zst: {3}",
            ]
        );
    }

    #[test]
    fn a_damaged_or_oversized_bundle_does_not_stop_the_rest() {
        let long = "x".repeat(20_000);
        let folder = folder(&[
            ("a.ndjson", format!("one\n{long}\ntwo\n").as_bytes()),
            ("b.json", long.as_bytes()),
            ("d.json.zst", b"no zstd at all"),
            ("e.json", b"last"),
        ]);
        let mut source = source(&folder, 15_000);
        let mut found: Vec<String> = std::iter::from_fn(|| source.next().map(describe)).collect();
        assert!(found.remove(4).starts_with("d.json.zst: cannot be read: "));
        assert_eq!(
            found,
            [
                "a.ndjson 1: one",
                "a.ndjson 2: a bundle of more than 15000 bytes",
                "a.ndjson 3: two",
                "b.json: a bundle of more than 15000 bytes",
                "e.json: last",
            ]
        );
    }

    #[test]
    fn a_cut_compressed_file_is_named_behind_its_whole_lines() {
        let text: String =
            (0..40_000).map(|line| format!("line {}\n", line * 2_654_435_761_u64 % 4_294_967_291)).collect();
        let mut cut = zst(text.as_bytes());
        cut.truncate(cut.len() * 3 / 4);
        let folder = folder(&[("a.ndjson.zst", &cut), ("b.json.zst", &cut)]);
        let mut source = source(&folder, 10_000_000);
        let found: Vec<String> = std::iter::from_fn(|| source.next().map(describe)).collect();
        let (whole, errors): (Vec<_>, Vec<_>) = found.iter().partition(|line| line.contains(": line "));
        assert!(whole.len() > 100);
        let reason = "the compressed data ends too early";
        assert_eq!(errors, [&format!("a.ndjson.zst {}: {reason}", whole.len() + 1), &format!("b.json.zst: {reason}")]);
    }

    #[test]
    fn paths_are_judged_before_anything_is_read() {
        let folder = folder(&[("x.txt", b""), ("empty/y.txt", b"")]);
        let find = |name: &str| Source::find(&[folder.path().join(name)], ProgressBar::hidden()).err().unwrap();
        assert!(matches!(find("x.txt"), CliError::Usage(_)));
        assert!(matches!(find("absent.json"), CliError::Failed(_)));
        assert!(matches!(find("empty"), CliError::Failed(_)));
    }
}
