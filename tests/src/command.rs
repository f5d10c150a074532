//! The command line, as a user runs it: arguments and environment in, exit code and two streams out.
use crate::{limits::COMMAND_MAX, programs::Programs};
use serde_json::Value;
use std::{
    ffi::OsStr,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How a command is run: with which endpoints, key and authority.
#[derive(Debug, Clone)]
pub struct Afar {
    environment: Vec<(String, String)>,
    programs: Programs,
}

/// What came of a command.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line, for messages.
    pub line: String,
    /// The exit code; 128 + n after signal n.
    pub code: i32,
    /// What it printed as its result.
    pub stdout: Vec<u8>,
    /// Everything else.
    pub stderr: String,
}

impl Afar {
    /// Commands with exactly this environment; `home` is where they find and keep files of their own.
    pub fn new(home: &Path, environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let own = [("HOME", "home"), ("XDG_CONFIG_HOME", "config"), ("XDG_STATE_HOME", "state"), ("XDG_CACHE_HOME", "cache")];
        let own = own.into_iter().map(|(name, folder)| (name.to_owned(), home.join(folder).display().to_string()));
        Self { environment: own.chain(environment).collect(), programs: Programs::today() }
    }

    /// The same with another variable, or another value for one.
    pub fn with(&self, name: &str, value: impl Into<String>) -> Self {
        let mut environment = self.environment.clone();
        environment.retain(|(present, _)| present != name);
        environment.push((name.to_owned(), value.into()));
        Self { environment, programs: self.programs.clone() }
    }

    /// The same, by the client of this version.
    #[must_use]
    pub fn by(mut self, programs: &Programs) -> Self {
        self.programs = programs.clone();
        self
    }

    /// What a command would see.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().find(|(present, _)| present == name).map(|(_, value)| value.as_str())
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(self.programs.afar());
        command.args(arguments).env_clear().envs(self.environment.iter().cloned());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    /// Starts a command and leaves it to the caller; its streams are piped.
    pub fn start<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Child {
        self.command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start afar")
    }

    /// Runs a command to its end, without input.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Ran {
        self.run_with_input(arguments, &[])
    }

    /// Runs a command to its end, with this on its standard input.
    ///
    /// # Panics
    /// If it does not end within [`COMMAND_MAX`].
    pub fn run_with_input<S: AsRef<OsStr>>(&self, arguments: &[S], input: &[u8]) -> Ran {
        let line = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
        finish(self.start(arguments), &line, input, COMMAND_MAX)
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Ran {
        self.run(arguments).expect(0)
    }
}

/// Waits for a child, feeding and draining its streams meanwhile.
///
/// # Panics
/// If it does not end within `most`: then it is killed.
pub fn finish(mut child: Child, line: &str, input: &[u8], most: Duration) -> Ran {
    let start = Instant::now();
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(pipe) = stdin.as_mut() {
                let _ = pipe.write_all(input); // who does not read it has its reasons
            }
        });
        let out = scope.spawn(move || drain(stdout.as_mut()));
        let err = scope.spawn(move || drain(stderr.as_mut()));
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait for afar") {
                break status;
            }
            if start.elapsed() > most {
                let _ = child.kill();
                let _ = child.wait();
                panic!("afar {line}: not within {most:?}; {}", String::from_utf8_lossy(&err.join().unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        Ran {
            line: line.to_owned(),
            code: status.code().or(signal.map(|signal| 128 + signal)).unwrap_or(-1),
            stdout: out.join().unwrap_or_default(),
            stderr: String::from_utf8_lossy(&err.join().unwrap_or_default()).into_owned(),
        }
    })
}

fn drain(pipe: Option<&mut impl Read>) -> Vec<u8> {
    let mut all = Vec::new();
    if let Some(pipe) = pipe {
        let _ = pipe.read_to_end(&mut all);
    }
    all
}

impl Ran {
    /// The exit code must be this.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// The exit code must be one of these.
    ///
    /// # Panics
    /// If it is none of them.
    #[track_caller]
    pub fn expect_one_of(self, codes: &[i32]) -> Self {
        assert!(codes.contains(&self.code), "none of {codes:?}: {self}");
        self
    }

    /// The one JSON document that it printed.
    ///
    /// # Panics
    /// If it printed none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }

    /// Each line of JSON that it printed.
    ///
    /// # Panics
    /// If a line is none.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let lines = self.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))).collect()
    }

    /// Both streams as text: for what must be said somewhere.
    pub fn text(&self) -> String {
        format!("{}\n{}", String::from_utf8_lossy(&self.stdout), self.stderr)
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let out = String::from_utf8_lossy(self.stdout.get(..4096.min(self.stdout.len())).unwrap_or_default());
        write!(f, "afar {}: exit {}\n{out}\n{}", self.line, self.code, self.stderr)
    }
}
