//! The doors: protocol code only. A handler decodes, asks the domain, encodes.
//!
//! [`grpc`] is where clients and peers come; [`http`] is for those who watch. Whoever speaks HTTP sees the certificate that
//! [`public_tls`] chooses: a browser or an S3 client knows nothing of the cluster's own authority.
pub mod grpc;

pub mod http;

pub mod public_tls;
