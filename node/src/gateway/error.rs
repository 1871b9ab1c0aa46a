//! Everything that a gateway answers instead of what was asked, and how it looks as a gRPC status.

use std::collections::HashMap;
use std::time::Duration;

use charthold_replica::replica::ReplicaError;
use charthold_replica::store::EngineError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use super::observe;
use crate::error_pages;
use crate::seal::{OpenError, SealError};

/// In every `google.rpc.ErrorInfo`.
const DOMAIN: &str = "charthold";
/// What `RetryInfo` asks for: an election takes a few seconds, a full queue less.
const RETRY_LEADER: Duration = Duration::from_millis(500);
const RETRY_OVERLOAD: Duration = Duration::from_millis(200);
/// Room on a disk is made by hand, or by a clean-up: not within the second.
const RETRY_DISK_FULL: Duration = Duration::from_secs(2);

/// Texts name fields and limits, never values.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("the request has bad fields")]
    Invalid(Vec<FieldViolation>),
    #[error("this request id was used with other content before")]
    RequestIdReused,
    #[error("the certificate names no principal of this cluster: {0}")]
    Unauthenticated(&'static str),
    #[error("no grant allows this")]
    Denied,
    #[error("absent")]
    NotFound { index: Option<u32>, deleted_version: Option<u64> },
    #[error("the record exists")]
    AlreadyExists { index: u32 },
    #[error("the record's newest version is another one")]
    VersionMismatch { index: u32, current: Option<u64> },
    #[error("the request id is older than an hour, or ahead of the cluster's clock")]
    RequestExpired,
    #[error("the chart was erased")]
    ChartErased,
    #[error("the chart has no such open upload: it was never begun, is used up, or was dropped")]
    UploadNotFound,
    #[error("the upload is not complete")]
    UploadIncomplete,
    #[error("parts come in order: part {next_part} is the next")]
    UploadOutOfOrder { next_part: u32 },
    #[error("the chart has too many open uploads")]
    TooManyUploads,
    #[error("the cluster is not initialized")]
    NotInitialized,
    #[error("the cluster is initialized already")]
    AlreadyInitialized,
    #[error("the cluster cannot be formed: {0}")]
    CannotForm(String),
    #[error("nothing is changed: {0}")]
    CannotChange(String),
    #[error("not all nodes are there yet: {0}")]
    NodesMissing(String),
    #[error("too much is under way")]
    Overloaded,
    /// The same, with when to come again.
    #[error("too much is under way")]
    OverloadedFor(Duration),
    #[error("the disks have no room for writes; reads go on")]
    DiskFull,
    #[error("no leader is known; nothing was done")]
    NoLeader,
    #[error("no majority answers; nothing was done")]
    NoQuorum,
    #[error("this node's replica of the shard cannot be read now, others can; nothing was done")]
    ReplicaUnavailable,
    #[error("the outcome is not known; repeat with the same request id")]
    OutcomeUnknown,
    #[error("the request did not arrive whole in time; nothing was done")]
    Incomplete,
    #[error("stored data is damaged")]
    Damaged,
    #[error("internal error")]
    Internal,
}

impl GatewayError {
    /// One bad field.
    pub fn field(name: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldViolation::new(name, description)])
    }

    /// There is not, and was not, what a read asks for.
    pub fn absent() -> Self {
        Self::NotFound { index: None, deleted_version: None }
    }

    fn code_and_reason(&self) -> (Code, &'static str) {
        match self {
            Self::Invalid(_) => (Code::InvalidArgument, "INVALID_FIELD"),
            Self::RequestIdReused => (Code::InvalidArgument, "REQUEST_ID_REUSED"),
            Self::Unauthenticated(_) => (Code::Unauthenticated, "BAD_CERTIFICATE"),
            Self::Denied => (Code::PermissionDenied, "NO_GRANT"),
            Self::NotFound { .. } => (Code::NotFound, "RECORD_NOT_FOUND"),
            Self::AlreadyExists { .. } => (Code::AlreadyExists, "RECORD_EXISTS"),
            Self::VersionMismatch { .. } => (Code::Aborted, "VERSION_MISMATCH"),
            Self::RequestExpired => (Code::FailedPrecondition, "REQUEST_EXPIRED"),
            Self::ChartErased => (Code::FailedPrecondition, "CHART_ERASED"),
            Self::UploadNotFound => (Code::FailedPrecondition, "UPLOAD_NOT_FOUND"),
            Self::UploadIncomplete => (Code::FailedPrecondition, "UPLOAD_INCOMPLETE"),
            Self::UploadOutOfOrder { .. } => (Code::FailedPrecondition, "UPLOAD_OUT_OF_ORDER"),
            Self::TooManyUploads => (Code::FailedPrecondition, "TOO_MANY_UPLOADS"),
            Self::NotInitialized => (Code::FailedPrecondition, "NOT_INITIALIZED"),
            Self::AlreadyInitialized => (Code::FailedPrecondition, "ALREADY_INITIALIZED"),
            Self::CannotForm(_) => (Code::FailedPrecondition, "CANNOT_FORM"),
            Self::CannotChange(_) => (Code::FailedPrecondition, "CANNOT_CHANGE"),
            Self::Overloaded | Self::OverloadedFor(_) => (Code::ResourceExhausted, "OVERLOADED"),
            Self::DiskFull => (Code::ResourceExhausted, "DISK_FULL"),
            Self::NoLeader => (Code::Unavailable, "NO_LEADER"),
            Self::NoQuorum | Self::NodesMissing(_) => (Code::Unavailable, "NO_QUORUM"),
            Self::ReplicaUnavailable => (Code::Unavailable, "REPLICA_UNAVAILABLE"),
            Self::OutcomeUnknown => (Code::Unavailable, "OUTCOME_UNKNOWN"),
            Self::Incomplete => (Code::DeadlineExceeded, "REQUEST_INCOMPLETE"),
            Self::Damaged => (Code::DataLoss, "DAMAGED"),
            Self::Internal => (Code::Internal, "INTERNAL"),
        }
    }

    fn metadata(&self) -> HashMap<String, String> {
        let mut metadata = HashMap::new();
        let index = match self {
            Self::AlreadyExists { index } | Self::VersionMismatch { index, .. } => Some(*index),
            Self::NotFound { index, .. } => *index,
            _ => None,
        };
        if let Some(index) = index {
            metadata.insert("index".to_owned(), index.to_string());
        }
        if let Self::VersionMismatch { current: Some(version), .. }
        | Self::NotFound { deleted_version: Some(version), .. } = self
        {
            metadata.insert("version".to_owned(), version.to_string());
        }
        if let Self::UploadOutOfOrder { next_part } = self {
            metadata.insert("next_part".to_owned(), next_part.to_string());
        }
        metadata
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoLeader | Self::NoQuorum | Self::NodesMissing(_) | Self::OutcomeUnknown => Some(RETRY_LEADER),
            Self::ReplicaUnavailable => Some(RETRY_LEADER),
            Self::Overloaded | Self::Incomplete => Some(RETRY_OVERLOAD),
            Self::OverloadedFor(delay) => Some(*delay),
            Self::DiskFull => Some(RETRY_DISK_FULL),
            _ => None,
        }
    }
}

impl From<GatewayError> for Status {
    fn from(error: GatewayError) -> Self {
        let (code, reason) = error.code_and_reason();
        observe::refused(reason);
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, error.metadata());
        details.add_help_link(format!("charthold help error {reason}"), error_pages::link(reason));
        if let Some(delay) = error.retry_after() {
            details.set_retry_info(Some(delay));
        }
        let mut text = error.to_string();
        if let GatewayError::Invalid(violations) = error {
            let fields = violations.iter().map(|violation| format!("{}: {}", violation.field, violation.description));
            text = fields.collect::<Vec<_>>().join("; ");
            details.set_bad_request(violations);
        }
        Status::with_error_details(code, text, details)
    }
}

impl From<ReplicaError> for GatewayError {
    fn from(error: ReplicaError) -> Self {
        match error {
            ReplicaError::NoLeader => Self::NoLeader,
            ReplicaError::NoQuorum | ReplicaError::Stopped(_) => Self::NoQuorum,
            ReplicaError::Unknown => Self::OutcomeUnknown,
            ReplicaError::Malformed => Self::Internal,
            ReplicaError::Overloaded => Self::Overloaded,
            ReplicaError::DiskFull => Self::DiskFull,
        }
    }
}

impl From<EngineError> for GatewayError {
    fn from(error: EngineError) -> Self {
        match error {
            // This node is catching up by a snapshot, or its disk has spoiled a row: another one has it, and answers.
            EngineError::Replaced | EngineError::Unplaced | EngineError::Unreachable | EngineError::Damaged { .. } => {
                Self::ReplicaUnavailable
            }
            EngineError::Failed { .. } => {
                tracing::error!(%error, "cannot read the state; check this node's disk");
                Self::Damaged
            }
        }
    }
}

impl From<OpenError> for GatewayError {
    /// An envelope that a replica holds does not open: damage, or somebody's hand.
    fn from(error: OpenError) -> Self {
        tracing::error!(%error, "a stored envelope does not open: data is damaged or was tampered with; compare the replicas' roots (charthold \
             cluster status) and replace the node that differs");
        Self::Damaged
    }
}

impl From<SealError> for GatewayError {
    fn from(error: SealError) -> Self {
        tracing::error!(%error, "cannot seal: a defect, or a body beyond every limit; report it");
        Self::Internal
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(error: GatewayError, code: Code, reason: &str, metadata: &[(&str, &str)], retry: bool) {
        let status = Status::from(error);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((status.code(), info.reason.as_str(), info.domain.as_str()), (code, reason, "charthold"));
        let expected = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        assert_eq!(info.metadata, expected);
        assert_eq!(details.retry_info().is_some(), retry);
        assert_eq!(details.help().unwrap().links[0].url, format!("docs/errors/{reason}.md"));
    }

    #[test]
    fn statuses_carry_what_a_client_acts_on() {
        check(GatewayError::Denied, Code::PermissionDenied, "NO_GRANT", &[], false);
        check(GatewayError::absent(), Code::NotFound, "RECORD_NOT_FOUND", &[], false);
        let deleted = GatewayError::NotFound { index: Some(1), deleted_version: Some(4) };
        check(deleted, Code::NotFound, "RECORD_NOT_FOUND", &[("index", "1"), ("version", "4")], false);
        let mismatch = GatewayError::VersionMismatch { index: 2, current: Some(7) };
        check(mismatch, Code::Aborted, "VERSION_MISMATCH", &[("index", "2"), ("version", "7")], false);
        let order = GatewayError::UploadOutOfOrder { next_part: 3 };
        check(order, Code::FailedPrecondition, "UPLOAD_OUT_OF_ORDER", &[("next_part", "3")], false);
        check(GatewayError::OutcomeUnknown, Code::Unavailable, "OUTCOME_UNKNOWN", &[], true);
        check(GatewayError::Overloaded, Code::ResourceExhausted, "OVERLOADED", &[], true);
        check(GatewayError::DiskFull, Code::ResourceExhausted, "DISK_FULL", &[], true);
    }

    #[test]
    fn bad_fields_are_named() {
        let status = Status::from(GatewayError::field("chart.id", "is empty"));
        assert_eq!(status.message(), "chart.id: is empty");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "chart.id");
    }
}
