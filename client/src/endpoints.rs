//! The doors to a cluster, and who is asked next when one does not open.
//!
//! Every node answers for the whole cluster, so any door will do: they are tried in the order given, beginning with the one
//! that last worked. The next is tried on a failed connection or an answer of 14 (unreachable) or 11 (busy); every other
//! answer is final. All that is bounded: [`limits::ROUNDS`] rounds with growing, jittered pauses between them.
//!
//! A node may take connections and not speak: the kernel does the former for a process that hangs. So where there are several
//! doors none is waited for long, as long as one of the others speaks.
use crate::{
    error::{Error, Kind},
    limits, tls,
};
use afar_proto::{
    outgoing::Uncopied,
    v1::{
        PutRequest, admin_client::AdminClient, layouts_client::LayoutsClient, objects_client::ObjectsClient, status_client::StatusClient,
    },
};
use rand::Rng as _;
use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio_stream::Stream;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, ClientTlsConfig, Endpoint, Uri},
};

/// Adds the access key to every request.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(…)")
    }
}

impl Bearer {
    /// From an access key.
    ///
    /// # Errors
    /// If the key cannot stand in a header.
    pub fn new(access_key_id: &str, secret: &str) -> Result<Self, Error> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {access_key_id}.{secret}").parse().map_err(|_| {
            Error::usage("the access key holds characters that no access key has")
                .hint("check AFAR_ACCESS_KEY_ID and AFAR_SECRET_ACCESS_KEY")
        })?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A connection that carries the access key.
pub type Authenticated = InterceptedService<Channel, Bearer>;

/// One endpoint and the (lazy) connection to it.
#[derive(Debug, Clone)]
pub struct Door {
    name: String,
    channel: Channel,
    bearer: Bearer,
    tls: ClientTlsConfig,
}

impl Door {
    /// Connects when first used.
    ///
    /// # Errors
    /// If `endpoint` is not `https://HOST[:PORT]`.
    pub fn new(endpoint: &str, tls: &ClientTlsConfig, bearer: &Bearer) -> Result<Self, Error> {
        Self::within(limits::CONNECT_TIMEOUT, endpoint, tls, bearer)
    }

    /// As [`Self::new`], with so much time for a connection.
    fn within(connect: Duration, endpoint: &str, tls: &ClientTlsConfig, bearer: &Bearer) -> Result<Self, Error> {
        let name = normalise(endpoint)?;
        let wrong = |error: tonic::transport::Error| Error::usage(format!("endpoint {endpoint:?}: {error}"));
        let channel = Endpoint::from_shared(name.clone())
            .map_err(wrong)?
            .tls_config(tls.clone().timeout(connect))
            .map_err(wrong)?
            .connect_timeout(connect)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(limits::KEEPALIVE_INTERVAL)
            .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(limits::STREAM_WINDOW)
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .max_frame_size(afar_proto::limits::FRAME_BYTES)
            .connect_lazy();
        Ok(Self { name, channel, bearer: bearer.clone(), tls: tls.clone() })
    }

    /// Another endpoint of the same cluster, with the same key.
    ///
    /// # Errors
    /// If `endpoint` is not `https://HOST[:PORT]`.
    pub fn to(&self, endpoint: &str) -> Result<Self, Error> {
        Self::new(endpoint, &self.tls, &self.bearer)
    }

    /// The endpoint's URL.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn authenticated(&self) -> Authenticated {
        InterceptedService::new(self.channel.clone(), self.bearer.clone())
    }

    /// Objects.
    pub fn objects(&self) -> ObjectsClient<Authenticated> {
        ObjectsClient::new(self.authenticated())
            .max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX)
    }

    /// Objects, for one put of these messages: see [`Uncopied`].
    pub fn putting(&self, messages: impl Stream<Item = PutRequest> + Send + Unpin + 'static) -> ObjectsClient<Uncopied<Authenticated>> {
        ObjectsClient::new(Uncopied::new(self.authenticated(), messages)).max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX)
    }

    /// Layouts.
    pub fn layouts(&self) -> LayoutsClient<Authenticated> {
        LayoutsClient::new(self.authenticated()).max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX)
    }

    /// Buckets and keys.
    pub fn admin(&self) -> AdminClient<Authenticated> {
        AdminClient::new(self.authenticated()).max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX)
    }

    /// This one node's state.
    pub fn status(&self) -> StatusClient<Authenticated> {
        StatusClient::new(self.authenticated()).max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX)
    }

    /// Waits for an answer for at most `within`, and turns a refusal into an error of ours.
    ///
    /// # Errors
    /// What the node answered, or that it did not.
    pub async fn ask<T>(&self, within: Duration, answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Error> {
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => Err(self.silent(within)),
        }
    }

    /// What this node answered.
    pub fn error(&self, status: &Status) -> Error {
        Error::from_status(&self.name, status)
    }

    /// That it did not answer.
    pub fn silent(&self, within: Duration) -> Error {
        Error::connection(Kind::Unreachable, format!("{} did not answer within {}", self.name, humantime::format_duration(within)))
            .hint("retry later; `afar status` shows which nodes answer")
    }
}

/// `https://HOST:PORT`, with 7700 for a missing port.
///
/// # Errors
/// If it is anything else.
pub fn normalise(endpoint: &str) -> Result<String, Error> {
    let wrong = |why: &str| {
        Error::usage(format!("endpoint {endpoint:?}: {why}")).hint("write https://HOST:PORT, such as https://afar.example.org:7700")
    };
    let uri: Uri = endpoint.trim().parse().map_err(|_| wrong("is not a URL"))?;
    match uri.scheme_str() {
        Some("https") => {}
        Some(_) => return Err(wrong("only https is spoken")),
        None => return Err(wrong("has no https:// before it")),
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(wrong("has something after the port"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("must not hold a user or a password"));
    }
    // What stands there is meant: a port that is none is not the usual one.
    let said = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    let port = match said.strip_prefix(':') {
        None if said.is_empty() => 7700,
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
            digits.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| wrong("its port is not a number from 1 to 65535"))?
        }
        _ => return Err(wrong("its port is not a number from 1 to 65535")),
    };
    Ok(format!("https://{}:{port}", authority.host()))
}

/// All doors of one client.
#[derive(Debug)]
pub struct Endpoints {
    doors: Vec<Door>,
    /// The same, and no time is lost at them; none if there is only one.
    hasty: Vec<Door>,
    first: AtomicUsize,
    rounds: u32,
}

impl Endpoints {
    /// In the order to try.
    ///
    /// # Errors
    /// If there is none, too many, or one is malformed.
    pub fn new(endpoints: &[String], ca_pem: &[u8], bearer: &Bearer, rounds: u32) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(
                Error::usage("no endpoint is known").hint("set AFAR_ENDPOINT, use --endpoint, or write one to the configuration file")
            );
        }
        if endpoints.len() > limits::ENDPOINTS_MAX {
            return Err(Error::usage(format!("{} endpoints: the most is {}", endpoints.len(), limits::ENDPOINTS_MAX)));
        }
        let tls = tls::client_config(ca_pem)?;
        let doors = endpoints.iter().map(|endpoint| Door::new(endpoint, &tls, bearer)).collect::<Result<_, _>>()?;
        let several = endpoints.iter().filter(|_| endpoints.len() > 1);
        let hasty = several.map(|endpoint| Door::within(limits::CONNECT_SOON, endpoint, &tls, bearer)).collect::<Result<_, _>>()?;
        Ok(Self { doors, hasty, first: AtomicUsize::new(0), rounds: rounds.max(1) })
    }

    /// Every door, in the order given.
    pub fn doors(&self) -> &[Door] {
        &self.doors
    }

    /// Begins an operation.
    pub fn tries(&self) -> Tries<'_> {
        Tries { endpoints: self, at: self.first.load(Ordering::Relaxed), round: 0, patient: false, failures: Vec::new() }
    }
}

/// One operation's way through the doors.
#[derive(Debug)]
pub struct Tries<'a> {
    endpoints: &'a Endpoints,
    at: usize,
    round: u32,
    /// Nobody spoke in the last round: perhaps they only need longer.
    patient: bool,
    failures: Vec<Error>,
}

impl Tries<'_> {
    /// The door to try now.
    ///
    /// # Errors
    /// Never, in truth: [`Endpoints`] has at least one door.
    pub fn door(&self) -> Result<&Door, Error> {
        let Endpoints { doors, hasty, .. } = self.endpoints;
        let doors = if self.patient || hasty.is_empty() { doors } else { hasty };
        doors.get(self.at % doors.len().max(1)).ok_or_else(|| Error::usage("no endpoint is known"))
    }

    /// The door worked: the next operation begins there.
    pub fn worked(&self) {
        self.endpoints.first.store(self.at % self.endpoints.doors.len().max(1), Ordering::Relaxed);
    }

    /// Something came of it: what fails from here on is a new misfortune, with its own rounds.
    pub fn progressed(&mut self) {
        self.round = 0;
        self.failures.clear();
    }

    /// The door did not work. Waits if all of them have been tried; then [`Self::door`] is the next one.
    ///
    /// # Errors
    /// If the error is final, or the rounds are used up: then what each of them said.
    pub async fn failed(&mut self, error: Error) -> Result<(), Error> {
        if !error.is_worth_another_door() {
            return Err(error);
        }
        self.failures.push(error);
        self.at += 1;
        if self.failures.len() < self.endpoints.doors.len() {
            return Ok(());
        }
        self.round += 1;
        let hopeless = self.failures.iter().all(|failure| !failure.kind().is_worth_another_try());
        if hopeless || self.round >= self.endpoints.rounds {
            return Err(summary(&self.failures));
        }
        self.patient = self.failures.iter().all(Error::is_connection);
        self.failures.clear();
        let pause = backoff(self.round, rand::rng().random_range(0.5..1.0));
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// The pause after this many rounds (1 for the first), shortened by `jitter` (0 to 1).
fn backoff(round: u32, jitter: f64) -> Duration {
    let whole = limits::BACKOFF_FIRST.saturating_mul(3_u32.saturating_pow(round.saturating_sub(1)));
    whole.min(limits::BACKOFF_MAX).mul_f64(jitter)
}

/// What a whole round of failures amounts to: what a node said counts more than that another did not answer.
fn summary(failures: &[Error]) -> Error {
    let spoken = failures.iter().find(|failure| !failure.is_connection());
    let Some(chosen) = spoken.or_else(|| failures.iter().find(|failure| failure.kind() == Kind::Unreachable)).or_else(|| failures.first())
    else {
        return Error::new(Kind::Unreachable, "no endpoint answered");
    };
    let mut messages: Vec<&str> = Vec::new();
    for failure in failures {
        if !messages.contains(&failure.message()) {
            messages.push(failure.message());
        }
    }
    let mut error = Error::new(chosen.kind(), messages.join("; "));
    if let Some(hint) = chosen.what_to_do() {
        error = error.hint(hint);
    }
    if failures.iter().any(Error::may_still_happen) { error.maybe() } else { error }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_https_host_and_port() {
        assert_eq!(normalise(" https://a.example:7700/ ").unwrap(), "https://a.example:7700");
        assert_eq!(normalise("https://a.example").unwrap(), "https://a.example:7700");
        assert_eq!(normalise("https://[::1]:7").unwrap(), "https://[::1]:7");
        for text in ["http://a:1", "a:7700", "", "https://a:1/path", "https://u:p@a:1", "https://a:1?x=y"] {
            let error = normalise(text).unwrap_err();
            assert!(error.kind() == Kind::Usage && error.what_to_do().is_some(), "{text}");
        }
    }

    #[test]
    fn a_port_that_is_none_is_not_the_usual_one() {
        for port in ["99999", "65536", "7700x", "", "0", "+1", "-1", "1:2"] {
            for host in ["127.0.0.1", "a.example", "[::1]"] {
                let text = format!("https://{host}:{port}");
                let error = normalise(&text).unwrap_err();
                assert!(error.kind() == Kind::Usage && error.message().contains(&text), "{text}: {error}");
            }
        }
        assert!(normalise("https://a:65536").unwrap_err().message().contains("port"), "and why");
        assert_eq!(normalise("https://a:65535").unwrap(), "https://a:65535");
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let pauses: Vec<Duration> = (1..8).map(|round| backoff(round, 1.0)).collect();
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses.last(), Some(&limits::BACKOFF_MAX));
    }

    #[test]
    fn what_a_node_said_counts_more_than_silence() {
        let refused = Error::connection(Kind::Unreachable, "a cannot be reached");
        let busy = Error::new(Kind::Busy, "b is busy");
        let error = summary(&[refused.clone(), busy]);
        assert_eq!((error.kind(), error.message()), (Kind::Busy, "a cannot be reached; b is busy"));
        let stranger = Error::connection(Kind::Authentication, "c is not who it should be");
        assert_eq!(summary(&[stranger.clone(), refused]).kind(), Kind::Unreachable);
        assert_eq!(summary(&[stranger]).kind(), Kind::Authentication);
    }

    fn endpoints(names: &[&str]) -> Endpoints {
        let authority = crate::cluster::authority::Authority::new("test", Duration::from_secs(1_700_000_000)).unwrap();
        let names: Vec<String> = names.iter().map(|name| format!("https://{name}")).collect();
        Endpoints::new(&names, authority.pair.certificate.as_bytes(), &Bearer::new("AK", "secret").unwrap(), limits::ROUNDS).unwrap()
    }

    #[tokio::test]
    async fn a_door_that_does_not_speak_is_waited_for_only_if_no_other_does() {
        let endpoints = endpoints(&["a:1", "b:1"]);
        let silent = || Error::connection(Kind::Unreachable, "nobody speaks");
        let later = || Error::new(Kind::Unreachable, "too few nodes answer");
        let is = |tries: &Tries<'_>, door: &Door| std::ptr::eq(tries.door().unwrap(), door);
        let mut tries = endpoints.tries();
        assert!(is(&tries, &endpoints.hasty[0]));
        tries.failed(silent()).await.unwrap();
        assert!(is(&tries, &endpoints.hasty[1]), "the next is tried at once");
        tries.failed(later()).await.unwrap();
        assert!(is(&tries, &endpoints.hasty[0]), "no time is lost at the first again");
        tries.failed(silent()).await.unwrap();
        tries.failed(silent()).await.unwrap();
        assert!(is(&tries, &endpoints.doors[0]), "nobody spoke: perhaps all are slow");
        tries.failed(silent()).await.unwrap();
        assert!(is(&tries, &endpoints.doors[1]));
        let alone = self::endpoints(&["a:1"]);
        assert!(is(&alone.tries(), &alone.doors[0]), "there is no other to ask instead");
    }

    #[test]
    fn a_secret_is_never_printed() {
        let bearer = Bearer::new("AK", "hush").unwrap();
        assert!(!format!("{bearer:?}").contains("hush"));
        assert!(Bearer::new("AK", "a\nb").is_err());
    }
}
