//! Reads of records: behind a barrier, then from this node's rows as of a seq. Lists are in `list.rs`.

use std::sync::Arc;
use std::time::Duration;

use charthold_proto::v1::{
    BatchGetRequest, BatchGetResponse, BatchGetResult, ChartRef, GetRequest, GetResponse, ReadChartRequest,
    ReadChartResponse, RecordRef,
};
use charthold_replica::replica::Moment;
use charthold_replica::replica::rows::StoredVersion;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Gateway;
use super::access::Caller;
use super::admission::{InnerDoor, Seat};
use super::error::GatewayError;
use super::record::Chart;
use super::validate::{BATCH_RECORDS_MAX, Violations};

/// A page, in clear bytes.
pub(super) const PAGE_BYTES_MAX: usize = 4 << 20;
/// One message of a stream: small, so that a slow reader holds little.
const STREAM_PAGE_ROWS: usize = 256;
const STREAM_PAGE_BYTES: usize = 1 << 20;
/// A reader that takes no page for this long is cut.
const READER_STALLS_MAX: Duration = Duration::from_secs(60);

impl Gateway {
    /// What it reads is held until the seat is dropped.
    pub(super) async fn get(
        &self,
        caller: &Caller,
        request: GetRequest,
        door: &InnerDoor,
        deadline: Instant,
    ) -> Result<(GetResponse, Seat), GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.chart(request.chart.as_ref());
        violations.record("record", request.record.as_ref());
        violations.into_result()?;
        let chart = chart_of(caller, request.chart);
        let record = request.record.unwrap_or_default();
        let moment = self.moment_to_read(&chart, &request.as_of, request.freshness.as_ref(), deadline).await?;
        let seat = door.enter(deadline).await?;
        let stored = self.find_version(&chart, &record, request.version, &moment)?;
        let record = self.open_record(&chart, Some(&record), &stored)?;
        Ok((GetResponse { answer: self.answer_from(moment), record: Some(record) }, seat))
    }

    /// A version by its number; 0: the newest.
    pub(super) fn find_version(
        &self,
        chart: &Chart,
        record: &RecordRef,
        version: u64,
        moment: &Moment,
    ) -> Result<StoredVersion, GatewayError> {
        let (found, deleted_version) = match version {
            0 => match self.newest(chart, record, moment)? {
                Some(stored) if stored.row.tombstone => (None, Some(stored.version)),
                found => (found, None),
            },
            version => {
                let stored = self.replica.rows(moment).version(&chart.record(record), version)?;
                (stored.filter(|stored| stored.row.seq <= moment.seq), None)
            }
        };
        found.ok_or(GatewayError::NotFound { index: None, deleted_version })
    }

    /// A record's newest version, perhaps one that deleted it. That it did must be said by its own envelope: a replica's
    /// word for it is not enough.
    fn newest(
        &self,
        chart: &Chart,
        record: &RecordRef,
        moment: &Moment,
    ) -> Result<Option<StoredVersion>, GatewayError> {
        let stored = self.replica.rows(moment).newest(&chart.record(record), moment.seq)?;
        if let Some(stored) = stored.as_ref().filter(|stored| stored.row.tombstone) {
            self.open_header(chart, Some(record), stored)?;
        }
        Ok(stored)
    }

    pub(super) async fn batch_get(
        &self,
        caller: &Caller,
        request: BatchGetRequest,
        deadline: Instant,
    ) -> Result<BatchGetResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.chart(request.chart.as_ref());
        let count = request.records.len();
        let few = (1..=BATCH_RECORDS_MAX).contains(&count);
        violations.check(few, "records", format_args!("are {count}, of 1 to {BATCH_RECORDS_MAX}"));
        for (index, record) in request.records.iter().enumerate().take(BATCH_RECORDS_MAX) {
            violations.record(format_args!("records[{index}]"), Some(record));
        }
        violations.into_result()?;
        let chart = chart_of(caller, request.chart);
        let moment = self.moment_to_read(&chart, &request.as_of, request.freshness.as_ref(), deadline).await?;
        let (mut results, mut size_bytes) = (Vec::with_capacity(count), 0);
        for record in &request.records {
            let stored = self.newest(&chart, record, &moment)?.filter(|stored| !stored.row.tombstone);
            let opened = stored.map(|stored| self.open_record(&chart, Some(record), &stored)).transpose()?;
            size_bytes += opened.as_ref().map_or(0, |record| record.body.len());
            if size_bytes > PAGE_BYTES_MAX && !results.is_empty() {
                break;
            }
            results.push(BatchGetResult { record: opened });
        }
        Ok(BatchGetResponse { answer: self.answer_from(moment), results })
    }

    /// Starts a stream: the barrier is passed when this returns, pages follow as the reader takes them.
    pub(super) async fn read_chart(
        self: &Arc<Self>,
        caller: &Caller,
        request: ReadChartRequest,
        deadline: Instant,
    ) -> Result<mpsc::Receiver<Result<ReadChartResponse, tonic::Status>>, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.chart(request.chart.as_ref());
        violations.into_result()?;
        let chart = chart_of(caller, request.chart);
        let moment = self.moment_to_read(&chart, &request.as_of, request.freshness.as_ref(), deadline).await?;
        let (pages, taken) = mpsc::channel(1);
        let gateway = Arc::clone(self);
        tokio::spawn(async move {
            let mut next = None;
            loop {
                let page = gateway.stream_page(&chart, moment, next.take());
                let (page, more) = match page {
                    Ok((page, more)) => (Ok(page), more),
                    Err(error) => (Err(error.into()), None),
                };
                let taken = tokio::time::timeout(READER_STALLS_MAX, pages.send(page)).await;
                // A reader that went away or stalls gets no more.
                let Ok(Ok(())) = taken else { return };
                match more {
                    Some(more) => next = Some(more),
                    None => return,
                }
            }
        });
        Ok(taken)
    }

    fn stream_page(
        &self,
        chart: &Chart,
        moment: Moment,
        next: Option<Vec<u8>>,
    ) -> Result<(ReadChartResponse, Option<Vec<u8>>), GatewayError> {
        let rows = self.replica.rows(&moment);
        let page = rows.chart(&chart.address, None, next, moment.seq, STREAM_PAGE_ROWS, STREAM_PAGE_BYTES)?;
        // What is small when sealed may be large in clear: the page ends where its clear bytes do, too.
        let (mut records, mut size_bytes, mut next) = (Vec::new(), 0, page.next);
        for stored in &page.versions {
            let record = self.open_record(chart, None, stored)?;
            if stored.row.tombstone {
                continue;
            }
            size_bytes += record.body.len();
            if size_bytes > STREAM_PAGE_BYTES && !records.is_empty() {
                next = Some(stored.place());
                break;
            }
            records.push(record);
        }
        let answer = self.answer_from(moment);
        Ok((ReadChartResponse { answer, records, complete: next.is_none() }, next))
    }
}

pub(super) fn chart_of(caller: &Caller, chart: Option<ChartRef>) -> Chart {
    Chart::new(Arc::clone(&caller.tenant), chart.unwrap_or_default())
}
