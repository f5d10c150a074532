//! What a node is told: `afard.toml` and the files that it names. Read once, checked once, and complained about completely:
//! every problem at once, each with its line, so that nobody plays a game of one error per start.
//!
//! A file that is too large is not read at all (an overgrown generated file once took down a large network's proxies); an
//! unknown key is an error, because it is a typing mistake or meant for another version.
mod reader;

use crate::{
    budget::connections_max,
    cluster::{
        connect::Address,
        identity::TlsFiles,
        keyring::{AdminKey, ClusterSecret, Secret},
        layouts,
    },
    files,
    gateways::public_tls::{
        PairFiles, Source,
        acme::{self, AcmeSettings},
    },
    limits,
    replication::rebalance::{Pace, Slot, parse_rate},
};
use afar_model::{
    document::{self, Chapter, Document, PublicKey, Signed},
    geo::Coordinates,
    layout::{Duty, Layout, Node, Site, is_country, is_name},
    limits as model_limits,
    placement::{Geography, Infeasible, Placement},
    policy::{DegradedWrites, Durability, Policy, VerifyDistance},
    units::Metres,
};
use afar_store::disk::SyncFaults;
use reader::{Problems, Section};
use serde::Deserialize;
use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Everything that a node is told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that this was read from.
    pub path: PathBuf,
    /// The cluster's name, as certificates say it.
    pub cluster: String,
    /// This node's name.
    pub node: String,
    /// Where gRPC listens.
    pub listen: SocketAddr,
    /// The HTTP port, if there is one.
    pub http: Option<HttpPort>,
    /// Data directories, one per disk.
    pub data: Vec<PathBuf>,
    /// What the node keeps apart from them.
    pub state: PathBuf,
    /// Where to write the process id, if anywhere.
    pub pid_file: Option<PathBuf>,
    /// Initialise missing data directories.
    pub init_dirs: bool,
    /// Certificates and key.
    pub tls: TlsFiles,
    /// Where the certificate of ports for the public comes from.
    pub public_tls: Source,
    /// What all nodes of the cluster share.
    pub secret: ClusterSecret,
    /// The administrator's access key.
    pub admin: AdminKey,
    /// Budgets.
    pub limits: Budgets,
    /// How fast data may be moved when the layout changes.
    pub pace: Pace,
    /// The policy of new buckets.
    pub policy: Policy,
    /// The layout that this node begins with, unless it knows later ones.
    pub genesis: Chapter,
    /// Later ones that the configuration brings.
    pub layouts: Vec<Signed>,
    /// The host of this node's own endpoint.
    pub host: String,
    /// By how many milliseconds the wall clock is shifted; only in tests.
    pub clock_offset_ms: i64,
    /// What goes wrong with syncs (only in tests).
    pub sync_faults: Option<SyncFaults>,
    /// A client that moves too little for this long loses its transfer; other than [`limits::TRANSFER_SLOW`] only in tests.
    pub slow_after: Duration,
}

/// The port for those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpPort {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who may read the metrics.
    pub metrics: MetricsAccess,
}

/// Who may read the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MetricsAccess {
    /// Whoever has an access key.
    #[default]
    Key,
    /// Everybody.
    Open,
}

/// Memory and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Bytes in flight, HTTP/2 windows included (rule 29).
    pub transfer: u64,
    /// Bytes of index cache.
    pub index_cache: u64,
    /// Bytes after which a segment is sealed.
    pub segment: u64,
    /// Client connections.
    pub connections: usize,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// Each says where, what, why and what to do.
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "{}: {one}", self.path.display()),
            all => {
                write!(f, "{}: {} problems", self.path.display(), all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a configuration and the files that it names (not the certificates: see
    /// [`crate::cluster::identity::Identity::load`]).
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let fail = |problems| ConfigError { path: path.to_owned(), problems };
        let text = files::read_text(path, model_limits::CONFIG_BYTES_MAX).map_err(|error| fail(vec![error.to_string()]))?;
        Self::parse(path, &text).map_err(fail)
    }

    /// Checks a configuration's text; relative paths start at the folder of `path`.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Vec<String>> {
        let table = toml::de::DeTable::parse(text).map_err(|error| vec![reader::syntax(text, &error)])?;
        let mut problems = Problems::new(text);
        // What is remembered under a path must not depend on where the program was started.
        let path = &std::path::absolute(path).map_err(|error| vec![error.to_string()])?;
        let config = read(path, Section::new(table.get_ref()), &mut problems);
        match (config, problems.into_list()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(problems),
        }
    }

    /// Whether data can be kept as the default policy says; else which constraints conflict. No reason not to start: other
    /// buckets may have other policies. Judged is the newest layout that the node has: a bundle's chain begins with the first.
    ///
    /// # Errors
    /// The conflicting constraints and the smallest change that helps.
    pub fn feasible(&self) -> Result<(), Infeasible> {
        let newest = layouts::newest(layouts::glance(&self.state), &self.layouts).and_then(|document| document.layout([0; 32]).ok());
        let layout = newest.as_ref().unwrap_or(&self.genesis.layout);
        Placement::new(&self.policy, &Geography::claimed(layout)).map(|_| ())
    }
}

fn read(path: &Path, mut top: Section<'_>, problems: &mut Problems<'_>) -> Option<Config> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let below = |relative: String| folder.join(relative);
    let cluster = top.name("cluster", problems);
    let node = top.name("node", problems);
    let listen = top.parsed::<SocketAddr>("listen", "an IP address and a port, such as \"0.0.0.0:7700\"", problems);
    let http = top.optional_section("http", problems).map(|section| read_http(section, problems));
    let data = top.texts("data", problems);
    let state = top.text("state", problems).map(below);
    let pid_file = top.optional_text("pid_file", problems).map(below);
    let init_dirs = top.boolean("init_dirs", problems).unwrap_or(false);
    let tls = top.section("tls", problems).and_then(|section| read_tls(section, folder, problems));
    let public_tls = top.optional_section("public_tls", problems).map(|section| read_public_tls(section, folder, problems));
    let secrets = top.section("secrets", problems).and_then(|section| read_secrets(section, folder, problems));
    let limits = read_limits(top.optional_section("limits", problems), problems);
    let pace = read_pace(top.optional_section("rebalance", problems), problems);
    let policy = read_policy(top.optional_section("policy", problems), problems);
    let layout = top.section("layout", problems).and_then(|section| read_layout(section, cluster.as_deref(), folder, problems));
    let testing = top.optional_section("testing", problems);
    let testing = testing.is_some_and(|mut section| {
        let enabled = section.boolean("enabled", problems).unwrap_or(false);
        section.finish(problems);
        enabled
    });
    if let (Some(listen), Some(Some(http))) = (listen, http)
        && http.listen == listen
        && listen.port() != 0
    {
        problems.add(top.line("http"), format!("http.listen = \"{listen}\": is the same as listen: HTTP needs a port of its own"));
    }
    if data.as_ref().is_some_and(Vec::is_empty) {
        problems.add(top.line("data"), "data = []: name at least one directory");
    }
    check_distinct(data.as_deref().unwrap_or_default(), top.line("data"), problems);
    let newest = layout.as_ref().map(Chain::newest);
    let endpoint = match (&node, &newest) {
        (Some(node), Some(newest)) => {
            let found = newest.nodes.iter().find(|named| named.name == *node);
            if found.is_none() {
                let known: Vec<&str> = newest.nodes.iter().map(|node| node.name.as_str()).collect();
                problems.add(top.line("node"), format!("node = {node:?}: the layout names no such node; it names {}", known.join(", ")));
            }
            found.map(|node| node.endpoint.clone())
        }
        _ => None,
    };
    if let (Some(Policy { home: Some(home), .. }), Some(newest)) = (&policy, &newest)
        && !newest.sites.iter().any(|site| site.name == *home)
    {
        let known: Vec<&str> = newest.sites.iter().map(|site| site.name.as_str()).collect();
        problems.add(top.line("policy"), format!("policy.home = {home:?}: the layout names no such site; it names {}", known.join(", ")));
    }
    let clock_offset_ms = if testing { test_number("AFAR_TEST_CLOCK_OFFSET_MS", problems).unwrap_or(0) } else { 0 };
    let sync_faults = testing.then(|| SyncFaults {
        fail_after: test_number("AFAR_TEST_FAIL_SYNC_AFTER", problems),
        hold: std::env::var_os("AFAR_TEST_HOLD_SYNCS").map(PathBuf::from),
    });
    let slow_after = if testing { test_number("AFAR_TEST_SLOW_AFTER_MS", problems).map(Duration::from_millis) } else { None };
    top.finish(problems);
    let Chain { genesis, layouts } = layout?;
    let host = Address::parse(&endpoint?).ok()?.host;
    let (secret, admin) = secrets?;
    let data = data?.into_iter().map(|directory| folder.join(directory)).collect();
    Some(Config {
        path: path.to_owned(),
        cluster: cluster?,
        node: node?,
        listen: listen?,
        http: http.flatten(),
        data,
        state: state?,
        pid_file,
        init_dirs,
        tls: tls?,
        public_tls: public_tls.unwrap_or_default(),
        secret,
        admin,
        limits: limits?,
        pace: pace?,
        policy: policy?,
        genesis,
        layouts,
        host,
        clock_offset_ms,
        sync_faults,
        slow_after: slow_after.unwrap_or(limits::TRANSFER_SLOW),
    })
}

fn check_distinct(names: &[String], line: Option<usize>, problems: &mut Problems<'_>) {
    for (index, name) in names.iter().enumerate() {
        if names.iter().take(index).any(|other| Path::new(other) == Path::new(name)) {
            problems.add(line, format!("data names {name:?} twice: name each directory once"));
        }
    }
}

fn read_http(mut section: Section<'_>, problems: &mut Problems<'_>) -> Option<HttpPort> {
    let listen = section.parsed::<SocketAddr>("listen", "an IP address and a port, such as \"0.0.0.0:7702\"", problems);
    let access = [("key", MetricsAccess::Key), ("open", MetricsAccess::Open)];
    let metrics = section.word("metrics", &access, problems).unwrap_or_default();
    section.finish(problems);
    Some(HttpPort { listen: listen?, metrics })
}

fn read_tls(mut section: Section<'_>, folder: &Path, problems: &mut Problems<'_>) -> Option<TlsFiles> {
    let ca = section.text("ca", problems);
    let certificate = section.text("certificate", problems);
    let key = section.text("key", problems);
    section.finish(problems);
    Some(TlsFiles { ca: folder.join(ca?), certificate: folder.join(certificate?), key: folder.join(key?) })
}

/// What is missing of it is a problem, so that what is returned then does not matter.
fn read_public_tls(mut section: Section<'_>, folder: &Path, problems: &mut Problems<'_>) -> Source {
    let certificate = section.optional_text("certificate", problems).map(|file| folder.join(file));
    let key = section.optional_text("key", problems).map(|file| folder.join(file));
    let acme = section.optional_section("acme", problems).map(|section| read_acme(section, folder, problems));
    let line = section.own_line();
    section.finish(problems);
    match (certificate, key, acme) {
        (None, None, None) => Source::Node,
        (Some(certificate), Some(key), None) => Source::Files(PairFiles { certificate, key }),
        (None, None, Some(settings)) => settings.map(Source::Acme).unwrap_or_default(),
        (_, _, Some(_)) => {
            problems.add(line, "[public_tls] has a certificate of its own and [public_tls.acme]: leave one of them out");
            Source::Node
        }
        _ => {
            problems.add(line, "[public_tls]: name both certificate and key, or neither");
            Source::Node
        }
    }
}

fn read_acme(mut section: Section<'_>, folder: &Path, problems: &mut Problems<'_>) -> Option<AcmeSettings> {
    let line = section.line("domains");
    let domains = section.texts("domains", problems);
    let contact = section.optional_texts("contact", problems).unwrap_or_default();
    let directory = section.optional_text("directory", problems).unwrap_or_else(|| acme::DIRECTORY.to_owned());
    let authority = section.optional_text("directory_authority", problems).map(|file| folder.join(file));
    let agrees = section.boolean("agree_to_terms", problems);
    if agrees != Some(true) {
        let problem = "public_tls.acme.agree_to_terms is missing: read the terms of that server, then write agree_to_terms = true";
        problems.add(section.line("agree_to_terms"), problem);
    }
    let settings = AcmeSettings { domains: domains.unwrap_or_default(), contact, directory, authority };
    for problem in settings.problems() {
        problems.add(line, format!("public_tls.acme.{problem}"));
    }
    section.finish(problems);
    Some(settings)
}

fn read_secrets(mut section: Section<'_>, folder: &Path, problems: &mut Problems<'_>) -> Option<(ClusterSecret, AdminKey)> {
    let cluster = section.text("cluster", problems);
    let admin = section.text("admin_key", problems);
    let cluster = cluster.and_then(|file| problems.keep(section.line("cluster"), read_cluster_secret(&folder.join(file))));
    let admin = admin.and_then(|file| problems.keep(section.line("admin_key"), read_admin_key(&folder.join(file))));
    section.finish(problems);
    Some((cluster?, admin?))
}

fn read_cluster_secret(path: &Path) -> Result<ClusterSecret, String> {
    let text = files::read_secret(path, limits::SECRET_FILE_BYTES_MAX).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut bytes = [0; 32];
    let decoded = hex::decode_to_slice(text.trim(), &mut bytes);
    decoded.map_err(|_| format!("{}: must be 64 hexadecimal digits, the same on every node", path.display()))?;
    Ok(ClusterSecret::new(bytes))
}

fn read_admin_key(path: &Path) -> Result<AdminKey, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        access_key_id: String,
        secret_access_key: String,
    }
    let text = files::read_secret(path, limits::SECRET_FILE_BYTES_MAX).map_err(|error| format!("{}: {error}", path.display()))?;
    // The library's own message would quote the line, and with it the secret.
    let raw: Raw = toml::from_str(&text)
        .map_err(|error| format!("{}: {}: write access_key_id = \"…\" and secret_access_key = \"…\"", path.display(), error.message()))?;
    if raw.access_key_id.is_empty() || raw.access_key_id.contains('.') || raw.secret_access_key.len() < 16 {
        return Err(format!(
            "{}: access_key_id must not be empty or hold a dot, secret_access_key has at least 16 characters",
            path.display()
        ));
    }
    Ok(AdminKey { access_key_id: raw.access_key_id, secret_access_key: Secret::new(raw.secret_access_key) })
}

fn read_limits(section: Option<Section<'_>>, problems: &mut Problems<'_>) -> Option<Budgets> {
    let mut section = section.unwrap_or_default();
    let segment_max = 1 << 40;
    let transfer = section.size("transfer", limits::TRANSFER_DEFAULT, limits::TRANSFER_MIN..=limits::TRANSFER_MAX, problems);
    let index_cache = section.size("index_cache", limits::INDEX_CACHE_DEFAULT, limits::INDEX_CACHE_MIN..=segment_max, problems);
    let least = afar_store::limits::SEGMENT_BYTES_MIN;
    let segment = section.size("segment", afar_store::limits::SEGMENT_BYTES_DEFAULT, least..=segment_max, problems);
    let connections = section.integer("connections", 1..=limits::CONNECTIONS_MAX as u64, problems);
    let connections = connections.map_or(limits::CONNECTIONS_DEFAULT, |number| number as usize);
    if let Some(transfer) = transfer
        && connections as u64 > connections_max(transfer)
    {
        let (each, has, room) = (limits::WINDOW_MIN >> 10, transfer >> 20, connections_max(transfer));
        let problem = format!(
            "limits.connections = {connections}: each takes {each} KiB of limits.transfer, and {has} MiB have room for {room}: \
             raise limits.transfer or lower this"
        );
        problems.add(section.line("connections"), problem);
    }
    section.finish(problems);
    Some(Budgets { transfer: transfer?, index_cache: index_cache?, segment: segment?, connections })
}

fn read_pace(section: Option<Section<'_>>, problems: &mut Problems<'_>) -> Option<Pace> {
    let Some(mut section) = section else { return Some(Pace::default()) };
    let before = problems.count();
    let rate = section.optional_text("rate", problems);
    let rate = rate.and_then(|text| problems.keep(section.line("rate"), parse_rate(&text).map_err(|why| format!("rebalance.rate: {why}"))));
    let line = section.line("timetable");
    let texts = section.optional_texts("timetable", problems).unwrap_or_default();
    let slot = |text: &String| text.parse::<Slot>().map_err(|why| format!("rebalance.timetable: {why}"));
    let timetable = texts.iter().filter_map(|text| problems.keep(line, slot(text))).collect();
    section.finish(problems);
    (problems.count() == before).then_some(Pace { rate, timetable })
}

fn read_policy(section: Option<Section<'_>>, problems: &mut Problems<'_>) -> Option<Policy> {
    let Some(mut section) = section else { return Some(Policy::default()) };
    let default = Policy::default();
    let before = problems.count();
    let small = |number: Option<u64>, default: u8| number.map_or(default, |number| number as u8);
    let policy = Policy {
        copies: small(section.integer("copies", 1..=255, problems), default.copies),
        far_copies: small(section.integer("far_copies", 1..=255, problems), default.far_copies),
        min_distance: section
            .float("min_distance_km", 0.0..=40_000.0, problems)
            .map_or(default.min_distance, |km| Metres((km * 1000.0).round() as u64)),
        level: section.word("level", &[("far", Durability::Far), ("full", Durability::Full)], problems).unwrap_or(default.level),
        home: section.optional_text("home", problems),
        countries: section.optional_texts("countries", problems).unwrap_or_default(),
        max_copies_per_provider: small(section.integer("max_copies_per_provider", 0..=255, problems), default.max_copies_per_provider),
        verify_distance: section
            .word(
                "verify_distance",
                &[("enforce", VerifyDistance::Enforce), ("warn", VerifyDistance::Warn), ("off", VerifyDistance::Off)],
                problems,
            )
            .unwrap_or_default(),
        degraded_writes: section
            .word("degraded_writes", &[("refuse", DegradedWrites::Refuse), ("queue", DegradedWrites::Queue)], problems)
            .unwrap_or_default(),
    };
    let line = section.own_line();
    section.finish(problems);
    if problems.count() == before {
        problems.keep(line, policy.check().map_err(|error| format!("policy: {error}")));
    }
    (problems.count() == before).then_some(policy)
}

/// Layouts as the configuration brings them.
struct Chain {
    genesis: Chapter,
    layouts: Vec<Signed>,
}

impl Chain {
    /// What the newest one says; not verified yet.
    fn newest(&self) -> Document {
        let last = self.layouts.last().and_then(|signed| Document::decode(&signed.body).ok());
        last.unwrap_or_else(|| self.genesis.document.clone())
    }

    fn read(path: &Path) -> Result<Self, String> {
        let wrong = |why: String| format!("layout.chain: {}: {why}", path.display());
        let length = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
        if length > document::Chain::BYTES_MAX as u64 {
            return Err(wrong(format!("it has {length} bytes: the most is {}", document::Chain::BYTES_MAX)));
        }
        let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let chain = document::Chain::decode(&bytes).map_err(|error| wrong(error.to_string()))?;
        chain.chapters(&layouts::verify).map_err(|error| wrong(error.to_string()))?;
        let genesis = chain.genesis().map_err(|error| wrong(error.to_string()))?;
        Ok(Self { genesis, layouts: chain.documents })
    }
}

fn read_layout(mut section: Section<'_>, cluster: Option<&str>, folder: &Path, problems: &mut Problems<'_>) -> Option<Chain> {
    if let Some(chain) = section.optional_text("chain", problems) {
        let line = section.line("chain");
        section.finish(problems);
        return problems.keep(line, Chain::read(&folder.join(chain)));
    }
    let before = problems.count();
    let custodians = read_custodians(&mut section, problems);
    let version = section.integer("version", 1..=i64::MAX as u64, problems).unwrap_or(1);
    let partitions = section.integer("partitions", 1..=1 << 16, problems).unwrap_or(u64::from(model_limits::PARTITIONS_DEFAULT));
    let sites: Vec<Site> = section.sections("sites", problems).into_iter().filter_map(|site| read_site(site, problems)).collect();
    let nodes: Vec<Node> = section.sections("nodes", problems).into_iter().filter_map(|node| read_node(node, problems)).collect();
    let line = section.own_line();
    section.finish(problems);
    for (index, node) in nodes.iter().enumerate() {
        if let Some(other) = nodes.iter().take(index).find(|other| other.endpoint == node.endpoint) {
            let endpoint = &node.endpoint;
            problems.add(line, format!("nodes {:?} and {:?} have the same endpoint {endpoint:?}: each has its own", other.name, node.name));
        }
    }
    if problems.count() > before {
        return None;
    }
    match Layout::new(version, partitions as u32, sites, nodes) {
        Ok(layout) => Some(Chain { genesis: Chapter::genesis(cluster?, layout, custodians), layouts: Vec::new() }),
        Err(wrong) => {
            wrong.iter().for_each(|problem| problems.add(line, format!("layout: {problem}")));
            None
        }
    }
}

/// Public keys of those who may change the layout, in hex.
fn read_custodians(section: &mut Section<'_>, problems: &mut Problems<'_>) -> Vec<PublicKey> {
    let line = section.line("custodians");
    let texts = section.optional_texts("custodians", problems).unwrap_or_default();
    let parse = |text: &String| {
        let mut key = [0; 32];
        let wrong = || format!("layout.custodians: {text:?} is no public key: write 64 hexadecimal digits");
        hex::decode_to_slice(text.trim(), &mut key).map_err(|_| wrong()).map(|()| key)
    };
    texts.iter().filter_map(|text| problems.keep(line, parse(text))).collect()
}

fn read_site(mut section: Section<'_>, problems: &mut Problems<'_>) -> Option<Site> {
    let name = section.text("name", problems);
    let latitude = section.required_float("latitude", problems);
    let longitude = section.required_float("longitude", problems);
    let uncertainty = section.integer("uncertainty_m", 0..=20_003_932, problems).unwrap_or(0);
    let country = section.text("country", problems);
    let provider = section.optional_text("provider", problems).unwrap_or_default();
    let line = section.own_line();
    section.finish(problems);
    let (name, country) = (name?, country?);
    if !is_country(&country) {
        problems.add(line, format!("site {name:?}: country {country:?} must be two capital letters as in ISO 3166-1, such as \"FR\""));
    }
    let checked = Coordinates::new(latitude?, longitude?).map_err(|error| format!("site {name:?}: {error}"));
    let coordinates = problems.keep(line, checked)?;
    Some(Site { name, coordinates, uncertainty: Metres(uncertainty), country, provider, duty: Duty::Active })
}

fn read_node(mut section: Section<'_>, problems: &mut Problems<'_>) -> Option<Node> {
    let name = section.text("name", problems);
    let site = section.text("site", problems);
    let endpoint = section.text("endpoint", problems);
    let capacity = section.required_size("capacity", problems);
    if let (Some(name), Some(endpoint)) = (&name, &endpoint) {
        problems.keep(section.line("endpoint"), Address::parse(endpoint).map_err(|error| format!("node {name:?}: {error}")));
    }
    section.finish(problems);
    Some(Node { name: name?, site: site?, capacity: capacity?, endpoint: endpoint?, duty: Duty::Active })
}

fn test_number<T: std::str::FromStr>(variable: &str, problems: &mut Problems<'_>) -> Option<T> {
    let text = std::env::var(variable).ok()?;
    let parsed = text.trim().parse().map_err(|_| format!("environment: {variable} = {text:?}: must be a whole number"));
    problems.keep(None, parsed)
}

fn check_name(name: &str) -> Result<(), String> {
    if is_name(name) { Ok(()) } else { Err("use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit".into()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
