//! Every bound of the node in one place, each with its reason. Bounds of the wire are in [`afar_proto::limits`], those of
//! the log in [`afar_store::limits`], those of the model in [`afar_model::limits`].
use std::{num::NonZeroU8, time::Duration};

// The node's chassis.

/// From SIGTERM to exit: what has not ended by then is dropped. systemd's default would wait 90 s; an operator should not.
pub const DRAIN: Duration = Duration::from_secs(10);
/// Of that, for clients' requests that are under way.
pub const DRAIN_CLIENTS: Duration = Duration::from_secs(6);
/// Of that, for peers' streams and background tasks, which end on their own when told.
pub const DRAIN_TASKS: Duration = Duration::from_secs(3);
/// A secret (64 hex digits), an access key or a certificate chain is far smaller; what is larger is the wrong file.
pub const SECRET_FILE_BYTES_MAX: u64 = 64 << 10;
/// Certificates and key are read again this often: a renewed one serves soon after it was put there, and three small files
/// from the page cache cost nothing. Their contents are compared: a time stamp may stay the same when content does not.
pub const CERTIFICATES_EVERY: Duration = Duration::from_secs(5);
/// Different certificates whose refusal is logged until the trusted authorities change: a stranger can make as many as he likes.
pub const REFUSALS_TOLD: usize = 64;
/// A certificate that ends sooner than this is a warning.
pub const CERTIFICATE_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);

// Budgets of memory (rule 29).

/// The transfer budget unless the configuration says otherwise: bytes of bodies in flight and HTTP/2 windows together.
pub const TRANSFER_DEFAULT: u64 = 256 << 20;
/// Below this a handful of uploads would wait for each other, and HTTP/2's least windows for 100 peers would not fit.
pub const TRANSFER_MIN: u64 = 32 << 20;
/// Connections cannot have smaller windows than HTTP/2's own, so many bytes.
pub const WINDOW_MIN: u32 = 64 << 10;
/// What holds bytes weighs at least this much, so that tiny messages are bounded in number, too.
pub const PERMIT_MIN: u32 = 4 << 10;
/// A client that gives or takes fewer bytes a second than this for [`TRANSFER_SLOW`] loses its transfer. Frames have up to
/// 256 KiB, so at less than twice of it a client may be unlucky.
pub const TRANSFER_RATE_MIN: u64 = 8 << 10;
/// See [`TRANSFER_RATE_MIN`].
pub const TRANSFER_SLOW: Duration = Duration::from_secs(30);
/// A semaphore counts at most this many bytes.
pub const TRANSFER_MAX: u64 = 2 << 30;
/// Index cache unless the configuration says otherwise.
pub const INDEX_CACHE_DEFAULT: u64 = 64 << 20;
/// Least index cache: below it every lookup is a read.
pub const INDEX_CACHE_MIN: u64 = 1 << 20;
/// Client connections unless the configuration says otherwise; each may hold a window of 1 MiB.
pub const CONNECTIONS_DEFAULT: usize = 64;
/// More client connections than this want a proxy.
pub const CONNECTIONS_MAX: usize = 4096;

// The listener.

/// A TLS handshake that takes longer is not a client's on this planet, and holds a place.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection that has not said anything for this long after its handshake is dropped (hyper #4170: it would hold up a
/// shutdown for ever).
pub const FIRST_BYTE: Duration = Duration::from_secs(10);
/// Handshakes at once: each costs about a millisecond of CPU, so this is a quarter of a second's work.
pub const HANDSHAKES: usize = 256;
/// Connections that are through their handshake and wait for their server.
pub const ACCEPT_QUEUE: usize = 16;
/// Connections that a peer opens: one for control, the others for bulk.
pub const CONNECTIONS_OF_PEER: usize = 1 + BULK_LANES;
/// Connections one peer may have: its channels, twice over while old ones die.
pub const CONNECTIONS_PER_PEER: usize = 2 * CONNECTIONS_OF_PEER;
/// Requests at once on one connection; more wait at the client.
pub const STREAMS_PER_CONNECTION: u32 = 256;
/// Greatest window of a client, stream and connection alike (rule 29).
pub const CLIENT_WINDOW: u32 = 1 << 20;
/// A client's connection is renewed after this time, so that clients spread again after a node was away.
pub const CLIENT_CONNECTION_AGE: Duration = Duration::from_secs(3600);
/// What is under way on such a connection may take this much longer.
pub const CLIENT_CONNECTION_GRACE: Duration = Duration::from_secs(3600);
/// A connection that is silent this long is asked whether it lives …
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// … and dropped if it does not answer within this.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after accept() fails, which it does when file descriptors run out.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

// The HTTP port. Whoever watches asks little and seldom; everybody may ask, so little is given to each.

/// Connections at once: a monitor or two, a load balancer and their spares.
pub const HTTP_CONNECTIONS: usize = 64;
/// Bytes of a request's line and headers.
pub const HTTP_HEADER_BYTES: u32 = 16 << 10;
/// Headers of a request.
pub const HTTP_HEADERS: usize = 64;
/// Requests at once on one connection of HTTP/2.
pub const HTTP_STREAMS: u32 = 16;
/// From the handshake to the end of the first request's headers, and again for each later request's headers.
pub const HTTP_PATIENCE: Duration = FIRST_BYTE;
/// Between two requests on a connection: longer than the usual minute between two scrapes.
pub const HTTP_IDLE: Duration = Duration::from_secs(75);
/// A connection ends after this whatever it does.
pub const HTTP_CONNECTION_AGE: Duration = Duration::from_secs(3600);
/// A request that is not answered by then is answered with 503: whoever asks gives up about then, too.
pub const HTTP_REQUEST: Duration = Duration::from_secs(10);
/// A look at the disks, of that.
pub const HTTP_LOOK: Duration = Duration::from_secs(5);
/// Looks at once; more wait. Each takes a thread until the disk answers.
pub const HTTP_LOOKS: usize = 2;
/// What a connection that was told to end has left for its last answer.
pub const HTTP_GRACE: Duration = Duration::from_secs(1);

// Certificates by ACME.

/// A certificate is replaced when less than this part of its time is left: a third, as its issuers advise …
pub const ACME_RENEW_SHARE: u32 = 3;
/// … and who should know that this does not succeed is told at this: a quarter, after a week of attempts in ninety days.
pub const ACME_WARNING_SHARE: u32 = 4;
/// First pause after an order that failed; doubles …
pub const ACME_RETRY_MIN: Duration = Duration::from_secs(60);
/// … up to this: issuers allow a handful of failures an hour.
pub const ACME_RETRY_MAX: Duration = Duration::from_secs(6 * 3600);
/// One order, from the first request to the certificate.
pub const ACME_ORDER: Duration = Duration::from_secs(300);
/// One request to the server, connecting included.
pub const ACME_REQUEST: Duration = Duration::from_secs(30);
/// An answer of the server: certificates and short JSON.
pub const ACME_ANSWER_BYTES: usize = 1 << 20;
/// Names in one certificate: as many as the public issuer takes.
pub const ACME_DOMAINS: usize = 100;

// Peers.

/// Connections for bulk to each peer: a second one doubles what a lossy long link carries; more cost CPU.
pub const BULK_LANES: usize = 2;
/// Windows of a control channel: heartbeats and small records.
pub const CONTROL_WINDOW: u32 = 1 << 20;
/// Greatest window of a bulk connection: fills 100 ms at 2.5 Gbit/s.
pub const BULK_WINDOW_MAX: u32 = 32 << 20;
/// A peer that does not complete TCP and TLS within this time is not there.
pub const PEER_CONNECT: Duration = Duration::from_secs(5);
/// Idle peers' connections are checked this often, so that a dead one is noticed and replaced …
pub const PEER_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// … within this time.
pub const PEER_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two heartbeats to a peer that is up.
pub const HELLO_INTERVAL: Duration = Duration::from_secs(2);
/// A heartbeat that takes longer has missed.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// First pause before a peer that is not up is tried again: a cluster forms in well under a second.
pub const RETRY_MIN: Duration = Duration::from_millis(250);
/// Greatest such pause: what a peer that returns waits at most (it also says hello itself).
pub const RETRY_MAX: Duration = Duration::from_secs(2);
/// Least pause between two heartbeats, however many connections end meanwhile.
pub const POKE_PAUSE: Duration = Duration::from_millis(20);
/// Missed heartbeats in a row after which a peer is down. One makes it suspect.
pub const MISSED_MAX: u32 = 3;
/// Refused connections in a row after which a peer is down: nobody listens there, so waiting longer tells nothing.
pub const REFUSED_MAX: u32 = 2;
/// A write that lacks only a suspect waits so long for the verdict: two heartbeats' time, and no person's patience.
pub const SUSPECT_WAIT: Duration = Duration::from_secs(3);
/// A peer's clock counts for the median if it was heard within this time.
pub const CLOCK_HEARD_WITHIN: Duration = Duration::from_secs(15);
/// A kernel clock's state is looked up this often at most.
pub const KERNEL_CLOCK_EVERY: Duration = Duration::from_secs(10);
/// Earlier runs of a peer that are remembered, to recognise two live instances of one name.
pub const BOOTS_REMEMBERED: usize = 16;
/// Where a node is expected disks that were replaced are not heard before their successors have missed so many heartbeats.
pub const SUCCESSOR_SILENT: Duration = Duration::from_secs(6);
/// Disks of one name that are remembered, to tell those that were replaced from their successors.
pub const DISKS_REMEMBERED: usize = 16;
/// Replaced disks of one peer that are remembered for what they may have held alone: more are counted together.
pub const DOUBTS_REMEMBERED: usize = 16;
/// Who may acknowledge alone is taken to have done so if it was not heard for longer than this: the age up to which other
/// words are believed, too (rules 10 and 25).
pub const ALONE_SILENT: Duration = Duration::from_secs(60);
/// Debts that are looked at to tell which of them may be nowhere else; the rest counts as if it were.
pub const ALONE_LOOK: usize = 10_000;
/// Log positions that a peer may name: its directories.
pub const POSITIONS_MAX: usize = 256;
/// For so long after two instances of one name were heard, that name is refused.
pub const TWO_INSTANCES: Duration = Duration::from_secs(60);
/// That a peer was merely heard again is written this often at most.
pub const MEMORY_HEARD_EVERY: Duration = Duration::from_secs(60);
/// What is remembered of peers is written this often at most (at once for a new run or incarnation). Soon, for a peer that
/// is restored from an old copy is recognised by it after this node was restarted, too; under writes it is one small file.
pub const MEMORY_WRITE_EVERY: Duration = Duration::from_secs(1);

/// Peers' layouts are looked at this often, besides whenever a heartbeat brings news.
pub const LAYOUT_EVERY: Duration = Duration::from_secs(2);
// Membership (SWIM). Nothing but what is shown, and the permission to destroy, depends on it, so it need not be quick.

/// Every period each node asks one other whether it lives. Long enough for the question, and for the same question through
/// others (two round trips more), to be answered from the other side of the Earth.
pub const PROBE_PERIOD: Duration = Duration::from_secs(2);
/// Who has not answered within this time is asked through others. Above twice the slowest round trip between two sites on
/// Earth (some 350 ms), so that a lost segment that TCP sends again is no reason to ask others.
pub const PROBE_ROUND_TRIP: Duration = Duration::from_millis(800);
/// A suspect may contradict for so long, times the decimal logarithm of the number of nodes: four periods, in which news
/// reaches everybody and the contradiction comes back several times over.
pub const SUSPECT_FOR: Duration = Duration::from_secs(8);
/// Each node tells each piece of news to so many others, times the same logarithm rounded up. After that it goes on by
/// accident only: of `k` the share of nodes that never hear is about `e^-k`, and twenty bytes are cheap.
pub const NEWS_TOLD: NonZeroU8 = NonZeroU8::MIN.saturating_add(9);
/// A timer that is this late was held up by this process or this machine: half of [`PROBE_ROUND_TRIP`], lest an answer that
/// waits to be read be taken for silence.
pub const STOOD_STILL: Duration = Duration::from_millis(400);
/// First pause before nodes that are not known as alive are told again that this one is here; doubles …
pub const ANNOUNCE_FIRST: Duration = Duration::from_secs(1);
/// … up to this: what a node that lost everybody waits at most after the network is whole again.
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(30);
/// One random node that is alive is asked for all that it knows this often: mends what gossip missed.
pub const ROSTER_EVERY: Duration = Duration::from_secs(60);
/// That somebody else reached a node when this one did not is said for so long afterwards: a node is asked by a given other
/// once in as many periods as there are nodes.
pub const WITNESS_KEPT: Duration = Duration::from_secs(120);
/// An identity that was made this far in the future is nobody's: kept, it could never be surpassed. More than any mistaken
/// time zone, so that a clock that is merely wrong does not exclude its node.
pub const BOOT_AHEAD_MAX: Duration = Duration::from_secs(24 * 3600);
/// Largest packet: the identities of some hundred nodes with long names, or of twice as many with short ones.
pub const GOSSIP_BYTES: usize = 8 << 10;
/// A packet that is not delivered within this time is lost: its answer would come too late.
pub const GOSSIP_DEADLINE: Duration = Duration::from_secs(1);
/// Packets that wait to be read; each takes microseconds, so this is ample, and 2 MiB at the most.
pub const GOSSIP_QUEUE: usize = 256;
/// Packets under way to one node: some two seconds' worth.
pub const GOSSIP_IN_FLIGHT: usize = 16;

// Answers.

/// Messages of errors travel in headers ([`afar_proto::limits::HEADER_BYTES_MAX`], percent-encoded: up to three times as long).
pub const STATUS_MESSAGE_BYTES: usize = 3 << 10;

// Replication.

/// Commands that wait in a lane; each holds its bytes' permits, so this bounds only their number.
pub const LANE_QUEUE: usize = 1024;
/// Messages handed to the transport ahead of its window: one being sent, one ready.
pub const LANE_AHEAD: usize = 2;
/// Small records that go out in one message, and are synced with one call.
pub const LANE_BATCH_RECORDS: usize = 128;
/// Bytes of small records after which a message is full.
pub const LANE_BATCH_BYTES: usize = 512 << 10;
/// A peer that does not open a stream within this time is treated as unreachable.
pub const LANE_OPEN: Duration = Duration::from_secs(5);
/// A stream with something in flight that brings no answer for this long is broken. Longer than any honest sync.
pub const LANE_SILENCE: Duration = Duration::from_secs(15);
/// Hashing more than this moves to a thread for blocking work: 64 KiB take some 15 µs, about what the move costs.
pub const HASH_INLINE_BYTES: usize = 64 << 10;
/// Records up to this long are read and hashed without another thread if they are in memory: an inline object with its
/// description; 20 µs, where changing threads twice costs as much.
pub const READ_INLINE_BYTES: usize = HASH_INLINE_BYTES + (8 << 10);
/// Unsynced requests that one stream remembers: an upload syncs at least every [`SYNC_EVERY_CHUNKS`].
pub const LANE_WRITTEN: usize = 4 * SYNC_EVERY_CHUNKS;
/// Answers that wait for a stream's window.
pub const LANE_REPLIES: usize = 256;
/// Settlements to one peer are sent together this often: short, so that readers elsewhere seldom have to prove anything.
pub const SETTLE_EVERY: Duration = Duration::from_millis(20);
/// Settlements that wait for one peer; beyond it they are dropped, and readers prove for themselves.
pub const SETTLE_QUEUE: usize = 65_536;
/// Settlements in one message.
pub const SETTLE_BATCH: usize = 1024;
/// A question about one key that takes longer has not been answered.
pub const ASK_DEADLINE: Duration = Duration::from_secs(3);
/// For records to arrive, or to be read and proved.
pub const FETCH_DEADLINE: Duration = Duration::from_secs(20);
/// Exceptions that the ledger keeps of a peer: some 7 MB. Beyond it, single records are unproved.
pub const LEDGER_EXCEPTIONS: usize = 100_000;
/// A comparison older than this proves nothing any more; they are made anew every [`RECONCILE_EVERY`].
pub const COMPARED_WITHIN: Duration = Duration::from_secs(3600);
/// Ids of every pair of nodes are compared this often even if nothing happened.
pub const RECONCILE_EVERY: Duration = Duration::from_secs(60);
/// After something happened (a peer came up, a copy was found bad) the next comparison follows this soon.
pub const RECONCILE_SOON: Duration = Duration::from_millis(100);
/// Walks of one comparison: the first may bring the settings that say what the rest means.
pub const RECONCILE_WALKS: usize = 3;
/// A peer that is believed to lack something is compared with this soon: what others have brought it is not told to us.
pub const RECONCILE_LACKING: Duration = Duration::from_secs(5);
/// A comparison that failed is tried again after this time.
pub const RECONCILE_RETRY: Duration = Duration::from_secs(2);
/// Records that are fetched together: at most this many …
pub const PULL_RECORDS: usize = 64;
/// … and about this many bytes.
pub const PULL_BYTES: usize = 8 << 20;
/// The outbox is looked at this often.
pub const OUTBOX_EVERY: Duration = Duration::from_secs(1);
/// Debts that are paid in one go.
pub const OUTBOX_BATCH: usize = 256;
/// Peers are challenged this often; rule 25 wants an answer every 60 s.
pub const AUDIT_EVERY: Duration = Duration::from_secs(15);
/// Records of one challenge.
pub const AUDIT_RECORDS: usize = 4;

/// Surplus copies are looked for this often when there were none …
pub const RELEASE_EVERY: Duration = Duration::from_secs(60);
/// … and this often when there were, or it could not be told.
pub const RELEASE_AGAIN: Duration = Duration::from_secs(2);
/// Rule 10: what every other node must have been heard within before anything is removed.
pub const PERMISSION_WITHIN: Duration = Duration::from_secs(60);

/// What is bad or missing here is fetched from the others within this, if there is a good copy: comparisons follow a loss at once.
pub const MENDED_WITHIN: Duration = Duration::from_secs(60);

// Objects.

/// Versions of a key in one page, newest first. Mostly the first of them is the answer; older ones are asked for page by page.
pub const VERSIONS_PAGE: usize = 1000;
/// A claim on a key ends by itself after this: whoever has it must have made the key by then. Longer than any honest sync
/// at the far end of the Earth; a coordinator that dies holds up nobody for longer.
pub const CLAIM_FOR: Duration = Duration::from_secs(30);
/// A put waits so long for others that want to make the same key; then the node is busy, and the client comes again.
pub const CLAIM_WAIT: Duration = Duration::from_secs(5);
/// The pause between two questions for a claim, shortened by chance. It doubles for who has to give way …
pub const CLAIM_PAUSE: Duration = Duration::from_millis(40);
/// … up to this: longer than a question and its answer take on the way around the Earth.
pub const CLAIM_PAUSE_MAX: Duration = Duration::from_millis(800);
/// Claims that a node remembers, of up to a kilobyte each: as many as puts can be under way.
pub const CLAIMS_MAX: usize = 4096;
/// Prepared versions older than the upload grace are looked for this often.
pub const DISCARD_EVERY: Duration = Duration::from_secs(3600);
/// Attempts to commit a version: each excludes a node that failed or goes above a newer stamp.
pub const COMMIT_ROUNDS: usize = 8;
/// Records that are proved in one question.
pub const PROVE_BATCH: usize = 256;
/// Chunks of one put in flight.
pub const UPLOAD_PIECES: usize = 32;
/// What a put has written is synced after this many chunks (4 GiB), which bounds what it must remember.
pub const SYNC_EVERY_CHUNKS: usize = 4096;
/// How long a put or get waits for its first permit before it is told that the node is busy.
pub const ADMISSION_WAIT: Duration = Duration::from_secs(10);
/// The same for a put on a connection that carries another: what waits for admission fills the connection's window, and holds
/// up those that were admitted.
pub const ADMISSION_WAIT_SHARED: Duration = Duration::from_millis(250);
/// Chunks of one get that are read ahead.
pub const READ_AHEAD: usize = 4;
/// Whole ids that an ambiguous one is answered with: as many as anybody reads before typing another digit.
pub const RESOLVE_CANDIDATES: usize = 8;
/// Keys that are asked for in one page of a listing.
pub const LIST_PAGE: usize = 1000;

// Health.

/// A version that is prepared for longer than this was probably left behind: it is unknown, and is proved by whoever sees it.
pub const PREPARED_FOR: Duration = Duration::from_secs(3);
/// Copies beyond the level that a put waited for arrive within this time after it, or are late: what lacks one by then is not
/// said to be filling.
pub const FILLING_FOR: Duration = Duration::from_secs(30);
/// Prepared versions that one survey hands on to be proved.
pub const PREPARED_BATCH: usize = 4096;
/// Versions are followed to their pieces this soon after the start …
pub const REFERENCES_SOON: Duration = Duration::from_secs(2);
/// … and this often then.
pub const REFERENCES_EVERY: Duration = Duration::from_secs(3600);
/// The survey of all versions is made anew this often.
pub const SURVEY_EVERY: Duration = Duration::from_secs(5);
/// A survey that took less than this is made anew when somebody asks for a fresh one.
pub const SURVEY_QUICK: Duration = Duration::from_millis(500);
/// Rows of the views read in one go.
pub const SURVEY_PAGE: usize = 4096;
/// Every file of the log is looked for by its path this often (rule 26).
pub const LOOK_AT_FILES_EVERY: Duration = Duration::from_secs(20);
/// The index is compared with the segments this often (rule 18).
pub const CHECK_INDEX_EVERY: Duration = Duration::from_secs(30);
/// Between two steps of the scrub.
pub const SCRUB_EVERY: Duration = Duration::from_secs(10);
/// Least bytes of one step of the scrub.
pub const SCRUB_STEP_MIN: u64 = 4 << 20;
/// Between two looks for something to compact.
pub const COMPACT_EVERY: Duration = Duration::from_secs(60);

// The doctor.

/// Syncs of each directory: an odd one out must not decide, and a slow disk is done within a second.
pub const DOCTOR_SYNCS: usize = 16;
/// Bytes written before each of them.
pub const DOCTOR_BLOCK: usize = 4 << 10;
/// A directory that has not made its syncs by then is stuck.
pub const DOCTOR_DISK: Duration = Duration::from_secs(8);
/// Flash with capacitors takes some 20 to 50 µs for a flush through the kernel: what is faster has not reached a device.
pub const FSYNC_HONEST: Duration = Duration::from_micros(20);
/// Every put waits for a sync: above this the disk, not the distance, is what clients wait for.
pub const FSYNC_SLOW: Duration = Duration::from_millis(100);
/// A clock that is further off than this is kept by no time service (writes are refused only much later).
pub const DOCTOR_CLOCK: Duration = Duration::from_secs(1);
/// The line that TCP's buffers should be able to fill, in bytes a second: 1 Gbit/s, what machines are rented with.
pub const DOCTOR_LINE: u64 = 125_000_000;
/// Files and sockets besides connections: segments, index, log, and what a client's request opens.
pub const DOCTOR_FILES: u64 = 512;

/// Where gRPC is when an endpoint names no port.
pub const PORT_DEFAULT: u16 = 7700;
