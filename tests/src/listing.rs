//! Whether a listing holds still while its chart is written to.
//!
//! Owns: writers that keep a log of what the cluster answered them, and the comparison of a listing with what that log
//! says about the listing's position. So a row that is missing, doubled or from the future shows, whichever it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use charthold_client::{Chart, Client, Header, ListQuery, Mutation, Order, Put, RecordId};

const WRITERS: usize = 4;
/// Between two commits of a writer: an order is for so many versions, and the writers must not use them up before a
/// long listing ends.
const WRITER_PAUSE: Duration = Duration::from_millis(50);
/// Of one commit of the chart's first records.
const COMMIT_RECORDS: usize = 500;
const STATUSES: [&str; 3] = ["preliminary", "final", "amended"];
const TYPES: [&str; 2] = ["Observation", "Condition"];

/// What is known of a record at some version.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    version: u64,
    deleted: bool,
    /// A day, or empty.
    date: String,
    status: &'static str,
}

/// One commit as it was answered. Positions of one chart compare as texts.
struct Logged {
    position: String,
    changes: Vec<(usize, Known)>,
}

/// How one listing went.
pub struct Listed {
    pub what: &'static str,
    pub records: usize,
    pub pages: usize,
    pub took: Duration,
}

/// Fills a chart with `records`, then lists it in every order while it is written to. Panics if a listing differs from
/// what was in the chart at its position.
pub async fn holds_still(client: &Client, records: usize, page_rows: u32) -> Vec<Listed> {
    let chart = Chart::patient("listed");
    let (mut log, mut newest) = fill(client, &chart, records).await;
    let (done, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers = (0..WRITERS).map(|number| {
        let own = newest.iter().filter(|(record, _)| *record % WRITERS == number);
        let writer = Writer {
            client: client.clone(),
            chart: chart.clone(),
            number,
            newest: own.map(|(record, known)| (*record, known.clone())).collect(),
            log: Vec::new(),
        };
        tokio::spawn(writer.run(records, Arc::clone(&done), Arc::clone(&commits)))
    });
    let writers: Vec<_> = writers.collect();

    let mut found = Vec::new();
    for (what, query) in queries() {
        let began = Instant::now();
        let (headers, position, pages) = list(client, &chart, &query, page_rows, &commits).await;
        found.push((Listed { what, records: headers.len(), pages, took: began.elapsed() }, query, headers, position));
    }
    done.store(true, SeqCst);
    for writer in writers {
        log.extend(writer.await.unwrap());
    }
    log.sort_by(|a, b| a.position.cmp(&b.position));
    let last = log.last().unwrap().position.clone();
    found
        .into_iter()
        .map(|(listed, query, headers, position)| {
            assert!(position < last, "{}: nothing was written after its position", listed.what);
            newest = known_at(&log, &position);
            compare(listed.what, &query, &headers, &newest);
            listed
        })
        .collect()
}

fn queries() -> [(&'static str, ListQuery); 6] {
    [
        ("in storage order", ListQuery::default()),
        ("newest first", ListQuery::default().newest_first()),
        ("oldest first", ListQuery::default().oldest_first()),
        ("some, newest first", ListQuery::of_type(TYPES[0]).from("2010").until("2011").newest_first()),
        ("of two statuses", ListQuery::default().with_status(STATUSES[0]).with_status(STATUSES[1])),
        ("with deleted, oldest first", ListQuery::default().with_deleted().oldest_first()),
    ]
}

fn record(number: usize) -> RecordId {
    RecordId::new(TYPES[number / WRITERS % TYPES.len()], format!("r{number}"))
}

/// A day between 2000 and 2020; every thirteenth has none.
fn date(seed: usize) -> String {
    match seed % 13 {
        0 => String::new(),
        _ => format!("20{:02}-{:02}-{:02}", seed % 20, 1 + seed % 12, 1 + seed % 28),
    }
}

fn put(number: usize, seed: usize) -> (Mutation, Known) {
    let (date, status) = (date(seed), STATUSES[seed % STATUSES.len()]);
    let put = Put {
        clinical_date: date.clone(),
        status: status.to_owned(),
        ..Put::new("text/plain", format!("record {number}, seed {seed}"))
    };
    (Mutation::put(record(number), put), Known { version: 0, deleted: false, date, status })
}

async fn fill(client: &Client, chart: &Chart, records: usize) -> (Vec<Logged>, BTreeMap<usize, Known>) {
    let mut log = Vec::new();
    for first in (0..records).step_by(COMMIT_RECORDS) {
        let numbers = first..(first + COMMIT_RECORDS).min(records);
        log.push(commit(client, chart, numbers.map(|number| (number, put(number, number))).collect()).await);
    }
    let newest = known_at(&log, &log.last().unwrap().position);
    assert_eq!(newest.len(), records);
    (log, newest)
}

async fn commit(client: &Client, chart: &Chart, changes: Vec<(usize, (Mutation, Known))>) -> Logged {
    let mutations = changes.iter().map(|(_, (mutation, _))| mutation.clone()).collect();
    let committed = client.commit(chart, mutations).await.unwrap();
    let versions = changes.into_iter().zip(committed.versions);
    let changes = versions.map(|((number, (_, known)), version)| (number, Known { version, ..known })).collect();
    Logged { position: committed.position, changes }
}

/// Changes records that are its own: those whose numbers leave its own as rest.
struct Writer {
    client: Client,
    chart: Chart,
    number: usize,
    newest: BTreeMap<usize, Known>,
    log: Vec<Logged>,
}

impl Writer {
    /// Adds, amends and deletes one record in each commit.
    async fn run(mut self, records: usize, done: Arc<AtomicBool>, commits: Arc<AtomicU64>) -> Vec<Logged> {
        let mut seed = self.number;
        let mut fresh = records.next_multiple_of(WRITERS) + self.number;
        while !done.load(SeqCst) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut changes = vec![(fresh, put(fresh, seed >> 33))];
            let (amended, deleted) = (self.some(seed >> 7), self.some(seed >> 20));
            changes.push((amended, put(amended, seed >> 30)));
            if deleted != amended && !self.newest[&deleted].deleted {
                let known = Known { version: 0, deleted: true, date: String::new(), status: "" };
                changes.push((deleted, (Mutation::delete(record(deleted)), known)));
            }
            let logged = commit(&self.client, &self.chart, changes).await;
            self.newest.extend(logged.changes.iter().cloned());
            self.log.push(logged);
            commits.fetch_add(1, SeqCst);
            fresh += WRITERS;
            tokio::time::sleep(WRITER_PAUSE).await;
        }
        self.log
    }

    fn some(&self, seed: usize) -> usize {
        *self.newest.keys().nth(seed % self.newest.len()).unwrap()
    }
}

/// All pages of a listing. After the first one it waits until the chart was written to.
async fn list(
    client: &Client,
    chart: &Chart,
    query: &ListQuery,
    page_rows: u32,
    commits: &AtomicU64,
) -> (Vec<Header>, String, usize) {
    let (mut headers, mut position, mut token, mut pages) = (Vec::new(), String::new(), None, 0);
    loop {
        let page = client.list_page(chart, query, page_rows, token.as_ref()).await.unwrap();
        assert!(page.items.len() <= page_rows as usize);
        if pages == 0 {
            position = page.position.clone();
            let before = commits.load(SeqCst);
            // Of each writer one may have been under way before the page.
            while commits.load(SeqCst) <= before + WRITERS as u64 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(page.position, position, "a page is as of another position");
        headers.extend(page.items);
        pages += 1;
        token = page.next;
        if token.is_none() {
            return (headers, position, pages);
        }
    }
}

/// What the log says was in the chart at a position, deleted records among it.
fn known_at(log: &[Logged], position: &str) -> BTreeMap<usize, Known> {
    let visible = log.iter().filter(|logged| logged.position.as_str() <= position);
    let mut newest = BTreeMap::<usize, Known>::new();
    for (number, known) in visible.flat_map(|logged| &logged.changes) {
        if newest.get(number).is_none_or(|before| before.version < known.version) {
            newest.insert(*number, known.clone());
        }
    }
    newest
}

fn compare(what: &str, query: &ListQuery, headers: &[Header], newest: &BTreeMap<usize, Known>) {
    let is_wanted = |(number, known): &(&usize, &Known)| {
        (query.include_deleted || !known.deleted)
            && query.type_.as_ref().is_none_or(|type_| *type_ == record(**number).type_)
            && query.from.as_ref().is_none_or(|from| known.date >= *from)
            && query.until.as_ref().is_none_or(|until| !known.date.is_empty() && known.date < *until)
            && (query.statuses.is_empty() || query.statuses.iter().any(|status| status == known.status))
    };
    let expected: BTreeMap<_, _> = newest.iter().filter(is_wanted).map(|(n, k)| (*n, k.version)).collect();
    let mut found = BTreeMap::new();
    for header in headers {
        let number: usize = header.record.id[1..].parse().unwrap();
        assert!(found.insert(number, header.version).is_none(), "{what}: record {number} came twice");
        let date = newest.get(&number).map(|known| known.date.as_str());
        assert!(header.record == record(number) && date == Some(&header.clinical_date), "{what}: record {number}");
    }
    let missing: Vec<_> = expected.iter().filter(|(number, _)| !found.contains_key(*number)).take(5).collect();
    let wrong: Vec<_> = found.iter().filter(|(number, version)| expected.get(*number) != Some(*version)).collect();
    assert!(missing.is_empty() && wrong.is_empty(), "{what}: missing {missing:?}, wrong {:?}", wrong.first());
    assert!(!found.is_empty(), "{what}: nothing was asked for");
    let dated = headers.partition_point(|header| !header.clinical_date.is_empty());
    let (dated, undated) = headers.split_at(dated);
    let in_order = match query.order {
        Order::Any => return,
        Order::NewestFirst => dated.is_sorted_by(|a, b| a.clinical_date >= b.clinical_date),
        Order::OldestFirst => dated.is_sorted_by(|a, b| a.clinical_date <= b.clinical_date),
    };
    assert!(in_order && undated.iter().all(|header| header.clinical_date.is_empty()), "{what}: out of order");
}
