//! Reads of charts: behind a barrier, then from this node's rows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use charthold_proto::v1::{
    BatchGetRequest, BatchGetResponse, BatchGetResult, ChartRef, GetRequest, GetResponse, HistoryRequest,
    HistoryResponse, ListRequest, ListResponse, ReadChartRequest, ReadChartResponse, RecordRef,
};
use charthold_replica::replica::rows::StoredVersion;
use charthold_replica::store::table::version;
use tokio::sync::mpsc;

use super::Gateway;
use super::access::{Caller, GrantPlace};
use super::error::GatewayError;
use super::page::Cursor;
use super::record::Chart;
use super::validate::{self, BATCH_RECORDS_MAX, Violations};

/// A page, in sealed bytes.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// One message of a stream: small, so that a slow reader holds little.
const STREAM_PAGE_ROWS: usize = 256;
const STREAM_PAGE_BYTES: usize = 1 << 20;
/// A reader that takes no page for this long is cut.
const READER_STALLS_MAX: Duration = Duration::from_secs(60);

impl Gateway {
    pub(super) async fn get(
        &self,
        caller: &Caller,
        request: GetRequest,
        deadline: Instant,
    ) -> Result<GetResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.chart(request.chart.as_ref());
        violations.record("record", request.record.as_ref());
        violations.into_result()?;
        let chart = chart_of(caller, request.chart);
        let record = request.record.unwrap_or_default();
        let seq = self.replica.barrier(chart.shard(), deadline).await?;
        let stored = self.find_version(&chart, &record, request.version, seq)?;
        let record = self.open_record(&chart, Some(&record), &stored)?;
        Ok(GetResponse { answer: self.answer(chart.shard(), seq), record: Some(record) })
    }

    /// A version by its number; 0: the newest.
    pub(super) fn find_version(
        &self,
        chart: &Chart,
        record: &RecordRef,
        version: u64,
        seq: u64,
    ) -> Result<StoredVersion, GatewayError> {
        let found = match version {
            0 => self.newest(chart, record, seq)?,
            version => self.replica.rows().version(&chart.record(record), version)?,
        };
        found.ok_or(GatewayError::NotFound { index: None })
    }

    /// A record's newest version, nothing if it is deleted. That it is deleted must be said by its own envelope: a
    /// replica's word for it is not enough.
    fn newest(&self, chart: &Chart, record: &RecordRef, seq: u64) -> Result<Option<StoredVersion>, GatewayError> {
        let Some(stored) = self.replica.rows().newest(&chart.record(record), seq)? else { return Ok(None) };
        if stored.row.tombstone {
            self.open_header(chart, Some(record), &stored)?;
            return Ok(None);
        }
        Ok(Some(stored))
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
        let description = format!("are {count}, of 1 to {BATCH_RECORDS_MAX}");
        violations.check((1..=BATCH_RECORDS_MAX).contains(&count), "records", description);
        for (index, record) in request.records.iter().enumerate().take(BATCH_RECORDS_MAX) {
            violations.record(&format!("records[{index}]"), Some(record));
        }
        violations.into_result()?;
        let chart = chart_of(caller, request.chart);
        let seq = self.replica.barrier(chart.shard(), deadline).await?;
        let (mut results, mut size_bytes) = (Vec::with_capacity(count), 0);
        for record in &request.records {
            let stored = self.newest(&chart, record, seq)?;
            let opened = stored.map(|stored| self.open_record(&chart, Some(record), &stored)).transpose()?;
            size_bytes += opened.as_ref().map_or(0, |record| record.body.len());
            if size_bytes > PAGE_BYTES_MAX && !results.is_empty() {
                break;
            }
            results.push(BatchGetResult { record: opened });
        }
        Ok(BatchGetResponse { answer: self.answer(chart.shard(), seq), results })
    }

    pub(super) async fn list(
        &self,
        caller: &Caller,
        request: ListRequest,
        deadline: Instant,
    ) -> Result<ListResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.chart(request.chart.as_ref());
        if !request.r#type.is_empty() {
            violations.id("type", &request.r#type);
        }
        violations.into_result()?;
        let rows_max = validate::page_size(request.page_size)?;
        let query = ListRequest { chart: request.chart.clone(), r#type: request.r#type.clone(), ..Default::default() };
        let place = place_of(caller);
        let cursor = self.read_page_token(&place, "List", &query, &request.page_token)?;
        let chart = chart_of(caller, request.chart);
        let seq = self.replica.barrier(chart.shard(), deadline).await?;
        let as_of_seq = cursor.as_ref().map_or(seq, |cursor| cursor.as_of_seq);
        let record_type =
            (!request.r#type.is_empty()).then(|| caller.tenant.type_token(&chart.address.chart, &request.r#type));
        let page = self.replica.rows().chart(
            &chart.address,
            record_type.as_ref(),
            cursor.map(|cursor| cursor.next),
            as_of_seq,
            rows_max,
            PAGE_BYTES_MAX,
        )?;
        let headers = page.versions.iter().map(|stored| self.open_header(&chart, None, stored));
        let headers = headers.collect::<Result<Vec<_>, _>>()?;
        Ok(ListResponse {
            answer: self.answer(chart.shard(), as_of_seq),
            headers: headers.into_iter().filter(|header| !header.deleted).collect(),
            next_page_token: self.next_token(&place, "List", &query, as_of_seq, page.next)?,
        })
    }

    pub(super) async fn history(
        &self,
        caller: &Caller,
        request: HistoryRequest,
        deadline: Instant,
    ) -> Result<HistoryResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.chart(request.chart.as_ref());
        violations.record("record", request.record.as_ref());
        violations.into_result()?;
        let rows_max = validate::page_size(request.page_size)?;
        let query =
            HistoryRequest { chart: request.chart.clone(), record: request.record.clone(), ..Default::default() };
        let place = place_of(caller);
        let cursor = self.read_page_token(&place, "History", &query, &request.page_token)?;
        let chart = chart_of(caller, request.chart);
        let record = request.record.unwrap_or_default();
        let seq = self.replica.barrier(chart.shard(), deadline).await?;
        let as_of_seq = cursor.as_ref().map_or(seq, |cursor| cursor.as_of_seq);
        let next = cursor.map(|cursor| cursor.next);
        let page = self.replica.rows().history(&chart.record(&record), next, as_of_seq, rows_max)?;
        if page.versions.is_empty() {
            return Err(GatewayError::NotFound { index: None });
        }
        let headers = page.versions.iter().map(|stored| self.open_header(&chart, Some(&record), stored));
        Ok(HistoryResponse {
            answer: self.answer(chart.shard(), as_of_seq),
            headers: headers.collect::<Result<_, _>>()?,
            next_page_token: self.next_token(&place, "History", &query, as_of_seq, page.next)?,
        })
    }

    fn next_token(
        &self,
        place: &GrantPlace,
        method: &str,
        query: &impl prost::Message,
        as_of_seq: u64,
        next: Option<Vec<u8>>,
    ) -> Result<String, GatewayError> {
        match next {
            None => Ok(String::new()),
            Some(next) => self.write_page_token(place, method, query, Cursor { as_of_seq, next }),
        }
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
        let seq = self.replica.barrier(chart.shard(), deadline).await?;
        let (pages, taken) = mpsc::channel(1);
        let gateway = Arc::clone(self);
        tokio::spawn(async move {
            let mut next = None;
            loop {
                let page = gateway.stream_page(&chart, seq, next.take());
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
        seq: u64,
        next: Option<Vec<u8>>,
    ) -> Result<(ReadChartResponse, Option<Vec<u8>>), GatewayError> {
        let page = self.replica.rows().chart(&chart.address, None, next, seq, STREAM_PAGE_ROWS, STREAM_PAGE_BYTES)?;
        // What is small when sealed may be large in clear: the page ends where its clear bytes do, too.
        let (mut records, mut size_bytes, mut next) = (Vec::new(), 0, page.next);
        for stored in &page.versions {
            let record = self.open_record(chart, None, stored)?;
            if stored.row.tombstone {
                continue;
            }
            size_bytes += record.body.len();
            if size_bytes > STREAM_PAGE_BYTES && !records.is_empty() {
                next = Some(version::Key { record: stored.record, version: stored.version }.encode());
                break;
            }
            records.push(record);
        }
        let answer = self.answer(chart.shard(), seq);
        Ok((ReadChartResponse { answer, records, complete: next.is_none() }, next))
    }
}

fn chart_of(caller: &Caller, chart: Option<ChartRef>) -> Chart {
    Chart::new(Arc::clone(&caller.tenant), chart.unwrap_or_default())
}

fn place_of(caller: &Caller) -> GrantPlace {
    GrantPlace { tenant: Some(Arc::clone(&caller.tenant)), principal: caller.tenant.principal_token(&caller.principal) }
}
