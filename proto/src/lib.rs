//! The messages of Charthold, generated from the .proto files beside this crate, which are their documentation.
//!
//! A service is better off with `charthold-client`, which repeats what is safe to repeat. These are for whoever speaks
//! gRPC to a gateway directly:
//!
//! ```
//! # #[cfg(feature = "public")] {
//! use charthold_proto::v1::{ChartRef, GetRequest, RecordRef, RequestContext, chart_ref::Kind};
//!
//! let request = GetRequest {
//!     context: Some(RequestContext { actor: "practitioner/4711".into(), ..Default::default() }),
//!     chart: Some(ChartRef { kind: Kind::Patient.into(), id: "patient-1".into() }),
//!     record: Some(RecordRef { r#type: "Patient".into(), id: "patient-1".into() }),
//!     ..Default::default()
//! };
//! # let _ = request;
//! # }
//! ```

/// The public API, package `charthold.v1`.
#[cfg(feature = "public")]
// Comments of .proto files, which rustdoc may read otherwise.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("charthold.v1");
    /// The encoded `FileDescriptorSet`, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/charthold.v1.bin"));
}

/// What nodes say to each other and keep on disk, package `charthold.internal.v1`.
#[cfg(feature = "internal")]
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod internal {
    include!(concat!(env!("OUT_DIR"), "/charthold.internal.v1.rs"));
}

/// What a collector of traces is told, package `opentelemetry.proto.collector.trace.v1`.
#[cfg(feature = "otlp")]
#[allow(clippy::all, missing_docs)]
pub mod otlp {
    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
}

// Messages have no derived `Debug`, see build.rs; this one is part of error texts.
#[cfg(feature = "internal")]
impl std::fmt::Debug for internal::CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CallError({}, leader {:016x})", self.kind().as_str_name(), self.leader)
    }
}
