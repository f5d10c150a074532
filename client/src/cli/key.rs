//! `afar key`.
use super::{Session, units};
use crate::{
    answers::{AccessKey, Grant, NewKey},
    error::Error,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Make, list and revoke access keys
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an access key; its secret is shown once
    Create(Create),
    /// List access keys and what they may do
    Ls,
    /// Revoke an access key for good
    Revoke {
        /// Its id
        // Not `access_key_id`: that is the global option's name, and the two would be one argument.
        #[arg(value_name = "ACCESS_KEY_ID")]
        id: String,
    },
}

/// Make an access key; its secret is shown once
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  afar key create host1 --bucket backups --read --append\n      may add, never change or remove")]
pub struct Create {
    /// What to call it
    name: String,
    /// Only in this bucket (repeatable) [default: all]
    #[arg(long, value_name = "BUCKET")]
    bucket: Vec<String>,
    /// May get, list and stat
    #[arg(long)]
    read: bool,
    /// May put
    #[arg(long)]
    write: bool,
    /// May put only where there is nothing yet
    #[arg(long)]
    append: bool,
    /// May remove
    #[arg(long)]
    delete: bool,
    /// May do everything, buckets and keys included
    #[arg(long)]
    admin: bool,
}

impl Create {
    fn grants(&self) -> Result<Vec<Grant>, Error> {
        let rights = [("read", self.read), ("write", self.write), ("append", self.append), ("delete", self.delete), ("admin", self.admin)];
        let rights: Vec<String> = rights.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.to_owned()).collect();
        if rights.is_empty() {
            return Err(Error::usage("a key that may do nothing").hint("give it --read, --write, --append, --delete or --admin"));
        }
        if self.bucket.is_empty() {
            return Ok(vec![Grant { bucket: None, rights }]);
        }
        Ok(self.bucket.iter().map(|bucket| Grant { bucket: Some(bucket.clone()), rights: rights.clone() }).collect())
    }
}

pub(super) async fn run(session: &Session, command: Command) -> Result<u8, Error> {
    let out = &session.out;
    match command {
        Command::Create(arguments) => {
            let grants = arguments.grants()?;
            let new = session.client()?.create_key(&arguments.name, grants).await?;
            out.either(|| new_json(&new), || new_words(&new))?;
        }
        Command::Ls => {
            let keys = session.client()?.keys().await?;
            if out.json {
                out.value(&Value::Array(keys.iter().map(json).collect()))?;
            } else {
                let row = |key: &AccessKey| vec![key.id.clone(), key.name.clone(), units::time(key.created), may(key)];
                out.lines(&units::table(&["ACCESS KEY", "NAME", "CREATED", "MAY"], &keys.iter().map(row).collect::<Vec<_>>(), &[]))?;
            }
        }
        Command::Revoke { id: access_key_id } => {
            session.client()?.revoke_key(&access_key_id).await?;
            out.either(|| json!({"access_key_id": access_key_id, "revoked": true}), || format!("revoked {access_key_id}"))?;
        }
    }
    Ok(0)
}

fn may(key: &AccessKey) -> String {
    let grants = key.grants.iter().map(|grant| format!("{}: {}", grant.bucket.as_deref().unwrap_or("all buckets"), grant.rights.join(" ")));
    grants.collect::<Vec<_>>().join("; ")
}

fn json(key: &AccessKey) -> Value {
    let grants: Vec<Value> = key.grants.iter().map(|grant| json!({"bucket": grant.bucket, "rights": grant.rights})).collect();
    json!({"access_key_id": key.id, "name": key.name, "grants": grants, "created": units::time(key.created)})
}

fn new_json(new: &NewKey) -> Value {
    let mut value = json(&new.key);
    value["secret_access_key"] = json!(new.secret_access_key);
    value
}

/// As lines that a shell can read; the secret will not be shown again.
fn new_words(new: &NewKey) -> String {
    format!(
        "# {}: {}. The secret is shown only now.\nexport AFAR_ACCESS_KEY_ID='{}'\nexport AFAR_SECRET_ACCESS_KEY='{}'",
        new.key.name,
        may(&new.key),
        new.key.id,
        new.secret_access_key
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_given_per_bucket_or_for_all() {
        let none = Create { name: "n".into(), bucket: vec![], read: false, write: false, append: false, delete: false, admin: false };
        assert!(none.grants().is_err());
        let all = Create { read: true, append: true, ..none };
        assert_eq!(all.grants().unwrap(), [Grant { bucket: None, rights: vec!["read".into(), "append".into()] }]);
        let two = Create { bucket: vec!["a".into(), "b".into()], ..all };
        assert_eq!(two.grants().unwrap().len(), 2);
    }
}
