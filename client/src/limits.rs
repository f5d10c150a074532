//! Every bound of the client in one place, each with its reason.
use std::time::Duration;

/// Longer than any healthy handshake between continents, short enough to try three endpoints while somebody waits.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where another endpoint can be asked instead: a TCP segment that is lost is sent again within it, and a person who
/// waits hardly notices.
pub const CONNECT_SOON: Duration = Duration::from_secs(2);
/// A handshake alone, to see whom a node is certified by: with [`CONNECT_TIMEOUT`] for the connection in it.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);
/// A dead peer is noticed in the middle of a transfer after this and [`KEEPALIVE_TIMEOUT`], not after TCP's quarter of an hour.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long an answer to a keepalive may take.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 windows for gets: 16 MiB are about 0.3 GB/s at 30 ms. They bound what a fast node can put into our memory.
pub const STREAM_WINDOW: u32 = 16 << 20;
/// A connection's window: room for one full stream and for short answers beside it.
pub const CONNECTION_WINDOW: u32 = 24 << 20;
/// Longest silence between two messages of a download or a listing before another endpoint is tried.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Short questions (stat, buckets, keys) that are not answered by then go to the next endpoint.
pub const UNARY_TIMEOUT: Duration = Duration::from_secs(30);
/// A layout of the greatest size takes a while, and a node checks all of it.
pub const LAYOUT_TIMEOUT: Duration = Duration::from_secs(20);
/// Status must answer while most of the cluster does not, so no node gets longer than this.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(3);
/// A node that is examined syncs its disks and calls every peer: some ten seconds at worst, and another examination may be
/// under way.
pub const DOCTOR_TIMEOUT: Duration = Duration::from_secs(30);
/// How often all endpoints are tried before the error is final: with [`BACKOFF_FIRST`] that is some 5 s, long enough for the
/// survivors to notice that a site is gone.
pub const ROUNDS: u32 = 5;
/// The pause after the first round; it triples.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(120);
/// No pause is longer than this.
pub const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// Pieces read ahead of the network: enough to keep the disk and the hash busy, 4 MiB a transfer.
pub const PIECES_AHEAD: usize = 4;
/// Messages handed to the transport and not yet taken: it keeps a piece in its own window beside.
pub const MESSAGES_AHEAD: usize = 2;
/// What was read from a pipe and may have to be sent again to another endpoint; older pieces are known by id alone.
pub const REPLAY_BYTES: usize = 64 << 20;
/// A resumed file is hashed and asked about in stretches of this many chunks (1 GiB): the upload never idles for longer than
/// hashing one takes, and memory stays flat.
pub const RESUME_STRETCH: usize = 1024;
/// A configuration file may be this large; what is larger is refused unread.
pub const CONFIG_BYTES_MAX: u64 = afar_model::limits::CONFIG_BYTES_MAX;
/// A file that holds one secret is never larger than this.
pub const SECRET_BYTES_MAX: u64 = 64 << 10;
/// A command that prints a secret may ask a person or a key server; longer than this is nobody there.
pub const SECRET_COMMAND_MAX: Duration = Duration::from_secs(120);
/// A certificate authority's file: a few certificates.
pub const CA_BYTES_MAX: u64 = 1 << 20;
/// Endpoints in one configuration: more is a mistake, and each would be waited for.
pub const ENDPOINTS_MAX: usize = afar_model::limits::NODES_MAX;
/// Files put or got at once unless told otherwise: small files wait for disks and distance, not for the processor.
pub const JOBS_DEFAULT: usize = 4;
/// More than this many transfers at once only queue up in the nodes.
pub const JOBS_MAX: usize = 64;
/// A resume note that nobody came back to is forgotten after this: nodes drop the pieces of an unfinished upload after a day.
pub const RESUME_NOTE_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// What a node is assumed to take a second while data move, where its configuration sets no pace: most of a wire of 1 Gbit/s.
pub const MOVE_ASSUMED: u64 = 100 << 20;
/// A survey older than this proves nothing about now.
pub const SURVEY_STALE: Duration = Duration::from_secs(300);
/// Clocks further apart than this are an alarm, a tenth of it a warning.
pub const CLOCK_SKEW_MAX: Duration = afar_model::limits::CLOCK_SKEW_MAX;
