//! List and History: pages of headers, all pages of a listing as of one seq.
//!
//! A page in storage order goes on where the page before ended. For an order by date there is no index, on purpose: it
//! would tell every replica which record is older. So each page of an ordered listing opens all headers and keeps the
//! first ones after its cursor: memory is bounded by the page, time by [`SORT_ROWS_MAX`] and the deadline. Scans run on
//! threads of their own, where they hold up nobody's call.

use std::collections::BinaryHeap;
use std::sync::Arc;

use charthold_proto::v1::{
    Freshness, HistoryRequest, HistoryResponse, ListRequest, ListResponse, Order, RecordHeader, RecordRef,
};
use charthold_replica::replica::Moment;
use charthold_replica::replica::rows::ChartScan;
use charthold_replica::store::table::RecordAddress;
use prost::Message;
use tokio::time::Instant;

use super::Gateway;
use super::access::{Caller, GrantPlace};
use super::clinical_date::{self, Interval};
use super::error::GatewayError;
use super::page::{Cursor, place_of};
use super::read::{PAGE_BYTES_MAX, chart_of};
use super::record::Chart;
use super::validate::{self, Violations};
use crate::seal::Token;

/// What one call of an unordered listing looks at, so that a filter that nothing passes still answers soon.
const SCAN_ROWS_MAX: usize = 20_000;
/// The largest chart, in versions, that is listed in an order: each of its pages looks at all of it.
const SORT_ROWS_MAX: usize = 250_000;
const STATUSES_MAX: usize = 16;

/// One page's work.
struct Listing {
    chart: Chart,
    record_type: Option<Token>,
    filter: Filter,
    order: Order,
    moment: Moment,
    /// Unordered: where the scan begins. Ordered: the sort key of the last header that was answered.
    next: Option<Vec<u8>>,
    rows_max: usize,
    deadline: Instant,
}

impl Gateway {
    pub(super) async fn list(
        self: &Arc<Self>,
        caller: &Caller,
        request: ListRequest,
        deadline: Instant,
    ) -> Result<ListResponse, GatewayError> {
        let (filter, rows_max) = validate_list(&request)?;
        let query = ListRequest { context: None, page_size: 0, page_token: String::new(), ..request.clone() };
        let place = place_of(caller);
        let cursor = self.read_page_token(&place, "List", &query, &request.page_token)?;
        let order = request.order();
        let chart = chart_of(caller, request.chart);
        let moment = self.page_moment(&chart, &request.as_of, request.freshness.as_ref(), &cursor, deadline).await?;
        let as_of_seq = moment.seq;
        let of_type = |name: &String| caller.tenant.type_token(&chart.address.chart, name);
        let record_type = Some(&request.r#type).filter(|name| !name.is_empty()).map(of_type);
        let next = cursor.map(|cursor| cursor.next);
        let listing = Listing { chart, record_type, filter, order, moment, next, rows_max, deadline };
        let page = match order {
            Order::Unspecified => self.on_own_thread(move |gateway| gateway.list_stored(&listing)).await?,
            Order::NewestFirst | Order::OldestFirst => {
                let room = tokio::time::timeout_at(deadline, Arc::clone(&self.sorts).acquire_owned()).await;
                let room = room.map_err(|_| GatewayError::Overloaded)?;
                self.on_own_thread(move |gateway| {
                    let _room = room;
                    gateway.list_sorted(&listing)
                })
                .await?
            }
        };
        Ok(ListResponse {
            answer: self.answer_from(moment),
            headers: page.headers,
            next_page_token: self.next_token(&place, "List", &query, as_of_seq, page.next)?,
        })
    }

    pub(super) async fn history(
        self: &Arc<Self>,
        caller: &Caller,
        request: HistoryRequest,
        deadline: Instant,
    ) -> Result<HistoryResponse, GatewayError> {
        let mut violations = Violations::default();
        violations.context(request.context.as_ref());
        violations.chart(request.chart.as_ref());
        violations.record("record", request.record.as_ref());
        violations.check(Order::try_from(request.order).is_ok(), "order", "is not known");
        violations.into_result()?;
        let rows_max = validate::page_size(request.page_size)?;
        let query = HistoryRequest { context: None, page_size: 0, page_token: String::new(), ..request.clone() };
        let place = place_of(caller);
        let cursor = self.read_page_token(&place, "History", &query, &request.page_token)?;
        let order = request.order();
        let chart = chart_of(caller, request.chart);
        let record = request.record.unwrap_or_default();
        let moment = self.page_moment(&chart, &request.as_of, request.freshness.as_ref(), &cursor, deadline).await?;
        let as_of_seq = moment.seq;
        let next = cursor.map(|cursor| cursor.next);
        let versions =
            move |gateway: &Self| gateway.versions(&chart, &record, order, &moment, next.as_deref(), rows_max);
        let page = self.on_own_thread(versions).await?;
        Ok(HistoryResponse {
            answer: self.answer_from(moment),
            headers: page.headers,
            next_page_token: self.next_token(&place, "History", &query, as_of_seq, page.next)?,
        })
    }

    /// The first page chooses the moment, the others show the same: by then this replica must have reached it.
    async fn page_moment(
        &self,
        chart: &Chart,
        as_of: &str,
        freshness: Option<&Freshness>,
        cursor: &Option<Cursor>,
        deadline: Instant,
    ) -> Result<Moment, GatewayError> {
        match cursor {
            None => self.moment_to_read(chart, as_of, freshness, deadline).await,
            Some(cursor) => {
                let moment = self.moment_to_read(chart, as_of, None, deadline).await?;
                Ok(Moment { seq: cursor.as_of_seq, ..moment })
            }
        }
    }

    pub(super) async fn on_own_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, GatewayError> + Send + 'static,
    ) -> Result<T, GatewayError> {
        let gateway = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&gateway)).await.map_err(|_| GatewayError::Internal)?
    }

    pub(super) fn next_token(
        &self,
        place: &GrantPlace,
        method: &str,
        query: &impl Message,
        as_of_seq: u64,
        next: Option<Vec<u8>>,
    ) -> Result<String, GatewayError> {
        match next {
            None => Ok(String::new()),
            Some(next) => self.write_page_token(place, method, query, Cursor { as_of_seq, next }),
        }
    }

    fn list_stored(&self, listing: &Listing) -> Result<Headers, GatewayError> {
        let mut scan = self.scan(listing, listing.next.clone());
        let mut page = Headers::new(listing.rows_max);
        while let Some(found) = scan.step()? {
            for stored in &found {
                let header = self.open_header(&listing.chart, None, stored)?;
                let date = clinical_date::interval(&header.clinical_date);
                if listing.filter.takes(&header, date) && !page.add(header) {
                    return Ok(page.continued(stored.place()));
                }
            }
            if scan.rows() >= SCAN_ROWS_MAX || Instant::now() >= listing.deadline {
                return Ok(page.continued(scan.next()));
            }
        }
        Ok(page)
    }

    fn list_sorted(&self, listing: &Listing) -> Result<Headers, GatewayError> {
        let mut scan = self.scan(listing, None);
        // One more than the page holds tells that there is more.
        let mut first = BinaryHeap::with_capacity(listing.rows_max + 2);
        while let Some(found) = scan.step()? {
            if scan.rows() > SORT_ROWS_MAX {
                let description = format!("is for up to {SORT_ROWS_MAX} versions: ask for one type, or in no order");
                return Err(GatewayError::field("order", description));
            }
            if Instant::now() >= listing.deadline {
                return Err(GatewayError::Overloaded);
            }
            for stored in &found {
                let header = self.open_header(&listing.chart, None, stored)?;
                let date = clinical_date::interval(&header.clinical_date);
                let key = sort_key(listing.order, date, (stored.row.seq, &stored.record));
                let due = listing.next.as_ref().is_none_or(|after| key.as_slice() > after.as_slice());
                if due && listing.filter.takes(&header, date) {
                    first.push(Sorted { key, header });
                }
                if first.len() > listing.rows_max + 1 {
                    first.pop();
                }
            }
        }
        let (mut page, mut last) = (Headers::new(listing.rows_max), Vec::new());
        for Sorted { key, header } in first.into_sorted_vec() {
            if !page.add(header) {
                return Ok(page.continued(last));
            }
            last = key.to_vec();
        }
        Ok(page)
    }

    fn scan(&self, listing: &Listing, next: Option<Vec<u8>>) -> ChartScan {
        let Listing { chart, record_type, moment, .. } = listing;
        self.replica.rows(moment).scan(&chart.address, record_type.as_ref(), next, moment.seq)
    }

    /// One page of a record's history; `next` is the version that it begins with.
    fn versions(
        &self,
        chart: &Chart,
        record: &RecordRef,
        order: Order,
        moment: &Moment,
        next: Option<&[u8]>,
        rows_max: usize,
    ) -> Result<Headers, GatewayError> {
        let (rows, address) = (self.replica.rows(moment), chart.record(record));
        let newest = rows.newest(&address, moment.seq)?.ok_or(GatewayError::absent())?.version;
        let next = next.map(|next| next.try_into().map(u64::from_be_bytes)).transpose();
        let next = next.map_err(|_| GatewayError::Internal)?;
        let mut page = Headers::new(rows_max);
        let (mut oldest_first, mut newest_first);
        let versions: &mut dyn Iterator<Item = u64> = match order {
            Order::OldestFirst => {
                oldest_first = next.unwrap_or(1)..=newest;
                &mut oldest_first
            }
            Order::NewestFirst | Order::Unspecified => {
                newest_first = (1..=next.unwrap_or(newest)).rev();
                &mut newest_first
            }
        };
        for version in versions {
            // They count without a gap: one that is missing was lost, or is withheld.
            let stored = rows.version(&address, version)?.ok_or(GatewayError::Damaged)?;
            if !page.add(self.open_header(chart, Some(record), &stored)?) {
                return Ok(page.continued(version.to_be_bytes().to_vec()));
            }
        }
        Ok(page)
    }
}

/// A page that fills.
struct Headers {
    headers: Vec<RecordHeader>,
    rows_max: usize,
    size_bytes: usize,
    /// Where the next page begins. Nothing: there is none.
    next: Option<Vec<u8>>,
}

impl Headers {
    fn new(rows_max: usize) -> Self {
        Self { headers: Vec::new(), rows_max, size_bytes: 0, next: None }
    }

    /// Whether the header has room. The first always has.
    fn add(&mut self, header: RecordHeader) -> bool {
        let size_bytes = self.size_bytes + header.encoded_len();
        let full = self.headers.len() == self.rows_max || size_bytes > PAGE_BYTES_MAX;
        if full && !self.headers.is_empty() {
            return false;
        }
        self.size_bytes = size_bytes;
        self.headers.push(header);
        true
    }

    fn continued(self, next: Vec<u8>) -> Self {
        Self { next: Some(next), ..self }
    }
}

/// Which records are wanted.
#[derive(Default)]
struct Filter {
    from_us: Option<i64>,
    to_us: Option<i64>,
    statuses: Vec<String>,
    include_deleted: bool,
}

impl Filter {
    fn takes(&self, header: &RecordHeader, date: Option<Interval>) -> bool {
        let in_time = match date {
            _ if self.from_us.is_none() && self.to_us.is_none() => true,
            None => false,
            Some(date) => {
                self.from_us.is_none_or(|from_us| date.ends_us > from_us)
                    && self.to_us.is_none_or(|to_us| date.begins_us < to_us)
            }
        };
        let of_status = self.statuses.is_empty() || self.statuses.contains(&header.status);
        in_time && of_status && (self.include_deleted || !header.deleted)
    }
}

/// What a list asks for, if it makes sense: the filter, and how many rows a page may have.
fn validate_list(request: &ListRequest) -> Result<(Filter, usize), GatewayError> {
    let mut violations = Violations::default();
    violations.context(request.context.as_ref());
    violations.chart(request.chart.as_ref());
    if !request.r#type.is_empty() {
        violations.id("type", &request.r#type);
    }
    violations.check(Order::try_from(request.order).is_ok(), "order", "is not known");
    let many = format!("are more than {STATUSES_MAX}");
    violations.check(request.status.len() <= STATUSES_MAX, "status", many);
    request.status.iter().take(STATUSES_MAX).for_each(|status| violations.id("status", status));
    let from_us = moment(&mut violations, "clinical_from", &request.clinical_from);
    let to_us = moment(&mut violations, "clinical_to", &request.clinical_to);
    if let (Some(from_us), Some(to_us)) = (from_us, to_us) {
        violations.check(from_us < to_us, "clinical_to", "is not after clinical_from");
    }
    violations.into_result()?;
    let filter = Filter { from_us, to_us, statuses: request.status.clone(), include_deleted: request.include_deleted };
    Ok((filter, validate::page_size(request.page_size)?))
}

/// When a date begins.
fn moment(violations: &mut Violations, field: &str, text: &str) -> Option<i64> {
    if text.is_empty() {
        return None;
    }
    let date = clinical_date::interval(text);
    violations.check(date.is_some(), field, "is no date of ISO 8601, like 2024, 2024-05 or 2024-05-13T08:30:00Z");
    date.map(|date| date.begins_us)
}

/// undated 1 | begins 8 | seq 8 | type 16 | record 16. Compared as bytes.
type SortKey = [u8; 49];

/// Newest first, the date and the seq are inverted. Undated ones are last either way.
fn sort_key(order: Order, date: Option<Interval>, (seq, record): (u64, &RecordAddress)) -> SortKey {
    let begins = date.map_or(0, |date| date.begins_us.cast_unsigned() ^ (1 << 63));
    let mut key = [0; 49];
    key[0] = u8::from(date.is_none());
    key[1..9].copy_from_slice(&begins.to_be_bytes());
    key[9..17].copy_from_slice(&seq.to_be_bytes());
    if order == Order::NewestFirst {
        key[1..17].iter_mut().for_each(|byte| *byte = !*byte);
    }
    key[17..33].copy_from_slice(&record.record_type);
    key[33..].copy_from_slice(&record.record);
    key
}

/// A header with its place in an order.
struct Sorted {
    key: SortKey,
    header: RecordHeader,
}

impl PartialEq for Sorted {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Sorted {}

impl PartialOrd for Sorted {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Sorted {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
