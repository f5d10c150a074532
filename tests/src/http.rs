//! A node's HTTP port, asked by curl as operators do, and its metrics, read more strictly than Prometheus does.
use crate::{
    cluster::{Cluster, Node},
    command::finish,
    limits::COMMAND_MAX,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Command, Stdio},
};

/// What curl got.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 0: none; then `body` is what curl complained of.
    pub status: u16,
    /// The version of HTTP, as curl writes it.
    pub version: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The content.
    pub body: String,
}

impl Node {
    /// Gives it an HTTP port from its next start on.
    ///
    /// # Panics
    /// If no port is free.
    pub fn open_http(&self) -> SocketAddr {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a free port");
        self.configure("http.listen", address.to_string());
        address
    }

    /// Where its HTTP port is.
    ///
    /// # Panics
    /// If it has none.
    pub fn http(&self) -> SocketAddr {
        let file = self.config();
        let listen = file.get("http").and_then(|http| http.get("listen")).and_then(|listen| listen.as_str());
        listen.and_then(|listen| listen.parse().ok()).expect("it has an HTTP port")
    }
}

/// How curl is called.
#[derive(Debug, Clone)]
pub struct Curl {
    authority: PathBuf,
}

impl Curl {
    /// Believes the cluster's authority.
    pub fn of(cluster: &Cluster) -> Self {
        Self::believing(cluster.root().join("client/ca.crt"))
    }

    /// Believes the authority in this file and no other.
    pub const fn believing(authority: PathBuf) -> Self {
        Self { authority }
    }

    /// Asks for a path; `flags` may say anything else.
    pub fn get<S: AsRef<OsStr>>(&self, address: SocketAddr, path: &str, flags: &[S]) -> Answer {
        self.get_url(&format!("https://{address}{path}"), flags)
    }

    /// As [`Curl::get`], with the whole address.
    ///
    /// # Panics
    /// If there is no curl, or it does not end.
    pub fn get_url<S: AsRef<OsStr>>(&self, url: &str, flags: &[S]) -> Answer {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--include", "--max-time", "60", "--cacert"]).arg(&self.authority).args(flags).arg(url);
        command.env_remove("https_proxy").env_remove("HTTPS_PROXY").env_remove("ALL_PROXY");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("these tests need curl");
        let ran = finish(child, url, &[], COMMAND_MAX);
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        match text.split_once("\r\n\r\n") {
            Some((head, body)) => Answer::new(head, body),
            None => Answer { status: 0, version: String::new(), headers: BTreeMap::new(), body: ran.stderr },
        }
    }
}

impl Answer {
    fn new(head: &str, body: &str) -> Self {
        let mut lines = head.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let version = first.next().unwrap_or_default().to_owned();
        let status = first.next().and_then(|status| status.parse().ok()).unwrap_or(0);
        let headers = lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Self { status, version, headers, body: body.to_owned() }
    }

    /// The content as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// A page of metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Names of families, as `# TYPE` says them, with their types.
    pub families: BTreeMap<String, String>,
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

impl Metrics {
    /// Reads a page of OpenMetrics, whose every line must be as that says.
    ///
    /// # Errors
    /// The first line that is not, and why.
    pub fn parse(page: &str) -> Result<Self, String> {
        let lines = page.strip_suffix("# EOF\n").ok_or("does not end with # EOF")?;
        let (mut found, mut family) = (Self::default(), String::new());
        let mut helped = BTreeSet::new();
        for line in lines.lines() {
            let wrong = |why: &str| format!("{why}: {line:?}");
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["#", "HELP", name, _, ..] => {
                    helped.insert((*name).to_owned());
                }
                ["#", "TYPE", name, kind @ ("gauge" | "counter")] if is_name(name) => {
                    family = (*name).to_owned();
                    if !helped.contains(*name) || found.families.insert(family.clone(), (*kind).to_owned()).is_some() {
                        return Err(wrong("twice, or without help"));
                    }
                }
                ["#", "UNIT", name, unit] if *name == family && name.ends_with(&format!("_{unit}")) => {}
                ["#", ..] => return Err(wrong("no such comment")),
                _ => {
                    let (sample, value) = line.rsplit_once(' ').ok_or_else(|| wrong("no value"))?;
                    let (name, labels) = sample.split_once('{').map_or((sample, Some("")), |(name, rest)| (name, rest.strip_suffix('}')));
                    let labels = labels.and_then(labels_of).ok_or_else(|| wrong("labels"))?;
                    let value: f64 = value.parse().map_err(|_| wrong("no number"))?;
                    let suffix = if found.families.get(&family).is_some_and(|kind| kind == "counter") { "_total" } else { "" };
                    if name != format!("{family}{suffix}") || !value.is_finite() || (!suffix.is_empty() && value < 0.0) {
                        return Err(wrong("not of the family above, or no value of its kind"));
                    }
                    if found.samples.insert((name.to_owned(), labels), value).is_some() {
                        return Err(wrong("twice"));
                    }
                }
            }
        }
        Ok(found)
    }

    /// One sample's value.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }

    /// The names of all samples: what is asked for in a query.
    pub fn names(&self) -> BTreeSet<&str> {
        self.samples.keys().map(|(name, _)| name.as_str()).collect()
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// `a="b",c="d"`; none of ours has anything to escape.
fn labels_of(text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for label in text.split(',').filter(|label| !label.is_empty()) {
        let (name, value) = label.split_once('=')?;
        let value = value.strip_prefix('"')?.strip_suffix('"')?;
        let is_new = labels.insert(name.to_owned(), value.to_owned()).is_none();
        if !is_name(name) || value.contains(['"', '\\']) || !is_new {
            return None;
        }
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_strictly() {
        let good = "# HELP a_bytes A.\n# TYPE a_bytes gauge\n# UNIT a_bytes bytes\na_bytes{b=\"c\"} 1.5\n# HELP d D.\n# TYPE d counter\nd_total 2\n# EOF\n";
        let read = Metrics::parse(good).unwrap();
        assert_eq!((read.value("a_bytes", &[("b", "c")]), read.value("d_total", &[])), (Some(1.5), Some(2.0)));
        let bad = [
            ("# EOF\n", ""),
            ("a_bytes{b=\"c\"} 1.5", "a_bytes{b=\"c\"} x"),
            ("a_bytes{b=\"c\"} 1.5", "e 1.5"),
            ("a_bytes{b=\"c\"} 1.5", "a_bytes{b=c} 1.5"),
            ("d_total 2", "d 2"),
            ("d_total 2", "d_total 2\nd_total 2"),
            ("# UNIT a_bytes bytes", "# UNIT a_bytes seconds"),
            ("# HELP d D.\n", ""),
        ];
        for (from, to) in bad {
            assert!(Metrics::parse(&good.replace(from, to)).is_err(), "{from} {to}");
        }
    }
}
