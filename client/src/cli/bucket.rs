//! `afar bucket`.
use super::{PolicyFlags, Session, policy, units};
use crate::{answers::Bucket, error::Error};
use afar_model::policy::Policy;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Make, list and remove buckets
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a bucket
    Create(Create),
    /// List buckets and their policies
    Ls,
    /// Remove an empty bucket
    Rm {
        /// Its name
        name: String,
    },
}

/// Make a bucket
#[derive(Debug, Args)]
#[command(
    after_help = "What is not said is as the cluster's default policy has it. --verify-distance:\nsites nearer than claimed; --degraded-writes: writes that cannot be far now."
)]
pub struct Create {
    /// 3 to 63 of a-z, 0-9, '-' and '.'
    name: String,
    #[command(flatten)]
    policy: PolicyFlags,
}

pub(super) async fn run(session: &Session, command: Command) -> Result<u8, Error> {
    let out = &session.out;
    match command {
        Command::Create(arguments) => {
            afar_model::record::check_bucket_name(&arguments.name).map_err(|error| Error::usage(error.to_string()))?;
            let client = session.client()?;
            let policy = match arguments.policy.given() {
                true => {
                    // Nonsense whatever the cluster is refused before anybody is asked.
                    arguments.policy.changing(&Policy::default())?;
                    Some(arguments.policy.changing(&client.default_policy().await?)?)
                }
                false => None,
            };
            let bucket = client.create_bucket(&arguments.name, policy.as_ref()).await?;
            if !bucket.warning.is_empty() {
                out.note(format!("afar: {}: {}", bucket.name, bucket.warning));
            }
            out.either(|| json(&bucket), || format!("made {}: {}", bucket.name, policy::words(&bucket.policy)))?;
        }
        Command::Ls => {
            let buckets = session.client()?.buckets().await?;
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
        Command::Rm { name } => {
            session.client()?.remove_bucket(&name).await?;
            out.either(|| json!({"name": name, "removed": true}), || format!("removed {name}"))?;
        }
    }
    Ok(0)
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
