//! `afar cluster rekey` and `afar cluster recover`: the keys that a cluster rests on are replaced while it serves. Every step is
//! a signed layout, so that all nodes change their minds together, and every step that was interrupted is gone on with when the
//! command is run again.
// Doc comments of arguments are their help texts: square brackets are syntax there, not links.
#![allow(rustdoc::broken_intra_doc_links)]
use super::{
    Session, config,
    operate::{Desk, Options, Outcome, Way, carry_out_in, confirm, sit_down},
};
use crate::{
    client::{Client, Config},
    cluster::{
        AdminKey, Blueprint,
        authority::Authority,
        durable,
        handshake::{self, Shown},
        init::{RECOVERY, client_env, read_about, refuse_occupied, write_about},
        operator::{Custodian, Operator, name_of},
        rotation::{self, Authorities, since_epoch},
    },
    error::{Error, Kind},
};
use afar_model::{document::PublicKey, layout::Node, policy::Policy};
use clap::{ArgGroup, Args};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Replace the keys that a cluster rests on, while it serves
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["authority", "finish", "custodian", "second"]), after_help = "\
A new certificate authority, in three steps:
  afar cluster rekey --authority -o NEW     every node trusts the new one, too; NEW holds their new certificates
  (give clients client/ca.crt, copy NEW/NODE/* over the files in each node's folder: no restart)
  afar cluster rekey --finish               nobody trusts the old one any more
A new key to sign layouts with, for example because somebody left:
  afar cluster rekey --custodian --second new")]
pub struct Rekey {
    /// Make a new certificate authority, and certificates from it for every node
    #[arg(long, conflicts_with_all = ["finish", "custodian", "second"])]
    authority: bool,
    /// Withdraw the old authority, once every node shows a certificate of the new one
    #[arg(long, conflicts_with_all = ["custodian", "second"])]
    finish: bool,
    /// Make a new key to sign layouts with: the present one may not any more
    #[arg(long)]
    custodian: bool,
    /// Another second key: "new", or a file that holds one or its public half
    #[arg(long, value_name = "new|FILE")]
    second: Option<String>,
    /// Folder to make for the nodes' new certificates
    #[arg(short, long, value_name = "NEW")]
    output: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// Make an operator's folder anew, when it was lost or stolen
#[derive(Debug, Args)]
#[command(after_help = "\
What is needed: a key that may sign layouts (recovery/custodian.key), an administrator's access key and the cluster's ca.crt
(flags or AFAR_*), and cluster.secret. The last three lie in every node's folder (admin.key, ca.crt, cluster.secret).
The folder's own key that was lost may not sign any more afterwards. Without --ca-key the cluster gets a new authority: NEWDIR/nodes
holds its certificates for every node, and `afar cluster rekey --finish` withdraws the lost one.")]
pub struct Recover {
    /// Folder to make
    #[arg(value_name = "NEWDIR")]
    dir: PathBuf,
    /// A key that may sign layouts
    #[arg(long, value_name = "FILE")]
    custodian: PathBuf,
    /// The secret that all nodes share
    #[arg(long, value_name = "FILE")]
    cluster_secret: PathBuf,
    /// The authority's key, if it was not lost
    #[arg(long, value_name = "FILE")]
    ca_key: Option<PathBuf>,
    /// Do not ask
    #[arg(short = 'y', long)]
    yes: bool,
}

pub(super) async fn run(session: &Session, arguments: Rekey) -> Result<u8, Error> {
    match &arguments {
        Rekey { authority: true, .. } => authority(session, &arguments).await,
        Rekey { finish: true, .. } => finish(session, &arguments.options).await,
        _ => custodians(session, &arguments).await,
    }
}

async fn authority(session: &Session, arguments: &Rekey) -> Result<u8, Error> {
    let options = &arguments.options;
    let output = match &arguments.output {
        Some(output) => output.clone(),
        None if options.dry_run => PathBuf::new(),
        None => return Err(Error::usage("where to put the nodes' new certificates is not said").hint("say -o NEW, a folder to make")),
    };
    refuse_occupied(&output)?;
    let (about, _) = read_about(&options.dir)?;
    let mut desk = sit_down(options).await?;
    let authorities = Authorities::of(&options.dir, &about.cluster);
    let outcome = introduce(session, &mut desk, &authorities, options).await?;
    if options.dry_run {
        return outcome.tell(session);
    }
    let bundles = certify(&desk.operator, &authorities, &about.cluster, &output)?;
    tell_bundles(session, outcome, &desk.operator, &bundles)
}

/// Has every node trust a new authority, and lets it take the old one's place; goes on with whatever was begun.
async fn introduce(session: &Session, desk: &mut Desk, authorities: &Authorities, options: &Options) -> Result<Outcome, Error> {
    if authorities.is_half_promoted() {
        authorities.promote()?;
    }
    if authorities.staged().is_none() && !authorities.former()?.is_empty() {
        session.out.note("an authority is being replaced already: these are new certificates of the one that was made for it");
        return Ok(Outcome::default());
    }
    let trusted = |desk: &Desk, next: &Authority| -> Result<bool, Error> {
        let next = handshake::certificates(next.pair.certificate.as_bytes(), "ca/next.crt")?;
        Ok(next.first().is_some_and(|next| desk.operator.head().is_ok_and(|head| head.document.authorities.contains(next))))
    };
    let next = if options.dry_run {
        Authority::new("trial", since_epoch()).map_err(|error| Error::new(Kind::Failed, format!("make certificates: {error}")))?
    } else {
        authorities.stage()?
    };
    let mut outcome = Outcome::default();
    if !trusted(desk, &next)? {
        let mut document = desk.operator.change("a new certificate authority, besides the old one")?;
        for certificate in handshake::certificates(next.pair.certificate.as_bytes(), "ca/next.crt")? {
            document.trust_authority(&certificate);
        }
        outcome = carry_out_in(session, desk, document, options, Way::in_place()).await?;
        if !outcome.applied {
            return Ok(outcome);
        }
    }
    authorities.promote()?;
    Ok(outcome)
}

fn members(operator: &Operator) -> Result<Vec<Node>, Error> {
    Ok(operator.head()?.document.nodes.iter().filter(|node| node.duty.is_member()).cloned().collect())
}

/// Makes certificates for every node: what has to be copied over the files that it has, and nothing else.
fn certify(operator: &Operator, authorities: &Authorities, cluster: &str, output: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    let authority = authorities.present()?;
    let ca = fs::read(operator.folder().join("client/ca.crt")).map_err(|error| Error::io("client/ca.crt", &error))?;
    let folder = |path: &Path| match durable::private_folder(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::io(path.display(), &error)),
        _ => Ok(()),
    };
    if let Some(parent) = output.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|error| Error::io(parent.display(), &error))?;
    }
    folder(output)?;
    let mut made = BTreeMap::new();
    for node in members(operator)? {
        let (host, _) = super::cluster::address(node.endpoint.trim_start_matches("https://")).map_err(Error::usage)?;
        let pair = authority.node(cluster, &node.name, &host, since_epoch());
        let pair = pair.map_err(|error| Error::new(Kind::Failed, format!("make certificates: {error}")))?;
        let home = output.join(&node.name);
        folder(&home)?;
        let files: [(&str, &[u8], u32); 3] = [
            ("ca.crt", &ca, durable::PUBLIC),
            ("node.crt", pair.certificate.as_bytes(), durable::PUBLIC),
            ("node.key", pair.key.as_bytes(), durable::SECRET),
        ];
        for (name, content, mode) in files {
            durable::write(&home.join(name), content, mode).map_err(|error| Error::io(home.join(name).display(), &error))?;
        }
        made.insert(node.name, home);
    }
    Ok(made)
}

fn tell_bundles(session: &Session, outcome: Outcome, operator: &Operator, bundles: &BTreeMap<String, PathBuf>) -> Result<u8, Error> {
    let dir = operator.folder().display().to_string();
    let shown = |path: &PathBuf| path.display().to_string();
    let paths: BTreeMap<&String, String> = bundles.iter().map(|(name, path)| (name, shown(path))).collect();
    let besides = json!({"bundles": paths, "client_ca": format!("{dir}/client/ca.crt")});
    outcome.tell_with(session, besides, || {
        let mut lines = vec!["made a new authority; the old one is trusted, too, until you finish. Next, in this order:".to_owned()];
        lines.push(format!("  1. give everybody who uses the cluster {dir}/client/ca.crt, which holds both"));
        lines.push("  2. copy these over the files in the nodes' folders; they are read within seconds, without a restart:".into());
        lines.extend(paths.iter().map(|(name, path)| format!("       {path}/{{ca.crt,node.crt,node.key}} to {name}")));
        lines.push(format!("  3. afar cluster rekey --finish --dir {dir}"));
        lines.join("\n")
    })
}

async fn finish(session: &Session, options: &Options) -> Result<u8, Error> {
    let mut desk = sit_down(options).await?;
    let (about, _) = read_about(&options.dir)?;
    let authorities = Authorities::of(&options.dir, &about.cluster);
    if authorities.is_half_promoted() {
        authorities.promote()?;
    }
    let (present, mut former) = (authorities.present()?, authorities.former()?);
    let present = handshake::certificates(present.pair.certificate.as_bytes(), "ca/ca.crt")?;
    let head = desk.operator.head()?;
    let others = head.document.authorities.iter().filter(|authority| !present.contains(authority) && !former.contains(authority));
    former.extend(others.cloned().collect::<Vec<_>>());
    if former.is_empty() {
        return Err(Error::usage("no authority is being replaced").hint("begin with `afar cluster rekey --authority -o NEW`"));
    }
    let mut outcome = Outcome::default();
    let withdrawn = |authority: &Vec<u8>| head.document.distrusted.contains(blake3::hash(authority).as_bytes());
    if !former.iter().all(withdrawn) {
        let late = laggards(&desk, &about.cluster, &present).await?;
        if !late.is_empty() {
            return Err(Error::new(Kind::Busy, format!("the old authority is needed still:\n       {}", late.join("\n       ")))
                .hint("copy what `afar cluster rekey --authority` made; a node that is gone for good: `afar node remove NAME --lost`"));
        }
        let mut document = desk.operator.change("the old certificate authority is withdrawn")?;
        for authority in &present {
            document.trust_authority(authority);
        }
        for authority in &former {
            document.withdraw_authority(authority);
        }
        outcome = carry_out_in(session, &mut desk, document, options, Way::in_place()).await?;
        if !outcome.applied {
            return outcome.tell(session);
        }
    }
    authorities.forget_former()?;
    let path = options.dir.join("client/ca.crt").display().to_string();
    outcome.tell_with(session, json!({"withdrawn": former.len(), "client_ca": path}), || {
        format!("the old authority is withdrawn; {path} holds the new one alone: give it to everybody who uses the cluster")
    })
}

/// Nodes that do not have the newest layout yet, or do not show a certificate that these authorities have made.
async fn laggards(desk: &Desk, cluster: &str, present: &[Vec<u8>]) -> Result<Vec<String>, Error> {
    let head = *desk.operator.head()?.layout.hash();
    let look = |node: Node| async move {
        let shown = handshake::shown(&node.endpoint, present).await;
        let said = desk.said.iter().find(|said| said.node == node.name);
        let why = match (shown, said) {
            (Err(error), _) => error.message().to_owned(),
            (Ok(Shown::Refused(_)), _) => "shows a certificate of the old authority".into(),
            (Ok(Shown::Believed(certificate)), _) if !handshake::names_node(&certificate, cluster, &node.name) => {
                "another node answers at its endpoint".into()
            }
            (Ok(_), None) => "does not say which layout it has".into(),
            (Ok(_), Some(said)) if said.current != head => "does not have the newest layout yet".into(),
            (Ok(_), Some(_)) => return None,
        };
        Some(format!("{}: {why}", node.name))
    };
    Ok(futures_util::future::join_all(members(&desk.operator)?.into_iter().map(look)).await.into_iter().flatten().collect())
}

/// Who may sign from now on: this folder's key, then the others.
fn signers(own: PublicKey, others: &[PublicKey]) -> Result<Vec<PublicKey>, Error> {
    let mut signers = vec![own];
    for other in others {
        if signers.contains(other) {
            return Err(Error::usage("the second key is the first one").hint("a second key must be another: say --second new"));
        }
        signers.push(*other);
    }
    Ok(signers)
}

async fn custodians(session: &Session, arguments: &Rekey) -> Result<u8, Error> {
    let options = &arguments.options;
    let (about, _) = read_about(&options.dir)?;
    let mut desk = sit_down(options).await?;
    let signer = desk.operator.custodian()?;
    let before = desk.operator.head()?.document.custodians.clone();
    // What is only looked at leaves no key behind.
    let made = |next: Result<Custodian, Error>| next.map(|key| key.public());
    let own = match (arguments.custodian, options.dry_run) {
        (false, _) => signer.public(),
        (true, true) => made(Custodian::new())?,
        (true, false) => made(desk.operator.next_custodian())?,
    };
    let others: Vec<PublicKey> = match arguments.second.as_deref() {
        None => before.iter().filter(|key| **key != signer.public()).copied().collect(),
        Some("new") if options.dry_run => vec![made(Custodian::new())?],
        Some("new") => vec![made(desk.operator.next_second())?],
        Some(file) => vec![Custodian::read_public(Path::new(file))?],
    };
    let mut document = desk.operator.change("other keys sign layouts")?;
    document.custodians = signers(own, &others)?;
    let after = document.custodians.clone();
    let outcome = carry_out_in(session, &mut desk, document, options, Way { by: Some(signer), ..Way::in_place() }).await?;
    if !outcome.applied {
        return outcome.tell(session);
    }
    desk.operator.settle_custodian()?;
    write_about(&options.dir, &about, &after)?;
    let dir = options.dir.display().to_string();
    let custodians = json!({"custodians": after.iter().map(hex::encode).collect::<Vec<_>>()});
    outcome.tell_with(session, custodians, || {
        let mut lines = Vec::new();
        if arguments.custodian {
            lines.push(format!("{dir}/layout/custodian.key is new; the one before it may not sign any more"));
        }
        if arguments.second.as_deref() == Some("new") {
            lines.push(format!("{dir}/recovery/custodian.key is the second key now: take it elsewhere, and destroy the old one"));
        }
        lines.push(format!("copies of the folder {dir} are out of date: make new ones"));
        lines.join("\n")
    })
}

/// What a folder is made anew of.
struct Remains {
    custodian: Custodian,
    secret: String,
    ca_key: Option<String>,
    config: Config,
}

impl Remains {
    fn gather(session: &Session, arguments: &Recover) -> Result<Self, Error> {
        let read = |path: &Path| config::read_bounded(path, crate::limits::SECRET_BYTES_MAX);
        let secret = read(&arguments.cluster_secret)?;
        if hex::decode(secret.trim()).map_or(0, |secret| secret.len()) != 32 {
            return Err(Error::usage(format!("{}: is no cluster secret", arguments.cluster_secret.display()))
                .hint("copy cluster.secret from any node's folder"));
        }
        Ok(Self {
            custodian: Custodian::read(&arguments.custodian)?,
            secret: format!("{}\n", secret.trim()),
            ca_key: arguments.ca_key.as_deref().map(read).transpose()?,
            config: config::Settings::gather(session.global(), &config::process_env)?.client_config()?,
        })
    }

    /// Writes everything but the chain and what is new.
    fn write(&self, operator: &Operator, about: &Blueprint, custodians: &[PublicKey]) -> Result<(), Error> {
        let dir = operator.folder();
        let folder = |name: &str| {
            let path = dir.join(name);
            durable::private_folder(&path).map_err(|error| Error::io(path.display(), &error))
        };
        let write = |name: &str, content: &[u8], mode| {
            let path = dir.join(name);
            durable::write(&path, content, mode).map_err(|error| Error::io(path.display(), &error))
        };
        ["ca", "client", "layout", "recovery", "nodes"].into_iter().try_for_each(folder)?;
        let believed = String::from_utf8_lossy(&self.config.ca_pem).into_owned();
        let certificate = match &self.ca_key {
            Some(key) => {
                write("ca/ca.key", key.as_bytes(), durable::SECRET)?;
                rotation::certificate_of(key, &about.cluster, &believed)?
            }
            None => rotation::blocks(&believed).into_iter().next().unwrap_or_default(),
        };
        write("ca/ca.crt", certificate.as_bytes(), durable::PUBLIC)?;
        write("ca/cluster.secret", self.secret.as_bytes(), durable::SECRET)?;
        write("client/ca.crt", believed.as_bytes(), durable::PUBLIC)?;
        let Config { access_key_id, secret_access_key, .. } = self.config.clone();
        let admin = AdminKey { access_key_id, secret_access_key };
        write("client/admin.key", admin.render().as_bytes(), durable::SECRET)?;
        let endpoints = members(operator)?.into_iter().map(|node| node.endpoint);
        let absolute = dir.canonicalize().map_err(|error| Error::io(dir.display(), &error))?;
        write("client/env", client_env(endpoints, &admin, &absolute).as_bytes(), durable::SECRET)?;
        write("recovery/README", RECOVERY.as_bytes(), durable::PUBLIC)?;
        write_about(dir, about, custodians)?;
        operator.save()
    }
}

pub(super) async fn recover(session: &Session, arguments: Recover) -> Result<u8, Error> {
    refuse_occupied(&arguments.dir)?;
    let remains = Remains::gather(session, &arguments)?;
    let client = Client::connect(&remains.config)?;
    let dir = arguments.dir.clone();
    let operator = Operator::learn_from(&dir, &client, &remains.custodian.public()).await?;
    let said = operator.listen(&client).await?;
    let options = Options { dir: dir.clone(), dry_run: false, yes: arguments.yes };
    session.out.note(format!("the newest layout is {}, as {} nodes say", name_of(operator.head()?), said.len()));
    confirm(arguments.yes, "make the folder, and a layout that drops the key that was lost?", "say --yes")?;
    let head = operator.head()?.document.clone();
    let default = said.iter().find_map(|said| said.default.clone());
    let about = Blueprint { policy: default.unwrap_or_else(Policy::default), partitions: head.partitions, ..Blueprint::new(&head.cluster) };
    fs::create_dir_all(&dir).map_err(|error| Error::io(dir.display(), &error))?;
    let before = head.version;
    let mut desk = Desk { operator, client, said };
    let outcome = build(session, &mut desk, &remains, &about, &Options { yes: true, ..options }).await;
    if outcome.is_err() && desk.operator.head()?.document.version == before {
        // Nobody has heard of it: as if it had never been.
        let _ = fs::remove_dir_all(&dir);
    }
    outcome
}

async fn build(session: &Session, desk: &mut Desk, remains: &Remains, about: &Blueprint, options: &Options) -> Result<u8, Error> {
    remains.write(&desk.operator, about, &[remains.custodian.public()])?;
    let authorities = Authorities::of(&options.dir, &about.cluster);
    let mut document = desk.operator.change("a new operator's folder; the key of the one before it is dropped")?;
    document.custodians = signers(desk.operator.next_custodian()?.public(), &[remains.custodian.public()])?;
    if remains.ca_key.is_none() {
        let next = authorities.stage()?;
        for certificate in handshake::certificates(next.pair.certificate.as_bytes(), "ca/next.crt")? {
            document.trust_authority(&certificate);
        }
    }
    let custodians = document.custodians.clone();
    let by = Some(remains.custodian.again()?);
    let outcome = carry_out_in(session, desk, document, options, Way { by, ..Way::in_place() }).await?;
    desk.operator.settle_custodian()?;
    write_about(&options.dir, about, &custodians)?;
    let dir = options.dir.display().to_string();
    session.out.note(format!("made {dir}; the second key stays where it is, and nothing else may sign any more"));
    if remains.ca_key.is_some() {
        return outcome.tell(session);
    }
    authorities.promote()?;
    let bundles = certify(&desk.operator, &authorities, &about.cluster, &options.dir.join("nodes"))?;
    tell_bundles(session, outcome, &desk.operator, &bundles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_key_is_another_than_the_first() {
        assert_eq!(signers([1; 32], &[[2; 32], [3; 32]]), Ok(vec![[1; 32], [2; 32], [3; 32]]));
        assert_eq!(signers([1; 32], &[[1; 32]]).map_err(|error| error.kind()), Err(Kind::Usage));
    }
}
