//! Sizes, numbers and times as people read and write them.
use crate::error::Error;
use afar_model::units::{BINARY, UnixMillis};
pub use afar_model::units::{bytes, printable};
use std::time::Duration;

const DECIMAL: [(&str, u64); 5] =
    [("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("TB", 1_000_000_000_000), ("PB", 1_000_000_000_000_000)];

/// In the largest unit that says it exactly, as configuration files have it: `3TiB`, `1025B`.
pub fn exact_bytes(count: u64) -> String {
    let (unit, size) = BINARY.into_iter().rev().find(|(_, size)| count > 0 && count.is_multiple_of(*size)).unwrap_or(("B", 1));
    format!("{}{unit}", count / size)
}

/// Reads `64MiB`, `64M` (the same), `64MB` (64,000,000), `64` (bytes).
///
/// # Errors
/// If it is none of these or more than 16 EiB.
pub fn parse_bytes(text: &str) -> Result<u64, Error> {
    let wrong = || Error::usage(format!("{text:?} is not a size")).hint("write a number and a unit, such as 64MiB, 500GB or 2TiB");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let binary = BINARY.into_iter().find(|(name, _)| {
        name.eq_ignore_ascii_case(unit)
            || (unit.len() == 1 && name.len() == 3 && name.get(..1).is_some_and(|first| first.eq_ignore_ascii_case(unit)))
    });
    let decimal = DECIMAL.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let size = if unit.is_empty() { 1 } else { binary.or(decimal).ok_or_else(wrong)?.1 };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(size).ok_or_else(wrong);
    }
    let fraction: f64 = number.parse().map_err(|_| wrong())?;
    let count = fraction * size as f64;
    if count.is_finite() && count < u64::MAX as f64 { Ok(count as u64) } else { Err(wrong()) }
}

/// `1 204 331`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// `1 024.8 km`.
pub fn kilometres(km: f64) -> String {
    let tenths = (km * 10.0).round() as u64;
    format!("{}.{} km", grouped(tenths / 10), tenths % 10)
}

/// ` (1 024.8 km apart)` of two sites. Of more it is the distance of the farthest two, and says so: what would have to be lost at
/// once to lose every copy is at least that wide, but others of them may lie near each other.
pub fn apart(sites: usize, km: f64) -> String {
    match sites {
        0 | 1 => String::new(),
        2 => format!(" ({} apart)", kilometres(km)),
        _ => format!(" (the farthest two {} apart)", kilometres(km)),
    }
}

/// `2026-11-23T14:02:11Z`, RFC 3339, UTC.
pub fn time(at: UnixMillis) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| "-".into(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// `0.41 s`.
pub fn seconds(took: Duration) -> String {
    format!("{:.2} s", took.as_secs_f64())
}

/// Seconds with three decimals, for JSON.
pub fn json_seconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1000.0).round() / 1000.0
}

/// `1 copy`, `2 copies`.
pub fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count as u64), if count == 1 { one } else { many })
}

/// Columns, aligned by what is in them and never cut; the columns in `right` are aligned to the right.
pub fn table(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let width_of = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(header.get(column).map(|name| name.chars().count())).max().unwrap_or(0)
    };
    let line = |cells: Vec<&str>| {
        let count = cells.len();
        let padded = cells.into_iter().enumerate().map(|(column, cell)| {
            let space = " ".repeat(width_of(column).saturating_sub(cell.chars().count()));
            if right.contains(&column) {
                format!("{space}{cell}")
            } else if column + 1 == count {
                cell.to_owned()
            } else {
                format!("{cell}{space}")
            }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = Vec::with_capacity(rows.len() + 1);
    if !header.is_empty() {
        lines.push(line(header.to_vec()));
    }
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines
}

/// Whether `-r PREFIX` means this key: the key itself and what lies under it as in a folder. `host1` is not `host10`.
pub fn is_under(prefix: &str, key: &str) -> bool {
    prefix.is_empty() || prefix.ends_with('/') || key.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_documented() {
        for (text, count) in [
            ("64MiB", 64 << 20),
            ("64M", 64 << 20),
            ("64MB", 64_000_000),
            ("64", 64),
            ("1.5 GiB", 3 << 29),
            ("0b", 0),
            ("2tib", 2 << 40),
            ("7k", 7 << 10),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), count, "{text}");
        }
        for text in ["", "MiB", "-1", "1 XB", "99999999PiB", "1.2.3", "NaN", "1e5"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_printed_exactly_is_read_back() {
        for count in [0, 1, 1023, 1024, 3 << 40, (3 << 40) + 1] {
            assert_eq!(parse_bytes(&exact_bytes(count)).unwrap(), count);
        }
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!((grouped(1_204_331).as_str(), grouped(7).as_str(), grouped(1000).as_str()), ("1 204 331", "7", "1 000"));
        assert_eq!(kilometres(1024.8), "1 024.8 km");
        assert_eq!((bytes(1023).as_str(), bytes(3 << 29).as_str()), ("1023 B", "1.5 GiB"));
        assert_eq!(time(UnixMillis(0)), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn columns_line_up_and_are_never_cut() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned(), "x y".to_owned()], vec!["bbbb".to_owned(), "22".to_owned(), "z".repeat(300)]];
        let lines = table(&["NAME", "N", "REST"], &rows, &[1]);
        assert_eq!(lines[0], "NAME   N  REST");
        assert_eq!(lines[1], "a      1  x y");
        assert!(lines[2].ends_with(&"z".repeat(300)));
    }
}
