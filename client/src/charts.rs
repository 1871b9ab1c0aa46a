//! The calls on charts: commits and reads.
//!
//! Owns how each becomes a message and its answer a typed result, and the loops over pages. The retries are
//! `retry.rs`'s.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use charthold_proto::v1;
use charthold_proto::v1::charts_client::ChartsClient;
use prost::Message as _;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_stream::Stream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};
use uuid::Uuid;

use crate::error::Failure;
use crate::list::{ListQuery, Order, Pager};
use crate::retry::{Attempt, Call, Route};
use crate::types::{Chart, Committed, Durability, Freshness, Header, Mutation, Page, PageToken, Put, Record, RecordId};
use crate::types::{Precondition, new_request_id, system_time};
use crate::{Client, Error, MESSAGE_BYTES_MAX, pipeline, request};

/// The protocol's own limit of one BatchGet.
const BATCH_MAX: usize = 1_000;
/// Of a page, when all pages are wanted anyway.
const PAGE_ROWS: u32 = 1_000;

pub(crate) fn stub(channel: Channel) -> ChartsClient<Channel> {
    ChartsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

impl Client {
    /// Changes one chart: all mutations, or none.
    ///
    /// When it returns `Ok`, the change is on the disks of a majority of the replicas. Retries by itself until the
    /// deadline, always with one request id, so that it happens at most once. Dropping the future leaves the outcome
    /// unknown: where that may happen, make the id yourself and use [`Client::commit_with_id`].
    pub async fn commit(&self, chart: &Chart, mutations: Vec<Mutation>) -> Result<Committed, Error> {
        self.commit_with_id(new_request_id(), chart, mutations).await
    }

    /// Like [`Client::commit`], with a request id of the caller's, from [`new_request_id`].
    ///
    /// For an hour, the same id with the same chart and mutations answers the first outcome and changes nothing more:
    /// what to do after [`Error::OutcomeUnknown`], or after a crash of the caller if it kept the id.
    pub async fn commit_with_id(
        &self,
        request_id: Uuid,
        chart: &Chart,
        mutations: Vec<Mutation>,
    ) -> Result<Committed, Error> {
        let message = v1::CommitRequest {
            context: Some(self.context.to_proto()),
            request_id: request_id.to_string(),
            chart: Some(chart.to_proto()),
            mutations: mutations.into_iter().map(Mutation::into_proto).collect(),
        };
        if message.encoded_len() > MESSAGE_BYTES_MAX {
            return Err(Error::Invalid { message: "the commit is larger than 8 MiB".into(), fields: Vec::new() });
        }
        let call = Call {
            route: Route::Chart(chart),
            deadline: self.deadline,
            request_id: Some(request_id),
            traceparent: self.traceparent.as_ref(),
        };
        let answer = self.cluster.run(call, |attempt| pipeline::commit(attempt, &message, self.streams)).await?;
        let durability = answer.answer.as_ref().map(v1::AnswerContext::durability).unwrap_or_default();
        let durability = Durability::from_proto(durability);
        let position = self.learn(chart, answer.answer);
        Ok(Committed {
            request_id,
            versions: answer.versions,
            position,
            committed_at: system_time(answer.committed_at),
            durability,
        })
    }

    /// Stores one record, whatever its version is: the last writer wins. To guard against that, [`Client::commit`] a
    /// mutation with a precondition.
    pub async fn put(&self, chart: &Chart, record: &RecordId, put: Put) -> Result<Committed, Error> {
        self.commit(chart, vec![Mutation::put(record.clone(), put)]).await
    }

    /// Deletes one record, if it has this version. Old versions stay readable by their number.
    pub async fn delete(&self, chart: &Chart, record: &RecordId, version: u64) -> Result<Committed, Error> {
        let mutation = Mutation::delete(record.clone()).when(Precondition::Version(version));
        self.commit(chart, vec![mutation]).await
    }

    /// Reads a record's newest version. Sees every commit that was acknowledged before, to whomever.
    pub async fn get(&self, chart: &Chart, record: &RecordId) -> Result<Record, Error> {
        self.get_version(chart, record, 0).await
    }

    /// Reads a version by its number. A deleted one has no body and says so in its header.
    pub async fn get_version(&self, chart: &Chart, record: &RecordId, version: u64) -> Result<Record, Error> {
        let message = v1::GetRequest {
            context: Some(self.context.to_proto()),
            chart: Some(chart.to_proto()),
            record: Some(record.to_proto()),
            version,
            as_of: self.as_of(),
            freshness: self.freshness(),
        };
        let answer = self.read(chart, |attempt| pipeline::get(attempt, &message, self.streams)).await?;
        self.learn(chart, answer.answer);
        answer.record.map(Record::from_proto).ok_or(Error::NotFound { index: None, deleted_version: None })
    }

    /// Reads many records of one chart, in the order asked; `None` where a record is absent or deleted.
    ///
    /// Over 1,000 records or 4 MiB it takes several calls, each as of its own moment; [`Client::read_chart`] reads any
    /// number as of one.
    pub async fn batch_get(&self, chart: &Chart, records: &[RecordId]) -> Result<Vec<Option<Record>>, Error> {
        let mut found = Vec::with_capacity(records.len());
        while let Some(rest) = records.get(found.len()..).filter(|rest| !rest.is_empty()) {
            let asked = &rest[..rest.len().min(BATCH_MAX)];
            let message = v1::BatchGetRequest {
                context: Some(self.context.to_proto()),
                chart: Some(chart.to_proto()),
                records: asked.iter().map(RecordId::to_proto).collect(),
                as_of: self.as_of(),
                freshness: self.freshness(),
            };
            let answer = self.read(chart, |attempt| pipeline::batch_get(attempt, &message, self.streams)).await?;
            self.learn(chart, answer.answer);
            if answer.results.is_empty() || answer.results.len() > asked.len() {
                return Err(Error::Internal { message: "BatchGet answered none or more than was asked".into() });
            }
            found.extend(answer.results.into_iter().map(|result| result.record.map(Record::from_proto)));
        }
        Ok(found)
    }

    /// The headers of a chart's records, of one type or of all; deleted records are left out.
    pub async fn list(&self, chart: &Chart, type_: Option<&str>) -> Result<Vec<Header>, Error> {
        let query = ListQuery { type_: type_.map(str::to_owned), ..ListQuery::default() };
        self.list_where(chart, query).all().await
    }

    /// The headers of those records of a chart that a query asks for, page by page as they are taken. All pages show the
    /// chart as of one moment, whatever is written meanwhile.
    ///
    /// ```no_run
    /// # use charthold_client::*;
    /// # async fn example(client: Client, chart: Chart) -> Result<(), Error> {
    /// let mut headers = client.list_where(&chart, ListQuery::of_type("Observation").newest_first());
    /// while let Some(header) = headers.next().await {
    ///     println!("{}", header?.clinical_date);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn list_where(&self, chart: &Chart, query: ListQuery) -> Pager<Header> {
        let (client, chart) = (self.clone(), chart.clone());
        Pager::new(move |token| {
            let (client, chart, query) = (client.clone(), chart.clone(), query.clone());
            async move { client.list_page(&chart, &query, PAGE_ROWS, token.as_ref()).await }
        })
    }

    /// One page of [`Client::list_where`]: up to `page_size` headers (at most 1,000; 0 means 100), perhaps none and yet
    /// not the last.
    pub async fn list_page(
        &self,
        chart: &Chart,
        query: &ListQuery,
        page_size: u32,
        token: Option<&PageToken>,
    ) -> Result<Page<Header>, Error> {
        let message = v1::ListRequest {
            context: Some(self.context.to_proto()),
            chart: Some(chart.to_proto()),
            r#type: query.type_.clone().unwrap_or_default(),
            page_size,
            page_token: token.map(|token| token.as_str().to_owned()).unwrap_or_default(),
            clinical_from: query.from.clone().unwrap_or_default(),
            clinical_to: query.until.clone().unwrap_or_default(),
            status: query.statuses.clone(),
            order: query.order.to_proto(),
            include_deleted: query.include_deleted,
            as_of: self.as_of(),
            freshness: self.freshness(),
        };
        let answer = self
            .read(chart, |attempt| {
                let request = request(&message, attempt.timeout);
                async move { stub(attempt.channel).list(request).await.map(Response::into_inner) }
            })
            .await?;
        let position = self.learn(chart, answer.answer);
        Ok(page(answer.headers, answer.next_page_token, position))
    }

    /// All versions of one record, newest first, deletions among them.
    pub async fn history(&self, chart: &Chart, record: &RecordId) -> Result<Vec<Header>, Error> {
        self.history_in(chart, record, Order::NewestFirst).all().await
    }

    /// The versions of one record in an order, page by page as they are taken.
    pub fn history_in(&self, chart: &Chart, record: &RecordId, order: Order) -> Pager<Header> {
        let (client, chart, record) = (self.clone(), chart.clone(), record.clone());
        Pager::new(move |token| {
            let (client, chart, record) = (client.clone(), chart.clone(), record.clone());
            async move { client.history_page(&chart, &record, order, PAGE_ROWS, token.as_ref()).await }
        })
    }

    /// One page of [`Client::history_in`].
    pub async fn history_page(
        &self,
        chart: &Chart,
        record: &RecordId,
        order: Order,
        page_size: u32,
        token: Option<&PageToken>,
    ) -> Result<Page<Header>, Error> {
        let message = v1::HistoryRequest {
            context: Some(self.context.to_proto()),
            chart: Some(chart.to_proto()),
            record: Some(record.to_proto()),
            page_size,
            page_token: token.map(|token| token.as_str().to_owned()).unwrap_or_default(),
            order: order.to_proto(),
            as_of: self.as_of(),
            freshness: self.freshness(),
        };
        let answer = self
            .read(chart, |attempt| {
                let request = request(&message, attempt.timeout);
                async move { stub(attempt.channel).history(request).await.map(Response::into_inner) }
            })
            .await?;
        let position = self.learn(chart, answer.answer);
        Ok(page(answer.headers, answer.next_page_token, position))
    }

    /// Reads all records of a chart, as of one moment, as they come.
    ///
    /// The deadline covers the whole stream: give a large chart more with [`Client::with_deadline`].
    pub async fn read_chart(&self, chart: &Chart) -> Result<RecordStream, Error> {
        let message = v1::ReadChartRequest {
            context: Some(self.context.to_proto()),
            chart: Some(chart.to_proto()),
            as_of: self.as_of(),
            freshness: self.freshness(),
        };
        // Up to its first page the stream is repeated like any call; after that the caller has part of it.
        let (first, pages, deadline) = self
            .read(chart, |attempt: Attempt| {
                let deadline = attempt.deadline;
                let request = request(&message, deadline.saturating_duration_since(Instant::now()));
                async move {
                    let mut pages = stub(attempt.channel).read_chart(request).await?.into_inner();
                    let first = pages.message().await?.ok_or_else(|| Status::unavailable(CUT))?;
                    Ok((first, pages, deadline))
                }
            })
            .await?;
        let position = self.learn(chart, first.answer);
        Ok(RecordStream {
            position,
            ready: first.records.into(),
            more: Some(Box::new(pages)).filter(|_| !first.complete),
            deadline: Box::pin(sleep_until(deadline)),
        })
    }

    async fn read<T, F, Fut>(&self, chart: &Chart, attempt: F) -> Result<T, Error>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let call = Call {
            route: match self.freshness {
                // Any replica may do: the leader need not be asked.
                Freshness::Stale(_) => Route::Any,
                Freshness::Linearizable | Freshness::Lease => Route::Chart(chart),
            },
            deadline: self.deadline,
            request_id: None,
            traceparent: self.traceparent.as_ref(),
        };
        self.cluster.run(call, attempt).await
    }

    /// A position says already what is to be seen.
    fn freshness(&self) -> Option<v1::Freshness> {
        self.freshness.to_proto().filter(|_| self.position.is_none())
    }

    fn as_of(&self) -> String {
        self.position.as_deref().unwrap_or_default().to_owned()
    }

    /// Keeps the leader that an answer names; gives its position.
    pub(crate) fn learn(&self, chart: &Chart, answer: Option<v1::AnswerContext>) -> String {
        let answer = answer.unwrap_or_default();
        if let Some(leader) = answer.leader {
            self.cluster.hints.learn(chart, &leader.endpoint);
        }
        answer.position
    }
}

fn page(headers: Vec<v1::RecordHeader>, token: String, position: String) -> Page<Header> {
    Page { items: headers.into_iter().map(Header::from_proto).collect(), next: PageToken::new(token), position }
}

const CUT: &str = "the stream was cut before the chart was complete";

/// The records of a chart, from [`Client::read_chart`].
///
/// It ends with `None` only when the chart is complete; a stream that is cut ends with an error, and then what came
/// before is not the whole chart.
pub struct RecordStream {
    position: String,
    ready: VecDeque<v1::Record>,
    /// None once the chart is complete or an error was given.
    more: Option<Box<Streaming<v1::ReadChartResponse>>>,
    deadline: Pin<Box<Sleep>>,
}

impl RecordStream {
    /// The next record; `None` when the chart is complete.
    pub async fn next(&mut self) -> Option<Result<Record, Error>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Opaque: the moment that the whole stream is as of.
    pub fn position(&self) -> &str {
        &self.position
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Record, Error>>> {
        self.more = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for RecordStream {
    type Item = Result<Record, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(record) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Record::from_proto(record))));
            }
            let Some(pages) = &mut this.more else { return Poll::Ready(None) };
            if this.deadline.as_mut().poll(cx).is_ready() {
                return this
                    .fail(Error::Unavailable { why: "the deadline passed before the chart was complete".into() });
            }
            match ready!(Pin::new(pages).poll_next(cx)) {
                Some(Ok(page)) => {
                    this.ready = page.records.into();
                    if page.complete {
                        this.more = None;
                    }
                }
                Some(Err(status)) => return this.fail(Failure::from_status(&status).error),
                None => return this.fail(Error::Unavailable { why: CUT.into() }),
            }
        }
    }
}
