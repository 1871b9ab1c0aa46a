//! Lists: what may be asked for, and the pages that come.
//!
//! Owns [`ListQuery`] and the loop over pages; the calls themselves are in `charts.rs`.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

use charthold_proto::v1;

use crate::Error;
use crate::types::{Page, PageToken};

/// In which order headers come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// A list: by opaque keys, the cheapest. A history: newest first.
    #[default]
    Any,
    /// A list: by clinical date, then by commit; undated records last. A history: by version.
    NewestFirst,
    /// The same from the other end; undated records last here too.
    OldestFirst,
}

impl Order {
    pub(crate) fn to_proto(self) -> i32 {
        let order = match self {
            Self::Any => v1::Order::Unspecified,
            Self::NewestFirst => v1::Order::NewestFirst,
            Self::OldestFirst => v1::Order::OldestFirst,
        };
        order.into()
    }
}

/// Which records of a chart to list, and in which order. By default all that are not deleted.
///
/// ```
/// use charthold_client::ListQuery;
///
/// // What was observed in 2024, the newest first.
/// let query = ListQuery::of_type("Observation").from("2024").until("2025").with_status("final").newest_first();
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only records of this type.
    pub type_: Option<String>,
    /// Only records whose clinical date overlaps the time from the beginning of this date, also a partial one, …
    pub from: Option<String>,
    /// … up to, and without, the beginning of this one. Undated records are left out when either is given.
    pub until: Option<String>,
    /// Only records with one of these; none given: all.
    pub statuses: Vec<String>,
    /// In which order they come.
    pub order: Order,
    /// With the records that were deleted.
    pub include_deleted: bool,
}

impl ListQuery {
    /// Records of one type.
    pub fn of_type(type_: impl Into<String>) -> Self {
        Self { type_: Some(type_.into()), ..Self::default() }
    }

    /// What happened then or later: an ISO 8601 date or date-time, also partial.
    #[must_use]
    pub fn from(self, date: impl Into<String>) -> Self {
        Self { from: Some(date.into()), ..self }
    }

    /// What happened before.
    #[must_use]
    pub fn until(self, date: impl Into<String>) -> Self {
        Self { until: Some(date.into()), ..self }
    }

    /// Only records with this status; given again, also those with another.
    #[must_use]
    pub fn with_status(mut self, status: impl Into<String>) -> Self {
        self.statuses.push(status.into());
        self
    }

    /// By clinical date, the newest first.
    #[must_use]
    pub fn newest_first(self) -> Self {
        Self { order: Order::NewestFirst, ..self }
    }

    /// By clinical date, the oldest first.
    #[must_use]
    pub fn oldest_first(self) -> Self {
        Self { order: Order::OldestFirst, ..self }
    }

    /// With the records that were deleted.
    #[must_use]
    pub fn with_deleted(self) -> Self {
        Self { include_deleted: true, ..self }
    }
}

// Types, dates and statuses say something about a patient.
impl fmt::Debug for ListQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ListQuery(redacted)")
    }
}

type Fetched<T> = Pin<Box<dyn Future<Output = Result<Page<T>, Error>> + Send>>;

/// The items of an answer that comes in pages, fetched as they are taken.
///
/// `None` means that there is no more. After an error the same page may be asked for again.
pub struct Pager<T> {
    fetch: Box<dyn FnMut(Option<PageToken>) -> Fetched<T> + Send>,
    ready: VecDeque<T>,
    token: Option<PageToken>,
    done: bool,
    position: String,
}

impl<T> Pager<T> {
    pub(crate) fn new<F, Fut>(mut fetch: F) -> Self
    where
        F: FnMut(Option<PageToken>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Page<T>, Error>> + Send + 'static,
    {
        let fetch = Box::new(move |token| Box::pin(fetch(token)) as Fetched<T>);
        Self { fetch, ready: VecDeque::new(), token: None, done: false, position: String::new() }
    }

    /// The next item.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(Ok(item));
            }
            match self.next_page().await? {
                Ok(items) => self.ready = items.into(),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// What is left of the page that is being taken, or the next one; it may be empty and yet not the last.
    pub async fn next_page(&mut self) -> Option<Result<Vec<T>, Error>> {
        if !self.ready.is_empty() {
            return Some(Ok(std::mem::take(&mut self.ready).into()));
        }
        if self.done {
            return None;
        }
        match (self.fetch)(self.token.clone()).await {
            Ok(page) => {
                self.done = page.next.is_none();
                self.token = page.next;
                self.position = page.position;
                Some(Ok(page.items))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// All items that are left.
    pub async fn all(mut self) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        while let Some(page) = self.next_page().await {
            items.extend(page?);
        }
        Ok(items)
    }

    /// Opaque: what all pages of a list or a history are as of, once the first has come.
    pub fn position(&self) -> &str {
        &self.position
    }
}
