//! Compiles the .proto files with protox, so that no protoc is needed.
//!
//! Messages of the public API get no derived `Debug`: it would print what a patient's record says. `src/lib.rs` gives
//! them one that prints their name only.

use std::path::PathBuf;

use prost::Message as _;

const PUBLIC: [&str; 4] = [
    "charthold/v1/common.proto",
    "charthold/v1/charts.proto",
    "charthold/v1/tenants.proto",
    "charthold/v1/cluster.proto",
];

const INTERNAL: [&str; 6] = [
    "charthold/internal/v1/log.proto",
    "charthold/internal/v1/command.proto",
    "charthold/internal/v1/rows.proto",
    "charthold/internal/v1/peer.proto",
    "charthold/internal/v1/snapshot.proto",
    "charthold/internal/v1/clear.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=charthold");
    println!("cargo:rerun-if-changed=otlp");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    let public = protox::compile(PUBLIC, ["."])?;
    std::fs::write(out.join("charthold.v1.bin"), public.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]).skip_debug(["."]);
    tonic_prost_build::configure().compile_fds_with_config(public, config)?;

    let internal = protox::compile(INTERNAL, ["."])?;
    prost_build::Config::new().bytes(["."]).skip_debug(["."]).compile_fds(internal)?;

    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    let otlp = protox::compile(["otlp/trace_service.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds_with_config(otlp, config)?;
    Ok(())
}
