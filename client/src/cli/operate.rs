//! What all commands that change the layout share: the operator's folder, what a change would mean, the question whether to
//! go on, and the sending.
use super::{
    Session,
    forecast::{Forecast, Known},
    policy, status, units,
};
use crate::{
    client::{Client, Config},
    cluster::{
        AdminKey,
        operator::{Custodian, Draft, Operator, Said, Unkept, name_of},
    },
    error::{Error, Kind},
    limits,
};
use afar_model::{
    document::Document,
    layout::{Duty, Layout, NodeIndex},
    plan,
    policy::Policy,
};
use clap::Args;
use serde_json::{Map, Value, json};
use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

/// Options of every command that changes the layout.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Cluster's folder [env: AFAR_CLUSTER_DIR]
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

    fn is_in_place(&self) -> bool {
        self.only.as_ref().is_some_and(Vec::is_empty)
    }
}

/// What came of a change. With `--json` nothing of it is printed before [`Self::tell`]: one command prints one document.
#[derive(Debug, Default)]
#[must_use]
pub struct Outcome {
    /// What the command exits with.
    pub code: u8,
    /// Whether it was carried out, and not only looked at.
    pub applied: bool,
    fields: Map<String, Value>,
}

impl Outcome {
    /// Ends the command.
    pub fn tell(self, session: &Session) -> Result<u8, Error> {
        if session.out.json {
            session.out.value(&Value::Object(self.fields))?;
        }
        Ok(self.code)
    }

    /// Ends a command that has done something besides.
    pub fn tell_with(mut self, session: &Session, besides: Value, words: impl FnOnce() -> String) -> Result<u8, Error> {
        if !session.out.json {
            session.out.line(words())?;
        }
        if let Value::Object(besides) = besides {
            self.fields.extend(besides);
        }
        self.tell(session)
    }
}

/// Plans a change, shows it, asks, and carries it out; ends the command.
pub async fn carry_out(session: &Session, desk: &mut Desk, document: Document, options: &Options) -> Result<u8, Error> {
    carry_out_in(session, desk, document, options, Way::default()).await?.tell(session)
}

/// Plans a change, shows it, asks, and carries it out in a certain way.
pub async fn carry_out_in(session: &Session, desk: &mut Desk, document: Document, options: &Options, way: Way) -> Result<Outcome, Error> {
    let draft = match &way.only {
        None => desk.operator.plan(document, &desk.said)?,
        Some(policies) => desk.operator.plan_only(document, &desk.said, policies)?,
    };
    let known = if way.is_in_place() { Known::nothing_moves() } else { known(desk).await };
    let out = &session.out;
    if let Some(refusal) = refusal(&draft).filter(|_| !options.dry_run) {
        return Err(refusal);
    }
    if !out.json {
        out.lines(&words(desk, &draft, &known)?)?;
    }
    let fields =
        |desk: &Desk, applied| -> Result<_, Error> { if out.json { value(desk, &draft, &known, applied) } else { Ok(Map::new()) } };
    if options.dry_run {
        // What would be refused is so, with the same code, when it is only looked at.
        let code = refusal(&draft).map_or(0, |refusal| refusal.kind().exit_code());
        return Ok(Outcome { code, applied: false, fields: fields(desk, None)? });
    }
    confirm(options.yes, "apply this?", "say --yes, or --dry-run to only look")?;
    let custodian = way.by.map_or_else(|| desk.operator.custodian(), Ok)?;
    let signed = custodian.sign(&draft.document);
    let (have, silent) = desk.operator.apply(&desk.client, signed).await?;
    let head = name_of(desk.operator.head()?);
    if !out.json {
        let mut lines = vec![match have.as_slice() {
            [] => format!("layout {head} is signed and in the folder; no node answers, so nodes learn of it when one does"),
            nodes => format!("layout {head} is applied: {} have it and tell the others; see `afar status`", nodes.join(", ")),
        }];
        lines.extend(silent.iter().filter(|_| !have.is_empty()).map(|why| format!("  not told: {why}")));
        out.lines(&lines)?;
    }
    Ok(Outcome { code: 0, applied: true, fields: fields(desk, Some((&have, &silent)))? })
}

/// Why a change must not be made, if it must not: nodes would refuse it, too, and nobody need be asked whether he wants it.
fn refusal(draft: &Draft) -> Option<Error> {
    let why: Vec<String> = draft.refused().map(Unkept::words).collect();
    let help = draft.refused().map(|unkept| plan::sentence(&unkept.help)).find(|help| !help.is_empty());
    let error = Error::new(Kind::BelowPolicy, format!("not applied: {}", why.join("\n       ")));
    let help = help.unwrap_or_else(|| "add a site first (`afar node add`), or ask less of the bucket (`afar bucket set`)".into());
    (!why.is_empty()).then(|| error.hint(help))
}

/// What the cluster says of what it stores.
async fn known(desk: &Desk) -> Known {
    // If nobody answered just now, a status would only be waited for.
    let status = if desk.said.is_empty() { None } else { status::ask(&desk.client).await.ok() };
    Known::new(&desk.said, status.as_ref())
}

/// Asks on a terminal; elsewhere only `--yes` goes on, and what the command offers instead is said.
pub fn confirm(yes: bool, question: &str, unasked: &str) -> Result<(), Error> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Error::usage("this changes the cluster, and nobody is there to be asked").hint(unasked));
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
fn words(desk: &Desk, draft: &Draft, known: &Known) -> Result<Vec<String>, Error> {
    let head = desk.operator.head()?;
    let mut lines = vec![format!("{} -> version {}: {}", name_of(head), draft.document.version, draft.document.note)];
    lines.extend(layout_lines(&draft.layout));
    lines.extend(trust_lines(&head.document, &draft.document));
    lines.extend(Forecast::new(draft, known).words());
    for unkept in &draft.unkept {
        lines.push(unkept.words());
        lines.extend(unkept.help.iter().take(3).map(|suggestion| format!("  would help: {suggestion}")));
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

/// A node's duty. One that was removed had handed over everything before its site was lost: nothing is lost with it.
fn own_duty(layout: &Layout, node: NodeIndex) -> Duty {
    match layout.node(node).map(|node| node.duty) {
        Some(Duty::Removed) => Duty::Removed,
        _ => layout.duty(node),
    }
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
            own_duty(layout, node).name().to_owned(),
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
                    "duty": own_duty(layout, index).name()}))
    });
    json!({"version": layout.version(), "hash": hex::encode(layout.hash()), "partitions": layout.partitions(),
           "sites": sites.collect::<Vec<_>>(), "nodes": nodes.collect::<Vec<_>>()})
}

fn value(desk: &Desk, draft: &Draft, known: &Known, applied: Option<(&Vec<String>, &Vec<String>)>) -> Result<Map<String, Value>, Error> {
    let forecast = Forecast::new(draft, known);
    let unkept = |far: bool| -> Vec<Value> {
        let of = draft.unkept.iter().filter(|unkept| unkept.far == far);
        of.map(|unkept| {
            json!({"buckets": unkept.buckets, "policy": policy::json(&unkept.policy), "why": unkept.why, "refused": unkept.refused,
                   "suggestions": unkept.help.iter().map(ToString::to_string).collect::<Vec<_>>()})
        })
        .collect()
    };
    let head = desk.operator.head()?;
    let parent = desk.operator.chapters().iter().find(|chapter| draft.document.parents.first() == Some(chapter.layout.hash()));
    let value = json!({
        "applied": applied.is_some(),
        "nodes": applied.map(|(have, _)| have),
        "not_told": applied.map(|(_, silent)| silent),
        "version": draft.document.version,
        "head": name_of(head),
        "note": draft.document.note,
        "layout": layout_value(&draft.layout),
        "plans": forecast.plan_values(),
        "infeasible": unkept(false),
        "incomplete": unkept(true),
        "changed": forecast.changed_values(),
        "moving": forecast.moving_value(),
        "trust": parent.map(|parent| trust_lines(&parent.document, &draft.document)),
    });
    Ok(if let Value::Object(fields) = value { fields } else { Map::new() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_asked_is_told_what_this_command_has() {
        assert!(confirm(true, "apply this?", "").is_ok());
        // Somebody who runs tests by hand would be asked.
        if !std::io::stdin().is_terminal() {
            let error = confirm(false, "apply this?", "say --yes").unwrap_err();
            assert_eq!((error.kind(), error.what_to_do()), (Kind::Usage, Some("say --yes")));
        }
    }
}
