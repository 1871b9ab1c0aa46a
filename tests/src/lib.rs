//! What the integration tests share: clusters of real processes, disks that fail, the patients in `fixtures/`, and
//! scenarios that several use.
//!
//! Owns: starting, killing and asking clusters; finding the program under test. It must not know any test. Nodes are
//! set up as an operator would set them up, with the program's own files, certificates and commands: there is no back
//! door into one.
//!
//! Everything here panics with a clear text when something is wrong: it runs in tests only.

#![allow(clippy::unwrap_used)]

pub mod away;
pub mod canary;
pub mod chaos;
pub mod fault_disk;
pub mod harness;
pub mod listing;
pub mod numbered;
pub mod patients;
pub mod simulation;
pub mod strangers;
pub mod versus;
