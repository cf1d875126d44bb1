//! Generates the wire messages from `proto/*.proto`, in Rust alone (no protoc), and the gRPC client and server of
//! the one service when the `transport` feature is on.

use std::error::Error;

const FILES: [&str; 8] = [
    "error.proto",
    "values.proto",
    "topology.proto",
    "catalog.proto",
    "services.proto",
    "changes.proto",
    "sums.proto",
    "link.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let transport = std::env::var_os("CARGO_FEATURE_TRANSPORT").is_some();
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(transport)
        .build_server(transport)
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
