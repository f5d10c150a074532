//! A new cluster's folder. It is planned, then checked by the model as a node would check it, then written beside its place
//! and renamed into it: there is a whole cluster or none.
//!
//! ```text
//! DIR/ca/        ca.crt ca.key           stays with the operator, offline if possible
//! DIR/nodes/N/   afard.toml node.crt node.key ca.crt cluster.secret admin.key     goes to node N
//! DIR/client/    ca.crt env admin.key    for whoever administers the cluster
//! ```
use super::{authority::Authority, authority::is_loopback, config_file, durable};
use crate::error::{Error, Kind};
use afar_model::{
    layout::{Duty, Layout, Node, Site, is_name},
    limits,
    placement::{Geography, Placement},
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
        Node {
            name: self.name.clone(),
            site: self.site.clone(),
            capacity: self.capacity,
            endpoint: self.endpoint(),
            duty: Duty::Active,
        }
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

    /// Checks everything that the nodes would check.
    ///
    /// # Errors
    /// Every problem at once: names, coordinates, endpoints, and a policy that these sites cannot keep, with the distances.
    pub fn check(&self) -> Result<Layout, Error> {
        let mut problems = Vec::new();
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
        let nodes = self.nodes.iter().map(NodePlan::node);
        let layout = match Layout::new(1, self.partitions, self.sites.clone(), nodes.collect()) {
            Ok(layout) => Some(layout),
            Err(found) => {
                problems.extend(found.iter().map(ToString::to_string));
                None
            }
        };
        if let Some(layout) = layout.as_ref()
            && let Err(infeasible) = Placement::new(&self.policy, &Geography::claimed(layout))
        {
            problems.push(format!("the policy cannot be kept: {infeasible}"));
        }
        match layout {
            Some(layout) if problems.is_empty() => Ok(layout),
            _ => Err(Error::usage(problems.join("\n       ")).hint("correct the above; nothing was written")),
        }
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

    fn render(&self) -> String {
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

fn refuse_occupied(dir: &Path) -> Result<(), Error> {
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
    folder("nodes")?;
    for node in &plan.nodes {
        let pair = authority.node(&plan.cluster, &node.name, &node.host, now).map_err(|error| crypto(&error))?;
        let home = folder(&format!("nodes/{}", node.name))?;
        write(home.join("node.key"), pair.key.as_bytes(), durable::SECRET)?;
        write(home.join("node.crt"), pair.certificate.as_bytes(), durable::PUBLIC)?;
        write(home.join("ca.crt"), ca, durable::PUBLIC)?;
        write(home.join("cluster.secret"), secret.as_bytes(), durable::SECRET)?;
        write(home.join("admin.key"), key.render().as_bytes(), durable::SECRET)?;
        write(home.join("afard.toml"), config_file::render(plan, node).as_bytes(), durable::PUBLIC)?;
    }
    let client = folder("client")?;
    write(client.join("ca.crt"), ca, durable::PUBLIC)?;
    write(client.join("admin.key"), key.render().as_bytes(), durable::SECRET)?;
    let endpoints: Vec<String> = plan.nodes.iter().map(NodePlan::endpoint).collect();
    let env = render_env(&[
        ("AFAR_ENDPOINT", endpoints.join(",")),
        ("AFAR_ACCESS_KEY_ID", key.access_key_id.clone()),
        ("AFAR_SECRET_ACCESS_KEY", key.secret_access_key),
        ("AFAR_CA_FILE", target.join("client/ca.crt").display().to_string()),
    ]);
    write(client.join("env"), env.as_bytes(), durable::SECRET)
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
        assert!(!target.exists());
        plan.nodes[1].name = "strasbourg".into();
        plan.nodes[1].port = 7700;
        plan.cluster = "Bad Name".into();
        let error = plan.check().unwrap_err();
        assert!(
            error.message().contains("cluster name") && error.message().contains("same endpoint") && error.message().contains("two nodes"),
            "{error}"
        );
    }

    #[test]
    fn shells_read_what_was_meant() {
        assert_eq!(render_env(&[("K", "it's".into())]), "export K='it'\\''s'\n");
    }
}
