//! A cluster that an earlier version made has nobody who may sign layouts: its nodes begin with what their configurations say, and
//! those name no custodian. Here the operator's folder gets what `afar cluster init` gives a new one: two keys, the chain's
//! beginning, the secret that all nodes share, and a word on what the cluster is.
//!
//! Who may say whose signatures count? As in a new cluster, whoever writes the nodes' configurations: a node believes its own file and
//! nothing that comes over the network. So nothing is gained by whoever has only an access key, a node's certificate or the
//! secret, and a cluster in which one node's file was forgotten changes nothing: that node refuses, and one refusal stops a change.
//! Once a node has begun with custodians, it keeps them, whatever its file says later.
use super::{
    config_file::{self, NodeFile},
    durable,
    init::{RECOVERY, write_about},
    operator::{Custodian, Operator, Said},
    rotation,
};
use crate::{cli::config::read_bounded, error::Error, limits};
use afar_model::document::{Chapter, PublicKey};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A folder of an earlier version, read and checked; nothing is written yet.
#[derive(Debug)]
pub struct Adoption {
    folder: PathBuf,
    file: NodeFile,
    secret: String,
    nodes: Vec<PathBuf>,
}

impl Adoption {
    /// Reads the folder that an earlier `afar cluster init` made.
    ///
    /// # Errors
    /// If something that is needed is not in it, or two nodes' files do not say the same.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let nodes = node_folders(&folder.join("nodes"))?;
        let mut found: Option<(&PathBuf, NodeFile, String)> = None;
        for node in &nodes {
            let file = NodeFile::read(&node.join("afard.toml"))?;
            let secret = read_bounded(&node.join("cluster.secret"), limits::SECRET_BYTES_MAX)?.trim().to_owned();
            match &found {
                None => found = Some((node, file, secret)),
                Some((first, known, shared)) => {
                    if let Some(what) = known.differs(&file).or_else(|| (*shared != secret).then_some("cluster.secret")) {
                        let message = format!("{} and {} differ in {what}", first.display(), node.display());
                        return Err(Error::usage(message).hint("these folders must be as the nodes have them: copy the nodes' files back"));
                    }
                }
            }
        }
        let Some((_, file, secret)) = found else {
            return Err(Error::usage(format!("{}: holds no node's folder", folder.join("nodes").display()))
                .hint("put each node's folder there (afard.toml and cluster.secret are needed), as `afar cluster init` did"));
        };
        // A key that is not here any more must not be made anew in its place.
        let lacks = |name: &str| !folder.join(name).join("custodian.key").exists();
        if !file.custodians.is_empty() && (lacks("layout") || lacks("recovery")) {
            return Err(Error::usage("the nodes' files name custodians, and this folder lacks keys of theirs")
                .hint("use the folder that holds it, or make one with a second key: see `afar cluster recover --help`"));
        }
        let text = |name: &str| read_bounded(&folder.join(name), limits::CONFIG_BYTES_MAX);
        // Whose folder this is: only the operator's holds the authority's key.
        rotation::certificate_of(&text("ca/ca.key")?, &file.plan.cluster, &text("ca/ca.crt")?)?;
        Ok(Self { folder: folder.to_owned(), file, secret, nodes })
    }

    /// What the cluster began with, as these files say; with these custodians.
    ///
    /// # Errors
    /// If they make no sense.
    pub fn genesis(&self, custodians: Vec<PublicKey>) -> Result<Chapter, Error> {
        let layout = self
            .file
            .plan
            .layout()
            .map_err(|problems| Error::usage(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n       ")))?;
        Ok(Chapter::genesis(&self.file.plan.cluster, layout, custodians))
    }

    /// Nothing that a node says may speak against it: another beginning, or others who sign already.
    ///
    /// # Errors
    /// Which node says what.
    pub fn compare(&self, said: &[Said]) -> Result<(), Error> {
        let ours = self.genesis(Vec::new())?;
        for node in said {
            let began = node.genesis().map_err(|error| Error::usage(format!("{}: {error}", node.node)))?;
            if began.layout.hash() != ours.layout.hash() {
                return Err(Error::usage(format!("{} began with another layout than the files in nodes/ say", node.node))
                    .hint("copy the nodes' present afard.toml back to this folder, and try again"));
            }
            if !began.document.custodians.is_empty() && began.document.custodians != self.file.custodians {
                return Err(Error::usage(format!("{} lets other keys than this folder's sign layouts already", node.node))
                    .hint("somebody has adopted this cluster: use that folder"));
            }
        }
        Ok(())
    }

    /// Writes what a new cluster's folder has. What is there already stays, so that what was interrupted is gone on with.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self) -> Result<Operator, Error> {
        let custodians = [self.key("layout")?, self.key("recovery")?];
        let named = &self.file.custodians;
        if !named.is_empty() && named.as_slice() != custodians.as_slice() {
            return Err(Error::usage("the nodes' files name other custodians than this folder's keys").hint("use the folder of those keys"));
        }
        let secret = format!("{}\n", self.secret);
        for (name, content, mode) in [("recovery/README", RECOVERY, durable::PUBLIC), ("ca/cluster.secret", &secret, durable::SECRET)] {
            let path = self.folder.join(name);
            durable::write(&path, content.as_bytes(), mode).map_err(|error| Error::io(path.display(), &error))?;
        }
        let genesis = self.genesis(custodians.to_vec())?;
        let operator = Operator::begin(&self.folder, &self.file.plan.cluster, (*genesis.layout).clone(), custodians.to_vec())?;
        for node in &self.nodes {
            config_file::name_custodians(&node.join("afard.toml"), &custodians)?;
        }
        // Last: it says that everything else is there.
        write_about(&self.folder, &self.file.plan, &custodians)?;
        Ok(operator)
    }

    fn key(&self, name: &str) -> Result<PublicKey, Error> {
        let (folder, path) = (self.folder.join(name), self.folder.join(name).join("custodian.key"));
        match durable::private_folder(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io(folder.display(), &error)),
            _ => {}
        }
        if path.exists() {
            return Ok(Custodian::read(&path)?.public());
        }
        let key = Custodian::new()?;
        key.write(&path)?;
        Ok(key.public())
    }
}

fn node_folders(nodes: &Path) -> Result<Vec<PathBuf>, Error> {
    let wrong = |error: &io::Error| {
        Error::usage(format!("{}: {error}", nodes.display())).hint("name the folder that an earlier `afar cluster init` made with --dir")
    };
    let mut folders = Vec::new();
    for entry in fs::read_dir(nodes).map_err(|error| wrong(&error))? {
        let path = entry.map_err(|error| wrong(&error))?.path();
        if path.join("afard.toml").exists() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cluster::init::{Blueprint, NodePlan, create, read_about};
    use afar_model::layout::examples;

    /// As the earlier version made it: nothing but authority, nodes and client.
    fn made_before() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let layout = examples::three_sites().unwrap();
        let node = |(port, name): (u16, &String)| NodePlan {
            name: name.clone(),
            site: name.clone(),
            host: "127.0.0.1".into(),
            port,
            capacity: 3 << 30,
        };
        let names: Vec<String> = layout.sites().iter().map(|site| site.name.clone()).collect();
        let nodes = (7700..).zip(&names).map(node).collect();
        let plan = Blueprint { sites: layout.sites().to_vec(), nodes, ..Blueprint::new("trial") };
        let root = create(&folder.path().join("cluster"), &plan).unwrap();
        for file in ["cluster.toml", "ca/cluster.secret"] {
            fs::remove_file(root.join(file)).unwrap();
        }
        for gone in ["layout", "recovery"] {
            fs::remove_dir_all(root.join(gone)).unwrap();
        }
        for name in &names {
            let path = root.join("nodes").join(name).join("afard.toml");
            let text = fs::read_to_string(&path).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with("custodians") && !line.starts_with("# Public keys"));
            fs::write(&path, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        }
        (folder, root)
    }

    #[test]
    fn an_earlier_folder_gets_what_a_new_one_has_and_again_changes_nothing() {
        let (_folder, root) = made_before();
        let operator = Adoption::read(&root).unwrap().write().unwrap();
        let custodians = operator.head().unwrap().document.custodians.clone();
        let (plan, about) = read_about(&root).unwrap();
        assert_eq!((plan.cluster.as_str(), &about), ("trial", &custodians));
        let own = Custodian::read(&root.join("layout/custodian.key")).unwrap().public();
        assert_eq!(custodians, [own, Custodian::read(&root.join("recovery/custodian.key")).unwrap().public()]);
        for node in ["strasbourg", "roubaix", "warsaw"] {
            let file = NodeFile::read(&root.join("nodes").join(node).join("afard.toml")).unwrap();
            assert_eq!(file.custodians, custodians, "{node}");
        }
        assert_eq!(fs::read(root.join("ca/cluster.secret")).unwrap(), fs::read(root.join("nodes/warsaw/cluster.secret")).unwrap());
        // Interrupted before its end, and run again: the keys that nodes may have heard of stay.
        fs::remove_file(root.join("cluster.toml")).unwrap();
        let again = Adoption::read(&root).unwrap().write().unwrap();
        assert_eq!(again.head().unwrap().document, operator.head().unwrap().document);
        assert_eq!(Operator::open(&root).unwrap().custodian().unwrap().public(), own);
    }

    #[test]
    fn what_a_node_does_not_say_alike_is_not_adopted() {
        let (_folder, root) = made_before();
        let path = root.join("nodes/warsaw/afard.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("3GiB", "4GiB")).unwrap();
        let error = Adoption::read(&root).unwrap_err();
        assert!(error.message().contains("differ in [layout]"), "{error}");
        fs::write(&path, text).unwrap();
        fs::write(root.join("nodes/warsaw/cluster.secret"), "another").unwrap();
        assert!(Adoption::read(&root).unwrap_err().message().contains("differ in cluster.secret"));
        assert!(!root.join("layout").exists() && !root.join("cluster.toml").exists(), "nothing was written");
    }

    #[test]
    fn only_the_folder_with_the_authoritys_key_adopts() {
        let (_folder, root) = made_before();
        let other = crate::cluster::authority::Authority::new("trial", rotation::since_epoch()).unwrap();
        fs::write(root.join("ca/ca.key"), other.pair.key).unwrap();
        assert!(Adoption::read(&root).is_err());
        fs::remove_file(root.join("ca/ca.key")).unwrap();
        assert!(Adoption::read(&root).unwrap_err().message().contains("ca.key"));
    }

    #[test]
    fn a_key_that_nodes_know_and_this_folder_lacks_is_not_made_anew() {
        let (_folder, root) = made_before();
        Adoption::read(&root).unwrap().write().unwrap();
        for gone in ["cluster.toml", "recovery/custodian.key"] {
            fs::remove_file(root.join(gone)).unwrap();
        }
        assert!(Adoption::read(&root).unwrap_err().message().contains("lacks keys"));
        assert!(!root.join("recovery/custodian.key").exists());
    }

    #[test]
    fn nodes_that_let_others_sign_are_left_to_them() {
        let (_folder, root) = made_before();
        let adoption = Adoption::read(&root).unwrap();
        let said = |custodians| Said::of("warsaw", adoption.genesis(custodians).unwrap());
        adoption.compare(&[said(Vec::new())]).unwrap();
        assert!(adoption.compare(&[said(vec![[7; 32]])]).unwrap_err().message().contains("other keys"));
        let another = Said::of("warsaw", Chapter::genesis("trial", examples::three_sites().unwrap(), Vec::new()));
        assert!(adoption.compare(&[another]).unwrap_err().message().contains("another layout"));
    }
}
