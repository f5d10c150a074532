//! `afar config`: what is set and where it came from; whether a file makes sense. Neither asks a node anything.
use super::{
    Session,
    config::{self, Setting, Settings},
    units,
};
use crate::error::Error;
use clap::Subcommand;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Show and check settings
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Every setting and where it came from; secrets are not shown
    Show,
    /// Check a configuration file
    Check {
        /// The file [default: the one that would be used]
        file: Option<PathBuf>,
    },
}

pub(super) fn run(session: &Session, command: Command) -> Result<u8, Error> {
    match command {
        Command::Show => show(session),
        Command::Check { file } => {
            let path = file.or_else(|| session.global().config.clone()).or_else(|| config::default_path(&config::process_env));
            let path = path.ok_or_else(|| Error::usage("there is no configuration file").hint("name one"))?;
            let checked = config::read_file(&path)?;
            config::check_secrets(&path, &checked)?;
            let contexts: Vec<&String> = checked.contexts.keys().collect();
            let shown = path.display().to_string();
            session.out.either(
                || json!({"file": shown, "contexts": contexts}),
                || format!("{shown}: fine, {}", units::plural(contexts.len(), "context", "contexts")),
            )?;
            Ok(0)
        }
    }
}

fn show(session: &Session) -> Result<u8, Error> {
    let settings = Settings::gather(session.global(), &config::process_env)?;
    let rows = rows(&settings);
    if session.out.json {
        let object: serde_json::Map<String, Value> =
            rows.into_iter().map(|(name, value, origin)| (name.to_owned(), json!({"value": value, "origin": origin}))).collect();
        session.out.value(&Value::Object(object))?;
    } else {
        let rows: Vec<Vec<String>> = rows
            .into_iter()
            .map(|(name, value, origin)| {
                vec![name.to_owned(), value.unwrap_or_else(|| "-".into()), origin.unwrap_or_else(|| "not set".into())]
            })
            .collect();
        session.out.lines(&units::table(&["SETTING", "VALUE", "FROM"], &rows, &[]))?;
    }
    Ok(0)
}

type Row = (&'static str, Option<String>, Option<String>);

fn rows(settings: &Settings) -> Vec<Row> {
    fn row<T>(name: &'static str, setting: Option<&Setting<T>>, show: impl Fn(&T) -> String) -> Row {
        (name, setting.map(|setting| show(&setting.value)), setting.map(|setting| setting.origin.clone()))
    }
    vec![
        row("context", settings.context.as_ref(), Clone::clone),
        row("endpoint", settings.endpoints.as_ref(), |list| list.join(",")),
        row("access_key_id", settings.access_key_id.as_ref(), Clone::clone),
        row("secret_access_key", settings.secret.as_ref(), config::Secret::shown),
        row("ca_file", settings.ca_file.as_ref(), |path| path.display().to_string()),
    ]
}
