//! `afar layout`: what the cluster is, was, and would be.
use super::{
    Session,
    draining::{Draining, draining},
    operate::{self, Options, carry_out, sit_down},
    status, transition, units,
};
use crate::{
    cluster::operator::{Operator, name_of},
    error::Error,
};
use afar_model::{
    document::{self, Chapter, Document, ShortHash},
    id::Incarnation,
    layout::Duty,
};
use clap::{Args, Subcommand};
use serde_json::json;

/// Show, plan and change the layout
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The newest layout: sites, nodes, distances
    Show(Options),
    /// What planning everything anew would move, and how much would fit
    Plan(Options),
    /// Plan everything anew, and apply it
    Apply(Apply),
    /// Every layout that was signed
    History(Options),
    /// Make an older layout current again, as a new one
    Rollback(Rollback),
    /// Answer for a loss: allow removals again after that of a site, or accept that of disks
    Release(Release),
}

/// Plan everything anew, and apply it
#[derive(Debug, Args)]
pub struct Apply {
    /// End a conflict: keep this one of two newest layouts
    #[arg(long, value_name = "VERSION-HASH")]
    merge: Option<String>,
    #[command(flatten)]
    options: Options,
}

/// Make an older layout current again
#[derive(Debug, Args)]
pub struct Rollback {
    /// Which, as `afar layout history` names it
    #[arg(value_name = "VERSION-HASH")]
    to: String,
    #[command(flatten)]
    options: Options,
}

/// Answer for a loss
#[derive(Debug, Args)]
pub struct Release {
    /// As `afar status` shows them: the layouts that named the loss of a site, or disks that are gone and held something alone
    #[arg(value_name = "HASH|DISKS", required = true)]
    hashes: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) async fn run(session: &Session, command: Command) -> Result<u8, Error> {
    match command {
        Command::Show(options) => show(session, &options).await,
        Command::Plan(options) => replan(session, &Options { dry_run: true, ..options }).await,
        Command::Apply(Apply { merge: None, options }) => replan(session, &options).await,
        Command::Apply(Apply { merge: Some(kept), options }) => merge(session, &kept, &options).await,
        Command::History(options) => history(session, &options).await,
        Command::Rollback(Rollback { to, options }) => rollback(session, &to, &options).await,
        Command::Release(Release { hashes, options }) => release(session, &hashes, &options).await,
    }
}

async fn show(session: &Session, options: &Options) -> Result<u8, Error> {
    let desk = sit_down(options).await?;
    let head = desk.operator.head()?;
    let behind: Vec<&str> = desk.said.iter().filter(|said| said.current != *head.layout.hash()).map(|said| said.node.as_str()).collect();
    let open = desk.said.iter().map(|said| said.open).max();
    let draining = draining(&desk).await?;
    // What is waited for, only nodes know.
    let status = if desk.said.is_empty() { None } else { status::ask(&desk.client).await.ok() };
    let moving = status.as_ref().and_then(|status| status.transition.as_ref().map(|moving| (moving, status.at)));
    session.out.either(
        || {
            json!({"name": name_of(head), "note": head.document.note, "layout": operate::layout_value(&head.layout), "behind": behind,
                   "open": open, "transition": moving.map(|(moving, _)| moving),
                   "draining": draining.iter().map(Draining::value).collect::<Vec<_>>()})
        },
        || {
            let mut lines = vec![format!("layout {}: {}", name_of(head), head.document.note)];
            lines.extend(operate::layout_lines(&head.layout));
            match (open, moving) {
                (None, _) => lines.push("no node answers: this is what the folder knows".into()),
                (Some(_), Some((moving, now))) => lines.extend(transition::lines(moving, now)),
                (Some(1), None) if behind.is_empty() => lines.push("in force everywhere that answers".into()),
                (Some(_), None) if behind.is_empty() => lines.push("taking over: data are moving; see `afar status`".into()),
                (Some(_), None) => lines.push(format!("not yet at: {}", behind.join(", "))),
            }
            lines.extend(draining.iter().map(Draining::words));
            lines.join("\n")
        },
    )?;
    Ok(0)
}

async fn replan(session: &Session, options: &Options) -> Result<u8, Error> {
    let mut desk = sit_down(options).await?;
    let document = desk.operator.change("plan anew")?;
    carry_out(session, &mut desk, document, options).await
}

async fn history(session: &Session, options: &Options) -> Result<u8, Error> {
    let desk = sit_down(options).await?;
    let heads: Vec<String> = desk.operator.heads().iter().map(|chapter| name_of(chapter)).collect();
    if session.out.json {
        let entries = desk.operator.chapters().iter().map(|chapter| {
            json!({"name": name_of(chapter), "version": chapter.document.version, "hash": hex::encode(chapter.layout.hash()),
                   "made": made(chapter), "note": chapter.document.note, "head": heads.contains(&name_of(chapter))})
        });
        session.out.value(&serde_json::Value::Array(entries.collect()))?;
        return Ok(0);
    }
    let row = |chapter: &Chapter| {
        let mark = if heads.contains(&name_of(chapter)) { if heads.len() > 1 { "conflict" } else { "newest" } } else { "" };
        vec![name_of(chapter), made(chapter).unwrap_or_else(|| "at init".into()), chapter.document.note.clone(), mark.to_owned()]
    };
    let rows: Vec<Vec<String>> = desk.operator.chapters().iter().map(row).collect();
    session.out.lines(&units::table(&["LAYOUT", "MADE", "WHAT", ""], &rows, &[]))?;
    Ok(0)
}

/// When it was signed. The first is what the nodes' files say, and bears no date.
fn made(chapter: &Chapter) -> Option<String> {
    (chapter.document.made.0 > 0).then(|| units::time(chapter.document.made))
}

/// The fewest digits of a hash that name a layout: as many as are shown.
const DIGITS_MIN: usize = 8;

/// A layout as `afar layout history` names it (`7-1f2e3d4c`), or by its version or hash alone, as far as that is unambiguous.
fn find<'a>(operator: &'a Operator, name: &str) -> Result<&'a Chapter, Error> {
    // As it was printed, perhaps.
    let text = name.trim_end_matches('…').to_ascii_lowercase();
    let (version, digits) = match text.split_once('-') {
        Some((version, digits)) => (Some(version), Some(digits)),
        None if text.len() >= DIGITS_MIN && text.bytes().all(|digit| digit.is_ascii_hexdigit()) => (None, Some(text.as_str())),
        None => (Some(text.as_str()), None),
    };
    let fits = |chapter: &&Chapter| {
        let hash = hex::encode(chapter.layout.hash());
        version.is_none_or(|version| chapter.document.version.to_string() == version)
            && digits.is_none_or(|digits| digits.len() >= DIGITS_MIN && hash.starts_with(digits))
    };
    let found: Vec<&Chapter> = operator.chapters().iter().filter(fits).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Error::usage(format!("no layout is called {name:?}"))
            .hint(format!("`afar layout history` names them; of a hash at least {DIGITS_MIN} digits"))),
        several => {
            let names: Vec<String> = several.iter().map(|chapter| name_of(chapter)).collect();
            Err(Error::usage(format!("{name:?} may be {}", names.join(" or "))).hint("say which, as `afar layout history` names them"))
        }
    }
}

/// What an older layout said, as a child of the newest: who has left since stays away, and nobody disappears.
async fn rollback(session: &Session, to: &str, options: &Options) -> Result<u8, Error> {
    let mut desk = sit_down(options).await?;
    let old = find(&desk.operator, to)?.document.clone();
    let newest = desk.operator.change(format!("back to version {}", old.version))?;
    let document = restored(&old, newest);
    carry_out(session, &mut desk, document, options).await
}

fn restored(old: &Document, mut next: Document) -> Document {
    for site in &mut next.sites {
        if let Some(was) = old.sites.iter().find(|was| was.name == site.name) {
            if was.coordinates != site.coordinates || was.uncertainty != site.uncertainty {
                next.moved.push(site.name.clone());
            }
            *site = was.clone();
        }
    }
    for node in &mut next.nodes {
        match old.nodes.iter().find(|was| was.name == node.name) {
            Some(was) if node.duty.is_member() => *node = was.clone(),
            // Who joined since leaves the way that everybody does.
            None if node.duty == Duty::Active => node.duty = Duty::Draining,
            _ => {}
        }
    }
    next.promises.clone_from(&old.promises);
    next
}

async fn merge(session: &Session, kept: &str, options: &Options) -> Result<u8, Error> {
    let mut desk = sit_down(options).await?;
    let heads: Vec<Chapter> = desk.operator.heads().into_iter().cloned().collect();
    let kept = find(&desk.operator, kept)?.clone();
    if heads.len() < 2 || !heads.iter().any(|head| head.layout.hash() == kept.layout.hash()) {
        return Err(Error::usage(format!("{} is not one of two newest layouts", name_of(&kept))).hint("see `afar layout history`"));
    }
    let mut document = Document::child_of(&kept, crate::cluster::operator::now(), format!("keep {}", name_of(&kept)));
    document.version = heads.iter().map(|head| head.document.version).max().unwrap_or(document.version) + 1;
    document.parents = heads.iter().map(|head| *head.layout.hash()).collect();
    for other in heads.iter().filter(|head| head.layout.hash() != kept.layout.hash()) {
        join(&mut document, &other.document);
    }
    carry_out(session, &mut desk, document, options).await
}

/// Whom only the other side knows is not forgotten, and whoever is lost to either side is lost.
fn join(document: &mut Document, other: &Document) {
    document.withdraw_as(other);
    for site in &other.sites {
        match document.sites.iter_mut().find(|known| known.name == site.name) {
            Some(known) => {
                if known.coordinates != site.coordinates || known.uncertainty < site.uncertainty {
                    document.moved.push(site.name.clone());
                }
                known.duty = known.duty.max(site.duty);
            }
            None => document.sites.push(site.clone()),
        }
    }
    for node in &other.nodes {
        match document.nodes.iter_mut().find(|known| known.name == node.name) {
            Some(known) if known.duty.is_member() => known.duty = known.duty.max(node.duty),
            Some(_) => {}
            None => document.nodes.push(node.clone()),
        }
    }
}

async fn release(session: &Session, hashes: &[String], options: &Options) -> Result<u8, Error> {
    let mut desk = sit_down(options).await?;
    let mut document = desk.operator.change(format!("answer for {}", hashes.join(" ")))?;
    let latched = document::latched(desk.operator.chapters().iter());
    for text in hashes {
        let full = desk
            .operator
            .chapters()
            .iter()
            .map(|chapter| *chapter.layout.hash())
            .filter(|hash| hex::encode(hash).starts_with(text.as_str()));
        let found: Vec<[u8; 32]> = full.collect();
        let hint = || match latched.as_slice() {
            [] => "there is no loss that is not answered for yet".to_owned(),
            closed => format!(
                "named a loss, and not answered for yet: {}",
                closed.iter().map(|hash| ShortHash(hash).to_string()).collect::<Vec<_>>().join(" ")
            ),
        };
        match found.as_slice() {
            // Whether these are gone, the nodes know.
            [] if let Ok(disks) = text.parse::<Incarnation>() => document.releases.push(document::release_of(disks)),
            [hash] if latched.contains(hash) => document.releases.push(*hash),
            [_] => return Err(Error::usage(format!("layout {text} named no loss of a site, or it is answered for already")).hint(hint())),
            _ => return Err(Error::usage(format!("{text:?} names {} layouts", found.len())).hint(hint())),
        }
    }
    carry_out(session, &mut desk, document, options).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::layout::examples;

    #[test]
    fn a_layout_is_found_by_its_name_its_version_or_the_beginning_of_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("layout")).unwrap();
        let operator = Operator::begin(folder.path(), "demo", examples::three_sites().unwrap(), Vec::new()).unwrap();
        let (chapter, name) = (operator.head().unwrap(), name_of(operator.head().unwrap()));
        let hash = hex::encode(chapter.layout.hash());
        let short = &hash[..8];
        for called in [name.as_str(), "1", &hash, short, &format!("{short}…"), &short.to_uppercase(), &format!("1-{hash}")] {
            assert_eq!(find(&operator, called).map(name_of).ok().as_deref(), Some(name.as_str()), "{called}");
        }
        for called in ["", "2", &hash[..7], &format!("2-{short}"), "1-", &format!("1-{}", &hash[..7]), "deadbeef"] {
            assert!(find(&operator, called).is_err(), "{called}");
        }
    }
}
