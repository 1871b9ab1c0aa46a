//! Finding charts by an identifier.
//!
//! Owns the question, the answer and the call. What is found was put with [`Put::index_terms`](crate::Put::index_terms).

use std::fmt;

use charthold_proto::v1;
use charthold_proto::v1::charts_client::ChartsClient;
use tonic::Response;
use tonic::transport::Channel;

use crate::list::Pager;
use crate::retry::{Call, Route};
use crate::types::{Chart, ChartKind, IndexTerm, Page, PageToken, RecordId};
use crate::{Client, Error, MESSAGE_BYTES_MAX, request};

/// Of a page, when all pages are wanted anyway.
const PAGE_ROWS: u32 = 1_000;

/// Which charts to find: those with a record that holds a term now.
///
/// ```
/// use charthold_client::FindQuery;
///
/// let query = FindQuery::new("https://hospital.example/mrn", "4711").of_type("Patient");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct FindQuery {
    /// Compared byte by byte.
    pub term: IndexTerm,
    /// Only charts of this kind.
    pub chart_kind: Option<ChartKind>,
    /// Only records of this type.
    pub type_: Option<String>,
}

impl FindQuery {
    /// Charts of any kind, records of any type.
    pub fn new(system: impl Into<String>, value: impl Into<String>) -> Self {
        Self { term: IndexTerm::new(system, value), chart_kind: None, type_: None }
    }

    /// Only records of this type.
    #[must_use]
    pub fn of_type(self, type_: impl Into<String>) -> Self {
        Self { type_: Some(type_.into()), ..self }
    }

    /// Only charts of this kind.
    #[must_use]
    pub fn in_charts_of(self, kind: ChartKind) -> Self {
        Self { chart_kind: Some(kind), ..self }
    }
}

/// A record that holds what was looked for, and its chart.
#[derive(Clone, PartialEq, Eq)]
pub struct Match {
    /// Whose record it is.
    pub chart: Chart,
    /// Which record holds the term.
    pub record: RecordId,
    /// Its newest version.
    pub version: u64,
}

// Both name a patient.
impl fmt::Debug for FindQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FindQuery(redacted)")
    }
}

impl fmt::Debug for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Match(redacted)")
    }
}

impl Client {
    /// The charts of the tenant with a record that can be found by an identifier, page by page as they are taken.
    ///
    /// Every match was verified in its record. What was committed before the call is found; what is put or taken away
    /// while pages are read may be missing. [`Client::at_position`] means nothing here.
    ///
    /// ```no_run
    /// # use charthold_client::*;
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let found = client.find_charts(FindQuery::new("https://hospital.example/mrn", "4711")).all().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn find_charts(&self, query: FindQuery) -> Pager<Match> {
        let client = self.clone();
        Pager::new(move |token| {
            let (client, query) = (client.clone(), query.clone());
            async move { client.find_page(&query, PAGE_ROWS, token.as_ref()).await }
        })
    }

    /// One page of [`Client::find_charts`]: up to `page_size` matches (at most 1,000; 0 means 100), perhaps none and yet
    /// not the last.
    pub async fn find_page(
        &self,
        query: &FindQuery,
        page_size: u32,
        token: Option<&PageToken>,
    ) -> Result<Page<Match>, Error> {
        let message = v1::FindChartsRequest {
            context: Some(self.context.to_proto()),
            term: Some(query.term.clone().into_proto()),
            chart_kind: query.chart_kind.map_or(0, |kind| kind.to_proto().into()),
            r#type: query.type_.clone().unwrap_or_default(),
            page_size,
            page_token: token.map(|token| token.as_str().to_owned()).unwrap_or_default(),
        };
        let traceparent = self.traceparent.as_ref();
        let call = Call { route: Route::Any, deadline: self.deadline, request_id: None, traceparent };
        let answer = self
            .cluster
            .run(call, |attempt| {
                let request = request(&message, attempt.timeout);
                async move { stub(attempt.channel).find_charts(request).await.map(Response::into_inner) }
            })
            .await?;
        let items = answer.matches.into_iter().map(from_proto).collect::<Result<_, _>>()?;
        let position = answer.answer.unwrap_or_default().position;
        Ok(Page { items, next: PageToken::new(answer.next_page_token), position })
    }
}

fn stub(channel: Channel) -> ChartsClient<Channel> {
    ChartsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn from_proto(found: v1::ChartMatch) -> Result<Match, Error> {
    let chart = found.chart.and_then(Chart::from_proto);
    let chart = chart.ok_or_else(|| Error::Internal { message: "a match of a chart of an unknown kind".into() })?;
    Ok(Match { chart, record: RecordId::from_proto(found.record), version: found.version })
}
