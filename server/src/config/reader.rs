//! Reads TOML tables key by key and collects every problem with its line, instead of stopping at the first.
use std::{cell::RefCell, collections::BTreeSet, ops::RangeInclusive, str::FromStr};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// What is wrong so far.
#[derive(Debug)]
pub(super) struct Problems<'t> {
    text: &'t str,
    found: Vec<(usize, String)>,
    /// Every key that was asked for: what the reference must name.
    #[cfg(test)]
    pub(super) asked: BTreeSet<String>,
}

impl<'t> Problems<'t> {
    pub(super) const fn new(text: &'t str) -> Self {
        Self {
            text,
            found: Vec::new(),
            #[cfg(test)]
            asked: BTreeSet::new(),
        }
    }

    /// `at`: a byte of the file; `None`: the file as a whole.
    pub(super) fn add(&mut self, at: Option<usize>, problem: impl Into<String>) {
        self.found.push((at.map_or(0, |at| line_of(self.text, at)), problem.into()));
    }

    pub(super) fn keep<T>(&mut self, at: Option<usize>, result: Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.add(at, problem)).ok()
    }

    pub(super) const fn count(&self) -> usize {
        self.found.len()
    }

    /// In the order of lines.
    pub(super) fn into_list(mut self) -> Vec<String> {
        self.found.sort_by_key(|(line, _)| *line);
        self.found.dedup();
        self.found.into_iter().map(|(line, problem)| if line == 0 { problem } else { format!("line {line}: {problem}") }).collect()
    }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
}

/// What the parser says of text that is no TOML, without quoting it: it may hold anything.
pub(super) fn syntax(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    format!("line {line}: {}: the file is damaged, truncated or not TOML", error.message().trim_end())
}

/// One table: each key is read once; what was never asked for is a mistake.
#[derive(Debug, Default)]
pub(super) struct Section<'t> {
    table: Option<&'t DeTable<'t>>,
    path: String,
    at: Option<usize>,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'t> Section<'t> {
    pub(super) fn new(table: &'t DeTable<'t>) -> Self {
        Self { table: Some(table), path: String::new(), at: None, asked: RefCell::default() }
    }

    fn within(table: &'t DeTable<'t>, path: String, at: usize) -> Self {
        Self { table: Some(table), path, at: Some(at), asked: RefCell::default() }
    }

    /// Where a key stands, for problems that show later.
    pub(super) fn line(&self, key: &str) -> Option<usize> {
        self.table?.iter().find(|(name, _)| name.get_ref() == key).map(|(name, _)| name.span().start).or(self.at)
    }

    /// Where the table itself begins.
    pub(super) const fn own_line(&self) -> Option<usize> {
        self.at
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn get(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.asked.borrow_mut().insert(key);
        self.table?.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn required(&self, key: &'static str, example: &str, problems: &mut Problems<'_>) -> Option<&'t Spanned<DeValue<'t>>> {
        let value = self.get(key);
        if value.is_none() {
            problems.add(self.at, format!("{} is missing: write {key} = {example}", self.full(key)));
        }
        value
    }

    fn wrong(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str, problems: &mut Problems<'_>) {
        let problem = format!("{} = {}: must be {expected}", self.full(key), shown(value.get_ref()));
        problems.add(Some(value.span().start), problem);
    }

    fn as_text(&self, key: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<String> {
        match value.get_ref().as_str() {
            Some(text) if !text.is_empty() && !text.contains('\0') => Some(text.to_owned()),
            _ => {
                self.wrong(key, value, "a text in quotes, not empty", problems);
                None
            }
        }
    }

    pub(super) fn text(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<String> {
        let value = self.required(key, "\"…\"", problems)?;
        self.as_text(key, value, problems)
    }

    /// Empty counts as absent.
    pub(super) fn optional_text(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<String> {
        let value = self.get(key).filter(|value| value.get_ref().as_str() != Some(""))?;
        self.as_text(key, value, problems)
    }

    pub(super) fn name(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<String> {
        let text = self.text(key, problems)?;
        let checked = super::check_name(&text).map_err(|why| format!("{} = {text:?}: {why}", self.full(key)));
        problems.keep(self.line(key), checked).map(|()| text)
    }

    pub(super) fn parsed<T: FromStr>(&mut self, key: &'static str, expected: &str, problems: &mut Problems<'_>) -> Option<T> {
        let text = self.text(key, problems)?;
        let parsed = text.parse().map_err(|_| format!("{} = {text:?}: must be {expected}", self.full(key)));
        problems.keep(self.line(key), parsed)
    }

    pub(super) fn texts(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<Vec<String>> {
        self.required(key, "[\"…\"]", problems)?;
        self.optional_texts(key, problems)
    }

    pub(super) fn optional_texts(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<Vec<String>> {
        let value = self.get(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.wrong(key, value, "a list of texts, such as [\"a\", \"b\"]", problems);
            return None;
        };
        items.iter().map(|item| self.as_text(key, item, problems)).collect()
    }

    pub(super) fn boolean(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<bool> {
        let value = self.get(key)?;
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.wrong(key, value, "true or false", problems);
        }
        boolean
    }

    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], problems: &mut Problems<'_>) -> Option<T> {
        let value = self.get(key)?;
        let found = value.get_ref().as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        if found.is_none() {
            let known: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.wrong(key, value, &known.join(" or "), problems);
        }
        found.map(|(_, meaning)| *meaning)
    }

    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>, problems: &mut Problems<'_>) -> Option<u64> {
        let value = self.get(key)?;
        let number = integer_of(value.get_ref()).filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(key, value, &format!("a whole number from {} to {}", range.start(), range.end()), problems);
        }
        number
    }

    pub(super) fn float(&mut self, key: &'static str, range: RangeInclusive<f64>, problems: &mut Problems<'_>) -> Option<f64> {
        let value = self.get(key)?;
        let number = float_of(value.get_ref()).filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(key, value, &format!("a number from {} to {}", range.start(), range.end()), problems);
        }
        number
    }

    /// Any number, even none: what it means decides what is in range.
    pub(super) fn required_float(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<f64> {
        let value = self.required(key, "48.5734", problems)?;
        let number = float_of(value.get_ref());
        if number.is_none() {
            self.wrong(key, value, "a number of degrees, such as 48.5734", problems);
        }
        number
    }

    pub(super) fn size(&mut self, key: &'static str, default: u64, range: RangeInclusive<u64>, problems: &mut Problems<'_>) -> Option<u64> {
        let Some(value) = self.get(key) else { return Some(default) };
        let bytes = size_of(value.get_ref()).filter(|bytes| range.contains(bytes));
        if bytes.is_none() {
            let (least, most) = (bytesize::ByteSize(*range.start()), bytesize::ByteSize(*range.end()));
            self.wrong(key, value, &format!("a size from {least} to {most}, such as \"64MiB\""), problems);
        }
        bytes
    }

    pub(super) fn required_size(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<u64> {
        self.required(key, "\"1TiB\"", problems)?;
        self.size(key, 0, 1..=u64::MAX >> 1, problems)
    }

    pub(super) fn section(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<Section<'t>> {
        if self.get(key).is_none() {
            problems.add(self.at, format!("[{}] is missing", self.full(key)));
        }
        self.optional_section(key, problems)
    }

    pub(super) fn optional_section(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<Section<'t>> {
        let value = self.get(key)?;
        let at = self.line(key).unwrap_or(value.span().start);
        let Some(table) = value.get_ref().as_table() else {
            self.wrong(key, value, &format!("a section: write [{}]", self.full(key)), problems);
            return None;
        };
        Some(Section::within(table, self.full(key), at))
    }

    pub(super) fn sections(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Vec<Section<'t>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            self.wrong(key, value, &format!("a list of sections: write [[{}]]", self.full(key)), problems);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => sections.push(Section::within(table, self.full(key), item.span().start)),
                None => self.wrong(key, item, &format!("a section: write [[{}]]", self.full(key)), problems),
            }
        }
        sections
    }

    /// Complains about keys that nobody asked for.
    pub(super) fn finish(self, problems: &mut Problems<'_>) {
        let asked = self.asked.borrow();
        #[cfg(test)]
        problems.asked.extend(asked.iter().map(|key| self.full(key)));
        for (name, _) in self.table.into_iter().flat_map(|table| table.iter()) {
            let key: &str = name.get_ref();
            if asked.contains(key) {
                continue;
            }
            let nearest = asked.iter().map(|known| (distance(known, key), *known)).min();
            let hint = match nearest {
                Some((distance, known)) if distance <= 1 + known.len() / 4 => format!("did you mean {known}?"),
                _ => format!("known are {}", asked.iter().copied().collect::<Vec<_>>().join(", ")),
            };
            let shown: String = key.chars().take(64).collect();
            problems.add(Some(name.span().start), format!("{} is not known: {hint}", self.full(&shown)));
        }
    }
}

fn integer_of(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
}

fn float_of(value: &DeValue<'_>) -> Option<f64> {
    let text = match (value.as_float(), value.as_integer()) {
        (Some(float), _) => float.as_str().to_owned(),
        (None, Some(integer)) if integer.radix() == 10 => integer.as_str().to_owned(),
        _ => return None,
    };
    text.replace('_', "").parse().ok()
}

fn size_of(value: &DeValue<'_>) -> Option<u64> {
    match value.as_str() {
        Some(text) => text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()),
        None => integer_of(value),
    }
}

/// A value as people wrote it, shortened.
fn shown(value: &DeValue<'_>) -> String {
    let text = match (value.as_str(), value.as_integer(), value.as_float(), value.as_bool()) {
        (Some(text), ..) => format!("{:?}", text.chars().take(80).collect::<String>()),
        (_, Some(integer), ..) => integer.as_str().to_owned(),
        (_, _, Some(float), _) => float.as_str().to_owned(),
        (.., Some(boolean)) => boolean.to_string(),
        _ => format!("({})", value.type_str()),
    };
    text.chars().take(90).collect()
}

/// How many single-letter edits turn one word into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let get = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX - 1);
            let replaced = get(&row, j) + usize::from(x != *y);
            next.push(replaced.min(get(&row, j + 1) + 1).min(get(&next, j) + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
