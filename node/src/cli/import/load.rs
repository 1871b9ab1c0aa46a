//! Brings one bundle's records into their charts.
//!
//! Owns: what is equal, what is new, what has changed; the cutting into commits; what happens when someone else wrote
//! in between. It must not know files or formats.
//!
//! Every put has a precondition, so nothing is overwritten that was not read: a record that is absent must stay absent,
//! one that differs must keep the version that was compared. Nothing is stored twice, and an import that broke off can
//! be run again at any time.

use std::collections::HashMap;
use std::sync::Arc;

use charthold_client::{Chart, Error, Precondition, Record, RecordId};
use futures::stream::{self, TryStreamExt as _};
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};

use super::charts::{CONTENT_TYPE, Charts, Planned, chart_of, record_id};
use super::source::Origin;
use super::tally::Progress;
use crate::cli::exit::CliError;
use crate::fhir::{Bundle, ChartName, Entry};

const COMMIT_RECORDS_MAX: usize = 256;
/// A larger body goes alone.
const COMMIT_BYTES_MAX: usize = 1 << 20;
const COMMITS_IN_FLIGHT_MAX: usize = 4;
/// How often a commit is planned anew because someone else wrote.
const REPLANS_MAX: u32 = 3;
const GET_RECORDS_MAX: usize = 1_000;
/// Some 100 bytes each.
const KNOWN_RECORDS_MAX: u64 = 200_000;

/// What all workers of an import share.
pub(super) struct Loader<C> {
    charts: C,
    shared: SharedCharts,
    progress: Arc<Progress>,
}

/// Charts that many bundles write to.
struct SharedCharts {
    /// One worker at a time, or each would only undo the others' plans. Other processes still may: preconditions tell.
    turns: parking_lot::Mutex<HashMap<ChartName, Arc<tokio::sync::Mutex<()>>>>,
    /// Record → body, both as digests: what this import has stored or found there.
    known: Cache<[u8; 32], [u8; 32]>,
}

impl<C: Charts> Loader<C> {
    pub fn new(charts: C, progress: Arc<Progress>) -> Self {
        let shared = SharedCharts { turns: parking_lot::Mutex::default(), known: Cache::new(KNOWN_RECORDS_MAX) };
        Self { charts, shared, progress }
    }

    /// Shared records first, then the patient's, who refer to them. Failures of records and charts are counted and told
    /// of; an error means that the import can't go on.
    pub async fn load(&self, origin: &Origin, bundle: Bundle) -> Result<(), Error> {
        let read = bundle.entries.len() + bundle.repeated;
        self.progress.add(|tally| {
            tally.bundles += 1;
            tally.read += read as u64;
            tally.already_there += bundle.repeated as u64;
        });
        let mut charts: Vec<(ChartName, Vec<Entry>)> = Vec::new();
        let mut places = HashMap::new();
        for entry in bundle.entries {
            let place = *places.entry(entry.chart.clone()).or_insert(charts.len());
            if place == charts.len() {
                charts.push((entry.chart.clone(), Vec::new()));
            }
            charts[place].1.push(entry);
        }
        charts.sort_by_key(|(name, _)| matches!(name, ChartName::Patient(_)));
        for (name, entries) in charts {
            match &name {
                ChartName::Patient(_) => self.load_chart(origin, &name, entries).await?,
                ChartName::Shared(_) => {
                    let turn = self.shared.turns.lock().entry(name.clone()).or_default().clone();
                    let _turn = turn.lock().await;
                    self.load_chart(origin, &name, entries).await?;
                }
            }
        }
        Ok(())
    }

    async fn load_chart(&self, origin: &Origin, name: &ChartName, mut entries: Vec<Entry>) -> Result<(), Error> {
        let before = entries.len();
        entries.retain(|entry| !self.shared.knows(entry));
        self.count_already_there(before - entries.len());
        if entries.is_empty() {
            return Ok(());
        }
        let chart = chart_of(name);
        let count = entries.len();
        let planned = match self.plan(&chart, name, entries).await {
            Ok(planned) => planned,
            Err(error) => return self.give_up(origin, None, count, error),
        };
        stream::iter(cut(planned).into_iter().map(Ok))
            .try_for_each_concurrent(COMMITS_IN_FLIGHT_MAX, |puts| self.store(origin, &chart, puts))
            .await
    }

    /// Compares with what is stored: a patient's chart as a whole, of a shared one only the records in question.
    async fn plan(&self, chart: &Chart, name: &ChartName, entries: Vec<Entry>) -> Result<Vec<Planned>, Error> {
        let ChartName::Patient(_) = name else { return self.compare(chart, entries).await };
        let places: HashMap<RecordId, usize> =
            entries.iter().enumerate().map(|(place, entry)| (record_id(entry), place)).collect();
        let mut found = vec![Stored::Absent; entries.len()];
        self.charts
            .read(chart, |record| {
                if let Some(place) = places.get(&record.header.record) {
                    found[*place] = Stored::of(Some(&record), &entries[*place]);
                }
            })
            .await?;
        Ok(self.leave_out_equal(entries, found))
    }

    async fn compare(&self, chart: &Chart, entries: Vec<Entry>) -> Result<Vec<Planned>, Error> {
        let ids: Vec<RecordId> = entries.iter().map(record_id).collect();
        let mut found = Vec::with_capacity(entries.len());
        for ids in ids.chunks(GET_RECORDS_MAX) {
            let records = self.charts.get(chart, ids).await?;
            if records.len() != ids.len() {
                return Err(Error::Internal { message: "an answer of another length than asked for".into() });
            }
            let entries = &entries[found.len()..];
            found.extend(records.iter().zip(entries).map(|(record, entry)| Stored::of(record.as_ref(), entry)));
        }
        Ok(self.leave_out_equal(entries, found))
    }

    fn leave_out_equal(&self, entries: Vec<Entry>, found: Vec<Stored>) -> Vec<Planned> {
        let before = entries.len();
        let mut planned = Vec::new();
        for (entry, stored) in entries.into_iter().zip(found) {
            match stored {
                Stored::Equal => self.shared.remember(&entry),
                Stored::Absent => planned.push(Planned { entry, condition: Precondition::MustNotExist }),
                Stored::Other(version) => planned.push(Planned { entry, condition: Precondition::Version(version) }),
            }
        }
        self.count_already_there(before - planned.len());
        planned
    }

    /// Commits some records of a chart. When the plan is out of date, it is made anew; when the cluster refuses the
    /// commit, halves of it are tried, until only the records are left that are refused.
    async fn store(&self, origin: &Origin, chart: &Chart, puts: Vec<Planned>) -> Result<(), Error> {
        let mut waiting = vec![(puts, 0)];
        while let Some((mut puts, replans)) = waiting.pop() {
            let (count, first) = (puts.len(), puts.first().map(|put| &put.entry));
            match self.charts.commit(chart, &puts).await {
                Ok(()) => self.count_stored(&puts),
                Err(error) if is_conflict(&error) && replans < REPLANS_MAX => {
                    let entries = puts.into_iter().map(|put| put.entry).collect();
                    match self.compare(chart, entries).await {
                        Ok(puts) if puts.is_empty() => {}
                        Ok(puts) => waiting.push((puts, replans + 1)),
                        Err(error) => self.give_up(origin, None, count, error)?,
                    }
                }
                Err(Error::Invalid { .. }) if count > 1 => {
                    let half = puts.split_off(count / 2);
                    waiting.extend([(half, replans), (puts, replans)]);
                }
                Err(error) => self.give_up(origin, first, count, error)?,
            }
        }
        Ok(())
    }

    /// Counts records as failed and says why, or passes an error on that would meet every other record too.
    fn give_up(&self, origin: &Origin, entry: Option<&Entry>, count: usize, error: Error) -> Result<(), Error> {
        if ends_import(&error) {
            return Err(error);
        }
        let place = match entry {
            Some(entry) if count == 1 => format!("{origin}: {}", entry.position),
            Some(entry) => format!("{origin}: {count} records from {}", entry.position),
            None => format!("{origin}: {count} records"),
        };
        self.progress.complain(&format!("{place}: not stored: {}", CliError::from(error)));
        self.progress.add(|tally| tally.failed += count as u64);
        Ok(())
    }

    fn count_stored(&self, puts: &[Planned]) {
        puts.iter().for_each(|put| self.shared.remember(&put.entry));
        let changed = puts.iter().filter(|put| matches!(put.condition, Precondition::Version(_))).count();
        self.progress.add(|tally| {
            tally.stored += puts.len() as u64;
            tally.changed += changed as u64;
        });
    }

    fn count_already_there(&self, count: usize) {
        self.progress.add(|tally| tally.already_there += count as u64);
    }
}

impl SharedCharts {
    fn knows(&self, entry: &Entry) -> bool {
        let known = || self.known.get(&digest_of_id(entry));
        matches!(entry.chart, ChartName::Shared(_)) && known().is_some_and(|body| body == digest_of_body(entry))
    }

    /// Patients' records don't recur, and would only push these out.
    fn remember(&self, entry: &Entry) {
        if matches!(entry.chart, ChartName::Shared(_)) {
            self.known.insert(digest_of_id(entry), digest_of_body(entry));
        }
    }
}

fn digest_of_id(entry: &Entry) -> [u8; 32] {
    // No id holds a control character.
    Sha256::digest([entry.record_type.as_str(), entry.id.as_str()].join("\0")).into()
}

fn digest_of_body(entry: &Entry) -> [u8; 32] {
    Sha256::digest(&entry.body).into()
}

/// A chart's record beside an entry.
#[derive(Clone)]
enum Stored {
    Absent,
    Equal,
    Other(u64),
}

impl Stored {
    fn of(record: Option<&Record>, entry: &Entry) -> Self {
        match record {
            Some(record) if record.header.deleted => Self::Absent,
            Some(record) if record.body == entry.body && record.header.content_type == CONTENT_TYPE => Self::Equal,
            Some(record) => Self::Other(record.version()),
            None => Self::Absent,
        }
    }
}

/// Into commits within the limits, in order.
fn cut(planned: Vec<Planned>) -> Vec<Vec<Planned>> {
    let mut commits: Vec<Vec<Planned>> = Vec::new();
    let mut bytes = 0;
    for put in planned {
        let size = put.entry.body.len();
        match commits.last_mut() {
            Some(last) if last.len() < COMMIT_RECORDS_MAX && bytes + size <= COMMIT_BYTES_MAX => {
                bytes += size;
                last.push(put);
            }
            _ => {
                bytes = size;
                commits.push(vec![put]);
            }
        }
    }
    commits
}

fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::AlreadyExists { .. } | Error::VersionMismatch { .. } | Error::NotFound { .. })
}

/// Whether every further call would meet the same. The others are about one commit or one chart.
fn ends_import(error: &Error) -> bool {
    !(is_conflict(error)
        || matches!(
            error,
            Error::Invalid { .. } | Error::Erased | Error::DataLoss | Error::Internal { .. } | Error::RequestIdReused
        ))
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
