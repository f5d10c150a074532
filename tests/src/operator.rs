//! The operator's folder, driven by the real command line: nodes come and go, layouts are planned, applied, rolled back.
use crate::{
    cluster::{Cluster, Place},
    command::{Afar, Ran},
    limits::SETTLE_MAX,
    wait::until,
};
use afar::{Client, cluster::operator as library};
use afar_model::document::Document;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Commands about the folder that `afar cluster init` made, or about a copy of it.
#[derive(Debug, Clone)]
pub struct Operator {
    afar: Afar,
    folder: PathBuf,
}

impl Operator {
    /// For the folder of a cluster.
    pub fn of(cluster: &Cluster) -> Self {
        Self { afar: cluster.afar(), folder: cluster.root().to_path_buf() }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder as it is now, copied: another operator, who will not hear of what this one does.
    ///
    /// # Panics
    /// If it cannot be copied.
    #[must_use]
    pub fn twin(&self, name: &str) -> Self {
        let folder = self.folder.with_file_name(name);
        for part in ["ca", "client", "layout"] {
            fs::create_dir_all(folder.join(part)).expect("a folder");
            for entry in fs::read_dir(self.folder.join(part)).expect("the operator's folder").flatten() {
                fs::copy(entry.path(), folder.join(part).join(entry.file_name())).expect("copy");
            }
        }
        fs::copy(self.folder.join("cluster.toml"), folder.join("cluster.toml")).expect("copy");
        Self { afar: self.afar.clone(), folder }
    }

    /// Runs a command with `--dir` and `--json`.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        let folder = self.folder.display().to_string();
        self.afar.run(&[arguments, &["--dir", &folder, "--json"]].concat())
    }

    /// Runs a command that looks, which must succeed; its one JSON document.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> Value {
        self.run(arguments).expect(0).json()
    }

    /// Runs a command that changes the layout, with `--yes`.
    pub fn try_change(&self, arguments: &[&str]) -> Ran {
        self.run(&[arguments, &["--yes"]].concat())
    }

    /// Runs a command that changes the layout, which must succeed; its one JSON document.
    #[track_caller]
    pub fn change(&self, arguments: &[&str]) -> Value {
        self.try_change(arguments).expect(0).json()
    }

    /// Adds a node at a place and starts it.
    #[track_caller]
    pub fn add(&self, cluster: &mut Cluster, name: &'static str, place: &Place) -> Value {
        let value = self.prepare(cluster, name, place);
        cluster.node_mut(name).start();
        value
    }

    /// Adds a node at a place, and does not start it.
    #[track_caller]
    pub fn prepare(&self, cluster: &mut Cluster, name: &'static str, place: &Place) -> Value {
        let address = cluster.join(name, place.name);
        let site = format!("{}={},{},{}", place.name, place.latitude, place.longitude, place.country);
        let (at, bundle) = (address.to_string(), cluster.node(name).folder().display().to_string());
        let value = self.change(&["node", "add", name, "--site", &site, "--at", &at, "--capacity", "1GiB", "-o", &bundle]);
        cluster.write_edits(name);
        value
    }

    /// The newest layout's version, as the folder has it after asking the nodes.
    #[track_caller]
    pub fn version(&self) -> u64 {
        self.ask(&["layout", "show"])["layout"]["version"].as_u64().expect("a version")
    }

    /// How layouts are called, oldest first.
    #[track_caller]
    pub fn history(&self) -> Vec<String> {
        let history = self.ask(&["layout", "history"]);
        history.as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str().map(String::from)).collect()
    }

    /// Waits until the newest layout alone is open at every node that runs.
    ///
    /// # Panics
    /// After [`SETTLE_MAX`].
    #[track_caller]
    pub fn wait_in_force(&self, cluster: &Cluster) {
        self.wait_in_force_at(cluster, &cluster.running());
    }

    /// Waits until the newest layout alone is open at these nodes.
    ///
    /// # Panics
    /// After [`SETTLE_MAX`].
    #[track_caller]
    pub fn wait_in_force_at(&self, cluster: &Cluster, running: &[&str]) {
        let (head, runtime) = (self.ask(&["layout", "show"])["layout"]["hash"].clone(), crate::wire::runtime());
        until(&format!("layout {head} is in force"), SETTLE_MAX, || {
            let said = runtime.block_on(futures_util::future::join_all(running.iter().map(|name| crate::wire::layouts_at(cluster, name))));
            let alone = said.iter().all(|said| said.as_ref().is_ok_and(|(current, open)| *current == head && *open == 1));
            if alone { Ok(()) } else { Err(format!("{said:?}\n{}", summary(&cluster.status()))) }
        });
    }

    /// The folder by the library, for what the command line cannot say.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn library(&self) -> library::Operator {
        library::Operator::open(&self.folder).expect("the operator's folder")
    }

    /// Changes the newest layout as `edit` says, plans, signs and applies it.
    ///
    /// # Errors
    /// Who refuses it, and why.
    pub fn apply(&self, cluster: &Cluster, edit: impl FnOnce(&mut Document)) -> Result<(), afar::Error> {
        crate::wire::runtime().block_on(async {
            let (mut operator, client) = (self.library(), Client::connect(&cluster.client_config())?);
            let said = operator.refresh(&client).await?;
            let mut document = operator.change("changed by a test")?;
            edit(&mut document);
            let draft = operator.plan(document, &said)?;
            let signed = operator.custodian()?.sign(&draft.document);
            operator.apply(&client, signed).await.map(|_| ())
        })
    }
}

/// A check of one node's own.
pub fn own_check<'a>(status: &'a Value, name: &str, node: &str) -> Option<&'a Value> {
    status["checks"].as_array()?.iter().find(|check| check["name"] == name && check["node"] == node)
}

/// What of a status is worth reading in a failed test.
pub fn summary(status: &Value) -> String {
    let checks = status["checks"].as_array().into_iter().flatten().filter(|check| check["state"] != "ok");
    let checks: Vec<String> =
        checks.map(|check| format!("{} {} {}: {}", check["name"], check["node"], check["state"], check["detail"])).collect();
    format!("{} objects {} versions {}\n  {}", status["state"], status["objects"], status["versions"], checks.join("\n  "))
}
