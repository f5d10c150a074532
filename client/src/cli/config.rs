//! Settings: flags, then the environment, then the configuration file's context. Each remembers where it came from, so that
//! `afar config show` can say it.
//!
//! Secrets never come from the command line, where every user of the machine can read them: a variable, a file, a command that
//! prints it, a credential of systemd's, or the configuration file. They are fetched when they are needed, so that showing or
//! checking settings asks nobody for a passphrase. A file that others may read or write is refused.
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
    process::{Child, Command, Stdio},
    sync::mpsc,
};

/// What the secret is called below `$CREDENTIALS_DIRECTORY` (systemd's `LoadCredential=`).
pub const CREDENTIAL: &str = "afar-secret-access-key";

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
    /// Or a command, for `sh -c`, that prints it; nobody else may then write to the configuration file.
    #[serde(default)]
    pub secret_access_key_command: Option<String>,
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

/// Where a secret is to be had.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// Here.
    Text(String),
    /// In a file that holds nothing else.
    File(PathBuf),
    /// A command, for `sh -c`, prints it.
    Command(String),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// The secret itself.
    ///
    /// # Errors
    /// If its file is not private or cannot be read, its command fails, or either holds anything but one secret.
    pub fn reveal(&self) -> Result<String, Error> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => read_secret(path),
            Self::Command(command) => run_command(command),
        }
    }

    /// What may be shown of it.
    pub fn shown(&self) -> String {
        match self {
            Self::Text(_) => "(set)".to_owned(),
            Self::File(path) => format!("(in {})", path.display()),
            Self::Command(_) => "(printed by a command)".to_owned(),
        }
    }
}

/// What a client needs to know.
#[derive(Clone, Default)]
pub struct Settings {
    /// In the order to try.
    pub endpoints: Option<Setting<Vec<String>>>,
    /// An access key's id.
    pub access_key_id: Option<Setting<String>>,
    /// Its secret, or where it is to be had.
    pub secret: Option<Setting<Secret>>,
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
        need(self.secret.is_some(), "its secret (AFAR_SECRET_ACCESS_KEY, .._FILE, .._COMMAND or --secret-file)");
        need(self.ca_file.is_some(), "the cluster's certificate authority (AFAR_CA_FILE or --ca-file)");
        let (Some(endpoints), Some(id), Some(secret), Some(ca), true) =
            (self.endpoints, self.access_key_id, self.secret, self.ca_file, missing.is_empty())
        else {
            return Err(Error::usage(format!("not configured: {} missing", missing.join(", "))).hint(
                "source the cluster's client/env, or write a context to the configuration file; `afar config show` shows what is set",
            ));
        };
        let secret_access_key = secret.value.reveal().map_err(|error| error.during(format!("the secret ({})", secret.origin)))?;
        let ca_pem = read_bounded(&ca.value, limits::CA_BYTES_MAX).map_err(|error| error.during("the certificate authority's file"))?;
        Ok(Config {
            endpoints: endpoints.value,
            access_key_id: id.value,
            secret_access_key,
            ca_pem: ca_pem.into_bytes(),
            rounds: limits::ROUNDS,
        })
    }
}

fn first<T, const N: usize>(candidates: [Option<(T, String)>; N]) -> Option<Setting<T>> {
    candidates.into_iter().flatten().next().map(|(value, origin)| Setting { value, origin })
}

fn secret(flags: &Global, env: Env<'_>, context: &Context, file_origin: &str) -> Result<Option<Setting<Secret>>, Error> {
    let credential = || Some(Path::new(&env("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL)).filter(|path| path.exists());
    let told = first([
        flags.secret_file.clone().map(|path| (Secret::File(path), "--secret-file".to_owned())),
        env("AFAR_SECRET_ACCESS_KEY").map(|text| (Secret::Text(text), "AFAR_SECRET_ACCESS_KEY".to_owned())),
        env("AFAR_SECRET_ACCESS_KEY_FILE").map(|path| (Secret::File(path.into()), "AFAR_SECRET_ACCESS_KEY_FILE".to_owned())),
        env("AFAR_SECRET_ACCESS_KEY_COMMAND").map(|text| (Secret::Command(text), "AFAR_SECRET_ACCESS_KEY_COMMAND".to_owned())),
        credential().map(|path| (Secret::File(path), "CREDENTIALS_DIRECTORY".to_owned())),
    ]);
    if told.is_some() {
        return Ok(told);
    }
    let found = of_context(context);
    if found.as_ref().is_some_and(|secret| !matches!(secret, Secret::File(_))) {
        refuse_public(Path::new(file_origin))?;
    }
    Ok(found.map(|value| Setting { value, origin: file_origin.to_owned() }))
}

fn of_context(context: &Context) -> Option<Secret> {
    let text = context.secret_access_key.clone().map(Secret::Text);
    let file = || context.secret_access_key_file.clone().map(Secret::File);
    text.or_else(file).or_else(|| context.secret_access_key_command.clone().map(Secret::Command))
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
    for (name, context) in &file.contexts {
        let sources =
            [context.secret_access_key.is_some(), context.secret_access_key_file.is_some(), context.secret_access_key_command.is_some()];
        if sources.into_iter().filter(|given| *given).count() > 1 {
            return Err(Error::usage(format!("{}: context {name:?} has more than one secret", path.display()))
                .hint("keep one of secret_access_key, secret_access_key_file and secret_access_key_command"));
        }
    }
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
    let wrong = || {
        let what = Error::usage(format!("{}: does not hold one secret and nothing else", path.display()));
        match text.contains("secret_access_key") {
            true => what
                .hint("this file names a key and its secret, as a node reads it: write the secret alone into a file, or source client/env"),
            false => what.hint("write into it what `afar key create` showed as secret_access_key, alone"),
        }
    };
    one_secret(&text).ok_or_else(wrong)
}

fn one_secret(text: &str) -> Option<String> {
    let secret = text.trim();
    (!secret.is_empty() && !secret.contains(char::is_whitespace)).then(|| secret.to_owned())
}

/// Lets a command print the secret. Its errors go where ours go; it gets no input, for ours may be what is to be put. Neither
/// the command nor what it prints is ever shown.
fn run_command(command: &str) -> Result<String, Error> {
    let failed = |why: String| Error::usage(format!("the command {why}")).hint("run the command by itself: it must print the secret alone");
    let child = Command::new("/bin/sh").args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| failed(format!("cannot be started: {error}")))?;
    let printed = printed(&mut child);
    if !matches!(printed, Some(Ok(_))) {
        let _ = child.kill(); // it may have ended by itself
    }
    let status = child.wait().map_err(|error| failed(format!("cannot be waited for: {error}")))?;
    let text = match printed {
        None => return Err(failed(format!("printed nothing for {} s", limits::SECRET_COMMAND_MAX.as_secs()))),
        Some(Err(error)) => return Err(failed(format!("printed what is no secret: {error}"))),
        Some(Ok(_)) if !status.success() => return Err(failed(format!("failed ({status})"))),
        Some(Ok(text)) => text,
    };
    one_secret(&text).ok_or_else(|| failed("does not print one secret and nothing else".into()))
}

/// All that it prints; `None` if that takes too long.
fn printed(child: &mut Child) -> Option<io::Result<String>> {
    let stdout = child.stdout.take()?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.take(limits::SECRET_BYTES_MAX + 1).read_to_string(&mut text);
        let bounded = match read {
            Ok(bytes) if bytes as u64 > limits::SECRET_BYTES_MAX => Err(io::Error::other("it is far too long")),
            Ok(_) => Ok(text),
            Err(error) => Err(error),
        };
        let _ = sender.send(bounded); // nobody waits for it any more
    });
    receiver.recv_timeout(limits::SECRET_COMMAND_MAX).ok()
}

/// Whether a file's secrets, and commands that print them, are out of reach of others.
///
/// # Errors
/// If the file is not private although it holds a secret or a command.
pub fn check_secrets(path: &Path, file: &ConfigFile) -> Result<(), Error> {
    let needs_privacy = |context: &Context| context.secret_access_key.is_some() || context.secret_access_key_command.is_some();
    if file.contexts.values().any(needs_privacy) { refuse_public(path) } else { Ok(()) }
}

/// A secret that everybody on the machine can read is none, and one that everybody can write is somebody else's.
fn refuse_public(path: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(path).map_err(|error| Error::usage(format!("{}: {error}", path.display())))?;
    let others = metadata.permissions().mode() & 0o006;
    if !metadata.is_file() || others == 0 {
        return Ok(());
    }
    let how = if others & 0o004 == 0 { "writable" } else { "readable" };
    Err(Error::usage(format!("{}: holds a secret and is {how} by everybody", path.display()))
        .hint(format!("chmod 600 {}, and change the secret if others have logins here", path.display())))
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
        assert_eq!(file.secret.unwrap().value.reveal().unwrap(), "file-secret");
        let both = Settings::gather(&flags, &env).unwrap();
        let endpoints = both.endpoints.unwrap();
        assert_eq!((endpoints.value.len(), endpoints.origin.as_str()), (2, "AFAR_ENDPOINT"));
        assert_eq!((both.secret.unwrap().value, both.access_key_id.unwrap().value.as_str()), (Secret::Text("env-secret".into()), "FILE"));
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
            ("[contexts.a]\nsecret_access_key = \"hush\"\nsecret_access_key_command = \"true\"\n", "more than one secret"),
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
        for (text, hint) in
            [("", "key create"), ("two words", "key create"), ("access_key_id = \"A\"\nsecret_access_key = \"hush\"\n", "alone")]
        {
            let error = read_secret(&write(folder.path(), "no-secret", text, 0o600)).unwrap_err();
            assert!(error.what_to_do().unwrap().contains(hint) && !format!("{error:?}").contains("hush"), "{error:?}");
        }
        let none = |_: &str| None;
        let config = write(folder.path(), "config.toml", FILE, 0o644);
        assert!(Settings::gather(&Global { config: Some(config), ..Global::default() }, &none).is_err());
    }

    #[test]
    fn a_secret_comes_from_the_first_of_its_places_and_is_fetched_only_when_needed() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = folder.path().join("credentials");
        fs::create_dir(&credentials).unwrap();
        let file = write(folder.path(), "file", "from-file\n", 0o600).display().to_string();
        let flag = write(folder.path(), "flag", "from-flag\n", 0o600);
        write(&credentials, CREDENTIAL, "from-credential\n", 0o400);
        let ran = folder.path().join("ran");
        let command = format!("touch {}; cat; echo from-command", ran.display());
        let config = write(folder.path(), "config.toml", "[contexts.a]\nsecret_access_key_command = \"echo from-config\"\n", 0o600);
        let mut variables = vec![
            ("AFAR_SECRET_ACCESS_KEY", "from-variable".to_owned()),
            ("AFAR_SECRET_ACCESS_KEY_FILE", file),
            ("AFAR_SECRET_ACCESS_KEY_COMMAND", command),
            ("CREDENTIALS_DIRECTORY", credentials.display().to_string()),
        ];
        let mut flags = Global { config: Some(config), secret_file: Some(flag), ..Global::default() };
        let expected = ["from-flag", "from-variable", "from-file", "from-command", "from-credential", "from-config"];
        for (step, secret) in expected.into_iter().enumerate() {
            let env = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
            let found = Settings::gather(&flags, &env).unwrap().secret.unwrap();
            assert!(!ran.exists(), "only to know where it comes from, nothing is run");
            assert!(!found.value.shown().contains("from-") && !format!("{found:?} {:?}", found.value).contains("from-"));
            assert_eq!(found.value.reveal().unwrap(), secret);
            let _ = fs::remove_file(&ran);
            match step {
                0 => flags.secret_file = None,
                _ if variables.is_empty() => {}
                _ => drop(variables.remove(0)),
            }
        }
    }

    #[test]
    fn a_command_that_prints_no_secret_is_a_usage_error_that_shows_nothing() {
        for command in ["exit 3", "true", "echo two words", "echo hush; false", "head -c 70000 /dev/zero | tr '\\0' x", "printf '\\377'"] {
            let error = Secret::Command(command.into()).reveal().unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{command}");
            assert!(!format!("{error} {:?}", error.what_to_do()).contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_command_in_a_file_that_everybody_can_write_is_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let config = write(folder.path(), "config.toml", "[contexts.a]\nsecret_access_key_command = \"echo x\"\n", 0o602);
        let none = |_: &str| None;
        let error = Settings::gather(&Global { config: Some(config.clone()), ..Global::default() }, &none).unwrap_err();
        assert!(error.message().contains("writable by everybody"), "{error}");
        assert!(check_secrets(&config, &read_file(&config).unwrap()).is_err());
    }

    #[test]
    fn everything_that_is_missing_is_named_at_once() {
        let error = Settings::default().client_config().unwrap_err();
        for name in ["AFAR_ENDPOINT", "AFAR_ACCESS_KEY_ID", "AFAR_SECRET_ACCESS_KEY", "AFAR_CA_FILE"] {
            assert!(error.message().contains(name), "{error}");
        }
    }
}
