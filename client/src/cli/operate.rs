//! What all commands that change the layout share: the operator's folder, what a change would mean, the question whether to
//! go on, and the sending.
use super::{Session, policy, units};
use crate::{
    client::{Client, Config},
    cluster::{
        AdminKey,
        operator::{Custodian, Draft, Operator, Planned, Repromised, Said, name_of},
    },
    error::{Error, Kind},
    limits,
};
use afar_model::{
    document::Document,
    layout::{Duty, Layout},
    placement::Geography,
    plan::{self, Move},
    policy::Policy,
};
use clap::Args;
use serde_json::{Value, json};
use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

/// Options of every command that changes the layout.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Where `cluster init` wrote [default: .]
    #[arg(long, value_name = "DIR", env = "AFAR_CLUSTER_DIR", default_value = ".", hide_env = true, hide_default_value = true)]
    pub dir: PathBuf,
    /// Only say what would happen
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short = 'y', long)]
    pub yes: bool,
}

/// The operator's folder, what the cluster says, and how to reach it.
pub struct Desk {
    /// The folder.
    pub operator: Operator,
    /// With the administrator's key of the folder.
    pub client: Client,
    /// Who answered.
    pub said: Vec<Said>,
}

/// Opens the folder and asks the cluster.
pub async fn sit_down(options: &Options) -> Result<Desk, Error> {
    let mut operator = Operator::open(&options.dir)?;
    let client = client(&options.dir, &operator.head()?.layout)?;
    let said = operator.refresh(&client).await?;
    Ok(Desk { operator, client, said })
}

/// A desk at a cluster that nobody has started yet.
pub fn desk(operator: Operator) -> Result<Desk, Error> {
    let client = client(operator.folder(), &operator.head()?.layout)?;
    Ok(Desk { operator, client, said: Vec::new() })
}

/// With the administrator's key of a folder, for every node of a layout.
pub fn client(folder: &Path, layout: &Layout) -> Result<Client, Error> {
    let endpoints: Vec<String> = layout.members().filter_map(|node| layout.node(node)).map(|node| node.endpoint.clone()).collect();
    let key = AdminKey::read(&folder.join("client/admin.key"))?;
    let ca = folder.join("client/ca.crt");
    let ca_pem = fs::read(&ca).map_err(|error| Error::io(ca.display(), &error))?;
    let (access_key_id, secret_access_key) = (key.access_key_id, key.secret_access_key);
    Client::connect(&Config { endpoints, access_key_id, secret_access_key, ca_pem, rounds: limits::ROUNDS })
}

/// How a change is carried out.
#[derive(Debug, Default)]
pub struct Way {
    /// Only for these policies is anything assigned anew, and only if nothing is yet; else for every one.
    pub only: Option<Vec<Policy>>,
    /// Who signs; else the folder's own key.
    pub by: Option<Custodian>,
}

impl Way {
    /// Nothing moves.
    pub const fn in_place() -> Self {
        Self { only: Some(Vec::new()), by: None }
    }
}

/// Plans a change, shows it, asks, and carries it out. Answers the exit code, and whether it was carried out.
pub async fn carry_out(session: &Session, desk: &mut Desk, document: Document, options: &Options) -> Result<(u8, bool), Error> {
    carry_out_in(session, desk, document, options, Way::default()).await
}

/// As [`carry_out`], in a certain way.
pub async fn carry_out_in(
    session: &Session,
    desk: &mut Desk,
    document: Document,
    options: &Options,
    way: Way,
) -> Result<(u8, bool), Error> {
    let draft = match &way.only {
        None => desk.operator.plan(document, &desk.said)?,
        Some(policies) => desk.operator.plan_only(document, &desk.said, policies)?,
    };
    let out = &session.out;
    if !out.json {
        out.lines(&words(desk, &draft)?)?;
    }
    if options.dry_run {
        if out.json {
            out.value(&value(desk, &draft, None)?)?;
        }
        return Ok((u8::from(!draft.infeasible.is_empty()) * 5, false));
    }
    confirm(options, "apply this?")?;
    let custodian = way.by.map_or_else(|| desk.operator.custodian(), Ok)?;
    let signed = custodian.sign(&draft.document);
    let (have, silent) = desk.operator.apply(&desk.client, signed).await?;
    let head = name_of(desk.operator.head()?);
    out.either(
        || value(desk, &draft, Some((&have, &silent))).unwrap_or(Value::Null),
        || {
            let mut lines = vec![match have.as_slice() {
                [] => format!("layout {head} is signed and in the folder; no node answers, so nodes learn of it when one does"),
                nodes => format!("layout {head} is applied: {} have it and tell the others; see `afar status`", nodes.join(", ")),
            }];
            lines.extend(silent.iter().filter(|_| !have.is_empty()).map(|why| format!("  not told: {why}")));
            lines.join("\n")
        },
    )?;
    Ok((0, true))
}

/// Asks on a terminal; elsewhere only `--yes` goes on.
pub fn confirm(options: &Options, question: &str) -> Result<(), Error> {
    if options.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Error::usage("this changes the cluster, and nobody is there to be asked").hint("say --yes, or --dry-run to only look"));
    }
    eprint!("{question} [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| Error::io("read the answer", &error))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Error::new(Kind::Failed, "not applied")),
    }
}

/// What a draft would change and cost, for people.
fn words(desk: &Desk, draft: &Draft) -> Result<Vec<String>, Error> {
    let head = desk.operator.head()?;
    let mut lines = vec![format!("{} -> version {}: {}", name_of(head), draft.document.version, draft.document.note)];
    lines.extend(layout_lines(&draft.layout));
    lines.extend(trust_lines(&head.document, &draft.document));
    for changed in &draft.changed {
        lines.push(format!("bucket {}: {}", changed.bucket, policy::words(&changed.before)));
        lines.push(format!("  becomes: {}", policy::words(&changed.after)));
        lines.extend(move_lines(draft, &changed_moves(changed)));
    }
    let told =
        |planned: &Planned| !planned.buckets.is_empty() && planned.buckets.iter().all(|b| draft.changed.iter().any(|c| c.bucket == *b));
    for planned in &draft.plans {
        let buckets = if planned.buckets.is_empty() { "new buckets".to_owned() } else { planned.buckets.join(", ") };
        lines.push(format!("policy of {buckets}: {}", policy::words(&planned.policy)));
        let usable = plan::usable_capacity(&planned.assignment, &weights(&draft.layout));
        let bottleneck = usable.bottleneck.map_or(String::new(), |node| format!("; {} is full first", draft.layout.node_name(node)));
        lines.push(format!(
            "  holds {} of data in {} sets of nodes{bottleneck}",
            units::bytes(usable.bytes),
            planned.assignment.sets().len()
        ));
        if !told(planned) {
            lines.extend(move_lines(draft, &moves(planned)));
        }
        lines.extend(survivor_lines(draft, planned, stored(&desk.said)));
    }
    for (buckets, policy, why) in &draft.infeasible {
        let who = if buckets.is_empty() { "new buckets".to_owned() } else { format!("buckets {}", buckets.join(", ")) };
        lines.push(format!("{who} could not be kept: {why}"));
        let suggestions = plan::suggest(policy, &Geography::claimed(&draft.layout));
        lines.extend(suggestions.iter().take(3).map(|suggestion| format!("  would help: {suggestion}")));
    }
    Ok(lines)
}

/// What a change means for those who may sign, certify and connect.
fn trust_lines(before: &Document, after: &Document) -> Vec<String> {
    let short = |bytes: &[u8]| hex::encode(bytes.get(..8).unwrap_or(bytes));
    let digest = |der: &Vec<u8>| short(blake3::hash(der).as_bytes());
    let new = |now: &[[u8; 32]], was: &[[u8; 32]]| now.iter().filter(|key| !was.contains(key)).map(|key| short(key)).collect::<Vec<_>>();
    let say = |what: &str, whom: Vec<String>| whom.into_iter().map(move |one| format!("{what} {one}")).collect::<Vec<_>>();
    let authorities = after.authorities.iter().filter(|der| !before.authorities.contains(der)).map(digest).collect();
    [
        say("may sign layouts from now on:", new(&after.custodians, &before.custodians)),
        say("may not sign layouts any more:", new(&before.custodians, &after.custodians)),
        say("is trusted to certify nodes:", authorities),
        say("is not trusted to certify nodes any more:", new(&after.distrusted, &before.distrusted)),
        say("nodes with this key are refused:", new(&after.revoked, &before.revoked)),
    ]
    .concat()
}

fn changed_moves(changed: &Repromised) -> Vec<Move> {
    let both = changed.previous.as_ref().zip(changed.assignment.as_ref());
    both.map(|(previous, next)| plan::moves(previous, next, &|_| 0)).unwrap_or_default()
}

fn stored(_: &[Said]) -> u64 {
    0
}

fn weights(layout: &Layout) -> Vec<u64> {
    let weight = |node| if layout.duty(node) == Duty::Active { layout.node(node).map_or(0, |node| node.capacity) } else { 0 };
    layout.node_indexes().map(weight).collect()
}

fn moves(planned: &Planned) -> Vec<Move> {
    planned.previous.as_ref().map(|previous| plan::moves(previous, &planned.assignment, &|_| 0)).unwrap_or_default()
}

fn move_lines(draft: &Draft, moves: &[Move]) -> Vec<String> {
    let partitions = draft.layout.partitions();
    let name = |node| draft.layout.node_name(node).to_owned();
    let line = |m: &Move| {
        let share = f64::from(m.partitions) * 100.0 / f64::from(partitions.max(1));
        let from = m.from.map_or_else(|| "a further copy".to_owned(), name);
        format!("  {from} -> {}: {} of {partitions} partitions ({share:.1} % of the data)", name(m.to), m.partitions)
    };
    if moves.is_empty() { vec!["  nothing moves".into()] } else { moves.iter().map(line).collect() }
}

fn survivor_lines(draft: &Draft, planned: &Planned, stored: u64) -> Vec<String> {
    let geography = Geography::claimed(&draft.layout);
    let survivors = plan::survivors(&planned.policy, &geography, &weights(&draft.layout), stored);
    let used = |survivor: &&plan::Survivor| draft.layout.nodes_at(survivor.site).any(|node| draft.layout.duty(node) == Duty::Active);
    survivors
        .iter()
        .filter(used)
        .filter(|survivor| !survivor.holds())
        .map(|survivor| {
            let site = draft.layout.site_name(survivor.site);
            match survivor.usable {
                None => format!("  warning: without {site} no two sites are far enough apart: writes would stop until it is replaced"),
                Some(_) => format!("  warning: without {site} the others would be {} short", units::bytes(survivor.short)),
            }
        })
        .collect()
}

/// Sites with their nodes, and how far they are apart.
pub fn layout_lines(layout: &Layout) -> Vec<String> {
    let mut rows = Vec::new();
    for node in layout.node_indexes() {
        let (Some(named), Some(site)) = (layout.node(node), layout.site_of(node).and_then(|site| layout.site(site))) else { continue };
        rows.push(vec![
            site.name.clone(),
            site.country.clone(),
            site.coordinates.to_string(),
            named.name.clone(),
            units::bytes(named.capacity),
            layout.duty(node).name().to_owned(),
            named.endpoint.clone(),
        ]);
    }
    let mut lines = units::table(&["SITE", "CC", "PLACE", "NODE", "CAPACITY", "DUTY", "ENDPOINT"], &rows, &[4]);
    let sites: Vec<_> = layout.site_indexes().collect();
    for (index, a) in sites.iter().enumerate() {
        for b in sites.iter().skip(index + 1) {
            lines.push(format!("  {} - {}: {}", layout.site_name(*a), layout.site_name(*b), layout.distance(*a, *b)));
        }
    }
    lines
}

/// A layout in JSON.
pub fn layout_value(layout: &Layout) -> Value {
    let sites = layout.sites().iter().map(|site| {
        json!({"name": site.name, "latitude": site.coordinates.latitude(), "longitude": site.coordinates.longitude(),
               "uncertainty_m": site.uncertainty.0, "country": site.country, "provider": site.provider, "duty": site.duty.name()})
    });
    let nodes = layout.node_indexes().filter_map(|index| {
        let node = layout.node(index)?;
        Some(json!({"name": node.name, "site": node.site, "capacity_bytes": node.capacity, "endpoint": node.endpoint,
                    "duty": layout.duty(index).name()}))
    });
    json!({"version": layout.version(), "hash": hex::encode(layout.hash()), "partitions": layout.partitions(),
           "sites": sites.collect::<Vec<_>>(), "nodes": nodes.collect::<Vec<_>>()})
}

fn value(desk: &Desk, draft: &Draft, applied: Option<(&Vec<String>, &Vec<String>)>) -> Result<Value, Error> {
    let move_values = |draft: &Draft, moves: Vec<Move>| {
        let name = |node| draft.layout.node_name(node).to_owned();
        moves.iter().map(|m| json!({"from": m.from.map(name), "to": name(m.to), "partitions": m.partitions})).collect::<Vec<_>>()
    };
    let plans = draft.plans.iter().map(|planned| {
        let usable = plan::usable_capacity(&planned.assignment, &weights(&draft.layout));
        let name = |node| draft.layout.node_name(node).to_owned();
        json!({
            "policy": policy::json(&planned.policy),
            "buckets": planned.buckets,
            "usable_bytes": usable.bytes,
            "bottleneck": usable.bottleneck.map(name),
            "sets": planned.assignment.sets().len(),
            "moves": move_values(draft, moves(planned)),
        })
    });
    let changed = draft.changed.iter().map(|changed| {
        json!({"bucket": changed.bucket, "before": policy::json(&changed.before), "after": policy::json(&changed.after),
               "moves": move_values(draft, changed_moves(changed))})
    });
    let infeasible = draft.infeasible.iter().map(|(buckets, policy, why)| {
        let help = plan::suggest(policy, &Geography::claimed(&draft.layout));
        json!({"buckets": buckets, "policy": policy::json(policy), "why": why.to_string(),
               "suggestions": help.iter().map(ToString::to_string).collect::<Vec<_>>()})
    });
    let head = desk.operator.head()?;
    let parent = desk.operator.chapters().iter().find(|chapter| draft.document.parents.first() == Some(chapter.layout.hash()));
    Ok(json!({
        "applied": applied.is_some(),
        "nodes": applied.map(|(have, _)| have),
        "not_told": applied.map(|(_, silent)| silent),
        "version": draft.document.version,
        "head": name_of(head),
        "note": draft.document.note,
        "layout": layout_value(&draft.layout),
        "plans": plans.collect::<Vec<_>>(),
        "infeasible": infeasible.collect::<Vec<_>>(),
        "changed": changed.collect::<Vec<_>>(),
        "trust": parent.map(|parent| trust_lines(&parent.document, &draft.document)),
    }))
}
