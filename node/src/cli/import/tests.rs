#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use charthold_client::{Chart, Error, Header, Precondition, Record, RecordId};

use super::charts::{CONTENT_TYPE, Planned, record_id};
use super::tally::Tally;
use super::*;

/// Version and body; no body: deleted.
type Newest = (u64, Option<Bytes>);
type Hook = Box<dyn Fn(&MemoryCharts, &Chart, &[Planned]) -> Result<(), Error> + Send + Sync>;

/// Charts in memory that judge preconditions as a cluster does.
#[derive(Clone, Default)]
pub(super) struct MemoryCharts(Arc<Memory>);

#[derive(Default)]
struct Memory {
    records: Mutex<HashMap<(Chart, RecordId), Newest>>,
    before_commit: Option<Hook>,
    pub commits: AtomicU32,
}

impl MemoryCharts {
    pub fn with_hook(hook: impl Fn(&Self, &Chart, &[Planned]) -> Result<(), Error> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Memory { before_commit: Some(Box::new(hook)), ..Memory::default() }))
    }

    pub fn put(&self, chart: &Chart, id: RecordId, body: Option<Bytes>) {
        let mut records = self.0.records.lock();
        let record = records.entry((chart.clone(), id)).or_default();
        *record = (record.0 + 1, body);
    }

    pub fn all(&self) -> HashMap<(Chart, RecordId), Newest> {
        self.0.records.lock().clone()
    }

    pub fn commits(&self) -> u32 {
        self.0.commits.load(Ordering::Relaxed)
    }
}

fn record(id: &RecordId, (version, body): &Newest) -> Option<Record> {
    let body = body.clone()?;
    let header = Header {
        record: id.clone(),
        version: *version,
        deleted: false,
        content_type: CONTENT_TYPE.into(),
        clinical_date: String::new(),
        status: String::new(),
        author: String::new(),
        labels: Vec::new(),
        index_terms: Vec::new(),
        length_bytes: body.len() as u64,
        committed_at: None,
        document: false,
    };
    Some(Record { header, body })
}

impl Charts for MemoryCharts {
    async fn commit(&self, chart: &Chart, puts: &[Planned]) -> Result<(), Error> {
        tokio::task::yield_now().await;
        self.0.before_commit.as_ref().map_or(Ok(()), |hook| hook(self, chart, puts))?;
        self.0.commits.fetch_add(1, Ordering::Relaxed);
        let mut records = self.0.records.lock();
        for (index, put) in puts.iter().enumerate() {
            let found = records.get(&(chart.clone(), record_id(&put.entry)));
            let newest = found.and_then(|(version, body)| body.as_ref().map(|_| *version));
            match put.condition {
                Precondition::MustNotExist if newest.is_some() => {
                    return Err(Error::AlreadyExists { index: Some(index) });
                }
                Precondition::Version(version) if newest != Some(version) => {
                    return Err(Error::VersionMismatch { index: Some(index), current: newest });
                }
                _ => {}
            }
        }
        for put in puts {
            let record = records.entry((chart.clone(), record_id(&put.entry))).or_default();
            *record = (record.0 + 1, Some(put.entry.body.clone()));
        }
        Ok(())
    }

    async fn get(&self, chart: &Chart, ids: &[RecordId]) -> Result<Vec<Option<Record>>, Error> {
        tokio::task::yield_now().await;
        assert!(ids.len() <= 1_000);
        let records = self.0.records.lock();
        Ok(ids.iter().map(|id| records.get(&(chart.clone(), id.clone())).and_then(|found| record(id, found))).collect())
    }

    async fn read(&self, chart: &Chart, each: impl FnMut(Record) + Send) -> Result<(), Error> {
        tokio::task::yield_now().await;
        let records = self.0.records.lock();
        let here = records.iter().filter(|((other, _), _)| other == chart);
        here.filter_map(|((_, id), found)| record(id, found)).for_each(each);
        Ok(())
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/patients")
}

async fn import_all(charts: &MemoryCharts, path: &Path) -> (Tally, Result<(), CliError>) {
    import_paths(charts, &[path.to_owned()]).await
}

async fn import_paths(charts: &MemoryCharts, paths: &[PathBuf]) -> (Tally, Result<(), CliError>) {
    let source = Source::find(paths, ProgressBar::hidden()).unwrap();
    let progress = Arc::new(Progress::new(ProgressBar::hidden()));
    let done = import(charts.clone(), source, JOBS_DEFAULT, progress.clone()).await;
    (progress.tally(), done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_test_patients_arrive_once_and_a_second_run_restores_what_was_touched() {
    let charts = MemoryCharts::default();
    let (tally, done) = import_all(&charts, &fixtures()).await;
    done.unwrap();
    assert_eq!(tally.text(), "51,934 read, 51,281 stored, 653 already there");
    let first = charts.all();
    assert_eq!(first.len(), 51_281);
    assert!(first.values().all(|(version, body)| *version == 1 && body.is_some()));

    let commits = charts.commits();
    let (tally, done) = import_all(&charts, &fixtures()).await;
    done.unwrap();
    assert_eq!((tally.stored, tally.already_there, charts.commits()), (0, 51_934, commits));

    let mut touched = first.keys().filter(|(_, id)| id.type_ == "Observation");
    let (changed, deleted) = (touched.next().unwrap(), touched.next().unwrap());
    charts.put(&changed.0, changed.1.clone(), Some(Bytes::from_static(b"{}")));
    charts.put(&deleted.0, deleted.1.clone(), None);
    let (tally, done) = import_all(&charts, &fixtures()).await;
    done.unwrap();
    assert_eq!((tally.stored, tally.changed), (2, 1));
    let last = charts.all();
    assert_eq!(first.keys().filter(|key| first[*key].1 != last[*key].1).count(), 0);
    assert_eq!(last.values().filter(|(version, _)| *version == 3).count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_imports_at_once_store_everything_once() {
    let charts = MemoryCharts::default();
    let paths = ["patient-03", "patient-07", "patient-11", "patient-24"];
    let paths = paths.map(|name| fixtures().join(format!("{name}.json.zst")));
    let (one, two) = tokio::join!(import_paths(&charts, &paths), import_paths(&charts, &paths));
    one.1.unwrap();
    two.1.unwrap();
    let (one, two) = (one.0, two.0);
    assert_eq!(one.stored + two.stored, charts.all().len() as u64);
    assert_eq!(one.stored + two.stored + one.already_there + two.already_there, 2 * one.read);
    assert!(charts.all().values().all(|(version, _)| *version == 1));
}

fn bundle(patient: &str) -> String {
    format!(r#"{{"resourceType":"Bundle","entry":[{{"resource":{{"resourceType":"Patient","id":"{patient}"}}}}]}}"#)
}

#[tokio::test]
async fn a_bad_bundle_leaves_the_others_unharmed() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("a.json", &bundle("a")[..40]);
    write("b.ndjson", &format!("{}\n{{}}\n{}\n", bundle("b1"), bundle("b2")));
    write("c.json.zst", "not zstd");
    write("d.json", r#"{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Goal","id":"1"}}]}"#);
    let charts = MemoryCharts::default();
    let (tally, done) = import_all(&charts, folder.path()).await;
    done.unwrap();
    assert_eq!(tally, Tally { bundles: 2, bundles_refused: 4, read: 2, stored: 2, ..Tally::default() });
}

#[tokio::test]
async fn an_import_ends_where_nothing_more_can_succeed() {
    let charts = MemoryCharts::with_hook(|_, _, _| Err(Error::Denied));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.json"), bundle("a")).unwrap();
    let (tally, done) = import_all(&charts, folder.path()).await;
    assert!(matches!(done, Err(CliError::Client(Error::Denied))));
    assert_eq!((tally.read, tally.stored), (1, 0));
}
