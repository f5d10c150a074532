//! A new cluster's folder. It is planned, then checked by the model as a node would check it, then written beside its place
//! and renamed into it: there is a whole cluster or none.
//!
//! ```text
//! DIR/ca/        ca.crt ca.key cluster.secret   stays with the operator, offline if possible
//! DIR/layout/    custodian.key chain     signs changes of the layout: likewise
//! DIR/recovery/  custodian.key           a second key for that: to be kept elsewhere
//! DIR/nodes/N/   afard.toml node.crt node.key ca.crt cluster.secret admin.key     goes to node N
//! DIR/client/    ca.crt env admin.key    for whoever administers the cluster
//! ```
use super::{
    authority::{Authority, is_loopback},
    config_file::{self, LayoutSource},
    durable,
    operator::{Custodian, Operator},
};
use crate::error::{Error, Kind};
use afar_model::{
    document::PublicKey,
    layout::{Duty, Layout, Node, Site, is_name},
    limits,
    placement::Geography,
    plan,
    policy::Policy,
};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// A node to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// Its name.
    pub name: String,
    /// The site that it is at.
    pub site: String,
    /// DNS name or address that clients and peers reach it by.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its share in bytes.
    pub capacity: u64,
}

impl NodePlan {
    fn authority(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }

    /// Where clients and peers reach it.
    pub fn endpoint(&self) -> String {
        format!("https://{}", self.authority())
    }

    /// As a layout names it.
    pub fn node(&self) -> Node {
        Node { name: self.name.clone(), site: self.site.clone(), capacity: self.capacity, endpoint: self.endpoint(), duty: Duty::Active }
    }

    /// Where it listens: on this machine alone if it is reached there, else on every interface.
    pub fn listen(&self) -> String {
        if self.host == "localhost" {
            format!("127.0.0.1:{}", self.port)
        } else if is_loopback(&self.host) {
            self.authority()
        } else if self.host.contains(':') {
            format!("[::]:{}", self.port)
        } else {
            format!("0.0.0.0:{}", self.port)
        }
    }
}

/// A cluster to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    /// Its name: 1 to 63 of `a-z`, `0-9`, `-`.
    pub cluster: String,
    /// Where its nodes are.
    pub sites: Vec<Site>,
    /// Its nodes.
    pub nodes: Vec<NodePlan>,
    /// How new buckets are kept unless they say otherwise.
    pub policy: Policy,
    /// Slices of the hash space, a power of two; fixed for the cluster's life.
    pub partitions: u32,
}

impl Blueprint {
    /// An empty cluster with the default policy.
    pub fn new(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            sites: Vec::new(),
            nodes: Vec::new(),
            policy: Policy::default(),
            partitions: limits::PARTITIONS_DEFAULT,
        }
    }

    /// Its layout; an error if it has no site or node yet.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn layout(&self) -> Result<Layout, Vec<afar_model::layout::LayoutProblem>> {
        Layout::new(1, self.partitions, self.sites.clone(), self.nodes.iter().map(NodePlan::node).collect())
    }

    /// Checks everything that the nodes would check. A cluster may begin with nothing: then nodes are added one by one.
    ///
    /// # Errors
    /// Every problem at once: names, coordinates, endpoints, and a policy that these sites cannot keep, with the distances.
    pub fn check(&self) -> Result<(), Error> {
        let (mut problems, mut kind) = (Vec::new(), Kind::Usage);
        if !is_name(&self.cluster) {
            problems.push(format!("cluster name {:?}: use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit", self.cluster));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some(other) = self.nodes.iter().take(index).find(|other| other.endpoint() == node.endpoint()) {
                problems.push(format!("nodes {} and {} have the same endpoint {}", other.name, node.name, node.endpoint()));
            }
            if node.capacity == 0 {
                problems.push(format!("node {} has no capacity", node.name));
            }
        }
        let layout = match self.layout() {
            Ok(layout) => Some(layout),
            Err(_) if self.sites.is_empty() && self.nodes.is_empty() => None,
            Err(found) => {
                problems.extend(found.iter().map(ToString::to_string));
                None
            }
        };
        if let Some(layout) = layout.as_ref()
            && let Some(unmet) = plan::unmet(&self.policy, &Geography::claimed(layout))
        {
            let help = plan::sentence(&plan::suggest(&self.policy, &Geography::claimed(layout)));
            let help = if help.is_empty() { help } else { format!("; would help: {help}") };
            // What is well written and cannot be had here is another matter than a mistake in writing.
            if problems.is_empty() && plan::misnamed(&self.policy, layout).is_none() {
                kind = Kind::BelowPolicy;
            }
            problems.push(format!("the policy cannot be kept: {}{help}", unmet.why));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::new(kind, problems.join("\n       ")).hint("correct the above; nothing was written"))
    }
}

/// An access key with every right.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminKey {
    /// Its id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminKey").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

impl AdminKey {
    fn random() -> Self {
        Self {
            access_key_id: format!("AFAR{}", hex::encode_upper(rand::random::<[u8; 8]>())),
            secret_access_key: hex::encode(rand::random::<[u8; 20]>()),
        }
    }

    /// As in its file.
    pub fn render(&self) -> String {
        format!("access_key_id = \"{}\"\nsecret_access_key = \"{}\"\n", self.access_key_id, self.secret_access_key)
    }

    /// Reads an `admin.key`.
    ///
    /// # Errors
    /// If it is missing, too large or not what `cluster init` writes.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = crate::cli::config::read_bounded(path, crate::limits::SECRET_BYTES_MAX)?;
        let table: toml::Table = text.parse().map_err(|_| Error::usage(format!("{}: is not a key file", path.display())))?;
        let field = |name: &str| {
            let value = table.get(name).and_then(toml::Value::as_str).map(str::to_owned);
            value.ok_or_else(|| Error::usage(format!("{}: has no {name}", path.display())))
        };
        Ok(Self { access_key_id: field("access_key_id")?, secret_access_key: field("secret_access_key")? })
    }
}

/// Environment variables as a shell reads them: `export K='V'` lines.
pub fn render_env(variables: &[(&str, String)]) -> String {
    variables.iter().map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', "'\\''"))).collect()
}

/// Checks a plan and writes the cluster to `dir`, which must be empty or not there. Returns the folder's absolute path.
///
/// # Errors
/// If the plan makes no sense, the folder is not empty, or it cannot be written. Then nothing is left behind.
pub fn create(dir: &Path, plan: &Blueprint) -> Result<PathBuf, Error> {
    plan.check()?;
    let wrong = |error: &io::Error| Error::io(dir.display(), error);
    refuse_occupied(dir)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(parent).map_err(|error| wrong(&error))?;
    let parent = parent.canonicalize().map_err(|error| wrong(&error))?;
    let name = dir.file_name().map(PathBuf::from).or_else(|| dir.canonicalize().ok()?.file_name().map(PathBuf::from));
    let name = name.ok_or_else(|| Error::usage(format!("{}: has no name of its own", dir.display())))?;
    let target = if dir.exists() { dir.canonicalize().map_err(|error| wrong(&error))? } else { parent.join(name) };
    let beside = target.parent().map_or(parent, Path::to_path_buf);
    let building = tempfile::Builder::new().prefix(".afar-cluster-").tempdir_in(&beside).map_err(|error| wrong(&error))?;
    write_cluster(building.path(), &target, plan)?;
    // An empty folder may be renamed over; one that has become occupied since may not, and then nothing changes.
    fs::rename(building.path(), &target).map_err(|error| wrong(&error))?;
    let _ = building.keep();
    durable::sync_folder(&beside).map_err(|error| wrong(&error))?;
    Ok(target)
}

/// Nothing is ever written over what is there.
///
/// # Errors
/// If something is in the folder.
pub(crate) fn refuse_occupied(dir: &Path) -> Result<(), Error> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => Err(Error::usage(format!("{}: is not empty", dir.display()))
            .hint("name a folder that does not exist yet; a cluster is never written over another")),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::usage(format!("{}: {error}", dir.display()))),
    }
}

fn write_cluster(root: &Path, target: &Path, plan: &Blueprint) -> Result<(), Error> {
    let wrong = |error: &io::Error| Error::io(target.display(), error);
    let crypto = |error: &rcgen::Error| Error::new(Kind::Failed, format!("make certificates: {error}"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let authority = Authority::new(&plan.cluster, now).map_err(|error| crypto(&error))?;
    let (key, secret) = (AdminKey::random(), format!("{}\n", hex::encode(rand::random::<[u8; 32]>())));
    let ca = authority.pair.certificate.as_bytes();

    let folder = |name: &str| -> Result<PathBuf, Error> {
        let path = root.join(name);
        durable::private_folder(&path).map_err(|error| wrong(&error))?;
        Ok(path)
    };
    let write = |path: PathBuf, content: &[u8], mode| durable::write(&path, content, mode).map_err(|error| wrong(&error));

    let authority_folder = folder("ca")?;
    write(authority_folder.join("ca.key"), authority.pair.key.as_bytes(), durable::SECRET)?;
    write(authority_folder.join("ca.crt"), ca, durable::PUBLIC)?;
    write(authority_folder.join("cluster.secret"), secret.as_bytes(), durable::SECRET)?;
    folder("layout")?;
    folder("recovery")?;
    let (custodian, second) = (Custodian::new()?, Custodian::new()?);
    custodian.write(&root.join("layout/custodian.key"))?;
    second.write(&root.join("recovery/custodian.key"))?;
    write(root.join("recovery/README"), RECOVERY.as_bytes(), durable::PUBLIC)?;
    let custodians = [custodian.public(), second.public()];
    write_about(root, plan, &custodians)?;
    if let Ok(layout) = plan.layout() {
        Operator::begin(root, &plan.cluster, layout, custodians.to_vec())?;
    }
    folder("nodes")?;
    for node in &plan.nodes {
        let pair = authority.node(&plan.cluster, &node.name, &node.host, now).map_err(|error| crypto(&error))?;
        let home = folder(&format!("nodes/{}", node.name))?;
        let config = config_file::render(plan, node, LayoutSource::Inline(&custodians));
        write_bundle(&home, &Bundle { pair: &pair, ca, secret: &secret, admin: &key.render(), config: &config, chain: None })?;
    }
    let client = folder("client")?;
    write(client.join("ca.crt"), ca, durable::PUBLIC)?;
    write(client.join("admin.key"), key.render().as_bytes(), durable::SECRET)?;
    write(client.join("env"), client_env(plan.nodes.iter().map(NodePlan::endpoint), &key, target).as_bytes(), durable::SECRET)
}

/// What whoever finds the second key must know.
pub const RECOVERY: &str = "\
custodian.key is a second key that may sign this cluster's layouts. Keep this folder elsewhere than the rest: on another
machine, in another building. If the first key is lost or stolen, this one makes a new folder for whoever operates the cluster:

  afar cluster recover NEWDIR --custodian custodian.key --cluster-secret cluster.secret --endpoint https://ANY-NODE:7700

It also needs an administrator's access key and the cluster's ca.crt (flags or AFAR_*, as for any command). They and
cluster.secret lie in every node's folder. The authority's key is not needed: a new authority is made. Any node gives back the
chain of layouts. The lost key may not sign any more from then on.
";

/// Writes what a folder says of its cluster: name, partitions, policy, and who may change the layout.
///
/// # Errors
/// If it cannot be written.
pub fn write_about(folder: &Path, plan: &Blueprint, custodians: &[PublicKey]) -> Result<(), Error> {
    let names = format!("cluster = {}\npartitions = {}\ncustodians = {}", toml_text(&plan.cluster), plan.partitions, toml_list(custodians));
    let about = format!("{names}\n{}", config_file::policy(plan));
    let path = folder.join("cluster.toml");
    durable::write(&path, about.as_bytes(), durable::PUBLIC).map_err(|error| Error::io(path.display(), &error))
}

fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

pub(super) fn toml_list(keys: &[PublicKey]) -> String {
    toml::Value::Array(keys.iter().map(|key| toml::Value::String(hex::encode(key))).collect()).to_string()
}

/// What a cluster's folder says of it: its name and policy, and who may change its layout.
///
/// # Errors
/// If the folder is none of a cluster.
pub fn read_about(folder: &Path) -> Result<(Blueprint, Vec<PublicKey>), Error> {
    #[derive(serde::Deserialize)]
    struct About {
        cluster: String,
        custodians: Vec<String>,
        partitions: u32,
        policy: config_file::PolicyText,
    }
    let path = folder.join("cluster.toml");
    let wrong =
        |why: String| Error::usage(format!("{}: {why}", path.display())).hint("name the folder that `afar cluster init` made with --dir");
    let text = fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    let about: About = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
    let custodians = public_keys(&about.custodians).map_err(wrong)?;
    let plan = Blueprint { policy: about.policy.into(), partitions: about.partitions, ..Blueprint::new(&about.cluster) };
    Ok((plan, custodians))
}

/// Public keys, each 64 hexadecimal digits.
pub(super) fn public_keys(texts: &[String]) -> Result<Vec<PublicKey>, String> {
    let key = |text: &String| {
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim(), &mut key).map_err(|_| format!("{text:?} is no public key")).map(|()| key)
    };
    texts.iter().map(key).collect()
}

/// The environment of whoever administers the cluster.
pub fn client_env(endpoints: impl Iterator<Item = String>, key: &AdminKey, folder: &Path) -> String {
    render_env(&[
        ("AFAR_ENDPOINT", endpoints.collect::<Vec<_>>().join(",")),
        ("AFAR_ACCESS_KEY_ID", key.access_key_id.clone()),
        ("AFAR_SECRET_ACCESS_KEY", key.secret_access_key.clone()),
        ("AFAR_CA_FILE", folder.join("client/ca.crt").display().to_string()),
        // For the commands that change the layout, which need more of the folder than this file.
        ("AFAR_CLUSTER_DIR", folder.display().to_string()),
    ])
}

/// What a node is given.
#[derive(Debug)]
pub struct Bundle<'a> {
    /// Its certificate and key.
    pub pair: &'a super::authority::Pair,
    /// The authority's certificate, PEM.
    pub ca: &'a [u8],
    /// What all nodes share.
    pub secret: &'a str,
    /// The administrator's key, as in its file.
    pub admin: &'a str,
    /// `afard.toml`.
    pub config: &'a str,
    /// `layouts.chain`, unless the configuration says it all.
    pub chain: Option<&'a [u8]>,
}

/// Writes a node's folder, which must be there.
///
/// # Errors
/// If it cannot be written.
pub fn write_bundle(home: &Path, bundle: &Bundle<'_>) -> Result<(), Error> {
    let write = |name: &str, content: &[u8], mode| {
        let path = home.join(name);
        durable::write(&path, content, mode).map_err(|error| Error::io(path.display(), &error))
    };
    write("node.key", bundle.pair.key.as_bytes(), durable::SECRET)?;
    write("node.crt", bundle.pair.certificate.as_bytes(), durable::PUBLIC)?;
    write("ca.crt", bundle.ca, durable::PUBLIC)?;
    write("cluster.secret", bundle.secret.as_bytes(), durable::SECRET)?;
    write("admin.key", bundle.admin.as_bytes(), durable::SECRET)?;
    if let Some(chain) = bundle.chain {
        write("layouts.chain", chain, durable::PUBLIC)?;
    }
    write("afard.toml", bundle.config.as_bytes(), durable::PUBLIC)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::layout::examples;
    use std::os::unix::fs::PermissionsExt as _;

    fn plan() -> Blueprint {
        let layout = examples::three_sites().unwrap();
        let nodes = (7700..).zip(layout.sites()).map(|(port, site)| NodePlan {
            name: site.name.clone(),
            site: site.name.clone(),
            host: "127.0.0.1".into(),
            port,
            capacity: 1 << 40,
        });
        Blueprint { sites: layout.sites().to_vec(), nodes: nodes.collect(), ..Blueprint::new("trial") }
    }

    #[test]
    fn a_cluster_is_written_whole_and_its_secrets_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let target = create(&folder.path().join("new/cluster"), &plan()).unwrap();
        let mode = |path: &str| fs::metadata(target.join(path)).unwrap().permissions().mode() & 0o777;
        for secret in [
            "ca/ca.key",
            "client/env",
            "client/admin.key",
            "nodes/warsaw/node.key",
            "nodes/warsaw/cluster.secret",
            "nodes/warsaw/admin.key",
        ] {
            assert_eq!(mode(secret), 0o600, "{secret}");
        }
        assert!(!target.join("nodes/warsaw/ca.key").exists(), "the authority's key never lies with a node");
        assert_eq!(fs::read_to_string(target.join("nodes/roubaix/cluster.secret")).unwrap().trim().len(), 64);
        let key = AdminKey::read(&target.join("client/admin.key")).unwrap();
        let env = fs::read_to_string(target.join("client/env")).unwrap();
        assert!(env.contains(&format!("export AFAR_ACCESS_KEY_ID='{}'\n", key.access_key_id)), "{env}");
        assert!(env.contains(&format!("export AFAR_CLUSTER_DIR='{}'\n", target.display())), "where layouts are changed: {env}");
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 1, "no leftovers");
    }

    #[test]
    fn a_cluster_is_never_written_over_another() {
        let folder = tempfile::tempdir().unwrap();
        create(folder.path(), &plan()).unwrap();
        let error = create(folder.path(), &plan()).unwrap_err();
        assert_eq!((error.kind(), error.message().contains("not empty")), (Kind::Usage, true));
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_the_distances_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut plan = plan();
        plan.nodes.pop();
        plan.sites.pop();
        let target = folder.path().join("c");
        let error = create(&target, &plan).unwrap_err();
        assert!(error.message().contains("strasbourg-roubaix 405.8 km"), "{error}");
        assert_eq!(error.kind(), Kind::BelowPolicy, "as the manual says");
        assert!(!target.exists());
        plan.policy.home = Some("nowhere".into());
        assert_eq!(plan.check().unwrap_err().kind(), Kind::Usage, "a home that is no site is a mistake in writing");
        plan.policy.home = None;
        plan.nodes[1].name = "strasbourg".into();
        plan.nodes[1].port = 7700;
        plan.cluster = "Bad Name".into();
        let error = plan.check().unwrap_err();
        assert!(
            error.message().contains("cluster name") && error.message().contains("same endpoint") && error.message().contains("two nodes"),
            "{error}"
        );
        assert_eq!(error.kind(), Kind::Usage);
    }

    #[test]
    fn shells_read_what_was_meant() {
        assert_eq!(render_env(&[("K", "it's".into())]), "export K='it'\\''s'\n");
    }
}
