//! `afar bucket`.
use super::{
    PolicyFlags, Session,
    operate::{Desk, Options, Way, carry_out_in, sit_down},
    policy, units,
};
use crate::{answers::Bucket, cluster::operator::bucket_named, error::Error};
use afar_model::{document::Document, policy::Policy};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Make, list, change and remove buckets
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a bucket
    Create(Create),
    /// List buckets and their policies
    Ls,
    /// Keep a bucket's data otherwise from now on
    Set(Set),
    /// Call a bucket something else
    #[command(after_help = "\
What is in it stays where it is. Two buckets that were made with one name at the same moment are told apart by their ids,
which `afar bucket ls --json` shows: afar bucket rename @ID NAME")]
    Rename {
        /// Its name, or @ and its id
        bucket: String,
        /// What to call it
        name: String,
    },
    /// Remove an empty bucket
    Rm {
        /// Its name, or @ and its id
        name: String,
    },
}

/// Make a bucket
#[derive(Debug, Args)]
#[command(
    after_help = "What is not said is as the default policy has it. A home has one of the copies,\nand alone acknowledges what is queued. `man afar`, POLICY, has it all."
)]
pub struct Create {
    /// 3 to 63 of a-z, 0-9, '-' and '.'
    name: String,
    #[command(flatten)]
    policy: PolicyFlags,
}

/// Keep a bucket's data otherwise from now on
#[derive(Debug, Args)]
#[command(after_help = "\
What is not said stays as it is (--home '' takes it away). Until the data have
moved, both promises are kept; what was set is undone by setting it back. What
these sites cannot keep whole is refused (5). `man afar`, POLICY, has it all.
Example: three copies instead of two, first only looked at:
  afar bucket set backups --copies 3 --dir hosting --dry-run")]
pub struct Set {
    /// Its name
    name: String,
    #[command(flatten)]
    policy: PolicyFlags,
    #[command(flatten)]
    options: Options,
}

/// What to sign, and whether anything has to be assigned anew; `None` if nothing would change.
fn promise(desk: &Desk, arguments: &Set) -> Result<Option<(Document, Way)>, Error> {
    let (id, name, before) = bucket_named(&desk.said, desk.operator.head()?.layout.hash(), &arguments.name)?;
    let policy = arguments.policy.changing(&before)?;
    if policy == before {
        return Ok(None);
    }
    if let Some(what) = afar_model::plan::misnamed(&policy, &desk.operator.head()?.layout) {
        return Err(Error::usage(what));
    }
    let mut document = desk.operator.change(format!("keep bucket {name} otherwise: {}", policy::words(&policy)))?;
    document.promise(id, policy.clone());
    Ok(Some((document, Way { only: Some(vec![policy]), ..Way::default() })))
}

async fn set(session: &Session, arguments: Set) -> Result<u8, Error> {
    if !arguments.policy.given() {
        return Err(Error::usage("nothing to change").hint("say what, such as --copies 3; see `afar bucket set --help`"));
    }
    let mut desk = sit_down(&arguments.options).await?;
    match promise(&desk, &arguments)? {
        Some((document, way)) => carry_out_in(session, &mut desk, document, &arguments.options, way).await?.tell(session),
        None => {
            session.out.either(|| json!({"applied": false}), || format!("{} is kept like that already", arguments.name))?;
            Ok(0)
        }
    }
}

pub(super) async fn run(session: &Session, command: Command) -> Result<u8, Error> {
    let out = &session.out;
    match command {
        Command::Create(arguments) => {
            afar_model::record::check_bucket_name(&arguments.name).map_err(|error| Error::usage(error.to_string()))?;
            // Nonsense whatever the cluster is refused before anybody is asked.
            arguments.policy.changing(&Policy::default())?;
            let client = session.client()?;
            let policy = match arguments.policy.given() {
                true => Some(arguments.policy.changing(&client.default_policy().await?)?),
                false => None,
            };
            let bucket = client.create_bucket(&arguments.name, policy.as_ref()).await?;
            if !bucket.warning.is_empty() {
                out.note(format!("afar: {}: {}", bucket.name, bucket.warning));
            }
            if let Some(warning) = alone(&bucket.policy) {
                out.note(format!("afar: {}: {warning}", bucket.name));
            }
            out.either(|| json(&bucket), || format!("made {}: {}", bucket.name, policy::words(&bucket.policy)))?;
        }
        Command::Ls => {
            let buckets = session.client()?.buckets().await?;
            for bucket in buckets.iter().filter(|bucket| !bucket.warning.is_empty()) {
                out.note(format!("afar: {}: {}", bucket.name, bucket.warning));
            }
            if out.json {
                out.value(&Value::Array(buckets.iter().map(json).collect()))?;
            } else {
                let rows: Vec<Vec<String>> = buckets
                    .iter()
                    .map(|bucket| vec![bucket.name.clone(), units::time(bucket.created), policy::words(&bucket.policy)])
                    .collect();
                out.lines(&units::table(&["BUCKET", "CREATED", "POLICY"], &rows, &[]))?;
            }
        }
        Command::Set(arguments) => return set(session, arguments).await,
        Command::Rename { bucket, name } => {
            afar_model::record::check_bucket_name(&name).map_err(|error| Error::usage(error.to_string()))?;
            let renamed = session.client()?.rename_bucket(&bucket, &name).await?;
            out.either(|| json(&renamed), || format!("{bucket} is called {} now", renamed.name))?;
        }
        Command::Rm { name } => {
            session.client()?.remove_bucket(&name).await?;
            out.either(|| json!({"name": name, "removed": true}), || format!("removed {name}"))?;
        }
    }
    Ok(0)
}

/// What is said of a policy that is allowed and keeps nothing from harm.
fn alone(policy: &Policy) -> Option<&'static str> {
    (policy.copies == 1).then_some("warning: with one copy it survives the loss of no site")
}

/// A bucket in JSON.
pub(super) fn json(bucket: &Bucket) -> Value {
    json!({
        "id": bucket.id.to_string(),
        "name": bucket.name,
        "created": units::time(bucket.created),
        "policy": policy::json(&bucket.policy),
        "warning": if bucket.warning.is_empty() { Value::Null } else { json!(bucket.warning) },
    })
}

/// A bucket in words.
pub(super) fn words(bucket: &Bucket) -> String {
    let warning = if bucket.warning.is_empty() { String::new() } else { format!("\n  warning   {}", bucket.warning) };
    format!(
        "{}\n  id        {}\n  created   {}\n  policy    {}{warning}",
        bucket.name,
        bucket.id,
        units::time(bucket.created),
        policy::words(&bucket.policy)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_is_warned_of() {
        assert!(alone(&Policy { copies: 1, far_copies: 1, ..Policy::default() }).is_some_and(|warning| warning.contains("no site")));
        assert_eq!(alone(&Policy::default()), None);
    }
}
