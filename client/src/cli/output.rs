//! Where things are said: results on standard output, everything else on standard error. With `--json` a result is JSON and
//! an error is a JSON object on the last line of standard error.
use crate::error::{Error, Kind};
use serde_json::{Value, json};
use std::io::{self, IsTerminal as _, Write as _};

/// How this run talks.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    /// Results as JSON.
    pub json: bool,
    /// Only results and errors.
    pub quiet: bool,
    /// More detail.
    pub verbose: u8,
    /// Colours on standard output.
    pub color: bool,
    /// Progress on standard error.
    pub progress: ProgressStyle,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProgressStyle {
    /// A bar on a terminal, else a line every 30 s.
    Auto,
    /// A bar.
    Bar,
    /// A line every 30 s.
    Plain,
    /// Nothing.
    None,
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Decides about colours: the flag, then `NO_COLOR`, then `CLICOLOR_FORCE`, then whether it is a terminal that has any.
pub fn use_color(choice: ColorChoice, env: &dyn Fn(&str) -> Option<String>, terminal: bool) -> bool {
    let set = |name: &str| env(name).is_some_and(|value| !value.is_empty() && value != "0");
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto if env("NO_COLOR").is_some_and(|value| !value.is_empty()) => false,
        ColorChoice::Auto if set("CLICOLOR_FORCE") => true,
        ColorChoice::Auto => terminal && env("TERM").as_deref() != Some("dumb"),
    }
}

impl Out {
    /// A line of the result.
    ///
    /// # Errors
    /// If standard output is closed or cannot be written to.
    pub fn line(&self, text: impl AsRef<str>) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_ref().as_bytes()).and_then(|()| stdout.write_all(b"\n")).map_err(|error| closed(&error))
    }

    /// Several lines of the result.
    ///
    /// # Errors
    /// As of [`Self::line`].
    pub fn lines(&self, lines: &[String]) -> Result<(), Error> {
        lines.iter().try_for_each(|line| self.line(line))
    }

    /// One JSON value on a line of its own.
    ///
    /// # Errors
    /// As of [`Self::line`].
    pub fn value(&self, value: &Value) -> Result<(), Error> {
        self.line(value.to_string())
    }

    /// JSON or words, as asked for.
    ///
    /// # Errors
    /// As of [`Self::line`].
    pub fn either(&self, value: impl FnOnce() -> Value, words: impl FnOnce() -> String) -> Result<(), Error> {
        if self.json { self.value(&value()) } else { self.line(words()) }
    }

    /// A remark beside the result.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            say(text.as_ref());
        }
    }

    /// Something that did not work, but did not end the work either.
    pub fn warn(&self, error: &Error) {
        if self.json {
            say(&json!({"message_type": "error", "code": error.kind().exit_code(), "id": error.kind().id(), "message": error.message()})
                .to_string());
        } else {
            say(&format!("afar: {error}"));
        }
    }

    /// Colours a word by the state that it names.
    pub fn paint(&self, state: &str, text: &str) -> String {
        let code = match state {
            "safe" | "ok" | "up" => "32",
            "degraded" | "warning" | "unknown" | "suspect" | "catching_up" | "draining" | "read_only" => "33",
            "at_risk" | "lost" | "critical" | "down" => "31",
            _ => return text.to_owned(),
        };
        if self.color { format!("\x1b[1;{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Writes a line to standard error; that it cannot be read is no reason to stop.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn closed(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Error::new(Kind::OutputClosed, "the reader has gone"),
        _ => Error::io("write to standard output", error),
    }
}

/// An error's last word, as JSON.
pub fn exit_error(code: u8, id: &str, message: &str, hint: Option<&str>) -> Value {
    json!({"message_type": "exit_error", "code": code, "id": id, "message": message, "hint": hint})
}

/// Says an error, unless the reader has gone.
pub fn report(json: bool, error: &Error) {
    let code = error.kind().exit_code();
    if code == 0 {
        return;
    }
    let maybe = if error.may_still_happen() { "; it may still take effect later" } else { "" };
    let message = format!("{}{maybe}", error.message());
    if json {
        say(&exit_error(code, error.kind().id(), &message, error.what_to_do()).to_string());
    } else {
        say(&format!("afar: {message}"));
        if let Some(hint) = error.what_to_do() {
            say(&format!("  try: {hint}"));
        }
    }
}

/// Asks a question that only a person can answer.
///
/// # Errors
/// If there is no person: then the flag that answers.
pub fn confirm(question: &str, flag: &str) -> Result<bool, Error> {
    if !io::stdin().is_terminal() {
        return Err(Error::usage(format!("{question} Nobody is there to ask.")).hint(format!("say {flag} if that is what you want")));
    }
    let _ = write!(io::stderr().lock(), "{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| Error::io("read the answer", &error))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_follow_the_conventions() {
        let none = |_: &str| None;
        let no_color = |name: &str| (name == "NO_COLOR").then(|| "1".to_owned());
        let force = |name: &str| (name == "CLICOLOR_FORCE").then(|| "1".to_owned());
        let dumb = |name: &str| (name == "TERM").then(|| "dumb".to_owned());
        assert!(use_color(ColorChoice::Auto, &none, true) && !use_color(ColorChoice::Auto, &none, false));
        assert!(!use_color(ColorChoice::Auto, &no_color, true) && use_color(ColorChoice::Always, &no_color, false));
        assert!(use_color(ColorChoice::Auto, &force, false) && !use_color(ColorChoice::Auto, &dumb, true));
    }

    #[test]
    fn an_error_in_json_has_the_shape_of_the_contract() {
        let value = exit_error(10, "E_NOT_FOUND", "no", Some("look"));
        assert_eq!((&value["message_type"], &value["code"], &value["hint"]), (&json!("exit_error"), &json!(10), &json!("look")));
    }
}
