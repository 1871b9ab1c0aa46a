//! The 24 synthetic patients in `fixtures/patients`, and what they must look like in a store.

use std::collections::HashMap;
use std::path::PathBuf;

use charthold::fhir::{Bundle, ChartName, Entry, read_bundle};
use charthold_client::{Chart, Client, RecordId};

use crate::harness::WAIT_MAX;

/// Bundle entries, repeated ones included; and distinct records.
pub const ENTRIES: usize = 51_934;
pub const RECORDS: usize = 51_281;

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/patients")
}

/// One bundle's file, from 1 to 24.
pub fn file(number: usize) -> PathBuf {
    folder().join(format!("patient-{number:02}.json.zst"))
}

/// One bundle's text.
pub fn text(number: usize) -> Vec<u8> {
    let path = file(number);
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(file).unwrap()
}

pub fn bundle(number: usize) -> Bundle {
    read_bundle(&text(number)).unwrap_or_else(|error| panic!("patient {number}: {error}"))
}

/// Charts, and the records in them.
pub type Expected = HashMap<Chart, HashMap<RecordId, Entry>>;

/// What the charts must hold once these bundles are imported: shared records, which recur, once.
pub fn expected(numbers: impl IntoIterator<Item = usize>) -> Expected {
    let mut charts = Expected::new();
    for entry in numbers.into_iter().flat_map(|number| bundle(number).entries) {
        charts.entry(chart_of(&entry)).or_default().insert(record_of(&entry), entry);
    }
    charts
}

pub fn chart_of(entry: &Entry) -> Chart {
    match &entry.chart {
        ChartName::Patient(id) => Chart::patient(id),
        ChartName::Shared(name) => Chart::shared(name),
    }
}

pub fn record_of(entry: &Entry) -> RecordId {
    RecordId::new(&entry.record_type, &entry.id)
}

/// Reads all charts back: every record is there and no other, each equal to its source token by token. Gives the
/// versions, to be judged by the caller.
pub async fn assert_stored(client: &Client, expected: &Expected) -> HashMap<(Chart, RecordId), u64> {
    let client = client.with_deadline(WAIT_MAX);
    let mut versions = HashMap::new();
    for (chart, entries) in expected {
        let mut found = 0;
        let mut records = client.read_chart(chart).await.unwrap_or_else(|error| panic!("a chart: {error}"));
        while let Some(record) = records.next().await {
            let record = record.unwrap_or_else(|error| panic!("a record: {error}"));
            let id = record.header.record.clone();
            let entry = entries.get(&id).unwrap_or_else(|| panic!("{} {} was never imported", id.type_, id.id));
            assert!(record.body == entry.body, "{} {} differs from its source", id.type_, id.id);
            assert_eq!(record.header.clinical_date, entry.clinical_date, "{} {}", id.type_, id.id);
            versions.insert((chart.clone(), id), record.version());
            found += 1;
        }
        assert_eq!(found, entries.len(), "records of chart {}", chart.id());
    }
    versions
}

/// The source once more, read without the program's own code: every resource's tokens by type and id.
pub fn tokens(number: usize) -> HashMap<RecordId, String> {
    #[derive(serde::Deserialize)]
    struct Source<'a> {
        #[serde(borrow)]
        entry: Vec<Resource<'a>>,
    }
    #[derive(serde::Deserialize)]
    struct Resource<'a> {
        #[serde(borrow)]
        resource: &'a serde_json::value::RawValue,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Name {
        resource_type: String,
        id: String,
    }
    let text = text(number);
    let source: Source<'_> = serde_json::from_slice(&text).unwrap();
    let named = source.entry.iter().map(|entry| {
        let name: Name = serde_json::from_str(entry.resource.get()).unwrap();
        (RecordId::new(name.resource_type, name.id), without_white_space(entry.resource.get()))
    });
    named.collect()
}

fn without_white_space(json: &str) -> String {
    let (mut in_text, mut escaped) = (false, false);
    let kept = json.chars().filter(|character| {
        let keep = in_text || !character.is_ascii_whitespace();
        match character {
            '"' if !escaped => in_text = !in_text,
            _ => {}
        }
        escaped = in_text && *character == '\\' && !escaped;
        keep
    });
    kept.collect()
}
