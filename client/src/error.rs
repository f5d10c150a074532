//! What can go wrong, sorted by what a caller may do about it. Every kind has its exit code in the contract of the command
//! line, so that a script and a Rust program learn the same.
//!
//! A message says what failed and why; the hint says what to do. Neither ever holds a secret.
use afar_proto::{EXIT_METADATA, HINT_METADATA, MAYBE_METADATA};
use std::{error::Error as _, fmt, io};
use tonic::{Code, Status};

/// What a caller may do about an error; the numbers are the exit codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// It failed, for a reason that none of the others names (1).
    Failed,
    /// What was asked for or configured makes no sense (2).
    Usage,
    /// Done, but for some files that could not be read (3).
    Incomplete,
    /// Bytes are not what their hash says (4).
    Integrity,
    /// Stored or found, but below the durability policy (5).
    BelowPolicy,
    /// No such bucket or object (10).
    NotFound,
    /// Somebody else is at it, or the node has too much to do (11).
    Busy,
    /// The access key, or the node's certificate, is not accepted (12).
    Authentication,
    /// Quota or space is used up (13).
    Space,
    /// Nobody who could answer was reached: retry later (14).
    Unreachable,
    /// Retention, append-only or missing rights forbid it (15).
    Denied,
    /// Whoever read our output has gone (0: it has had all that it wanted).
    OutputClosed,
}

impl Kind {
    /// The exit code of the contract.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Incomplete => 3,
            Self::Integrity => 4,
            Self::BelowPolicy => 5,
            Self::NotFound => 10,
            Self::Busy => 11,
            Self::Authentication => 12,
            Self::Space => 13,
            Self::Unreachable => 14,
            Self::Denied => 15,
        }
    }

    /// The kind of an exit code; what is not in the contract is a failure.
    pub const fn from_exit_code(code: u8) -> Self {
        match code {
            2 => Self::Usage,
            3 => Self::Incomplete,
            4 => Self::Integrity,
            5 => Self::BelowPolicy,
            10 => Self::NotFound,
            11 => Self::Busy,
            12 => Self::Authentication,
            13 => Self::Space,
            14 => Self::Unreachable,
            15 => Self::Denied,
            _ => Self::Failed,
        }
    }

    /// A stable name for scripts.
    pub const fn id(self) -> &'static str {
        match self {
            Self::OutputClosed => "E_OUTPUT_CLOSED",
            Self::Failed => "E_FAILED",
            Self::Usage => "E_USAGE",
            Self::Incomplete => "E_INCOMPLETE",
            Self::Integrity => "E_INTEGRITY",
            Self::BelowPolicy => "E_BELOW_POLICY",
            Self::NotFound => "E_NOT_FOUND",
            Self::Busy => "E_BUSY",
            Self::Authentication => "E_AUTHENTICATION",
            Self::Space => "E_SPACE",
            Self::Unreachable => "E_UNREACHABLE",
            Self::Denied => "E_DENIED",
        }
    }

    /// Whether another endpoint, or the same one later, may do better. An answer of 10 is final.
    pub const fn is_worth_another_try(self) -> bool {
        matches!(self, Self::Unreachable | Self::Busy)
    }
}

/// What failed, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    maybe: bool,
    connection: bool,
}

impl Error {
    /// Of a kind, with what failed and why.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, maybe: false, connection: false }
    }

    /// [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A file or the network of this machine: [`Kind::Failed`], or [`Kind::Space`] if its disk is full.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        let of = |kind| Self::new(kind, format!("{what}: {error}"));
        match error.kind() {
            io::ErrorKind::NotFound => of(Kind::Failed).hint("check the path"),
            io::ErrorKind::PermissionDenied => of(Kind::Failed).hint("run it as a user who may do that, or change the permissions"),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => of(Kind::Space).hint("free space on this machine"),
            _ => of(Kind::Failed),
        }
    }

    /// The way to a node failed, no node spoke.
    pub(crate) fn connection(kind: Kind, message: impl Into<String>) -> Self {
        Self { connection: true, ..Self::new(kind, message) }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says before the message what was being done.
    #[must_use]
    pub fn during(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Puts a command's name where the hint says `afar COMMAND`: who wrote the hint, perhaps a node, cannot know it.
    #[must_use]
    pub(crate) fn of_command(mut self, name: &str) -> Self {
        self.hint = self.what_to_do().map(|hint| hint.replace("afar COMMAND", &format!("afar {name}")));
        self
    }

    /// Says that the write may still take effect later.
    #[must_use]
    pub fn maybe(mut self) -> Self {
        self.maybe = true;
        self
    }

    /// What a caller may do about it.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// What failed and why.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do: what was said with the error, or else what fits its kind.
    pub fn what_to_do(&self) -> Option<&str> {
        self.hint.as_deref().or_else(|| hint_for(self.kind))
    }

    /// Whether the write that failed may still take effect later.
    pub const fn may_still_happen(&self) -> bool {
        self.maybe
    }

    /// Whether the way to a node failed, rather than the node answering.
    pub(crate) const fn is_connection(&self) -> bool {
        self.connection
    }

    /// Whether another endpoint may do better: the connection failed, or the answer was 14 or 11.
    pub(crate) const fn is_worth_another_door(&self) -> bool {
        self.connection || self.kind.is_worth_another_try()
    }

    /// What a node, or the way to it, answered. An answer carries its exit code; a broken connection carries the transport's
    /// error as its source and no exit code, and is [`Kind::Unreachable`].
    pub fn from_status(endpoint: &str, status: &Status) -> Self {
        let answered = status.metadata().get(EXIT_METADATA).and_then(|code| code.to_str().ok()?.parse::<u8>().ok());
        let maybe = status.metadata().get(MAYBE_METADATA).is_some_and(|value| value.as_bytes() == b"1");
        let (kind, message) = match answered {
            Some(code) => (Kind::from_exit_code(code), status.message().to_owned()),
            None if is_transport(status) => return Self::from_transport(endpoint, status),
            None => (kind_of_code(status.code()), status.message().to_owned()),
        };
        let message = if message.is_empty() { format!("{endpoint} answered {:?} without a reason", status.code()) } else { message };
        // The node knows which of the kind's reasons it was; nodes of earlier versions do not say.
        let hint = status.metadata().get(HINT_METADATA).and_then(|hint| hint.to_str().ok()).map(str::to_owned);
        let error = Self { kind, message, hint, maybe, connection: false };
        if kind == Kind::Unreachable { error.during(endpoint) } else { error }
    }

    fn from_transport(endpoint: &str, status: &Status) -> Self {
        let chain = chain(status);
        if chain.contains("invalid peer certificate") {
            return Self::connection(Kind::Authentication, format!("{endpoint} is not who it should be: {}", innermost(status))).hint(
                "check that the CA file (AFAR_CA_FILE) is this cluster's ca.crt and that the endpoint's name is in the node's certificate",
            );
        }
        Self::connection(Kind::Unreachable, format!("{endpoint} cannot be reached: {}", innermost(status)))
            .hint("check that the node runs and that the endpoint (AFAR_ENDPOINT) is right; retry later")
    }
}

/// Whether no node spoke: the way to it failed.
fn is_transport(status: &Status) -> bool {
    status.source().is_some() || status.message().starts_with("h2 protocol error") || status.message() == "transport error"
}

fn kind_of_code(code: Code) -> Kind {
    match code {
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => Kind::Usage,
        Code::NotFound => Kind::NotFound,
        Code::Aborted | Code::ResourceExhausted => Kind::Busy,
        Code::Unauthenticated => Kind::Authentication,
        Code::PermissionDenied => Kind::Denied,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Kind::Unreachable,
        Code::DataLoss => Kind::Integrity,
        Code::FailedPrecondition => Kind::BelowPolicy,
        _ => Kind::Failed,
    }
}

/// What fits every error of a kind.
const fn hint_for(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::OutputClosed => None,
        Kind::Failed => Some("run it again with -vv for more detail; `afar status -x` shows what the cluster lacks"),
        Kind::Usage => Some("`afar COMMAND --help` shows what is expected"),
        Kind::Incomplete => Some("see the messages above, and do those again"),
        Kind::NotFound => Some("`afar ls` shows buckets, `afar ls BUCKET` shows keys; a bucket is made by `afar bucket create`"),
        Kind::Busy => Some("retry later"),
        Kind::Authentication => {
            Some("check AFAR_ACCESS_KEY_ID and AFAR_SECRET_ACCESS_KEY; `afar key ls` (as an administrator) shows what exists")
        }
        Kind::Space => Some("free space or add capacity; `afar status` shows which node is full"),
        Kind::Unreachable => Some("retry later; `afar status` shows which nodes answer"),
        Kind::Denied => Some("use a key with that right; `afar key ls` (as an administrator) shows what each may do"),
        Kind::BelowPolicy => Some("bring back the sites that do not answer: `afar status -x` shows what is wrong with each"),
        Kind::Integrity => Some("do not use these bytes; `afar status -x` shows what is damaged"),
    }
}

fn chain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = status.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

/// The last word of a chain of errors is the one that helps: "Connection refused", not "transport error".
fn innermost(status: &Status) -> String {
    let Some(mut error) = status.source() else { return status.message().to_owned() };
    while let Some(next) = error.source() {
        error = next;
    }
    error.to_string()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_of_the_contract_round_trips() {
        for code in [1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15] {
            assert_eq!(Kind::from_exit_code(code).exit_code(), code);
        }
        assert_eq!(Kind::from_exit_code(99), Kind::Failed);
    }

    #[test]
    fn every_exit_code_of_the_contract_has_a_hint_that_fits_unless_the_node_has_a_better_one() {
        let table = [
            (1, "-vv"),
            (2, "--help"),
            (3, "again"),
            (4, "do not use"),
            (5, "bring back"),
            (10, "afar ls"),
            (11, "retry"),
            (12, "AFAR_ACCESS_KEY_ID"),
            (13, "free space"),
            (14, "retry"),
            (15, "right"),
        ];
        for (exit, word) in table {
            let mut status = Status::new(Code::Unknown, "because");
            status.metadata_mut().insert(EXIT_METADATA, exit.to_string().parse().unwrap());
            let hint = Error::from_status("e", &status).what_to_do().unwrap().to_owned();
            assert!(hint.contains(word), "{exit}: {hint}");
            assert_eq!(hint.contains("retry"), matches!(exit, 11 | 14), "only what time mends is worth a retry: {exit}: {hint}");
            status.metadata_mut().insert(HINT_METADATA, "do this".parse().unwrap());
            assert_eq!(Error::from_status("e", &status).what_to_do(), Some("do this"), "{exit}");
        }
        assert_eq!(Error::new(Kind::OutputClosed, "").what_to_do(), None);
    }

    #[test]
    fn a_full_disk_of_this_machine_is_no_trouble_of_one_file() {
        let of = |kind: io::ErrorKind| Error::io("x", &kind.into());
        assert_eq!((of(io::ErrorKind::StorageFull).kind(), of(io::ErrorKind::IsADirectory).kind()), (Kind::Space, Kind::Failed));
        assert_eq!(of(io::ErrorKind::StorageFull).what_to_do(), Some("free space on this machine"));
    }

    #[test]
    fn a_hint_names_the_command_that_it_is_about() {
        let told = |error: Error| error.of_command("bucket create").what_to_do().map(str::to_owned);
        assert_eq!(told(Error::usage("no")).as_deref(), Some("`afar bucket create --help` shows what is expected"));
        assert_eq!(told(Error::usage("no").hint("look")).as_deref(), Some("look"));
        assert_eq!(told(Error::new(Kind::OutputClosed, "")), None);
    }

    #[test]
    fn a_nodes_exit_code_wins_over_the_grpc_code() {
        let mut status = Status::new(Code::Internal, "full");
        status.metadata_mut().insert(EXIT_METADATA, "13".parse().unwrap());
        status.metadata_mut().insert(MAYBE_METADATA, "1".parse().unwrap());
        let error = Error::from_status("https://a:1", &status);
        assert_eq!((error.kind(), error.may_still_happen()), (Kind::Space, true));
    }

    #[test]
    fn without_an_exit_code_the_grpc_code_decides() {
        for (code, kind) in
            [(Code::NotFound, Kind::NotFound), (Code::Unavailable, Kind::Unreachable), (Code::Unauthenticated, Kind::Authentication)]
        {
            assert_eq!(Error::from_status("e", &Status::new(code, "x")).kind(), kind);
        }
    }
}
