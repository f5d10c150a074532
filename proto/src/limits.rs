//! Bounds of the wire, each with its reason.

/// A message holds at most one record of [`afar_model::limits::RECORD_BYTES_MAX`], or a batch of smaller ones of that
/// size altogether, and what surrounds it.
pub const MESSAGE_BYTES_MAX: usize = afar_model::limits::RECORD_BYTES_MAX + (512 << 10);
/// HTTP/2 frames; the default of 16 KiB costs a third of the CPU of a transfer.
pub const FRAME_BYTES: u32 = 256 << 10;
/// The same between peers: a whole chunk in one frame, so that it is put together once.
pub const PEER_FRAME_BYTES: u32 = 1 << 20;
/// Request and response headers together: keys and metadata travel in messages, so headers are small.
pub const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Keys in one Fetch, Prove or Audit.
pub const KEYS_MAX: usize = 4096;
/// Entries in one page of ids or versions.
pub const PAGE_MAX: usize = 8192;
/// Chunks in one Have.
pub const HAVE_MAX: usize = 16_384;
