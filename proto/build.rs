//! Compiles the `.proto` files without `protoc`. Nothing generated is committed.
use prost::Message as _;
use std::{env, fs, io, path::PathBuf};

const FILES: [&str; 4] =
    ["proto/afar/v1/common.proto", "proto/afar/v1/objects.proto", "proto/afar/v1/peer.proto", "proto/afar/v1/layouts.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // `bytes` fields become `Bytes`, which share the receive buffer: no copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
