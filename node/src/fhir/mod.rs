//! FHIR bundles: from the text of one to the records that are stored.
//!
//! Owns: what a bundle must look like, which chart a resource belongs to, which of its fields a header carries, and
//! what "the same content" means: equal tokens. A body is the resource as it was sent, without the white space between
//! its tokens; digits, order of members and escapes stay. Nothing here parses a number or rebuilds a value.
//!
//! Must not know: clients, charts' state, files. Errors name a position and never content.
//!
//! ```text
//! bundle.rs  a bundle's entries            header.rs  clinical date and status of a resource
//! identifier.rs  what a patient is found by
//! json.rs    a scanner that keeps tokens   minify.rs  white space out
//! ```

mod bundle;
mod header;
mod identifier;
mod json;
mod minify;

pub use bundle::{Bundle, BundleError, ChartName, Entry, Fault, Position, read_bundle};
pub use identifier::Identifier;
pub use json::{JsonError, JsonFault};
pub use minify::minify;

/// Nested arrays and objects, counted from the outermost text.
pub const DEPTH_MAX: usize = 128;
/// A resource without its white space: the largest body that any cluster takes.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// Of a resource type or an id.
pub const ID_BYTES_MAX: usize = 128;
