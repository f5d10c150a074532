//! Every fault is named with its line, and all of them at once.
use super::*;
use crate::cluster::testing::write_secret;
use std::fs;

const GOOD: &str = r#"cluster = "demo"
node = "strasbourg"
listen = "127.0.0.1:7700"
data = ["data"]
state = "state"
pid_file = "pid"
[tls]
ca = "ca.crt"
certificate = "node.crt"
key = "node.key"
[secrets]
cluster = "cluster.secret"
admin_key = "admin.key"
[limits]
transfer = "256MiB"
connections = 8
[policy]
copies = 2
far_copies = 2
min_distance_km = 700
level = "far"
home = "strasbourg"
verify_distance = "off"
[layout]
version = 1
partitions = 8192
[[layout.sites]]
name = "strasbourg"
latitude = 48.5734
longitude = 7.7521
country = "FR"
provider = "example"
[[layout.sites]]
name = "warsaw"
latitude = 52.2297
longitude = 21.0122
uncertainty_m = 0
country = "PL"
[[layout.nodes]]
name = "strasbourg"
site = "strasbourg"
endpoint = "https://127.0.0.1:7700"
capacity = "1TiB"
[[layout.nodes]]
name = "warsaw"
site = "warsaw"
endpoint = "https://127.0.0.1:7702"
capacity = 1_000_000
"#;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_secret(&folder.path().join("cluster.secret"), &format!("{}\n", "ab".repeat(32)));
    write_secret(&folder.path().join("admin.key"), "access_key_id = \"AFAR1\"\nsecret_access_key = \"0123456789abcdef\"\n");
    folder
}

fn problems_in(folder: &Path, text: &str) -> Vec<String> {
    let path = folder.join("afard.toml");
    fs::write(&path, text).unwrap();
    let shorten = |problem: &String| problem.replace(&format!("{}/", folder.display()), "");
    Config::load(&path).map_or_else(|error| error.problems.iter().map(shorten).collect(), |_| Vec::new())
}

#[track_caller]
fn check(from: &str, to: &str, expected: &[&str]) {
    assert!(GOOD.contains(from), "{from}");
    assert_eq!(problems_in(folder().path(), &GOOD.replacen(from, to, 1)), expected);
}

#[test]
fn a_good_file_is_read() {
    let folder = folder();
    let path = folder.path().join("afard.toml");
    fs::write(&path, GOOD).unwrap();
    let config = Config::load(&path).unwrap();
    assert_eq!(config.host, "127.0.0.1");
    assert_eq!(config.data, [folder.path().join("data")]);
    assert_eq!(config.limits.transfer, 256 << 20);
    assert_eq!(config.limits.index_cache, limits::INDEX_CACHE_DEFAULT);
    assert_eq!((config.policy.min_distance, config.policy.verify_distance), (Metres(700_000), VerifyDistance::Off));
    assert_eq!(config.genesis.layout.nodes()[0].capacity, 1 << 40);
    assert_eq!(config.admin.access_key_id, "AFAR1");
    assert_eq!(config.feasible(), Ok(()));
    assert!(!format!("{config:?}").contains("0123456789abcdef"), "secrets do not print");
}

#[test]
fn typing_mistakes_get_a_suggestion() {
    check("pid_file", "pid_fiel", &["line 6: pid_fiel is not known: did you mean pid_file?"]);
    check("copies = 2", "copys = 2", &["line 18: policy.copys is not known: did you mean copies?"]);
    check(
        "[limits]",
        "[limits]\nfrobnicate = 1",
        &["line 15: limits.frobnicate is not known: known are connections, index_cache, segment, transfer"],
    );
    check(
        "country = \"FR\"",
        "contry = \"FR\"",
        &[
            "line 27: layout.sites.country is missing: write country = \"…\"",
            "line 31: layout.sites.contry is not known: did you mean country?",
        ],
    );
}

#[test]
fn wrong_types_and_ranges_are_named() {
    check(
        "listen = \"127.0.0.1:7700\"",
        "listen = \"here\"",
        &["line 3: listen = \"here\": must be an IP address and a port, such as \"0.0.0.0:7700\""],
    );
    check("data = [\"data\"]", "data = \"data\"", &["line 4: data = \"data\": must be a list of texts, such as [\"a\", \"b\"]"]);
    check("data = [\"data\"]", "data = []", &["line 4: data = []: name at least one directory"]);
    check("data = [\"data\"]", "data = [\"a\", \"a\"]", &["line 4: data names \"a\" twice: name each directory once"]);
    check(
        "transfer = \"256MiB\"",
        "transfer = \"1KiB\"",
        &["line 15: limits.transfer = \"1KiB\": must be a size from 32.0 MiB to 2.0 GiB, such as \"64MiB\""],
    );
    check("connections = 8", "connections = -8", &["line 16: limits.connections = -8: must be a whole number from 1 to 4096"]);
    check(
        "connections = 8",
        "connections = 600",
        &[
            "line 16: limits.connections = 600: each takes 64 KiB of limits.transfer, and 256 MiB have room for 512: raise limits.transfer or lower this",
        ],
    );
    check("copies = 2", "copies = \"two\"", &["line 18: policy.copies = \"two\": must be a whole number from 1 to 255"]);
    check("level = \"far\"", "level = \"local\"", &["line 21: policy.level = \"local\": must be \"far\" or \"full\""]);
    check("latitude = 48.5734", "latitude = nan", &["line 27: site \"strasbourg\": latitude NaN: must be a number from -90 to 90"]);
    check(
        "longitude = 7.7521",
        "longitude = 187.7521",
        &["line 27: site \"strasbourg\": longitude 187.7521: must be a number from -180 to 180"],
    );
    check("[tls]", "tls = 3\n[tlsx]", &["line 7: tls = 3: must be a section: write [tls]", "line 8: tlsx is not known: did you mean tls?"]);
}

#[test]
fn the_public_ports_are_checked() {
    check("[tls]", "[http]\n[tls]", &["line 7: http.listen is missing: write listen = \"…\""]);
    check(
        "[tls]",
        "[http]\nlisten = \"127.0.0.1:7700\"\n[tls]",
        &["line 7: http.listen = \"127.0.0.1:7700\": is the same as listen: HTTP needs a port of its own"],
    );
    check("[tls]", "[public_tls]\nkey = \"k\"\n[tls]", &["line 7: [public_tls]: name both certificate and key, or neither"]);
    let acme = "[public_tls.acme]\ndomains = [\"a.example.net\"]\nagree_to_terms = true\n";
    check("[tls]", &format!("{acme}[tls]"), &[]);
    let both = format!("[public_tls]\nkey = \"k\"\ncertificate = \"c\"\n{acme}[tls]");
    check("[tls]", &both, &["line 7: [public_tls] has a certificate of its own and [public_tls.acme]: leave one of them out"]);
    let disagree = format!("{}[tls]", acme.replace("true", "false"));
    check(
        "[tls]",
        &disagree,
        &["line 9: public_tls.acme.agree_to_terms is missing: read the terms of that server, then write agree_to_terms = true"],
    );
    let named = format!("{}[tls]", acme.replace("a.example.net", "*.example.net"));
    let problem =
        "line 8: public_tls.acme.domains = \"*.example.net\": must be a name such as \"afar.example.net\", in lower case, without *";
    check("[tls]", &named, &[problem]);
}

#[test]
fn what_does_not_fit_together_is_named() {
    check(
        "node = \"strasbourg\"",
        "node = \"paris\"",
        &["line 2: node = \"paris\": the layout names no such node; it names strasbourg, warsaw"],
    );
    check(
        "home = \"strasbourg\"",
        "home = \"paris\"",
        &["line 17: policy.home = \"paris\": the layout names no such site; it names strasbourg, warsaw"],
    );
    check(
        "site = \"warsaw\"",
        "site = \"krakow\"",
        &["line 24: layout: node \"warsaw\" is at site \"krakow\", which the layout does not name; it names strasbourg, warsaw"],
    );
    check("far_copies = 2", "far_copies = 3", &["line 17: policy: far_copies = 3: must be 1 to copies, which is 2"]);
    check(
        "7702\"",
        "7700\"",
        &["line 24: nodes \"strasbourg\" and \"warsaw\" have the same endpoint \"https://127.0.0.1:7700\": each has its own"],
    );
    check(
        "https://127.0.0.1:7702",
        "127.0.0.1:7702",
        &["line 47: node \"warsaw\": endpoint \"127.0.0.1:7702\": write https://HOST:PORT, such as https://node1.example:7700"],
    );
    check(
        "name = \"warsaw\"",
        "name = \"strasbourg\"",
        &[
            "line 24: layout: two sites are named \"strasbourg\": names must be unique",
            "line 24: layout: node \"warsaw\" is at site \"warsaw\", which the layout does not name; it names strasbourg, strasbourg",
        ],
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = GOOD
        .replace("cluster = \"demo\"", "cluster = \"De mo\"")
        .replace("FR", "France")
        .replace("\"1TiB\"", "\"much\"")
        .replace("state = \"state\"\n", "");
    let found = problems_in(folder().path(), &text);
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found[0].starts_with("state is missing"), "{found:#?}");
    assert!(found[1].starts_with("line 1: cluster = \"De mo\": use 1 to 63"), "{found:#?}");
    assert!(found[2].starts_with("line 26: site \"strasbourg\": country \"France\" must be two capital letters"), "{found:#?}");
    assert!(found[3].starts_with("line 42: layout.nodes.capacity = \"much\""), "{found:#?}");
}

#[test]
fn an_infeasible_policy_is_no_fault_but_is_explained() {
    let folder = folder();
    let path = folder.path().join("afard.toml");
    fs::write(&path, GOOD.replace("min_distance_km = 700", "min_distance_km = 1100.5")).unwrap();
    let why = Config::load(&path).unwrap().feasible().unwrap_err().to_string();
    assert!(why.contains("strasbourg-warsaw 1024.8 km") && why.contains("lower min_distance"), "{why}");
    // What a bundle's chain began with does not count once there is a newer layout.
    let mut config = Config::load(&path).unwrap();
    let mut newer = Document::child_of(&config.genesis, afar_model::units::UnixMillis(1), "warsaw moves");
    newer.custodians = vec![[7; 32]];
    newer.sites[1].coordinates = newer.sites[0].coordinates;
    newer.sites[0].coordinates = Coordinates::new(-33.87, 151.21).unwrap();
    config.layouts.push(Signed { body: newer.encode(), signatures: Vec::new() });
    assert_eq!(config.feasible(), Ok(()));
}

#[test]
fn files_that_are_too_large_truncated_garbled_or_empty_are_refused() {
    let folder = folder();
    let large = format!("{GOOD}\n# {}", "x".repeat(1 << 20));
    let found = problems_in(folder.path(), &large);
    assert!(found[0].ends_with("the most is 1048576: it was not read"), "{found:?}");
    for cut in [1, 20, 100, GOOD.len() / 2] {
        assert!(!problems_in(folder.path(), &GOOD[..cut]).is_empty(), "cut at {cut}");
    }
    let found = problems_in(folder.path(), "cluster = \"demo\nnode = 3");
    assert!(found[0].starts_with("line 1: ") && found[0].ends_with("the file is damaged, truncated or not TOML"), "{found:?}");
    assert!(problems_in(folder.path(), "").len() >= 7);
    fs::write(folder.path().join("afard.toml"), [0xff, 0xfe]).unwrap();
    assert_eq!(Config::load(&folder.path().join("afard.toml")).unwrap_err().problems, ["is not UTF-8 text"]);
    assert!(Config::load(&folder.path().join("nowhere")).unwrap_err().to_string().contains("No such file"));
}

#[test]
fn secrets_must_be_secret_and_whole() {
    let at = |file: &str, text: &str, mode: u32| {
        let folder = folder();
        let path = folder.path().join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        problems_in(folder.path(), GOOD).join("; ")
    };
    assert_eq!(
        at("cluster.secret", &"ab".repeat(32), 0o644),
        "line 12: cluster.secret: may be read by every user (mode 0644): chmod 600 it, and change the secret if others have logins here"
    );
    assert_eq!(at("cluster.secret", "abc", 0o600), "line 12: cluster.secret: must be 64 hexadecimal digits, the same on every node");
    let found = at("admin.key", "access_key_id = \"A\"\nsecret_access_key = \"hush-hush\"\nmore = 1\n", 0o600);
    assert!(found.starts_with("line 13: admin.key: unknown field `more`") && !found.contains("hush"), "{found}");
    assert!(at("admin.key", "access_key_id = \"A\"\nsecret_access_key = \"short\"\n", 0o600).contains("at least 16 characters"));
}

const REFERENCE: &str = include_str!("../../../deploy/afard.toml.md");

/// The examples of the reference: the whole one, then the least.
fn examples() -> Vec<String> {
    let blocks = REFERENCE.split("```toml\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

/// The reference's rows: key, what it must be, its default.
fn rows() -> Vec<[String; 3]> {
    let table = REFERENCE.lines().filter(|line| line.starts_with("| `"));
    let cells = table.map(|line| line.split(" | ").map(|cell| cell.trim_matches(['|', ' ', '`']).to_owned()).collect::<Vec<_>>());
    cells.map(|cells| cells[..3].to_vec().try_into().unwrap()).collect()
}

/// Stand instead of other keys, so that the whole example cannot have them.
const INSTEAD: [&str; 3] = ["layout.chain", "public_tls.certificate", "public_tls.key"];

fn value_at<'v>(table: &'v mut toml::Table, path: &str) -> Option<&'v mut toml::Value> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let mut value = table.get_mut(first)?;
    if value.is_array() && rest.is_some() {
        value = value.as_array_mut()?.first_mut()?;
    }
    match rest {
        None => Some(value),
        Some(rest) => value_at(value.as_table_mut()?, rest),
    }
}

/// The same file without that key, in every section that has it.
fn without(table: &toml::Table, path: &str) -> toml::Table {
    let mut table = table.clone();
    match path.split_once('.') {
        None => drop(table.remove(path)),
        Some((first, rest)) => match table.get_mut(first) {
            Some(toml::Value::Table(inner)) => *inner = without(inner, rest),
            Some(toml::Value::Array(items)) => items.iter_mut().for_each(|item| *item = without(item.as_table().unwrap(), rest).into()),
            _ => panic!("{path} is not there"),
        },
    }
    table
}

#[test]
fn every_example_of_the_reference_is_read_and_the_whole_one_only_says_what_is_so_anyway() {
    let folder = folder();
    let read = |text: &String| Config::parse(&folder.path().join("afard.toml"), text).unwrap();
    let [whole, least] = <[Config; 2]>::try_from(examples().iter().map(read).collect::<Vec<_>>()).unwrap();
    assert_eq!((whole.limits, &whole.policy, whole.init_dirs), (least.limits, &least.policy, least.init_dirs));
    assert_eq!(whole.policy, Policy::default());
    assert_eq!(
        (whole.genesis.layout.version(), whole.genesis.layout.partitions()),
        (least.genesis.layout.version(), least.genesis.layout.partitions())
    );
}

#[test]
fn the_reference_names_every_key_that_is_read_and_no_other() {
    let folder = folder();
    let text = &examples()[0];
    let table = toml::de::DeTable::parse(text).unwrap();
    let mut problems = Problems::new(text);
    read(&folder.path().join("afard.toml"), Section::new(table.get_ref()), &mut problems).unwrap();
    let asked = std::mem::take(&mut problems.asked);
    let is_section = |key: &String| asked.iter().any(|other| other.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('.')));
    let keys: Vec<&String> = asked.iter().filter(|key| !is_section(key)).collect();
    let mut named: Vec<String> = rows().into_iter().map(|[key, ..]| key).collect();
    named.sort();
    assert_eq!(named.iter().collect::<Vec<_>>(), keys);
    let mut whole: toml::Table = text.parse().unwrap();
    for key in keys.into_iter().filter(|key| !INSTEAD.contains(&key.as_str())) {
        assert!(value_at(&mut whole, key).is_some(), "{key} is not in the whole example");
    }
}

#[test]
fn the_reference_says_of_every_key_what_the_reader_says() {
    let folder = folder();
    let whole: toml::Table = examples()[0].parse().unwrap();
    for [key, must_be, default] in rows().into_iter().filter(|[key, ..]| !INSTEAD.contains(&key.as_str())) {
        // Nothing is all of these at once, and every reader refuses some of them.
        let wrong = [toml::Value::from(true), toml::Value::from(-1), toml::Value::from("?")];
        let said: Vec<String> = wrong
            .into_iter()
            .flat_map(|wrong| {
                let mut file = whole.clone();
                *value_at(&mut file, &key).unwrap() = wrong;
                Config::parse(&folder.path().join("afard.toml"), &file.to_string()).err().unwrap_or_default()
            })
            .filter(|problem| problem.contains(&format!("{key} = ")))
            .filter_map(|problem| Some(problem.split_once(": must be ")?.1.to_owned()))
            .collect();
        assert!(said.contains(&must_be), "{key}: the reference says {must_be:?}, the reader {said:?}");
        if !matches!(default.as_str(), "required" | "none") {
            let mut file = whole.clone();
            assert_eq!(value_at(&mut file, &key).unwrap().to_string(), default, "{key}");
        }
        let without = without(&whole, &key);
        let refused = Config::parse(&folder.path().join("afard.toml"), &without.to_string()).is_err();
        assert_eq!(refused, default == "required", "{key}: {default}");
    }
}
