//! The doors: protocol code only. A handler decodes, asks the domain, encodes.
pub mod grpc;
