//! What an application hands over and gets back: charts, records, mutations.
//!
//! Owns the crate's own types and their translation to and from the generated messages; knows nothing of connections.
//! Whatever may say something about a patient, ids included, has a `Debug` that prints the type's name only, so that
//! no log line and no panic message of the application shows it by accident.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use charthold_proto::v1;
use uuid::Uuid;

/// A `Debug` that says which type it is and nothing else.
macro_rules! redacted_debug {
    ($($name:ident),+) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    )+};
}

redacted_debug!(Chart, RecordId, RequestContext, IndexTerm, Put, Mutation, Header, Record);

/// One chart: what is ordered, committed atomically and erased as a whole.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Chart {
    kind: ChartKind,
    id: String,
}

/// Whose records a chart holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChartKind {
    /// One patient's.
    Patient,
    /// What patients share: practitioners, organisations.
    Shared,
}

impl Chart {
    /// The chart of one patient, by the patient's id.
    pub fn patient(id: impl Into<String>) -> Self {
        Self { kind: ChartKind::Patient, id: id.into() }
    }

    /// A chart that patients share, by its name, for example `Practitioner`.
    pub fn shared(name: impl Into<String>) -> Self {
        Self { kind: ChartKind::Shared, id: name.into() }
    }

    /// Whether it is a patient's or a shared one.
    pub fn kind(&self) -> ChartKind {
        self.kind
    }

    /// The patient's id, or the shared chart's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn to_proto(&self) -> v1::ChartRef {
        v1::ChartRef { kind: self.kind.to_proto().into(), id: self.id.clone() }
    }

    pub(crate) fn from_proto(chart: v1::ChartRef) -> Option<Self> {
        let kind = match chart.kind() {
            v1::chart_ref::Kind::Patient => ChartKind::Patient,
            v1::chart_ref::Kind::Shared => ChartKind::Shared,
            v1::chart_ref::Kind::Unspecified => return None,
        };
        Some(Self { kind, id: chart.id })
    }
}

impl ChartKind {
    pub(crate) fn to_proto(self) -> v1::chart_ref::Kind {
        match self {
            Self::Patient => v1::chart_ref::Kind::Patient,
            Self::Shared => v1::chart_ref::Kind::Shared,
        }
    }
}

/// Names one record within its chart.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RecordId {
    /// For example a FHIR resource type.
    pub type_: String,
    /// Unique among the chart's records of this type.
    pub id: String,
}

impl RecordId {
    /// `RecordId::new("Observation", "blood-pressure-1")`
    pub fn new(type_: impl Into<String>, id: impl Into<String>) -> Self {
        Self { type_: type_.into(), id: id.into() }
    }

    pub(crate) fn to_proto(&self) -> v1::RecordRef {
        v1::RecordRef { r#type: self.type_.clone(), id: self.id.clone() }
    }

    pub(crate) fn from_proto(record: Option<v1::RecordRef>) -> Self {
        let record = record.unwrap_or_default();
        Self { type_: record.r#type, id: record.id }
    }
}

/// Who asks, and why: sealed into every record written and every audit event. Charthold does not judge it.
///
/// ```
/// use charthold_client::RequestContext;
///
/// let context = RequestContext {
///     purpose_of_use: "TREATMENT".into(),
///     device: "ward-7-tablet".into(),
///     ..RequestContext::new("practitioner/4711")
/// };
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RequestContext {
    /// The user who acts, as your system names them. Every call on charts needs it.
    pub actor: String,
    /// For whom, when the actor acts for another.
    pub on_behalf_of: String,
    /// For example TREATMENT, PAYMENT, OPERATIONS, EMERGENCY, PATIENT_REQUEST.
    pub purpose_of_use: String,
    /// Free text: why, above all in an emergency.
    pub reason: String,
    /// The user's session in your system.
    pub session: String,
    /// The device the user works at.
    pub device: String,
    /// Where the request came from: an address, an application.
    pub origin: String,
}

impl RequestContext {
    /// A context that names the actor only.
    pub fn new(actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), ..Self::default() }
    }

    pub(crate) fn to_proto(&self) -> v1::RequestContext {
        v1::RequestContext {
            actor: self.actor.clone(),
            on_behalf_of: self.on_behalf_of.clone(),
            purpose_of_use: self.purpose_of_use.clone(),
            reason: self.reason.clone(),
            session: self.session.clone(),
            device: self.device.clone(),
            origin: self.origin.clone(),
        }
    }
}

/// What to store as a record's new version.
///
/// ```
/// use charthold_client::Put;
///
/// let put = Put {
///     clinical_date: "2024-05-13".into(),
///     status: "final".into(),
///     ..Put::fhir(r#"{"resourceType":"Observation"}"#)
/// };
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Put {
    /// For example `application/fhir+json`.
    pub content_type: String,
    /// Any bytes, up to 1 MiB unless the cluster allows more.
    pub body: Bytes,
    /// When it happened to the patient: an ISO 8601 date or date-time, also partial (`2024`, `2024-05`).
    pub clinical_date: String,
    /// For example `final`, `amended`.
    pub status: String,
    /// Who wrote it.
    pub author: String,
    /// Up to 16.
    pub labels: Vec<String>,
    /// What the record can be found by, see [`Client::find_charts`](crate::Client::find_charts). Of this version: one
    /// that is put without them takes them away. Up to 8.
    pub index_terms: Vec<IndexTerm>,
    /// In place of a body: what [`Client::upload`](crate::Client::upload) gave for the same chart.
    pub document: Option<Document>,
}

/// An identifier: whose numbers these are, and the number.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IndexTerm {
    /// For example a URI.
    pub system: String,
    /// Bring it into one form before it is put: terms match byte by byte.
    pub value: String,
}

impl IndexTerm {
    /// `IndexTerm::new("https://hospital.example/mrn", "4711")`
    pub fn new(system: impl Into<String>, value: impl Into<String>) -> Self {
        Self { system: system.into(), value: value.into() }
    }

    pub(crate) fn into_proto(self) -> v1::IndexTerm {
        v1::IndexTerm { system: self.system, value: self.value }
    }
}

/// A document that was uploaded and is not committed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document {
    /// What the upload is called.
    pub upload_id: Uuid,
    /// Of its content.
    pub length_bytes: u64,
}

impl Put {
    /// A body of any content type.
    pub fn new(content_type: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { content_type: content_type.into(), body: body.into(), ..Self::default() }
    }

    /// A FHIR resource as JSON.
    pub fn fhir(body: impl Into<Bytes>) -> Self {
        Self::new("application/fhir+json", body)
    }

    /// The same, to be found by an identifier.
    #[must_use]
    pub fn with_index_term(mut self, system: impl Into<String>, value: impl Into<String>) -> Self {
        self.index_terms.push(IndexTerm::new(system, value));
        self
    }
}

/// What must be true of a record for the whole commit to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// It is absent or deleted.
    MustNotExist,
    /// Its newest version is this one, and is not a deletion.
    Version(u64),
}

/// One step of a commit, about one record.
///
/// ```
/// use charthold_client::{Mutation, Put, RecordId};
///
/// let create = Mutation::put(RecordId::new("Patient", "p1"), Put::fhir("{}")).must_not_exist();
/// let amend = Mutation::put(RecordId::new("Observation", "o1"), Put::fhir("{}")).if_version(3);
/// let only_if = Mutation::check(RecordId::new("Encounter", "e1")).if_version(1);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Mutation {
    record: RecordId,
    precondition: Option<Precondition>,
    operation: Operation,
}

#[derive(Clone, PartialEq, Eq)]
enum Operation {
    Put(Box<Put>),
    Delete,
    Check,
}

impl Mutation {
    /// Stores a new version.
    pub fn put(record: RecordId, put: Put) -> Self {
        Self { record, precondition: None, operation: Operation::Put(Box::new(put)) }
    }

    /// Stores a version that says "deleted"; the record must exist, its old versions stay readable.
    pub fn delete(record: RecordId) -> Self {
        Self { record, precondition: None, operation: Operation::Delete }
    }

    /// Changes nothing, but its precondition (give it one) decides with the others whether the commit happens.
    pub fn check(record: RecordId) -> Self {
        Self { record, precondition: None, operation: Operation::Check }
    }

    /// Only if the record is absent or deleted.
    pub fn must_not_exist(self) -> Self {
        self.when(Precondition::MustNotExist)
    }

    /// Only if this is the record's newest version.
    pub fn if_version(self, version: u64) -> Self {
        self.when(Precondition::Version(version))
    }

    /// Only if the precondition holds. The last one given counts.
    pub fn when(mut self, precondition: Precondition) -> Self {
        self.precondition = Some(precondition);
        self
    }

    pub(crate) fn into_proto(self) -> v1::Mutation {
        use v1::mutation::Operation as Op;
        use v1::precondition::Condition;
        let condition = self.precondition.map(|precondition| match precondition {
            Precondition::MustNotExist => Condition::MustNotExist(true),
            Precondition::Version(version) => Condition::Version(version),
        });
        let operation = match self.operation {
            Operation::Put(put) => Op::Put(v1::Put {
                content_type: put.content_type,
                body: put.body,
                clinical_date: put.clinical_date,
                status: put.status,
                author: put.author,
                labels: put.labels,
                index_terms: put.index_terms.into_iter().map(IndexTerm::into_proto).collect(),
                document: put.document.map(|document| v1::DocumentRef { upload_id: document.upload_id.to_string() }),
            }),
            Operation::Delete => Op::Delete(v1::Delete {}),
            Operation::Check => Op::Check(v1::Check {}),
        };
        v1::Mutation {
            record: Some(self.record.to_proto()),
            precondition: condition.map(|condition| v1::Precondition { condition: Some(condition) }),
            operation: Some(operation),
        }
    }
}

/// A commit that happened: it is on the disks of a majority of the replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// What identified it.
    pub request_id: Uuid,
    /// One per mutation, in order: the record's version after the commit.
    pub versions: Vec<u64>,
    /// Opaque: where in the chart's history it stands. See [`Client::at_position`](crate::Client::at_position).
    pub position: String,
    /// The cluster's time of it.
    pub committed_at: Option<SystemTime>,
    /// Where it was on disk when it was answered.
    pub durability: Durability,
}

/// Where a commit was on disk when it was answered. Every answer means the first at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// On more than half of the nodes.
    Quorum,
    /// And at every site with keys: only where the nodes are configured to wait for that, and all of these sites keep up.
    BothKeyed,
}

impl Durability {
    pub(crate) fn from_proto(durability: v1::Durability) -> Self {
        match durability {
            v1::Durability::BothKeyed => Self::BothKeyed,
            v1::Durability::Majority | v1::Durability::Unspecified => Self::Quorum,
        }
    }
}

/// All that is known of a record's version without its body.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// Which record.
    pub record: RecordId,
    /// Counts 1, 2, 3 for each record: use it as an ETag.
    pub version: u64,
    /// Whether this version says that the record was deleted.
    pub deleted: bool,
    /// As it was put, like the four that follow.
    pub content_type: String,
    /// When it happened to the patient.
    pub clinical_date: String,
    /// For example `final`.
    pub status: String,
    /// Who wrote it.
    pub author: String,
    /// As they were put.
    pub labels: Vec<String>,
    /// As they were put.
    pub index_terms: Vec<IndexTerm>,
    /// Of the body.
    pub length_bytes: u64,
    /// The cluster's time of the commit.
    pub committed_at: Option<SystemTime>,
    /// The content was uploaded as a document: only [`Client::read_document`](crate::Client::read_document) gives it.
    pub document: bool,
}

impl Header {
    pub(crate) fn from_proto(header: v1::RecordHeader) -> Self {
        Self {
            record: RecordId::from_proto(header.record),
            version: header.version,
            deleted: header.deleted,
            content_type: header.content_type,
            clinical_date: header.clinical_date,
            status: header.status,
            author: header.author,
            labels: header.labels,
            index_terms: header.index_terms.into_iter().map(|term| IndexTerm::new(term.system, term.value)).collect(),
            length_bytes: header.length_bytes,
            committed_at: system_time(header.committed_at),
            document: header.document,
        }
    }
}

/// One version of a record. A deleted one has no body.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub header: Header,
    /// Exactly the bytes that were put; none when they are a document, see [`Header::document`].
    pub body: Bytes,
}

impl Record {
    pub(crate) fn from_proto(record: v1::Record) -> Self {
        Self { header: Header::from_proto(record.header.unwrap_or_default()), body: record.body }
    }

    /// The version, as an ETag for [`Mutation::if_version`].
    pub fn version(&self) -> u64 {
        self.header.version
    }
}

/// How current a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// It sees every commit that was acknowledged before, to whomever; no clock is trusted for that.
    #[default]
    Linearizable,
    /// The same, as long as no node's clock runs 40 % faster than another's: a leader that a majority has just confirmed
    /// answers without asking it again.
    Lease,
    /// It may lack what was committed so long before, from a millisecond to an hour. The gateway that is asked answers
    /// from its own replica when that is current enough, whoever leads.
    Stale(Duration),
}

impl Freshness {
    pub(crate) fn to_proto(self) -> Option<v1::Freshness> {
        use v1::freshness::Mode;
        let mode = match self {
            Self::Linearizable => return None,
            Self::Lease => Mode::Lease(true),
            // Rounded down: never more than was allowed. What is out of range the gateway refuses by name.
            Self::Stale(age_max) => Mode::StaleMsMax(u32::try_from(age_max.as_millis()).unwrap_or(u32::MAX)),
        };
        Some(v1::Freshness { mode: Some(mode) })
    }
}

/// One page of an answer that may be long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// To ask for the next page; absent on the last.
    pub next: Option<PageToken>,
    /// Opaque: the moment that all pages are as of.
    pub position: String,
}

/// Opaque, bound to the caller and to the query that it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken(String);

impl PageToken {
    /// None for the empty text, which says on the wire that there is no more.
    pub fn new(token: impl Into<String>) -> Option<Self> {
        Some(token.into()).filter(|token| !token.is_empty()).map(Self)
    }

    /// For keeping it, say in a link to the next page.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Makes the id of a commit: a UUIDv7, from this machine's clock, which must not be more than 5 minutes fast.
pub fn new_request_id() -> Uuid {
    Uuid::now_v7()
}

pub(crate) fn system_time(timestamp: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    timestamp.and_then(|timestamp| SystemTime::try_from(timestamp).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_phi() {
        let record = RecordId::new("Observation-secret", "id-secret");
        let put =
            Put { author: "author-secret".into(), ..Put::fhir("body-secret") }.with_index_term("secret", "secret");
        let header = Header::from_proto(v1::RecordHeader {
            record: Some(record.to_proto()),
            status: "status-secret".into(),
            ..Default::default()
        });
        let shown = format!(
            "{:?}",
            (
                Chart::patient("patient-secret"),
                Mutation::put(record.clone(), put.clone()).must_not_exist(),
                Record { header: header.clone(), body: Bytes::from_static(b"body-secret") },
                Page { items: vec![header], next: None, position: String::new() },
                RequestContext::new("actor-secret"),
                put.index_terms[0].clone(),
                (record, put),
            )
        );
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn the_last_precondition_counts() {
        let mutation = Mutation::check(RecordId::new("A", "1")).must_not_exist().if_version(4).into_proto();
        let condition = mutation.precondition.and_then(|precondition| precondition.condition);
        assert!(condition == Some(v1::precondition::Condition::Version(4)));
    }
}
