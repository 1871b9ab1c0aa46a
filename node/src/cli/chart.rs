//! `charthold chart export | find`: all records of a chart, as of one position, as NDJSON; charts by an identifier.
//!
//! Owns: the form of a line, and that a file is there whole or not at all. A record whose body is JSON is that body,
//! its tokens unchanged, on one line; any other is `{"content_type":…,"base64":…}`. Documents come last, each in the
//! version that the rest is as of; they are written as they come, and a JSON one that is too large to be held is written
//! like one that is not JSON.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use charthold_client::{Chart, ChartKind, Client, FindQuery, Header, Match};
use serde_json::json;

use super::exit::CliError;
use super::import::grouped;
use super::record::AsOfArgs;
use super::{Ctx, output};
use crate::fhir::minify;

/// Of the whole stream; also how long a cluster that does not answer is waited for.
const DEADLINE: Duration = Duration::from_secs(60);
/// Lines are gathered up to this size before they are written.
const BUFFER_BYTES: usize = 256 << 10;
/// A JSON document up to this size is one line like any other record.
const JSON_DOCUMENT_BYTES_MAX: u64 = 16 << 20;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Write all records of a chart, one a line
    Export(ExportArgs),
    /// The charts with a record that can be found by an identifier
    Find(FindArgs),
}

#[derive(clap::Args)]
struct FindArgs {
    /// Whose numbers these are, for example `https://hospital.example/mrn`
    #[arg(long)]
    system: String,
    /// The number, as it was put
    #[arg(long)]
    value: String,
    /// Only records of this type
    #[arg(long = "type", value_name = "TYPE")]
    type_: Option<String>,
    /// Only charts of this kind
    #[arg(long, value_enum)]
    kind: Option<Kind>,
}

#[derive(clap::Args)]
struct ExportArgs {
    /// The patient's id, or with `--kind shared` the chart's name
    #[arg(value_name = "PATIENT")]
    chart: String,
    /// A patient's chart, or one that patients share
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// Write to this file (readable by you only) instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    as_of: AsOfArgs,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Kind {
    #[default]
    Patient,
    /// A chart that patients share, for example Practitioner
    Shared,
}

// An identifier names a patient.
impl std::fmt::Debug for FindArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FindArgs").finish_non_exhaustive()
    }
}

// The id names a patient.
impl std::fmt::Debug for ExportArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExportArgs").field("kind", &self.kind).finish_non_exhaustive()
    }
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    match args.command {
        Command::Export(args) => run_export(args, ctx).await,
        Command::Find(args) => find(args, ctx).await,
    }
}

async fn find(args: FindArgs, ctx: &Ctx) -> Result<(), CliError> {
    let chart_kind = args.kind.map(|kind| match kind {
        Kind::Patient => ChartKind::Patient,
        Kind::Shared => ChartKind::Shared,
    });
    let query = FindQuery { chart_kind, type_: args.type_, ..FindQuery::new(args.system, args.value) };
    let found = ctx.client()?.find_charts(query).all().await?;
    let kind = |found: &Match| match found.chart.kind() {
        ChartKind::Patient => "patient",
        ChartKind::Shared => "shared",
    };
    let as_json = |found: &Match| {
        json!({
            "kind": kind(found),
            "chart": found.chart.id(),
            "type": found.record.type_,
            "id": found.record.id,
            "version": found.version,
        })
    };
    let row = |found: &Match| {
        let (chart, record) = (&found.chart, &found.record);
        [kind(found), chart.id(), &record.type_, &record.id, &found.version.to_string()].map(str::to_owned).to_vec()
    };
    let names = ["KIND", "CHART", "TYPE", "ID", "VERSION"];
    ctx.show(|| found.iter().map(as_json).collect(), || output::table(&names, &[4], found.iter().map(row)))
}

async fn run_export(args: ExportArgs, ctx: &Ctx) -> Result<(), CliError> {
    let chart = match args.kind {
        Kind::Patient => Chart::patient(args.chart),
        Kind::Shared => Chart::shared(args.chart),
    };
    let mut sink = match &args.out {
        Some(path) => Sink::File(PendingFile::create(path)?),
        None => Sink::Stdout,
    };
    let client = args.as_of.client(&ctx.client()?.with_deadline(DEADLINE));
    let (count, position) = export(&client, &chart, &mut sink).await?;
    if let Sink::File(file) = sink {
        let path = file.keep()?;
        output::note(&format!("{} records written to {}, as of {position}", grouped(count), path.display()));
    }
    Ok(())
}

/// How many records, and the position that they are as of.
async fn export(client: &Client, chart: &Chart, sink: &mut Sink) -> Result<(u64, String), CliError> {
    let mut records = client.read_chart(chart).await?;
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    let (mut count, mut documents) = (0, Vec::new());
    while let Some(record) = records.next().await {
        let record = record?;
        count += 1;
        // Not now: the stream of records would have to wait, and a reader that stalls is cut.
        if record.header.document {
            documents.push(record.header);
            continue;
        }
        write_line(&record.header.content_type, &record.body, &mut buffer);
        if buffer.len() >= BUFFER_BYTES {
            sink.write(&buffer)?;
            buffer.clear();
        }
    }
    if count == 0 {
        return Err(CliError::NotFound("no such chart, or no record in it".into()));
    }
    sink.write(&buffer)?;
    for header in documents {
        export_document(client, chart, &header, sink).await?;
    }
    Ok((count, records.position().to_owned()))
}

async fn export_document(client: &Client, chart: &Chart, header: &Header, sink: &mut Sink) -> Result<(), CliError> {
    let mut content = client.read_document_version(chart, &header.record, header.version).await?;
    let mut buffer = Vec::new();
    if is_json(&header.content_type) && header.length_bytes <= JSON_DOCUMENT_BYTES_MAX {
        let mut body = Vec::new();
        while let Some(chunk) = content.next().await {
            body.extend_from_slice(&chunk?);
        }
        write_line(&header.content_type, &body, &mut buffer);
        return sink.write(&buffer);
    }
    sink.write(format!("{{\"content_type\":{},\"base64\":\"", json!(header.content_type)).as_bytes())?;
    while let Some(chunk) = content.next().await {
        buffer.extend_from_slice(&chunk?);
        // Whole groups of three: padding belongs at the end only.
        let whole = buffer.len() / 3 * 3;
        sink.write(BASE64.encode(&buffer[..whole]).as_bytes())?;
        buffer.drain(..whole);
    }
    sink.write(BASE64.encode(&buffer).as_bytes())?;
    sink.write(b"\"}\n")
}

fn write_line(content_type: &str, body: &[u8], buffer: &mut Vec<u8>) {
    let json = if is_json(content_type) { minify(body).ok() } else { None };
    match json {
        Some(body) => buffer.extend_from_slice(&body),
        None => {
            let body = json!({ "content_type": content_type, "base64": BASE64.encode(body) });
            buffer.extend_from_slice(body.to_string().as_bytes());
        }
    }
    buffer.push(b'\n');
}

/// `application/json`, `application/fhir+json; charset=utf-8` and the like.
fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type.ends_with("/json") || media_type.ends_with("+json")
}

enum Sink {
    Stdout,
    File(PendingFile),
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        match self {
            Self::Stdout => output::write(bytes),
            Self::File(pending) => pending.file.write_all(bytes).map_err(|error| CliError::file(&pending.path, &error)),
        }
    }
}

/// A file under another name until it is whole; dropped before that, it is removed.
struct PendingFile {
    file: File,
    pending: PathBuf,
    path: PathBuf,
    kept: bool,
}

impl PendingFile {
    fn create(path: &Path) -> Result<Self, CliError> {
        let failed = |error| CliError::file(path, &error);
        let name = path.file_name().ok_or_else(|| CliError::Usage(format!("{}: not a file name", path.display())))?;
        if path.is_dir() {
            return Err(CliError::Usage(format!("{}: is a folder", path.display())));
        }
        let pending = path.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        // Left over by a process of this id that was killed.
        match std::fs::remove_file(&pending) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&pending).map_err(failed)?;
        Ok(Self { file, pending, path: path.to_owned(), kept: false })
    }

    fn keep(mut self) -> Result<PathBuf, CliError> {
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let done = self
            .file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.pending, &self.path))
            .and_then(|()| File::open(folder)?.sync_all());
        done.map_err(|error| CliError::file(&self.path, &error))?;
        self.kept = true;
        Ok(self.path.clone())
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing to be done about a failure, and an unfinished name says what it is.
            let _ = std::fs::remove_file(&self.pending);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn line(content_type: &str, body: &[u8]) -> String {
        let mut buffer = Vec::new();
        write_line(content_type, body, &mut buffer);
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn a_json_body_is_its_own_line_and_others_are_wrapped() {
        assert_eq!(line("application/fhir+json", b"{\"n\": 1.50}"), "{\"n\":1.50}\n");
        assert_eq!(line("Application/JSON; charset=utf-8", b"[\n1,\n2]"), "[1,2]\n");
        let wrapped = |content_type: &str, body: &[u8]| {
            let line = line(content_type, body);
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["content_type"], content_type);
            assert_eq!(BASE64.decode(value["base64"].as_str().unwrap()).unwrap(), body);
            assert_eq!(line.matches('\n').count(), 1);
        };
        wrapped("application/pdf", b"%PDF\n\xff");
        wrapped("text/plain", b"{}");
        wrapped("application/json", b"{\"broken\"");
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chart.ndjson");
        std::fs::write(&path, "before").unwrap();
        let mut sink = Sink::File(PendingFile::create(&path).unwrap());
        sink.write(b"half").unwrap();
        drop(sink);
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);

        let mut pending = PendingFile::create(&path).unwrap();
        pending.file.write_all(b"whole").unwrap();
        pending.keep().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }
}
