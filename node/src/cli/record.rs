//! `charthold record put | get | list | history | delete`: single records, by hand and from scripts.
//!
//! `get` writes the content to stdout exactly as it was put; with `--output json`, header and body as one object (of a
//! document the header only). What is larger than a body may be is put as a document, and neither is ever in memory.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use charthold_client::{
    Chart, Client, Committed, Durability, Header, IndexTerm, ListQuery, Mutation, Order, Precondition, Put, Record,
    RecordId,
};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::exit::CliError;
use super::{Ctx, output};

/// What clusters take as a body unless told otherwise; what is longer goes as a document.
const BODY_BYTES_MAX: usize = 1 << 20;

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Store a new version of a record
    Put(PutArgs),
    /// The content of a record, as it was put
    Get {
        #[command(flatten)]
        record: RecordArgs,
        /// An old version
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        version: Option<u64>,
        #[command(flatten)]
        as_of: AsOfArgs,
    },
    /// The records of a chart, without their bodies
    List(ListArgs),
    /// The versions of a record, newest first
    History {
        #[command(flatten)]
        record: RecordArgs,
        /// In the order in which they were written
        #[arg(long)]
        oldest: bool,
        #[command(flatten)]
        as_of: AsOfArgs,
    },
    /// Store a version that says "deleted"; old versions stay readable
    Delete {
        #[command(flatten)]
        record: RecordArgs,
        /// Only if this is the newest version
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        if_version: Option<u64>,
    },
}

/// Which chart.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct ChartArgs {
    /// The chart of this patient
    #[arg(long, value_name = "ID")]
    patient: Option<String>,
    /// The chart of this name that patients share, for example Practitioner
    #[arg(long, value_name = "NAME")]
    shared: Option<String>,
}

impl ChartArgs {
    fn chart(&self) -> Chart {
        match (&self.patient, &self.shared) {
            (Some(id), _) => Chart::patient(id.as_str()),
            (None, name) => Chart::shared(name.as_deref().unwrap_or_default()),
        }
    }
}

/// As of when.
#[derive(clap::Args)]
pub struct AsOfArgs {
    /// As it was at this position, which an earlier answer gave (`--output json` shows it)
    #[arg(long, value_name = "POSITION")]
    as_of: Option<String>,
}

impl AsOfArgs {
    pub fn client(&self, client: &Client) -> Client {
        match &self.as_of {
            Some(position) => client.at_position(position),
            None => client.clone(),
        }
    }
}

#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    chart: ChartArgs,
    /// Only records of this type
    #[arg(long = "type", value_name = "TYPE")]
    type_: Option<String>,
    /// Only what happened to the patient then or later: 2024, 2024-05, 2024-05-13, or with a time
    #[arg(long, value_name = "DATE")]
    from: Option<String>,
    /// Only what happened before
    #[arg(long, value_name = "DATE")]
    to: Option<String>,
    /// Only records with this status; may be repeated
    #[arg(long = "status", value_name = "STATUS")]
    statuses: Vec<String>,
    /// By clinical date, the newest first
    #[arg(long)]
    newest: bool,
    /// By clinical date, the oldest first
    #[arg(long, conflicts_with = "newest")]
    oldest: bool,
    /// With the records that were deleted
    #[arg(long)]
    deleted: bool,
    #[command(flatten)]
    as_of: AsOfArgs,
}

impl ListArgs {
    fn query(&self) -> ListQuery {
        ListQuery {
            type_: self.type_.clone(),
            from: self.from.clone(),
            until: self.to.clone(),
            statuses: self.statuses.clone(),
            order: match (self.newest, self.oldest) {
                (true, _) => Order::NewestFirst,
                (_, true) => Order::OldestFirst,
                _ => Order::Any,
            },
            include_deleted: self.deleted,
        }
    }
}

#[derive(clap::Args)]
struct RecordArgs {
    #[command(flatten)]
    chart: ChartArgs,
    /// For example a FHIR resource type
    #[arg(long = "type", value_name = "TYPE")]
    type_: String,
    /// Unique among the records of this type in the chart
    #[arg(long)]
    id: String,
}

impl RecordArgs {
    fn id(&self) -> RecordId {
        RecordId::new(self.type_.as_str(), self.id.as_str())
    }
}

#[derive(clap::Args)]
struct PutArgs {
    #[command(flatten)]
    record: RecordArgs,
    /// The content, of any size; without it, stdin is read
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What the body is
    #[arg(long, value_name = "TYPE", default_value = "application/fhir+json")]
    content_type: String,
    /// When it happened to the patient: 2024, 2024-05, 2024-05-13, or with a time
    #[arg(long, value_name = "DATE", default_value = "", hide_default_value = true)]
    clinical_date: String,
    /// For example final, amended
    #[arg(long, default_value = "", hide_default_value = true)]
    status: String,
    /// Who wrote it
    #[arg(long, default_value = "", hide_default_value = true)]
    author: String,
    /// May be repeated
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// What the record can be found by, see `chart find`; may be repeated
    #[arg(long = "index", value_name = "SYSTEM|VALUE", value_parser = parse_term)]
    index_terms: Vec<IndexTerm>,
    /// Only if this is the newest version
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    if_version: Option<u64>,
    /// Only if the record is absent or deleted
    #[arg(long, conflicts_with = "if_version")]
    must_not_exist: bool,
}

pub async fn run(args: Args, ctx: &Ctx) -> Result<(), CliError> {
    let client = ctx.client()?;
    match args.command {
        Command::Put(args) => {
            let precondition = match args.if_version {
                Some(version) => Some(Precondition::Version(version)),
                None => args.must_not_exist.then_some(Precondition::MustNotExist),
            };
            let chart = args.record.chart.chart();
            let put = Put {
                clinical_date: args.clinical_date,
                status: args.status,
                author: args.author,
                labels: args.labels,
                index_terms: args.index_terms,
                content_type: args.content_type,
                ..Put::default()
            };
            let put = match read_content(args.file.as_deref()).await? {
                Content::Body(body) => Put { body: body.into(), ..put },
                Content::Document(content) => Put { document: Some(client.upload(&chart, content).await?), ..put },
            };
            let mutation = conditional(Mutation::put(args.record.id(), put), precondition);
            show_committed(ctx, &client.commit(&chart, vec![mutation]).await?)
        }
        Command::Get { record, version, as_of } => {
            let (client, chart, id) = (as_of.client(&client), record.chart.chart(), record.id());
            let found = match version {
                Some(version) => client.get_version(&chart, &id, version).await?,
                None => client.get(&chart, &id).await?,
            };
            match found.header.document && ctx.output == output::Output::Table {
                true => show_document(ctx, &client, &chart, &found.header).await,
                false => show_record(ctx, &found),
            }
        }
        Command::List(args) => {
            let headers = args.as_of.client(&client).list_where(&args.chart.chart(), args.query());
            show_headers(ctx, &headers.all().await?)
        }
        Command::History { record, oldest, as_of } => {
            let order = if oldest { Order::OldestFirst } else { Order::NewestFirst };
            let headers = as_of.client(&client).history_in(&record.chart.chart(), &record.id(), order);
            show_headers(ctx, &headers.all().await?)
        }
        Command::Delete { record, if_version } => {
            let mutation = conditional(Mutation::delete(record.id()), if_version.map(Precondition::Version));
            show_committed(ctx, &client.commit(&record.chart.chart(), vec![mutation]).await?)
        }
    }
}

/// As FHIR's searches write an identifier.
fn parse_term(text: &str) -> Result<IndexTerm, &'static str> {
    let (system, value) = text.split_once('|').ok_or("is not of the form SYSTEM|VALUE")?;
    Ok(IndexTerm::new(system, value))
}

fn conditional(mutation: Mutation, precondition: Option<Precondition>) -> Mutation {
    match precondition {
        Some(precondition) => mutation.when(precondition),
        None => mutation,
    }
}

/// What is put.
enum Content {
    Body(Vec<u8>),
    Document(Box<dyn AsyncRead + Send + Unpin>),
}

/// Reads as much as a body may hold; if there is more, all of it is still to come.
async fn read_content(file: Option<&Path>) -> Result<Content, CliError> {
    let name = file.unwrap_or(Path::new("stdin"));
    let failed = |error| CliError::file(name, &error);
    let mut content: Box<dyn AsyncRead + Send + Unpin> = match file {
        Some(path) => Box::new(tokio::fs::File::open(path).await.map_err(failed)?),
        None => Box::new(stdin().map_err(failed)?),
    };
    let mut head = Vec::new();
    (&mut content).take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut head).await.map_err(failed)?;
    if head.len() <= BODY_BYTES_MAX {
        return Ok(Content::Body(head));
    }
    Ok(Content::Document(Box::new(std::io::Cursor::new(head).chain(content))))
}

/// Read like a file, on a thread that may block.
fn stdin() -> std::io::Result<tokio::fs::File> {
    let handle = std::io::stdin().as_fd().try_clone_to_owned()?;
    Ok(tokio::fs::File::from_std(handle.into()))
}

/// Chunk by chunk to stdout.
async fn show_document(ctx: &Ctx, client: &Client, chart: &Chart, header: &Header) -> Result<(), CliError> {
    let mut content = client.read_document_version(chart, &header.record, header.version).await?;
    while let Some(chunk) = content.next().await {
        ctx.write(&chunk?)?;
    }
    Ok(())
}

fn show_committed(ctx: &Ctx, committed: &Committed) -> Result<(), CliError> {
    let version = committed.versions.first().copied().unwrap_or_default();
    let as_json = || {
        json!({
            "version": version,
            "request_id": committed.request_id.to_string(),
            "position": committed.position,
            "committed_at": output::time(committed.committed_at),
            "durability": match committed.durability {
                Durability::BothKeyed => "both-keyed",
                _ => "quorum",
            },
        })
    };
    ctx.show(as_json, || format!("version {version}"))
}

fn show_record(ctx: &Ctx, record: &Record) -> Result<(), CliError> {
    if ctx.output == output::Output::Table {
        if record.header.deleted {
            ctx.note("this version says that the record was deleted; it has no body");
        }
        return ctx.write(&record.body);
    }
    let mut value = header_json(&record.header);
    if record.header.document {
        ctx.note("the content is a document: without --output json it is written to stdout");
        return ctx.show(|| value, String::new);
    }
    // Text as it is, so that no digit changes on its way through a JSON reader.
    match std::str::from_utf8(&record.body) {
        Ok(text) => value["body"] = text.into(),
        Err(_) => value["body_base64"] = base64::engine::general_purpose::STANDARD.encode(&record.body).into(),
    }
    ctx.show(|| value, String::new)
}

fn show_headers(ctx: &Ctx, headers: &[Header]) -> Result<(), CliError> {
    ctx.show(|| headers.iter().map(header_json).collect(), || headers_table(headers))
}

fn header_json(header: &Header) -> Value {
    json!({
        "type": header.record.type_,
        "id": header.record.id,
        "version": header.version,
        "deleted": header.deleted,
        "content_type": header.content_type,
        "clinical_date": header.clinical_date,
        "status": header.status,
        "author": header.author,
        "labels": header.labels,
        "index": header.index_terms.iter().map(|term| format!("{}|{}", term.system, term.value)).collect::<Vec<_>>(),
        "length_bytes": header.length_bytes,
        "committed_at": output::time(header.committed_at),
        "document": header.document,
    })
}

fn headers_table(headers: &[Header]) -> String {
    let row = |header: &Header| {
        vec![
            header.record.type_.clone(),
            header.record.id.clone(),
            header.version.to_string(),
            if header.deleted { "deleted".to_owned() } else { header.status.clone() },
            header.clinical_date.clone(),
            header.length_bytes.to_string(),
            output::time(header.committed_at).unwrap_or_default(),
        ]
    };
    let names = ["TYPE", "ID", "VERSION", "STATUS", "CLINICAL DATE", "BYTES", "COMMITTED"];
    output::table(&names, &[2, 5], headers.iter().map(row))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn header() -> Header {
        Header {
            record: RecordId::new("Observation", "o1"),
            version: 2,
            deleted: false,
            content_type: "application/fhir+json".into(),
            clinical_date: "2024-05".into(),
            status: "final".into(),
            author: String::new(),
            labels: vec!["a".into()],
            index_terms: Vec::new(),
            length_bytes: 17,
            committed_at: Some(UNIX_EPOCH + Duration::from_secs(1)),
            document: false,
        }
    }

    #[test]
    fn headers_as_a_table() {
        let text = headers_table(&[header(), Header { deleted: true, version: 1, ..header() }]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["TYPE", "ID", "VERSION", "STATUS", "CLINICAL", "DATE", "BYTES", "COMMITTED"]);
        assert_eq!(lines[1], ["Observation", "o1", "2", "final", "2024-05", "17", "1970-01-01T00:00:01Z"]);
        assert_eq!(lines[2][3], "deleted");
    }

    #[test]
    fn headers_as_json() {
        let value = header_json(&header());
        assert_eq!(value["version"], 2);
        assert_eq!(value["labels"][0], "a");
        assert_eq!(value["committed_at"], "1970-01-01T00:00:01Z");
    }

    #[tokio::test]
    async fn what_no_body_holds_is_a_document() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(BODY_BYTES_MAX as u64).unwrap();
        let Content::Body(body) = read_content(Some(file.path())).await.unwrap() else { panic!("no body") };
        assert_eq!(body.len(), BODY_BYTES_MAX);
        file.as_file().set_len(BODY_BYTES_MAX as u64 + 3).unwrap();
        let Content::Document(mut content) = read_content(Some(file.path())).await.unwrap() else { panic!("a body") };
        let mut read = Vec::new();
        assert_eq!(content.read_to_end(&mut read).await.unwrap(), BODY_BYTES_MAX + 3);
        let error = read_content(Some(Path::new("/nonexistent"))).await.err().unwrap();
        assert!(error.to_string().contains("/nonexistent"));
    }
}
