//! # Charthold's client
//!
//! Charthold stores patient records: sealed, replicated over several sites by Raft, linearizable. This crate is what
//! an EHR service embeds to talk to it. It finds the leader, repeats what is safe to repeat, and tells the one thing
//! that matters after a failure: *did it happen?*
//!
//! # Connect
//!
//! A [`Profile`] says where the cluster is and who calls: endpoints, the authority that signs the gateways'
//! certificates, the caller's own certificate and key. Nothing is dialed before the first call, and a [`Client`] is
//! cheap to clone: make one for the process.
//!
//! ```no_run
//! use charthold_client::{Client, Profile, RequestContext};
//!
//! # async fn example() -> Result<(), charthold_client::Error> {
//! let client = Client::connect(&Profile::load("client.toml")?)?;
//!
//! // Who acts, and why: for each user's request its own. Every call on charts needs an actor.
//! let client = client.with_context(RequestContext {
//!     purpose_of_use: "TREATMENT".into(),
//!     ..RequestContext::new("practitioner/4711")
//! });
//! # Ok(())
//! # }
//! ```
//!
//! # Write
//!
//! A [`Chart`] is all records of one patient, and the unit of atomic commit: all mutations of a
//! [`commit`](Client::commit) happen, or none. Each may have a precondition.
//!
//! ```no_run
//! # use charthold_client::*;
//! # async fn example(client: Client) -> Result<(), Error> {
//! let chart = Chart::patient("patient-1");
//! let visit = RecordId::new("Encounter", "visit-1");
//! let pressure = RecordId::new("Observation", "pressure-1");
//!
//! let committed = client
//!     .commit(
//!         &chart,
//!         vec![
//!             Mutation::check(visit).if_version(1),
//!             Mutation::put(pressure, Put::fhir(r#"{"resourceType":"Observation"}"#)).must_not_exist(),
//!         ],
//!     )
//!     .await?;
//! assert_eq!(committed.versions, [1, 1]);
//! # Ok(())
//! # }
//! ```
//!
//! `Ok` means durable on a majority of the replicas: the loss of any minority of sites does not undo it.
//!
//! A record that is only to be stored, whatever was there before, is a [`put`](Client::put).
//!
//! # Read, change, write
//!
//! Reads are linearizable: they see every commit that was acknowledged before. (Who needs less says so:
//! [`with_freshness`](Client::with_freshness).) A record's version is its ETag.
//!
//! ```no_run
//! # use charthold_client::*;
//! # fn amend(body: &[u8]) -> Vec<u8> { body.to_vec() }
//! # async fn example(client: Client, chart: Chart, id: RecordId) -> Result<(), Error> {
//! loop {
//!     let record = client.get(&chart, &id).await?;
//!     let amended = Put { status: "amended".into(), ..Put::fhir(amend(&record.body)) };
//!     match client.commit(&chart, vec![Mutation::put(id.clone(), amended).if_version(record.version())]).await {
//!         Err(Error::VersionMismatch { .. }) => continue, // somebody was faster: read again
//!         outcome => break outcome.map(|_| ()),
//!     }
//! }
//! # }
//! ```
//!
//! A chart can be listed without its bodies, and a part of it read at once.
//!
//! ```no_run
//! # use charthold_client::*;
//! # async fn example(client: Client, chart: Chart) -> Result<(), Error> {
//! let observations = client.list(&chart, Some("Observation")).await?;
//! let finals: Vec<RecordId> =
//!     observations.into_iter().filter(|header| header.status == "final").map(|header| header.record).collect();
//! for record in client.batch_get(&chart, &finals).await?.into_iter().flatten() {
//!     println!("{} bytes", record.body.len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Any number of calls may be under way at once, on one client or on its clones. Where there are many at one gateway they share
//! a stream by themselves, which costs less than a call each; nothing else is different.
//!
//! A whole chart comes as a stream. Only `None` means that it is complete; a stream that is cut ends with an error.
//!
//! ```no_run
//! # use charthold_client::*;
//! # async fn example(client: Client, chart: Chart) -> Result<(), Error> {
//! let mut records = client.read_chart(&chart).await?;
//! while let Some(record) = records.next().await {
//!     let record = record?;
//!     println!("{} version {}", record.header.record.type_, record.version());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # List
//!
//! Headers come without bodies: of a type, of a time, of a status, in order of their clinical dates. All pages of a
//! list show the chart as of one moment; [`at_position`](Client::at_position) reads as of an earlier one.
//!
//! ```no_run
//! # use charthold_client::*;
//! # async fn example(client: Client, chart: Chart) -> Result<(), Error> {
//! let query = ListQuery::of_type("Observation").from("2024").until("2025").newest_first();
//! let mut headers = client.list_where(&chart, query);
//! while let Some(header) = headers.next().await {
//!     let header = header?;
//!     println!("{} {}", header.clinical_date, header.status);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Find
//!
//! A record is found by what it was put with: an identifier, system and value. A match is verified in the record itself.
//!
//! ```no_run
//! # use charthold_client::*;
//! # async fn example(client: Client) -> Result<(), Error> {
//! let patient = Put::fhir(r#"{"resourceType":"Patient"}"#).with_index_term("https://hospital.example/mrn", "4711");
//! client.put(&Chart::patient("patient-1"), &RecordId::new("Patient", "patient-1"), patient).await?;
//!
//! let found = client.find_charts(FindQuery::new("https://hospital.example/mrn", "4711")).all().await?;
//! assert_eq!(found[0].chart, Chart::patient("patient-1"));
//! # Ok(())
//! # }
//! ```
//!
//! # Documents
//!
//! What is larger than a body may be (1 MiB by default) is uploaded in parts, then committed like any other version.
//!
//! ```no_run
//! # use charthold_client::*;
//! # async fn example(client: Client, chart: Chart, id: RecordId) -> Result<(), Box<dyn std::error::Error>> {
//! let scan = tokio::fs::File::open("scan.dcm").await?;
//! client.put_document(&chart, &id, Put { content_type: "application/dicom".into(), ..Put::default() }, scan).await?;
//!
//! let mut copy = tokio::fs::File::create("copy.dcm").await?;
//! client.read_document(&chart, &id).await?.copy_to(&mut copy).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # When something fails
//!
//! A call is repeated, on other gateways too, until its deadline: 30 s unless [`with_deadline`](Client::with_deadline)
//! says otherwise. An error that is returned is therefore worth acting on:
//!
//! | error | did the commit happen? | what to do |
//! | --- | --- | --- |
//! | [`VersionMismatch`], [`AlreadyExists`], [`NotFound`] | no | read again, decide |
//! | [`Unavailable`], [`Overloaded`] | **certainly not** | try later |
//! | [`OutcomeUnknown`] | perhaps | repeat with the same request id |
//! | [`Expired`] | not known any more | read to find out, then a new id |
//! | [`UploadNotFound`], [`UploadIncomplete`] | no | upload again, or the rest |
//! | [`Invalid`], [`Denied`], [`Unauthenticated`], [`Config`] | no | mend it |
//! | [`DataLoss`] (at every gateway), [`Internal`] | perhaps | call the operator |
//!
//! [`AlreadyExists`]: Error::AlreadyExists
//! [`Config`]: Error::Config
//! [`DataLoss`]: Error::DataLoss
//! [`Denied`]: Error::Denied
//! [`Expired`]: Error::Expired
//! [`Internal`]: Error::Internal
//! [`Invalid`]: Error::Invalid
//! [`NotFound`]: Error::NotFound
//! [`OutcomeUnknown`]: Error::OutcomeUnknown
//! [`Overloaded`]: Error::Overloaded
//! [`Unauthenticated`]: Error::Unauthenticated
//! [`Unavailable`]: Error::Unavailable
//! [`UploadIncomplete`]: Error::UploadIncomplete
//! [`UploadNotFound`]: Error::UploadNotFound
//! [`VersionMismatch`]: Error::VersionMismatch
//!
//! Every commit has a request id, a UUIDv7, and the cluster remembers its outcome for an hour. Repeating it with the
//! same id is always safe: it happens once.
//!
//! ```no_run
//! # use charthold_client::*;
//! # use std::time::Duration;
//! # async fn example(client: Client, chart: Chart, mutations: Vec<Mutation>) -> Result<Committed, Error> {
//! let request_id = new_request_id(); // keep it where a restart of this service finds it
//! loop {
//!     match client.commit_with_id(request_id, &chart, mutations.clone()).await {
//!         Err(Error::OutcomeUnknown { .. }) => tokio::time::sleep(Duration::from_secs(1)).await,
//!         settled => break settled,
//!     }
//! }
//! # }
//! ```
//!
//! What each reason of the cluster means, and what its operator does, is on a page of its own, which is also in the
//! program: `charthold help error NO_QUORUM`.
//!
//! # What is never shown
//!
//! Types that hold something of a patient, ids included, have a `Debug` that prints their name only, and no error text
//! names one: an application's logs stay free of them by default.
//!
//! # Layout of this crate
//!
//! `charts`, `documents`, `find` and `admin` hold the calls, `types` and `list` what they take and give; `retry` repeats
//! them, `endpoints` and `hints`
//! choose whom to ask, `connect` dials, `error` reads statuses.

#![warn(missing_docs)]

mod admin;
mod charts;
mod connect;
mod documents;
mod endpoints;
mod error;
mod find;
mod gathered;
mod hints;
mod list;
mod pipeline;
mod profile;
mod retry;
mod status;
#[cfg(test)]
mod tests;
mod trace;
mod types;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tonic::Request;

pub use admin::{Admin, Grant, Node, PlannedShard, Role, Tenant, Topology};
pub use charts::RecordStream;
pub use documents::DocumentStream;
pub use error::{Error, InvalidField};
pub use find::{FindQuery, Match};
pub use gathered::Gathered;
pub use list::{ListQuery, Order, Pager};
pub use profile::Profile;
pub use status::{Certificate, ClusterStatus, FollowerLag, NodeStatus, Root, RowsCheck, ShardStatus, SlotRange};
pub use types::{
    Chart, ChartKind, Committed, Document, Durability, Freshness, Header, IndexTerm, Mutation, Page, PageToken,
    Precondition, Put, Record, RecordId, RequestContext, new_request_id,
};
pub use uuid::Uuid;

use connect::Security;
use endpoints::Endpoints;
use retry::Cluster;

/// Of one call, unless [`Client::with_deadline`] says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
/// The protocol's limit.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// A connection to a cluster. Clones share what they know of it, and its connections.
#[derive(Clone)]
pub struct Client {
    cluster: Arc<Cluster>,
    context: Arc<RequestContext>,
    deadline: Duration,
    /// What reads show; nothing: now.
    position: Option<Arc<str>>,
    freshness: Freshness,
    traceparent: Option<Arc<str>>,
    /// Calls may share a stream.
    streams: bool,
}

impl Client {
    /// Reads the profile's certificates and gets ready; nothing is dialed before the first call. Needs a Tokio runtime
    /// around it. The files are read again for every new connection, so that certificates can be renewed where they
    /// are: a gateway ends each connection within an hour.
    pub fn connect(profile: &Profile) -> Result<Self, Error> {
        profile.check().map_err(Error::Config)?;
        Self::new(&profile.endpoints, Security::from_profile(profile)?)
    }

    /// Without certificates, for tests.
    #[cfg(test)]
    pub(crate) fn plaintext(endpoints: &[String]) -> Result<Self, Error> {
        Self::new(endpoints, Security::Plaintext)
    }

    fn new(endpoints: &[String], security: Security) -> Result<Self, Error> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::Config("connect was called outside a Tokio runtime".into()));
        }
        let cluster = Cluster { endpoints: Endpoints::new(endpoints, security)?, hints: hints::Hints::default() };
        Ok(Self {
            cluster: Arc::new(cluster),
            context: Arc::default(),
            deadline: DEFAULT_DEADLINE,
            position: None,
            freshness: Freshness::default(),
            traceparent: None,
            streams: true,
        })
    }

    /// The same client, saying who acts and why.
    #[must_use]
    pub fn with_context(&self, context: RequestContext) -> Self {
        Self { context: Arc::new(context), ..self.clone() }
    }

    /// The same client, with another deadline: for each call, all its attempts together.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The same client, whose reads show a chart as it was at a position: one that an answer about this chart gave, for
    /// example [`Committed::position`] or [`Page::position`]. Commits are not touched by it.
    ///
    /// ```no_run
    /// # use charthold_client::*;
    /// # async fn example(client: Client, chart: Chart, id: RecordId, committed: Committed) -> Result<(), Error> {
    /// let as_it_was = client.at_position(&committed.position).get(&chart, &id).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn at_position(&self, position: &str) -> Self {
        Self { position: Some(position.into()), ..self.clone() }
    }

    /// The same client, whose reads of charts need not be more current than this: gets, lists, histories and streams of
    /// charts. Finds, documents and commits are not touched by it, nor is what is read [at a position](Self::at_position).
    ///
    /// ```no_run
    /// # use charthold_client::*;
    /// # use std::time::Duration;
    /// # async fn example(client: Client, chart: Chart) -> Result<(), Error> {
    /// // A dashboard that may be five seconds behind: answered by the first gateway, without a question to others.
    /// let client = client.with_freshness(Freshness::Stale(Duration::from_secs(5)));
    /// let headers = client.list(&chart, None).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_freshness(&self, freshness: Freshness) -> Self {
        Self { freshness, ..self.clone() }
    }

    /// The same client, for calls that belong to a trace of the caller's: `traceparent` as W3C writes it,
    /// `00-<trace id>-<span id>-01`. The gateway's span becomes a child of that one, and the nodes' spans its children.
    ///
    /// Without it each call has a trace id of its own, the same for all its attempts, and the cluster decides whether
    /// it is traced.
    #[must_use]
    pub fn with_traceparent(&self, traceparent: &str) -> Self {
        Self { traceparent: Some(traceparent.into()), ..self.clone() }
    }

    /// The same client, whose calls each go by themselves, however many are under way: for a proxy between it and the
    /// gateways that counts or limits calls, and to measure what sharing a stream saves.
    #[must_use]
    pub fn without_streams(&self) -> Self {
        Self { streams: false, ..self.clone() }
    }

    /// The calls of operators and tenant admins.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }
}

/// A message on its way, with the deadline that the gateway is told.
fn request<T: Clone>(message: &T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message.clone());
    request.set_timeout(timeout);
    trace::tell(&mut request);
    request
}

/// No lock of this crate is held where a panic could leave half a change behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
