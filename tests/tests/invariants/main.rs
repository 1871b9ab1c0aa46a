//! The rules of the architecture, each as a test that fails when it is broken. No node is started here.
//!
//! `crates` reads what crates depend on, `places` and `limits` read the source, `phi` asks the compiler, `docs` and
//! `reasons` compare documents with the source. That nothing of a patient and no key reaches a disk or a log in clear
//! is shown with a running cluster, beside the other such tests.
#![allow(clippy::unwrap_used)]

mod crates;
mod docs;
mod limits;
mod phi;
mod places;
mod reasons;
mod source;
