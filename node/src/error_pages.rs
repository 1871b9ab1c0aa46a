//! The pages about errors: `docs/errors/REASON.md`, one for each reason that a gateway can give.
//!
//! Owns: which pages there are, and how an error's details link to them. They are part of the program, so that
//! `charthold help error REASON` shows them where there is no network. A new reason needs four things, and a test
//! (`tests/tests/invariants/reasons.rs`) says which is missing: the match in `gateway/error.rs`, the row in
//! `charthold/v1/common.proto`, the page with its row in `docs/errors/README.md`, and its name below.

/// Where the pages are: in the source tree, until they have an address on the web. Links are this and `REASON.md`.
pub const ERROR_PAGES: &str = "docs/errors/";

/// What the reasons are, on one page.
pub const INDEX: &str = include_str!("../../docs/errors/README.md");
/// Why a node ended, and what to do.
pub const STOPPED_NODE: &str = include_str!("../../docs/operations/stopped-node.md");

pub struct Page {
    pub reason: &'static str,
    pub text: &'static str,
}

macro_rules! pages {
    ($($reason:literal),+ $(,)?) => {
        &[$(Page { reason: $reason, text: include_str!(concat!("../../docs/errors/", $reason, ".md")) }),+]
    };
}

pub const PAGES: &[Page] = pages![
    "ALREADY_INITIALIZED",
    "BAD_CERTIFICATE",
    "CANNOT_CHANGE",
    "CANNOT_FORM",
    "CHART_ERASED",
    "DAMAGED",
    "DISK_FULL",
    "INTERNAL",
    "INVALID_FIELD",
    "NOT_INITIALIZED",
    "NO_GRANT",
    "NO_LEADER",
    "NO_QUORUM",
    "OUTCOME_UNKNOWN",
    "OVERLOADED",
    "RECORD_EXISTS",
    "RECORD_NOT_FOUND",
    "REPLICA_UNAVAILABLE",
    "REQUEST_EXPIRED",
    "REQUEST_ID_REUSED",
    "REQUEST_INCOMPLETE",
    "TOO_MANY_UPLOADS",
    "UPLOAD_INCOMPLETE",
    "UPLOAD_NOT_FOUND",
    "UPLOAD_OUT_OF_ORDER",
    "VERSION_MISMATCH",
];

/// The page of a reason, as one types it: `no-quorum` will do.
pub fn find(reason: &str) -> Option<&'static Page> {
    let wanted = reason.to_ascii_uppercase().replace('-', "_");
    PAGES.iter().find(|page| page.reason == wanted)
}

/// The link in an error's details.
pub fn link(reason: &str) -> String {
    format!("{ERROR_PAGES}{reason}.md")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pages_are_found_as_they_are_typed() {
        for typed in ["NO_QUORUM", "no_quorum", "no-quorum"] {
            assert_eq!(find(typed).unwrap().reason, "NO_QUORUM");
        }
        assert!(find("NO_SUCH_REASON").is_none());
    }

    #[test]
    fn a_page_is_about_its_reason() {
        for page in PAGES {
            assert!(page.text.starts_with(&format!("# {}\n", page.reason)), "{}", page.reason);
        }
    }
}
