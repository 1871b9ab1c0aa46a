//! How a command ends: the exit code, and one line that says why.
//!
//! Owns: the codes below. They are part of the interface for scripts: 0 done, 1 failed, 2 wrong usage, 3 not found,
//! 4 a precondition did not hold, 5 unavailable or outcome unknown (worth trying again).

use charthold_client::Error as ClientError;

use crate::error_pages;

/// Why a command did not do what it was asked. The text is one line, in plain words, and holds nothing of a patient.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{}", client_text(.0))]
    Client(#[from] ClientError),
    /// Whoever reads our output has gone, like `head` when it has enough. Nothing to say, and nobody to say it to.
    #[error("the output was closed")]
    OutputClosed,
}

impl CliError {
    /// A file or folder that could not be used.
    pub fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::Failed(format!("{}: {error}", path.display()))
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::OutputClosed => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Precondition(_) => 4,
            Self::Unavailable(_) => 5,
            Self::Client(error) => client_exit_code(error),
        }
    }
}

fn client_exit_code(error: &ClientError) -> u8 {
    match error {
        ClientError::NotFound { .. } => 3,
        ClientError::AlreadyExists { .. }
        | ClientError::VersionMismatch { .. }
        | ClientError::Expired
        | ClientError::Erased
        | ClientError::UploadNotFound
        | ClientError::UploadIncomplete
        | ClientError::UploadOutOfOrder { .. }
        | ClientError::TooManyUploads
        | ClientError::NotInitialized
        | ClientError::AlreadyInitialized => 4,
        ClientError::Overloaded { .. } | ClientError::Unavailable { .. } | ClientError::OutcomeUnknown { .. } => 5,
        // Also what a later version of the library adds.
        _ => 1,
    }
}

/// The name in the list of errors of the API, for whoever looks it up.
pub(crate) fn reason(error: &ClientError) -> Option<&'static str> {
    Some(match error {
        ClientError::Invalid { .. } => "INVALID_FIELD",
        ClientError::RequestIdReused => "REQUEST_ID_REUSED",
        ClientError::Denied => "NO_GRANT",
        ClientError::NotFound { .. } => "RECORD_NOT_FOUND",
        ClientError::AlreadyExists { .. } => "RECORD_EXISTS",
        ClientError::VersionMismatch { .. } => "VERSION_MISMATCH",
        ClientError::Expired => "REQUEST_EXPIRED",
        ClientError::Erased => "CHART_ERASED",
        ClientError::UploadNotFound => "UPLOAD_NOT_FOUND",
        ClientError::UploadIncomplete => "UPLOAD_INCOMPLETE",
        ClientError::UploadOutOfOrder { .. } => "UPLOAD_OUT_OF_ORDER",
        ClientError::TooManyUploads => "TOO_MANY_UPLOADS",
        ClientError::Overloaded { .. } => "OVERLOADED",
        ClientError::OutcomeUnknown { .. } => "OUTCOME_UNKNOWN",
        ClientError::DataLoss => "DAMAGED",
        ClientError::Unauthenticated { .. } => "BAD_CERTIFICATE",
        ClientError::NotInitialized => "NOT_INITIALIZED",
        ClientError::AlreadyInitialized => "ALREADY_INITIALIZED",
        ClientError::CannotForm { .. } => "CANNOT_FORM",
        ClientError::CannotChange { .. } => "CANNOT_CHANGE",
        ClientError::Internal { .. } => "INTERNAL",
        // Several reasons, of which the text names the last one met.
        ClientError::Unavailable { why } => error_pages::find(why.split(':').next().unwrap_or_default())?.reason,
        // About this machine.
        _ => return None,
    })
}

/// `REASON: the library's words`, and what these leave out.
fn client_text(error: &ClientError) -> String {
    let reason = reason(error).map(|name| format!("{name}: ")).unwrap_or_default();
    match error {
        // Its reason is in it.
        ClientError::Unavailable { .. } => error.to_string(),
        ClientError::VersionMismatch { current: Some(current), .. } => {
            format!("{reason}{error}; the newest is {current}")
        }
        _ => format!("{reason}{error}"),
    }
}

/// The last line of a command that did not do what it was asked: why, and where to read more.
pub(crate) fn last_line(error: &CliError) -> String {
    let text = one_line(&error.to_string());
    let page = match error {
        CliError::Client(error) => reason(error).and_then(error_pages::find),
        _ => None,
    };
    match page {
        Some(page) => format!("{text} (charthold help error {})", page.reason),
        None => text,
    }
}

/// One line, whatever an answer from elsewhere brought with it: no terminal is to be driven by it either.
pub(crate) fn one_line(text: &str) -> String {
    text.split(|character: char| character.is_control()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_end_has_its_code() {
        let check = |error: CliError, code: u8, text: &str| {
            assert_eq!((error.exit_code(), error.to_string().as_str()), (code, text));
        };
        check(CliError::Failed("a".into()), 1, "a");
        check(CliError::Usage("b".into()), 2, "b");
        check(CliError::NotFound("c".into()), 3, "c");
        check(CliError::Precondition("d".into()), 4, "d");
        check(CliError::Unavailable("e".into()), 5, "e");
        check(ClientError::Denied.into(), 1, "NO_GRANT: permission denied: no grant allows this call");
        check(ClientError::NotFound { index: None, deleted_version: None }.into(), 3, "RECORD_NOT_FOUND: not found");
        let mismatch = ClientError::VersionMismatch { index: Some(0), current: Some(4) };
        check(mismatch.into(), 4, "VERSION_MISMATCH: the record has another version (mutation 0); the newest is 4");
        let quorum = ClientError::Unavailable { why: "NO_QUORUM: no majority answers".into() };
        check(quorum.into(), 5, "unavailable: NO_QUORUM: no majority answers");
        check(ClientError::Unavailable { why: "a1:7400: refused".into() }.into(), 5, "unavailable: a1:7400: refused");
        check(ClientError::Config("no such profile".into()).into(), 1, "no such profile");
    }

    #[test]
    fn the_last_line_says_where_to_read_more() {
        let denied = last_line(&ClientError::Denied.into());
        assert!(denied.starts_with("NO_GRANT: ") && denied.ends_with("(charthold help error NO_GRANT)"), "{denied}");
        let quorum = ClientError::Unavailable { why: "NO_QUORUM: no majority".into() };
        assert_eq!(last_line(&quorum.into()), "unavailable: NO_QUORUM: no majority (charthold help error NO_QUORUM)");
        assert_eq!(last_line(&CliError::Failed("no such file".into())), "no such file");
    }

    #[test]
    fn client_errors_by_code() {
        let request_id = uuid::Uuid::nil();
        let codes = [
            (ClientError::AlreadyExists { index: None }, 4),
            (ClientError::Expired, 4),
            (ClientError::Erased, 4),
            (ClientError::UploadNotFound, 4),
            (ClientError::TooManyUploads, 4),
            (ClientError::Content { why: String::new() }, 1),
            (ClientError::NotInitialized, 4),
            (ClientError::AlreadyInitialized, 4),
            (ClientError::Overloaded { why: String::new() }, 5),
            (ClientError::OutcomeUnknown { request_id }, 5),
            (ClientError::RequestIdReused, 1),
            (ClientError::DataLoss, 1),
            (ClientError::Unauthenticated { why: String::new() }, 1),
            (ClientError::Internal { message: String::new() }, 1),
        ];
        for (error, code) in codes {
            assert_eq!(client_exit_code(&error), code, "{error}");
        }
    }

    #[test]
    fn one_line_keeps_terminals_safe() {
        assert_eq!(one_line("a\nb\x1b[2Jc\r\n"), "a b [2Jc");
    }
}
