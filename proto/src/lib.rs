//! The messages of Charthold, generated from the .proto files beside this crate.

/// The public API, package `charthold.v1`.
#[cfg(feature = "public")]
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("charthold.v1");
    /// The encoded `FileDescriptorSet`, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/charthold.v1.bin"));
}

/// What nodes say to each other and keep on disk, package `charthold.internal.v1`.
#[cfg(feature = "internal")]
#[allow(clippy::all, missing_docs)]
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
