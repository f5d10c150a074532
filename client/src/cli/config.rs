//! Settings: flags, then the environment, then the configuration file's context. Each remembers where it came from, so that
//! `afar config show` can say it. Secrets never come from the command line.
use super::Global;
use crate::{
    client::Config,
    error::{Error, Kind},
    limits,
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// The configuration file: named contexts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The context to use if none is named.
    #[serde(default)]
    pub context: Option<String>,
    /// By name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// One cluster as one user sees it.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `https://HOST:PORT`, one or several.
    #[serde(default)]
    pub endpoint: Option<OneOrMany>,
    /// An access key's id.
    #[serde(default)]
    pub access_key_id: Option<String>,
    /// Its secret; the file must then be private.
    #[serde(default)]
    pub secret_access_key: Option<String>,
    /// Or a file that holds it.
    #[serde(default)]
    pub secret_access_key_file: Option<PathBuf>,
    /// The cluster's ca.crt.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("endpoint", &self.endpoint).field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// A string, with commas between several, or a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// `"https://a:7700,https://b:7700"`.
    One(String),
    /// `["https://a:7700", "https://b:7700"]`.
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(&self) -> Vec<String> {
        match self {
            Self::One(text) => split(text),
            Self::Many(list) => list.clone(),
        }
    }
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// A value and where it came from.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// What it is.
    pub value: T,
    /// Which flag, variable or file.
    pub origin: String,
}

impl<T> std::fmt::Debug for Setting<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The value may be a secret.
        f.debug_struct("Setting").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// What a client needs to know.
#[derive(Clone, Default)]
pub struct Settings {
    /// In the order to try.
    pub endpoints: Option<Setting<Vec<String>>>,
    /// An access key's id.
    pub access_key_id: Option<Setting<String>>,
    /// Its secret.
    pub secret: Option<Setting<String>>,
    /// The cluster's ca.crt.
    pub ca_file: Option<Setting<PathBuf>>,
    /// Which context of the file was used.
    pub context: Option<Setting<String>>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settings(…)")
    }
}

/// Environment variables, or what a test says of them.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's own environment; an empty variable is as good as none.
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Settings {
    /// Gathers them from everywhere.
    ///
    /// # Errors
    /// If a file cannot be read or makes no sense, or a named context does not exist.
    pub fn gather(flags: &Global, env: Env<'_>) -> Result<Self, Error> {
        let file = find_file(flags, env)?;
        let (context, context_name) = match &file {
            Some((path, file)) => choose(flags, file, path)?,
            None if flags.context.is_some() => {
                return Err(
                    Error::usage("--context was given, but there is no configuration file").hint("make one, or name it with --config")
                );
            }
            None => (Context::default(), None),
        };
        let file_origin = file.map_or_else(String::new, |(path, _)| path.display().to_string());
        let from_file = || file_origin.clone();
        let endpoints = first([
            (!flags.endpoint.is_empty()).then(|| (flags.endpoint.iter().flat_map(|text| split(text)).collect(), "--endpoint".to_owned())),
            env("AFAR_ENDPOINT").map(|text| (split(&text), "AFAR_ENDPOINT".to_owned())),
            context.endpoint.as_ref().map(|endpoint| (endpoint.list(), from_file())),
        ]);
        let access_key_id = first([
            flags.access_key_id.clone().map(|id| (id, "--access-key-id".to_owned())),
            env("AFAR_ACCESS_KEY_ID").map(|id| (id, "AFAR_ACCESS_KEY_ID".to_owned())),
            context.access_key_id.clone().map(|id| (id, from_file())),
        ]);
        let ca_file = first([
            flags.ca_file.clone().map(|path| (path, "--ca-file".to_owned())),
            env("AFAR_CA_FILE").map(|path| (path.into(), "AFAR_CA_FILE".to_owned())),
            context.ca_file.clone().map(|path| (path, from_file())),
        ]);
        let secret = secret(flags, env, &context, &file_origin)?;
        let context = context_name.map(|value| Setting { value, origin: file_origin });
        Ok(Self { endpoints, access_key_id, secret, ca_file, context })
    }

    /// What a client is made of.
    ///
    /// # Errors
    /// If something is missing: then every thing that is, and how to say it.
    pub fn client_config(self) -> Result<Config, Error> {
        let mut missing = Vec::new();
        let mut need = |there: bool, what: &'static str| {
            if !there {
                missing.push(what);
            }
        };
        need(self.endpoints.as_ref().is_some_and(|list| !list.value.is_empty()), "an endpoint (AFAR_ENDPOINT or --endpoint)");
        need(self.access_key_id.is_some(), "an access key (AFAR_ACCESS_KEY_ID or --access-key-id)");
        need(self.secret.is_some(), "its secret (AFAR_SECRET_ACCESS_KEY, AFAR_SECRET_ACCESS_KEY_FILE or --secret-file)");
        need(self.ca_file.is_some(), "the cluster's certificate authority (AFAR_CA_FILE or --ca-file)");
        let (Some(endpoints), Some(id), Some(secret), Some(ca), true) =
            (self.endpoints, self.access_key_id, self.secret, self.ca_file, missing.is_empty())
        else {
            return Err(Error::usage(format!("not configured: {} missing", missing.join(", "))).hint(
                "source the cluster's client/env, or write a context to the configuration file; `afar config show` shows what is set",
            ));
        };
        let ca_pem = read_bounded(&ca.value, limits::CA_BYTES_MAX).map_err(|error| error.during("the certificate authority's file"))?;
        Ok(Config {
            endpoints: endpoints.value,
            access_key_id: id.value,
            secret_access_key: secret.value,
            ca_pem: ca_pem.into_bytes(),
            rounds: limits::ROUNDS,
        })
    }
}

fn first<T, const N: usize>(candidates: [Option<(T, String)>; N]) -> Option<Setting<T>> {
    candidates.into_iter().flatten().next().map(|(value, origin)| Setting { value, origin })
}

fn secret(flags: &Global, env: Env<'_>, context: &Context, file_origin: &str) -> Result<Option<Setting<String>>, Error> {
    let of_file =
        |path: &Path, origin: String| -> Result<Option<Setting<String>>, Error> { Ok(Some(Setting { value: read_secret(path)?, origin })) };
    if let Some(path) = &flags.secret_file {
        return of_file(path, "--secret-file".into());
    }
    if let Some(value) = env("AFAR_SECRET_ACCESS_KEY") {
        return Ok(Some(Setting { value, origin: "AFAR_SECRET_ACCESS_KEY".into() }));
    }
    if let Some(path) = env("AFAR_SECRET_ACCESS_KEY_FILE") {
        return of_file(Path::new(&path), "AFAR_SECRET_ACCESS_KEY_FILE".into());
    }
    if let Some(value) = &context.secret_access_key {
        refuse_public(Path::new(file_origin))?;
        return Ok(Some(Setting { value: value.clone(), origin: file_origin.to_owned() }));
    }
    match &context.secret_access_key_file {
        Some(path) => of_file(path, file_origin.to_owned()),
        None => Ok(None),
    }
}

fn find_file(flags: &Global, env: Env<'_>) -> Result<Option<(PathBuf, ConfigFile)>, Error> {
    if let Some(path) = &flags.config {
        return Ok(Some((path.clone(), read_file(path)?)));
    }
    let Some(path) = default_path(env) else { return Ok(None) };
    if path.exists() { Ok(Some((path.clone(), read_file(&path)?))) } else { Ok(None) }
}

/// `$XDG_CONFIG_HOME/afar/config.toml`, or `~/.config/afar/config.toml`.
pub fn default_path(env: Env<'_>) -> Option<PathBuf> {
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(home.join("afar/config.toml"))
}

/// Reads and checks a configuration file.
///
/// # Errors
/// If it cannot be read, is too large, or makes no sense: then where.
pub fn read_file(path: &Path) -> Result<ConfigFile, Error> {
    let text = read_bounded(path, limits::CONFIG_BYTES_MAX).map_err(|error| error.during("the configuration file"))?;
    let file: ConfigFile = toml::from_str(&text).map_err(|error| {
        // The offending line may hold a secret, so only its place and the reason are told.
        let line = error.span().map(|span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
        let place = line.map(|line| format!(" line {line}:")).unwrap_or_default();
        Error::usage(format!("{}:{place} {}", path.display(), error.message())).hint("see `man afar` for what the file may hold")
    })?;
    if let Some(name) = file.context.as_ref().filter(|name| !file.contexts.contains_key(*name)) {
        return Err(no_context(name, &file, path));
    }
    Ok(file)
}

fn choose(flags: &Global, file: &ConfigFile, path: &Path) -> Result<(Context, Option<String>), Error> {
    let only = (file.contexts.len() == 1).then(|| file.contexts.keys().next().cloned()).flatten();
    let Some(name) = flags.context.clone().or_else(|| file.context.clone()).or(only) else { return Ok((Context::default(), None)) };
    match file.contexts.get(&name) {
        Some(context) => Ok((context.clone(), Some(name))),
        None => Err(no_context(&name, file, path)),
    }
}

fn no_context(name: &str, file: &ConfigFile, path: &Path) -> Error {
    let known: Vec<&str> = file.contexts.keys().map(String::as_str).collect();
    let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
    Error::usage(format!("{}: there is no context {name:?}; {known}", path.display())).hint("name one of them with --context")
}

/// Reads a text file that must not be larger than `max` bytes; a larger one is refused unread.
///
/// # Errors
/// If it cannot be read, is larger, or is not UTF-8.
pub fn read_bounded(path: &Path, max: u64) -> Result<String, Error> {
    let wrong = |error: &io::Error| Error::new(Kind::Usage, format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(|error| wrong(&error))?;
    let size = file.metadata().map_err(|error| wrong(&error))?.len();
    let too_large =
        || Error::usage(format!("{}: is larger than {max} bytes and was not read", path.display())).hint("check that it is the right file");
    if size > max {
        return Err(too_large());
    }
    let mut text = String::new();
    let read = file.take(max + 1).read_to_string(&mut text).map_err(|error| wrong(&error))?;
    if read as u64 > max { Err(too_large()) } else { Ok(text) }
}

/// Reads a file that holds one secret and nothing else.
fn read_secret(path: &Path) -> Result<String, Error> {
    refuse_public(path)?;
    let text = read_bounded(path, limits::SECRET_BYTES_MAX)?;
    let secret = text.trim();
    if secret.is_empty() || secret.contains(char::is_whitespace) {
        return Err(Error::usage(format!("{}: does not hold one secret", path.display())));
    }
    Ok(secret.to_owned())
}

/// A secret that everybody on the machine can read is none.
fn refuse_public(path: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(path).map_err(|error| Error::usage(format!("{}: {error}", path.display())))?;
    if metadata.is_file() && metadata.permissions().mode() & 0o004 != 0 {
        return Err(Error::usage(format!("{}: holds a secret and is readable by everybody", path.display()))
            .hint(format!("chmod 600 {}", path.display())));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    const FILE: &str = r#"
context = "home"
[contexts.home]
endpoint = ["https://file:1", "https://file:2"]
access_key_id = "FILE"
secret_access_key = "file-secret"
ca_file = "/file/ca.crt"
[contexts.work]
endpoint = "https://work:1,https://work:2"
"#;

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "config.toml", FILE, 0o600);
        let none = |_: &str| None;
        let env = |name: &str| match name {
            "AFAR_ENDPOINT" => Some("https://env:1, https://env:2".to_owned()),
            "AFAR_SECRET_ACCESS_KEY" => Some("env-secret".to_owned()),
            _ => None,
        };
        let flags = Global { config: Some(path), ..Global::default() };
        let file = Settings::gather(&flags, &none).unwrap();
        assert_eq!(file.endpoints.unwrap().value, ["https://file:1", "https://file:2"]);
        assert_eq!(file.secret.unwrap().value, "file-secret");
        let both = Settings::gather(&flags, &env).unwrap();
        let endpoints = both.endpoints.unwrap();
        assert_eq!((endpoints.value.len(), endpoints.origin.as_str()), (2, "AFAR_ENDPOINT"));
        assert_eq!((both.secret.unwrap().value.as_str(), both.access_key_id.unwrap().value.as_str()), ("env-secret", "FILE"));
        let all = Settings::gather(&Global { endpoint: vec!["https://flag:1".into()], ..flags.clone() }, &env).unwrap();
        assert_eq!(all.endpoints.unwrap().value, ["https://flag:1"]);
        let work = Settings::gather(&Global { context: Some("work".into()), ..flags.clone() }, &none).unwrap();
        assert_eq!(work.endpoints.unwrap().value, ["https://work:1", "https://work:2"]);
        let error = Settings::gather(&Global { context: Some("wrok".into()), ..flags }, &none).unwrap_err();
        assert!(error.message().contains("home, work"), "{error}");
    }

    #[test]
    fn a_faulty_file_is_refused_with_its_place_and_never_its_secret() {
        let folder = tempfile::tempdir().unwrap();
        for (text, expected) in [
            ("[contexts.a]\nendpiont = \"x\"\n", "line 2"),
            ("context = \"b\"\n", "no context \"b\""),
            ("[contexts.a\n", "line 1"),
            ("[contexts.a]\nsecret_access_key = hush\n", "line 2"),
            ("[contexts.a]\naccess_key_id = 7\n", "line 2"),
        ] {
            let path = write(folder.path(), "config.toml", text, 0o600);
            let error = read_file(&path).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.message().contains(expected) && !error.message().contains("hush"), "{error}");
        }
        let large = write(folder.path(), "config.toml", &"#".repeat(limits::CONFIG_BYTES_MAX as usize + 1), 0o600);
        assert!(read_file(&large).unwrap_err().message().contains("not read"));
    }

    #[test]
    fn a_secret_that_everybody_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let public = write(folder.path(), "public", "hush\n", 0o644);
        let private = write(folder.path(), "private", "hush\n", 0o600);
        assert_eq!(read_secret(&private).unwrap(), "hush");
        let error = read_secret(&public).unwrap_err();
        assert!(error.what_to_do().unwrap().starts_with("chmod 600"));
        let none = |_: &str| None;
        let config = write(folder.path(), "config.toml", FILE, 0o644);
        assert!(Settings::gather(&Global { config: Some(config), ..Global::default() }, &none).is_err());
    }

    #[test]
    fn everything_that_is_missing_is_named_at_once() {
        let error = Settings::default().client_config().unwrap_err();
        for name in ["AFAR_ENDPOINT", "AFAR_ACCESS_KEY_ID", "AFAR_SECRET_ACCESS_KEY", "AFAR_CA_FILE"] {
            assert!(error.message().contains(name), "{error}");
        }
    }
}
