//! What a `Status` says beyond its code: the exit code of the command line's contract, and whether a failed write may
//! still take effect.
use crate::{gateways::grpc::listener::ConnectionInfo, limits};
use afar_model::layout::NodeIndex;
use tonic::{Code, Request, Status, metadata::MetadataValue};

/// Exit codes of the command line's contract that a node's answer may carry.
pub mod exit {
    /// Failed.
    pub const FAILED: u8 = 1;
    /// The request makes no sense.
    pub const USAGE: u8 = 2;
    /// Integrity failure found.
    pub const INTEGRITY: u8 = 4;
    /// Below the durability policy.
    pub const BELOW_POLICY: u8 = 5;
    /// No such bucket or object.
    pub const MISSING: u8 = 10;
    /// Busy.
    pub const BUSY: u8 = 11;
    /// Authentication.
    pub const AUTHENTICATION: u8 = 12;
    /// Quota or space.
    pub const SPACE: u8 = 13;
    /// Unreachable, retry later.
    pub const UNREACHABLE: u8 = 14;
    /// Denied by rights, retention or append-only.
    pub const DENIED: u8 = 15;
}

/// A status that names an exit code. The message is cut to what fits into a header.
pub fn status(code: Code, exit: u8, message: impl Into<String>) -> Status {
    let mut message: String = message.into();
    if message.len() > limits::STATUS_MESSAGE_BYTES {
        let end = (0..=limits::STATUS_MESSAGE_BYTES).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    let mut status = Status::new(code, message);
    status.metadata_mut().insert(afar_proto::EXIT_METADATA, MetadataValue::from(u16::from(exit)));
    status
}

/// The same status, saying that the write may still take effect later.
pub fn maybe(mut status: Status) -> Status {
    status.metadata_mut().insert(afar_proto::MAYBE_METADATA, MetadataValue::from_static("1"));
    status
}

/// The same status, saying what to do about it; what no header can hold is left out.
pub fn hint(mut status: Status, hint: &str) -> Status {
    if let Ok(value) = MetadataValue::try_from(hint) {
        status.metadata_mut().insert(afar_proto::HINT_METADATA, value);
    }
    status
}

/// The node of the layout that a request comes from, proved by its certificate; `None` for a client's.
pub fn from_node<T>(request: &Request<T>) -> Option<NodeIndex> {
    request.extensions().get::<ConnectionInfo>().and_then(|info| info.node)
}

/// Whether a request comes from a node of this cluster, be it one that the layout does not name yet.
pub fn is_certified<T>(request: &Request<T>) -> bool {
    request.extensions().get::<ConnectionInfo>().is_some_and(|info| info.certified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_its_exit_code_and_fits_a_header() {
        let status = maybe(status(Code::NotFound, exit::MISSING, "ä".repeat(5000)));
        assert_eq!(status.metadata().get("afar-exit").map(|value| value.as_bytes()), Some(&b"10"[..]));
        assert_eq!(status.metadata().get("afar-maybe").map(|value| value.as_bytes()), Some(&b"1"[..]));
        assert!(status.message().len() < limits::STATUS_MESSAGE_BYTES + 8);
    }
}
