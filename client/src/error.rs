//! What can go wrong, in words an application can act on; and how a gRPC status becomes one of them.
//!
//! Owns [`Error`] and the reading of `tonic::Status` with its `google.rpc` details. Whether and where to try again is
//! `retry.rs`'s business: this file only says what an answer means ([`Failure`]).

use std::error::Error as _;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use crate::connect::DialError;
use crate::pipeline::StreamEnded;

/// Why a call did not do what it was asked to.
///
/// Texts never name a patient, a record or what is in one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request breaks a rule: a bad id, a size, a field. It will fail the same way again.
    #[error("the request is not valid: {message}")]
    Invalid {
        /// What is wrong, field by field.
        message: String,
        /// Each field that is wrong, where the gateway says so.
        fields: Vec<InvalidField>,
    },
    /// This request id carried another commit before. Nothing of this one happened.
    #[error("this request id was used before for another content")]
    RequestIdReused,
    /// The certificate is fine, but no grant allows this. Says nothing of whether the record exists.
    #[error("permission denied: no grant allows this call")]
    Denied,
    /// The record (or this version of it) does not exist, or is deleted.
    #[error("not found{}", at(.index))]
    NotFound {
        /// Which mutation of a commit, from 0.
        index: Option<usize>,
        /// The version that deleted the record, told to those who may read; nothing if there never was one.
        deleted_version: Option<u64>,
    },
    /// A mutation said "must not exist", but the record does. Nothing of the commit happened.
    #[error("the record exists already{}", at(.index))]
    AlreadyExists {
        /// Which mutation, from 0.
        index: Option<usize>,
    },
    /// A mutation named a version that is not the newest. Nothing of the commit happened: read again, then decide.
    #[error("the record has another version{}", at(.index))]
    VersionMismatch {
        /// Which mutation, from 0.
        index: Option<usize>,
        /// The newest version, told to those who may read.
        current: Option<u64>,
    },
    /// The request id is over an hour old (or from the future: check this machine's clock), so that the cluster no
    /// longer knows whether it saw it. Read the chart to find out, then commit with a new id.
    #[error("the request id is too old, or this machine's clock is wrong")]
    Expired,
    /// The chart was erased, for good.
    #[error("the chart was erased")]
    Erased,
    /// The chart has no such open upload: it was never begun, a commit used it up, or it was dropped after a day.
    #[error("no such open upload in this chart")]
    UploadNotFound,
    /// The upload that a commit refers to lacks its last parts.
    #[error("the upload is not complete")]
    UploadIncomplete,
    /// A part came before its turn.
    #[error("the upload goes on with part {next_part}")]
    UploadOutOfOrder {
        /// The part that is missing.
        next_part: u32,
    },
    /// The chart has as many open uploads as it may: commit some, or wait until they are dropped.
    #[error("the chart has too many open uploads")]
    TooManyUploads,
    /// What was to be uploaded could not be read, or what was read could not be written.
    #[error("the document's content: {why}")]
    Content {
        /// What the reader or writer said.
        why: String,
    },
    /// The cluster was busy until the deadline, or its disks have no room for writes. Nothing happened.
    #[error("the cluster is overloaded: {why}")]
    Overloaded {
        /// What the last answer said.
        why: String,
    },
    /// No gateway could answer until the deadline. For a commit: certainly nothing happened.
    #[error("unavailable: {why}")]
    Unavailable {
        /// What the last attempt met. If a gateway said it, its reason comes first: `NO_QUORUM: …`.
        why: String,
    },
    /// The commit may or may not have happened. Ask again with the same id, within an hour:
    /// [`Client::commit_with_id`](crate::Client::commit_with_id).
    #[error("the outcome is not known yet: repeat the call with the same request id, {request_id}")]
    OutcomeUnknown {
        /// What the commit was called.
        request_id: Uuid,
    },
    /// A stored byte is wrong, and no gateway had a sound copy to read. Call whoever runs the cluster.
    #[error("stored data is damaged: call the cluster's operator")]
    DataLoss,
    /// The gateway does not accept this certificate, or this client does not accept the gateway's.
    #[error("not authenticated: {why}")]
    Unauthenticated {
        /// Which side refused, and why.
        why: String,
    },
    /// The profile, a certificate or a key can't be used. Nothing was sent.
    #[error("{0}")]
    Config(String),
    /// The cluster has not been initialized: `charthold cluster init`.
    #[error("the cluster is not initialized")]
    NotInitialized,
    /// The cluster was initialized before.
    #[error("the cluster is initialized already")]
    AlreadyInitialized,
    /// The nodes do not fit together: another root key, two of one name, another number than expected.
    #[error("{why}")]
    CannotForm {
        /// Which node, and what is wrong with it.
        why: String,
    },
    /// The cluster cannot be changed as asked: a node's name is taken, too few nodes with keys would be left, no shard is
    /// spare, not all nodes know a newer format, or something needs one.
    #[error("{why}")]
    CannotChange {
        /// Why, and which node if it is one.
        why: String,
    },
    /// A defect, or a gateway that speaks another version. For a commit: says nothing of whether it happened.
    #[error("internal error: {message}")]
    Internal {
        /// What the gateway said.
        message: String,
    },
}

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidField {
    /// Its path in the request, for example `mutations[3].record.id`.
    pub field: String,
    /// The rule.
    pub description: String,
}

fn at(index: &Option<usize>) -> String {
    index.map(|index| format!(" (mutation {index})")).unwrap_or_default()
}

/// What one failed attempt means.
#[derive(Debug)]
pub(crate) struct Failure {
    pub error: Error,
    pub next: Next,
}

/// What may be done after a failed attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The answer is final; `settled` when it is this very request's recorded outcome, whatever was sent before.
    Stop { settled: bool },
    /// Worth another attempt.
    Retry {
        /// Whether this attempt may have changed something.
        maybe_applied: bool,
        /// What the gateway asked for.
        wait: Option<Duration>,
        /// Whether the endpoint itself is in doubt, so that other calls should prefer another.
        blame: bool,
    },
    /// Another endpoint may do better, the same one will not: one side's certificate was refused, what this gateway reads
    /// is damaged, of which others have a copy, or it has not been taken into the cluster yet. Other calls should prefer
    /// another, too.
    Elsewhere,
}

const DOMAIN: &str = "charthold";

impl Failure {
    pub(crate) fn from_status(status: &Status) -> Self {
        if let Some(failure) = Self::from_transport(status) {
            return failure;
        }
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        let reason = info.map(|info| info.reason.as_str()).unwrap_or_default();
        let number = |name: &str| info.and_then(|info| info.metadata.get(name)).and_then(|text| text.parse().ok());
        let index = number("index").and_then(|index: u64| usize::try_from(index).ok());
        let why = || status.message().to_owned();
        let unavailable =
            || Error::Unavailable { why: if reason.is_empty() { why() } else { format!("{reason}: {}", why()) } };

        let (error, settled) = match (status.code(), reason) {
            (Code::Unavailable, "NO_LEADER" | "NO_QUORUM") => {
                return Self::retry(unavailable(), false, &details, true);
            }
            (Code::ResourceExhausted, reason) => {
                // Without our reason it may be a proxy's answer: it can't know what became of the request.
                let maybe_applied = !matches!(reason, "OVERLOADED" | "DISK_FULL");
                return Self::retry(Error::Overloaded { why: why() }, maybe_applied, &details, false);
            }
            // Everything else that lost its way: our OUTCOME_UNKNOWN, what a later version may say, a proxy's answer.
            (Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown, _) => {
                return Self::retry(unavailable(), true, &details, true);
            }
            (Code::InvalidArgument, "REQUEST_ID_REUSED") => (Error::RequestIdReused, true),
            (Code::NotFound, _) => (Error::NotFound { index, deleted_version: number("version") }, true),
            (Code::AlreadyExists, _) => (Error::AlreadyExists { index }, true),
            (Code::Aborted, "VERSION_MISMATCH") => (Error::VersionMismatch { index, current: number("version") }, true),
            (Code::FailedPrecondition, "REQUEST_EXPIRED") => (Error::Expired, false),
            (Code::FailedPrecondition, "CHART_ERASED") => (Error::Erased, false),
            (Code::FailedPrecondition, "UPLOAD_NOT_FOUND") => (Error::UploadNotFound, false),
            (Code::FailedPrecondition, "UPLOAD_INCOMPLETE") => (Error::UploadIncomplete, false),
            (Code::FailedPrecondition, "UPLOAD_OUT_OF_ORDER") => {
                let next_part = number("next_part").and_then(|part| u32::try_from(part).ok()).unwrap_or_default();
                (Error::UploadOutOfOrder { next_part }, false)
            }
            (Code::FailedPrecondition, "TOO_MANY_UPLOADS") => (Error::TooManyUploads, false),
            (Code::FailedPrecondition, "NOT_INITIALIZED") => {
                return Self { error: Error::NotInitialized, next: Next::Elsewhere };
            }
            (Code::FailedPrecondition, "ALREADY_INITIALIZED") => (Error::AlreadyInitialized, false),
            (Code::FailedPrecondition, "CANNOT_FORM") => (Error::CannotForm { why: why() }, false),
            (Code::FailedPrecondition, "CANNOT_CHANGE") => (Error::CannotChange { why: why() }, false),
            // OutOfRange is how either side's gRPC library refuses a message over its size limit.
            (Code::InvalidArgument | Code::OutOfRange, _) => (invalid(status, &details), false),
            (Code::PermissionDenied, _) => (Error::Denied, false),
            (Code::Unauthenticated, _) => (Error::Unauthenticated { why: why() }, false),
            (Code::DataLoss, _) => return Self { error: Error::DataLoss, next: Next::Elsewhere },
            // A gateway that is older than what is asked for; another one may not be.
            (Code::Unimplemented, _) => {
                let message = format!("the gateway is too old for this call: {}", status.message());
                return Self { error: Error::Internal { message }, next: Next::Elsewhere };
            }
            (code, _) => (Error::Internal { message: format!("{code:?}: {}", status.message()) }, false),
        };
        Self { error, next: Next::Stop { settled } }
    }

    /// An attempt that got no answer in its time.
    pub(crate) fn timed_out(address: &str) -> Self {
        let error = Error::Unavailable { why: format!("{address}: no answer in time") };
        Self { error, next: Next::Retry { maybe_applied: true, wait: None, blame: true } }
    }

    fn retry(error: Error, maybe_applied: bool, details: &ErrorDetails, blame: bool) -> Self {
        let wait = details.retry_info().and_then(|info| info.retry_delay);
        Self { error, next: Next::Retry { maybe_applied, wait, blame } }
    }

    /// Statuses that this side made because the connection failed; a gateway's own have no source.
    fn from_transport(status: &Status) -> Option<Self> {
        if !matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal) {
            return None;
        }
        let source = status.source()?;
        if source.is::<StreamEnded>() {
            let error = Error::Unavailable { why: status.message().to_owned() };
            return Some(Self { error, next: Next::Retry { maybe_applied: true, wait: None, blame: false } });
        }
        let (why, next) = match causes(source).find_map(|error| error.downcast_ref::<DialError>()) {
            Some(DialError::Untrusted(why)) => {
                return Some(Self { error: Error::Unauthenticated { why: why.clone() }, next: Next::Elsewhere });
            }
            Some(DialError::Failed(why)) => {
                (why.clone(), Next::Retry { maybe_applied: false, wait: None, blame: true })
            }
            None => (chain(source), Next::Retry { maybe_applied: true, wait: None, blame: true }),
        };
        Some(Self { error: Error::Unavailable { why }, next })
    }
}

fn invalid(status: &Status, details: &ErrorDetails) -> Error {
    let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
    let fields = violations
        .iter()
        .map(|bad| InvalidField { field: bad.field.clone(), description: bad.description.clone() })
        .collect();
    Error::Invalid { message: status.message().to_owned(), fields }
}

type Cause = dyn std::error::Error + 'static;

/// The error itself, then what caused it.
fn causes(error: &Cause) -> impl Iterator<Item = &Cause> {
    std::iter::successors(Some(error), |error: &&Cause| (*error).source())
}

/// An error and its causes on one line; a cause that only repeats the one before is left out.
fn chain(error: &Cause) -> String {
    let mut text = error.to_string();
    for cause in causes(error).skip(1) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use super::*;

    fn status(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
        let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Status::with_error_details(code, "said so", ErrorDetails::with_error_info(reason, DOMAIN, metadata))
    }

    fn check(code: Code, reason: &str, metadata: &[(&str, &str)], error: Error, next: Next) {
        let failure = Failure::from_status(&status(code, reason, metadata));
        assert_eq!((failure.error, failure.next), (error, next), "{code:?} {reason}");
    }

    const SETTLED: Next = Next::Stop { settled: true };
    const STOP: Next = Next::Stop { settled: false };

    fn retry(maybe_applied: bool, blame: bool) -> Next {
        Next::Retry { maybe_applied, wait: None, blame }
    }

    #[test]
    fn every_documented_reason_has_its_error() {
        let why = || "said so".to_owned();
        let unavailable = |reason: &str| Error::Unavailable { why: format!("{reason}: said so") };
        let message = || "Internal: said so".to_owned();
        check(Code::InvalidArgument, "INVALID_FIELD", &[], Error::Invalid { message: why(), fields: vec![] }, STOP);
        check(Code::InvalidArgument, "REQUEST_ID_REUSED", &[], Error::RequestIdReused, SETTLED);
        check(Code::Unauthenticated, "BAD_CERTIFICATE", &[], Error::Unauthenticated { why: why() }, STOP);
        check(Code::PermissionDenied, "NO_GRANT", &[], Error::Denied, STOP);
        let absent = Error::NotFound { index: None, deleted_version: None };
        check(Code::NotFound, "RECORD_NOT_FOUND", &[], absent, SETTLED);
        let deleted = Error::NotFound { index: Some(1), deleted_version: Some(4) };
        check(Code::NotFound, "RECORD_NOT_FOUND", &[("index", "1"), ("version", "4")], deleted, SETTLED);
        let exists = Error::AlreadyExists { index: Some(2) };
        check(Code::AlreadyExists, "RECORD_EXISTS", &[("index", "2")], exists, SETTLED);
        let mismatch = Error::VersionMismatch { index: Some(0), current: Some(7) };
        check(Code::Aborted, "VERSION_MISMATCH", &[("index", "0"), ("version", "7")], mismatch, SETTLED);
        let untold = Error::VersionMismatch { index: Some(0), current: None };
        check(Code::Aborted, "VERSION_MISMATCH", &[("index", "0")], untold, SETTLED);
        check(Code::FailedPrecondition, "REQUEST_EXPIRED", &[], Error::Expired, STOP);
        check(Code::FailedPrecondition, "CHART_ERASED", &[], Error::Erased, STOP);
        check(Code::FailedPrecondition, "UPLOAD_NOT_FOUND", &[], Error::UploadNotFound, STOP);
        check(Code::FailedPrecondition, "UPLOAD_INCOMPLETE", &[], Error::UploadIncomplete, STOP);
        let order = Error::UploadOutOfOrder { next_part: 3 };
        check(Code::FailedPrecondition, "UPLOAD_OUT_OF_ORDER", &[("next_part", "3")], order, STOP);
        check(Code::FailedPrecondition, "TOO_MANY_UPLOADS", &[], Error::TooManyUploads, STOP);
        check(Code::FailedPrecondition, "NOT_INITIALIZED", &[], Error::NotInitialized, Next::Elsewhere);
        check(Code::FailedPrecondition, "ALREADY_INITIALIZED", &[], Error::AlreadyInitialized, STOP);
        check(Code::FailedPrecondition, "CANNOT_FORM", &[], Error::CannotForm { why: why() }, STOP);
        check(Code::FailedPrecondition, "CANNOT_CHANGE", &[], Error::CannotChange { why: why() }, STOP);
        check(Code::ResourceExhausted, "OVERLOADED", &[], Error::Overloaded { why: why() }, retry(false, false));
        check(Code::Unavailable, "NO_LEADER", &[], unavailable("NO_LEADER"), retry(false, true));
        check(Code::Unavailable, "NO_QUORUM", &[], unavailable("NO_QUORUM"), retry(false, true));
        check(Code::Unavailable, "OUTCOME_UNKNOWN", &[], unavailable("OUTCOME_UNKNOWN"), retry(true, true));
        check(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", &[], unavailable("OUTCOME_UNKNOWN"), retry(true, true));
        check(Code::DataLoss, "DAMAGED", &[], Error::DataLoss, Next::Elsewhere);
        check(Code::Internal, "INTERNAL", &[], Error::Internal { message: message() }, STOP);
    }

    #[test]
    fn what_a_later_version_may_say_is_read_by_its_code() {
        check(
            Code::Unavailable,
            "MOVING",
            &[],
            Error::Unavailable { why: "MOVING: said so".into() },
            retry(true, true),
        );
        let invalid = Error::Invalid { message: "said so".into(), fields: vec![] };
        check(Code::InvalidArgument, "ANOTHER", &[], invalid, STOP);
    }

    #[test]
    fn a_reason_of_another_domain_is_not_ours() {
        let details = ErrorDetails::with_error_info("NO_LEADER", "proxy.example", HashMap::new());
        let failure = Failure::from_status(&Status::with_error_details(Code::Unavailable, "", details));
        assert_eq!(failure.next, retry(true, true));
    }

    #[test]
    fn a_stream_that_ended_says_nothing_of_its_gateway() {
        let next = Failure::from_status(&crate::pipeline::ended()).next;
        assert_eq!(next, Next::Retry { maybe_applied: true, wait: None, blame: false });
    }

    #[test]
    fn details_are_read() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("record.id", "is empty");
        let text = "record.id: is empty";
        let failure = Failure::from_status(&Status::with_error_details(Code::InvalidArgument, text, details));
        assert_eq!(failure.error.to_string(), "the request is not valid: record.id: is empty");
        let field = InvalidField { field: "record.id".to_owned(), description: "is empty".to_owned() };
        assert_eq!(failure.error, Error::Invalid { message: text.to_owned(), fields: vec![field] });

        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(70)));
        let failure = Failure::from_status(&Status::with_error_details(Code::Unavailable, "", details));
        assert!(matches!(failure.next, Next::Retry { wait: Some(wait), .. } if wait == Duration::from_millis(70)));
    }
}
