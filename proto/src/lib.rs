//! afar's wire: the generated messages and services, and the checked conversions between them and the model.
//!
//! What arrives is converted once, at the door ([`convert`]); inside, nothing is optional that is required. The `.proto`
//! files are the documentation of the messages.

/// Version 1 of the wire.
#[allow(missing_docs, missing_debug_implementations, unused_qualifications, clippy::all)]
pub mod v1 {
    tonic::include_proto!("afar.v1");
}

pub mod convert;

pub mod limits;

pub mod outgoing;

/// The compiled `.proto` files, for gRPC reflection.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The number of this protocol; nodes of numbers N and N-1 work together.
pub const PROTOCOL: u32 = 1;

/// Trailing metadata with the exit code that the command line's contract names for an error.
pub const EXIT_METADATA: &str = "afar-exit";

/// Trailing metadata with what to do about an error, in the command line's words; ASCII.
pub const HINT_METADATA: &str = "afar-hint";

/// Trailing metadata that says that a failed write may still take effect later.
pub const MAYBE_METADATA: &str = "afar-maybe";
