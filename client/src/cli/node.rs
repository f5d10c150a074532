//! `afar node`: nodes come, hand over what they hold, and leave.
// Doc comments of arguments are their help texts: square brackets are syntax there, not links.
#![allow(rustdoc::broken_intra_doc_links)]
use super::{
    Session, cluster, draining,
    operate::{self, Desk, Options, Outcome, Way, carry_out, carry_out_in, sit_down},
    status, units,
};
use crate::{
    cluster::{
        AdminKey, Blueprint, NodePlan,
        config_file::{self, LayoutSource},
        handshake::{self, Shown},
        init::{Bundle, client_env, read_about, write_bundle},
        operator::Operator,
        rotation::{Authorities, since_epoch},
    },
    error::{Error, Kind},
};
use afar_model::{
    document::Document,
    layout::{Duty, Layout, Node, Site},
};
use clap::{Args, Subcommand};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Add, drain, replace and remove nodes, and refuse stolen keys
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add a node: makes its bundle, and a layout that names it
    Add(Add),
    /// Hand over everything that a node holds, so that it can leave
    Drain(Drain),
    /// Take a node that is drained out of the layout
    Remove(Remove),
    /// A new bundle for a node whose machine was replaced: same name, empty disks
    Replace(Replace),
    /// Change a node's capacity or address
    Set(Set),
    /// Refuse a node's key from now on: it was stolen, or may have been
    Revoke(Revoke),
}

/// Add a node
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  afar node add w1 --site warsaw=52.2297,21.0122,PL --at w1.example.org:7700 --capacity 4TiB -o w1
Then copy the folder w1 to the machine and run: afard --config w1/afard.toml")]
pub struct Add {
    /// Its name
    name: String,
    /// Its site: NAME, or NAME=LAT,LON,COUNTRY[,PROVIDER[,UNCERTAINTY_M]] for a new one
    #[arg(long, value_name = "SITE")]
    site: String,
    /// Where clients and peers reach it
    #[arg(long, value_name = "HOST:PORT")]
    at: String,
    /// Its share of the data
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1TiB")]
    capacity: u64,
    /// Folder to make for it
    #[arg(short, long, value_name = "BUNDLE")]
    output: PathBuf,
    #[command(flatten)]
    options: Options,
}

/// Drain a node
#[derive(Debug, Args)]
#[command(after_help = "\
The same command again says how far it is, and when `afar node remove NAME` may
follow. `afar layout show` says it of every node that is being drained.")]
pub struct Drain {
    /// Its name
    name: String,
    #[command(flatten)]
    options: Options,
}

/// Remove a node
#[derive(Debug, Args)]
pub struct Remove {
    /// Its name
    name: String,
    /// It is gone for good, with all that it held
    #[arg(long)]
    lost: bool,
    #[command(flatten)]
    options: Options,
}

/// Replace a node
#[derive(Debug, Args)]
pub struct Replace {
    /// Its name
    name: String,
    /// Folder to make for it
    #[arg(short, long, value_name = "BUNDLE")]
    output: PathBuf,
    #[command(flatten)]
    options: Options,
}

/// Refuse a node's key
#[derive(Debug, Args)]
#[command(after_help = "\
The key is that of the certificate which the node shows now. If its machine has its new bundle already, name the old certificate.
Then the node needs a new key: `afar node replace NAME -o BUNDLE`. Clients are not told of revoked keys: where a thief could
pose as the node to them, change the authority, too (`afar cluster rekey --authority`).")]
pub struct Revoke {
    /// Its name
    name: String,
    /// The certificate whose key is refused; else the one that the node shows
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Hand over what it holds, too, once it has a new key
    #[arg(long, conflicts_with = "lost")]
    drain: bool,
    /// It is gone for good, with all that it held
    #[arg(long)]
    lost: bool,
    #[command(flatten)]
    options: Options,
}

/// Change a node
#[derive(Debug, Args)]
pub struct Set {
    /// Its name
    name: String,
    /// Its share of the data
    #[arg(long, value_name = "SIZE", value_parser = size)]
    capacity: Option<u64>,
    /// Where clients and peers reach it
    #[arg(long, value_name = "HOST:PORT")]
    at: Option<String>,
    #[command(flatten)]
    options: Options,
}

fn size(text: &str) -> Result<u64, String> {
    units::parse_bytes(text).map_err(|error| error.to_string())
}

pub(super) async fn run(session: &Session, command: Command) -> Result<u8, Error> {
    match command {
        Command::Add(arguments) => add(session, arguments).await,
        Command::Drain(Drain { name, options }) => drain(session, &options, &name).await,
        Command::Remove(Remove { name, lost: true, options }) => {
            change(session, &options, &name, format!("{name} is lost"), |node| node.duty = Duty::Lost).await
        }
        Command::Remove(Remove { name, lost: false, options }) => {
            change(session, &options, &name, format!("remove {name}"), |node| node.duty = Duty::Removed).await
        }
        Command::Set(Set { name, capacity, at, options }) => {
            let endpoint = at.map(|at| cluster::address(&at)).transpose().map_err(Error::usage)?;
            let note = format!("change {name}");
            change(session, &options, &name, note, |node| {
                node.capacity = capacity.unwrap_or(node.capacity);
                if let Some((host, port)) = endpoint {
                    node.endpoint = plan_of(node, host, port).endpoint();
                }
            })
            .await
        }
        Command::Replace(arguments) => replace(session, &arguments).await,
        Command::Revoke(arguments) => revoke(session, &arguments).await,
    }
}

async fn revoke(session: &Session, arguments: &Revoke) -> Result<u8, Error> {
    let Revoke { name, options, .. } = arguments;
    let mut desk = sit_down(options).await?;
    let mut document = desk.operator.change(format!("the key of {name} is revoked"))?;
    let endpoint = named(&mut document, name)?.endpoint.clone();
    let certificate = match &arguments.certificate {
        Some(file) => {
            let pem = fs::read(file).map_err(|error| Error::io(file.display(), &error))?;
            handshake::certificates(&pem, &file.display().to_string())?.into_iter().next().unwrap_or_default()
        }
        None => certificate_at(&endpoint, &options.dir, &document.cluster).await?,
    };
    if !handshake::names_node(&certificate, &document.cluster, name) {
        return Err(Error::usage(format!("this certificate is not {name}'s")).hint("name the right one with --certificate"));
    }
    let news = document.revoke(handshake::key_digest(&certificate)?);
    let duty = if arguments.lost { Some(Duty::Lost) } else { arguments.drain.then_some(Duty::Draining) };
    let node = named(&mut document, name)?;
    let way = match duty.filter(|duty| node.duty != *duty) {
        Some(duty) => {
            node.duty = duty;
            Way::default()
        }
        None if news => Way::in_place(),
        None => return Err(Error::usage(format!("the key of {name} is revoked already")).hint("see `afar layout history`")),
    };
    let outcome = carry_out_in(session, &mut desk, document, options, way).await?;
    if outcome.applied && !arguments.lost {
        session.out.note(format!("the others refuse {name} until it has a new key: afar node replace {name} -o BUNDLE"));
    }
    outcome.tell(session)
}

/// The certificate that is shown at an endpoint, if one of the cluster's authorities made it.
async fn certificate_at(endpoint: &str, folder: &Path, cluster: &str) -> Result<Vec<u8>, Error> {
    let believed = Authorities::of(folder, cluster).believed()?;
    let elsewhere = "if the node is down, name its certificate with --certificate FILE; it lies in its folder and its bundle as node.crt";
    match handshake::shown(endpoint, &believed).await {
        Ok(Shown::Believed(certificate)) => Ok(certificate),
        Ok(Shown::Refused(why)) => {
            Err(Error::usage(format!("the certificate at {endpoint} is none of this cluster's: {why}")).hint(elsewhere))
        }
        Err(error) => Err(error.hint(elsewhere)),
    }
}

fn plan_of(node: &Node, host: String, port: u16) -> NodePlan {
    NodePlan { name: node.name.clone(), site: node.site.clone(), host, port, capacity: node.capacity }
}

async fn drain(session: &Session, options: &Options, name: &str) -> Result<u8, Error> {
    let mut desk = sit_down(options).await?;
    let mut document = desk.operator.change(format!("drain {name}"))?;
    let node = named(&mut document, name)?;
    if node.duty == Duty::Draining {
        return draining::tell(session, &desk, &[name.to_owned()]).await;
    }
    node.duty = Duty::Draining;
    let outcome = carry_out_in(session, &mut desk, document, options, Way::default()).await?;
    if outcome.applied {
        session.out.note(format!("`afar node drain {name}` again says how far it is, and when {name} can be removed"));
    }
    outcome.tell(session)
}

async fn change(session: &Session, options: &Options, name: &str, note: String, change: impl FnOnce(&mut Node)) -> Result<u8, Error> {
    let mut desk = sit_down(options).await?;
    let mut document = desk.operator.change(note)?;
    change(named(&mut document, name)?);
    carry_out(session, &mut desk, document, options).await
}

fn named<'a>(document: &'a mut Document, name: &str) -> Result<&'a mut Node, Error> {
    let known = document.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = document.nodes.iter_mut().find(|node| node.name == name);
    found.ok_or_else(|| Error::usage(format!("the layout names no node {name:?}; it names {known}")))
}

async fn add(session: &Session, arguments: Add) -> Result<u8, Error> {
    let Add { name, site, at, capacity, output, options } = arguments;
    let (host, port) = cluster::address(&at).map_err(Error::usage)?;
    refuse_existing(&output)?;
    let (site, new_site) = match site.split_once('=') {
        Some((name, _)) => (name.trim().to_owned(), Some(cluster::site(&site).map_err(Error::usage)?)),
        None => (site, None),
    };
    let node = NodePlan { name, site, host, port, capacity };
    let folder = options.dir.clone();
    let about = read_about(&folder)?;
    let (operator, outcome) = if folder.join("layout/chain").exists() {
        let mut desk = sit_down(&options).await?;
        let mut document = desk.operator.change(format!("add {}", node.name))?;
        place(&mut document.sites, &mut document.nodes, &node, new_site)?;
        let outcome = carry_out_in(session, &mut desk, document, &options, Way::default()).await?;
        if !outcome.applied {
            return outcome.tell(session);
        }
        (desk.operator, outcome)
    } else {
        (begin(session, &folder, &about, &node, new_site, &options)?, Outcome::default())
    };
    finish_bundle(session, outcome, &operator, &about, &node, &output)
}

/// The first node of all: its layout is the genesis, which needs no signature.
fn begin(
    session: &Session,
    folder: &Path,
    about: &(Blueprint, Vec<[u8; 32]>),
    node: &NodePlan,
    new_site: Option<Site>,
    options: &Options,
) -> Result<Operator, Error> {
    let (mut sites, mut nodes) = (Vec::new(), Vec::new());
    place(&mut sites, &mut nodes, node, new_site)?;
    let layout = Layout::new(1, about.0.partitions, sites, nodes);
    let layout = layout.map_err(|problems| Error::usage(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n       ")))?;
    if options.dry_run {
        return Err(Error::usage("the first node of a cluster moves nothing").hint("run it without --dry-run"));
    }
    session.out.note(format!("the first node: cluster {} begins with it", about.0.cluster));
    Operator::begin(folder, &about.0.cluster, layout, about.1.clone())
}

fn place(sites: &mut Vec<Site>, nodes: &mut Vec<Node>, node: &NodePlan, new_site: Option<Site>) -> Result<(), Error> {
    if nodes.iter().any(|known| known.name == node.name) {
        return Err(Error::usage(format!("the layout names a node {:?} already", node.name))
            .hint("choose another name, or `afar node replace` for a new machine under the same one"));
    }
    match new_site {
        Some(site) if sites.iter().any(|known| known.name == site.name && *known != site) => {
            return Err(Error::usage(format!("site {:?} is known with another place", site.name))
                .hint("say just its name, or `afar site set` to correct its place"));
        }
        Some(site) if !sites.contains(&site) => sites.push(site),
        _ => {}
    }
    nodes.push(node.node());
    Ok(())
}

fn refuse_existing(output: &Path) -> Result<(), Error> {
    if output.exists() {
        return Err(
            Error::usage(format!("{}: exists already", output.display())).hint("a bundle is made once, for one machine: name a new folder")
        );
    }
    Ok(())
}

async fn replace(session: &Session, arguments: &Replace) -> Result<u8, Error> {
    refuse_existing(&arguments.output)?;
    let about = read_about(&arguments.options.dir)?;
    let desk = sit_down(&arguments.options).await?;
    let head = desk.operator.head()?;
    let node = head.document.nodes.iter().find(|node| node.name == arguments.name && node.duty.is_member()).cloned();
    let node = node.ok_or_else(|| Error::usage(format!("the layout names no node {:?} that takes part", arguments.name)))?;
    let address = node.endpoint.trim_start_matches("https://").to_owned();
    let (host, port) = cluster::address(&address).map_err(Error::usage)?;
    // What only two held, who both come back empty, is nowhere.
    let healing = still_healing(&desk, &node.name).await;
    if !healing.is_empty() {
        let healing = healing.join(" and ");
        session.out.note(format!(
            "{healing} has not caught up yet: neither can be filled with what only its former disks and those of {} held. \
             Wait for `afar status`, or bring back one of those disks",
            node.name
        ));
        if !arguments.options.dry_run {
            let question = format!("Replace {} all the same?", node.name);
            operate::confirm(arguments.options.yes, &question, "say --yes, or --dry-run to only look")?;
        }
    }
    if arguments.options.dry_run {
        session.out.note(format!("would make {} for {} at {address}; the layout stays", arguments.output.display(), node.name));
        return Outcome::default().tell(session);
    }
    finish_bundle(session, Outcome::default(), &desk.operator, &about, &plan_of(&node, host, port), &arguments.output)
}

/// Other nodes that are being filled again.
async fn still_healing(desk: &Desk, besides: &str) -> Vec<String> {
    let Ok(status) = status::ask(&desk.client).await else { return Vec::new() };
    let nodes = status.sites.iter().flat_map(|site| &site.nodes);
    nodes.filter(|node| node.name != besides && node.state == "catching_up").map(|node| node.name.clone()).collect()
}

/// Makes a node's folder, and lets the client's environment know its endpoint.
fn finish_bundle(
    session: &Session,
    outcome: Outcome,
    operator: &Operator,
    (about, _): &(Blueprint, Vec<[u8; 32]>),
    node: &NodePlan,
    output: &Path,
) -> Result<u8, Error> {
    let folder = operator.folder();
    let read = |name: &str| fs::read_to_string(folder.join(name)).map_err(|error| Error::io(folder.join(name).display(), &error));
    let crypto = |error: &rcgen::Error| Error::new(Kind::Failed, format!("make certificates: {error}"));
    let authority = Authorities::of(folder, &about.cluster).present()?;
    let made = authority.node(&about.cluster, &node.name, &node.host, since_epoch()).map_err(|error| crypto(&error))?;
    let admin = AdminKey::read(&folder.join("client/admin.key"))?;
    let (ca, secret) = (read("client/ca.crt")?, read("ca/cluster.secret")?);
    let wrong = |error: &std::io::Error| Error::io(output.display(), error);
    if let Some(parent) = output.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|error| wrong(&error))?;
    }
    crate::cluster::durable::private_folder(output).map_err(|error| wrong(&error))?;
    let config = config_file::render(about, node, LayoutSource::Chain);
    let chain = operator.chain().encode();
    let bundle = Bundle { pair: &made, ca: ca.as_bytes(), secret: &secret, admin: &admin.render(), config: &config, chain: Some(&chain) };
    write_bundle(output, &bundle)?;
    let absolute = folder.canonicalize().map_err(|error| Error::io(folder.display(), &error))?;
    let layout = &operator.head()?.layout;
    let endpoints = layout.members().filter_map(|node| layout.node(node)).map(|node| node.endpoint.clone());
    let env = folder.join("client/env");
    crate::cluster::durable::write(&env, client_env(endpoints, &admin, &absolute).as_bytes(), crate::cluster::durable::SECRET)
        .map_err(|error| Error::io(env.display(), &error))?;
    let shown = output.display().to_string();
    let besides = json!({"node": node.name, "bundle": shown, "endpoint": node.endpoint()});
    outcome.tell_with(session, besides, || format!("made {shown}: copy it to {} and run: afard --config {shown}/afard.toml", node.host))
}
