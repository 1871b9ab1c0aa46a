//! The charts that an import writes to: a cluster, or in tests a map.
//!
//! Owns: how long an import waits for a cluster that has lost a leader or a site, and the retry of a chart's reading.
//! The client retries single calls by itself, with one request id; a broken stream has to be begun again.

use std::future::Future;
use std::time::Duration;

use charthold_client::{Chart, Client, Error, IndexTerm, Mutation, Precondition, Put, Record, RecordId};
use tokio::time::{Instant, sleep};

use crate::fhir::{ChartName, Entry};

pub(super) const CONTENT_TYPE: &str = "application/fhir+json";

/// Longer than the loss of a site lasts, so that an import lives through it.
pub(super) const DEADLINE: Duration = Duration::from_secs(120);
const READ_PAUSE_MIN: Duration = Duration::from_millis(250);
const READ_PAUSE_MAX: Duration = Duration::from_secs(2);

/// An entry to be stored, and what must be true for that.
pub(super) struct Planned {
    pub entry: Entry,
    pub condition: Precondition,
}

pub(super) trait Charts: Clone + Send + Sync + 'static {
    /// All of them or none, under a new request id.
    fn commit(&self, chart: &Chart, puts: &[Planned]) -> impl Future<Output = Result<(), Error>> + Send;

    /// In the order asked, however many.
    fn get(
        &self,
        chart: &Chart,
        records: &[RecordId],
    ) -> impl Future<Output = Result<Vec<Option<Record>>, Error>> + Send;

    /// Every record of the chart, to the end; some may come twice.
    fn read(&self, chart: &Chart, each: impl FnMut(Record) + Send) -> impl Future<Output = Result<(), Error>> + Send;
}

impl Charts for Client {
    async fn commit(&self, chart: &Chart, puts: &[Planned]) -> Result<(), Error> {
        let mutations = puts.iter().map(|put| mutation(&put.entry, put.condition)).collect();
        Client::commit(self, chart, mutations).await.map(|_| ())
    }

    async fn get(&self, chart: &Chart, records: &[RecordId]) -> Result<Vec<Option<Record>>, Error> {
        self.batch_get(chart, records).await
    }

    async fn read(&self, chart: &Chart, mut each: impl FnMut(Record) + Send) -> Result<(), Error> {
        let until = Instant::now() + DEADLINE;
        let mut pause = READ_PAUSE_MIN;
        loop {
            let error = match read_once(self, chart, &mut each).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let passing = matches!(error, Error::Unavailable { .. } | Error::Overloaded { .. });
            if !passing || Instant::now() + pause > until {
                return Err(error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(READ_PAUSE_MAX);
        }
    }
}

async fn read_once(client: &Client, chart: &Chart, each: &mut (impl FnMut(Record) + Send)) -> Result<(), Error> {
    let mut records = client.read_chart(chart).await?;
    while let Some(record) = records.next().await {
        each(record?);
    }
    Ok(())
}

pub(super) fn chart_of(name: &ChartName) -> Chart {
    match name {
        ChartName::Patient(id) => Chart::patient(id),
        ChartName::Shared(name) => Chart::shared(name),
    }
}

pub(super) fn record_id(entry: &Entry) -> RecordId {
    RecordId::new(&entry.record_type, &entry.id)
}

fn mutation(entry: &Entry, condition: Precondition) -> Mutation {
    let put = Put {
        clinical_date: entry.clinical_date.clone(),
        status: entry.status.clone(),
        index_terms: entry.identifiers.iter().map(|it| IndexTerm::new(&it.system, &it.value)).collect(),
        ..Put::new(CONTENT_TYPE, entry.body.clone())
    };
    Mutation::put(record_id(entry), put).when(condition)
}
