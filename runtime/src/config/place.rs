//! From a TOML error or a dotted key to a place in the text.

use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Place};

/// The text of a configuration.
pub(super) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> Source<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        Source { path, text }
    }

    /// Parses the whole text; the first error is classified.
    pub(super) fn deserialize<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        if let Err(error) = DeTable::parse(self.text) {
            let place = self.place(error.span());
            return Err(ConfigError::Syntax { place, detail: one_line(error.message()) });
        }
        toml::from_str(self.text).map_err(|error| self.classify(&error))
    }

    /// serde says what is wrong in words only; the words are pinned by tests.
    fn classify(&self, error: &toml::de::Error) -> ConfigError {
        let place = self.place(error.span());
        let message = one_line(error.message());
        let words = quoted_words(&message);
        let mut words = words.into_iter();
        let first = words.next().unwrap_or_default();
        let known: Vec<String> = words.collect();
        if message.starts_with("unknown field") {
            let nearest = nearest(&first, &known);
            ConfigError::UnknownKey { place, key: first, nearest, known }
        } else if message.starts_with("missing field") {
            ConfigError::MissingKey { place, key: first }
        } else if message.starts_with("unknown variant") {
            ConfigError::UnknownValue { place, value: first, known }
        } else {
            ConfigError::WrongType { place, detail: message }
        }
    }

    pub(super) fn require(
        &self,
        key: &str,
        value: impl Display,
        good: bool,
        wanted: &str,
    ) -> Result<(), ConfigError> {
        if good {
            return Ok(());
        }
        Err(ConfigError::OutOfRange {
            place: self.place_of(key),
            key: key.to_owned(),
            value: value.to_string(),
            wanted: wanted.to_owned(),
        })
    }

    pub(super) fn not_for_kind(&self, key: &str, kind: &'static str) -> ConfigError {
        ConfigError::NotForKind { place: self.place_of(key), key: key.to_owned(), kind }
    }

    pub(super) fn missing(&self, table: &str, key: &str) -> ConfigError {
        ConfigError::MissingKey { place: self.place_of(table), key: key.to_owned() }
    }

    /// The place of a dotted key's value; of the innermost table that exists
    /// where the key has its default.
    pub(super) fn place_of(&self, key: &str) -> Place {
        let mut span = None;
        if let Ok(root) = DeTable::parse(self.text) {
            let mut segments = key.split('.');
            let mut here = segments.next().and_then(|segment| root.get_ref().get(segment));
            while let Some(value) = here {
                span = Some(value.span());
                here = segments.next().and_then(|segment| child(value.get_ref(), segment));
            }
        }
        self.place(span)
    }

    fn place(&self, span: Option<Range<usize>>) -> Place {
        let offset = span.map_or(0, |span| span.start).min(self.text.len());
        let before = self.text.get(..offset).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Place {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
        }
    }
}

fn child<'t>(value: &'t DeValue<'_>, segment: &str) -> Option<&'t toml::Spanned<DeValue<'t>>> {
    // The lifetimes of table and text are joined: `DeValue` is covariant.
    let value: &'t DeValue<'t> = value;
    match value {
        DeValue::Table(table) => table.get(segment),
        DeValue::Array(items) => items.get(segment.parse::<usize>().ok()?),
        _ => None,
    }
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join(", ")
}

/// The words in back quotes, in order.
fn quoted_words(message: &str) -> Vec<String> {
    message.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The known word of the smallest edit distance, if a third of it or less
/// differs.
fn nearest(word: &str, known: &[String]) -> Option<String> {
    let (distance, best) =
        known.iter().map(|candidate| (distance(word, candidate), candidate)).min()?;
    (distance * 3 <= best.chars().count().max(word.chars().count())).then(|| best.clone())
}

/// The edit distance with insertions, deletions, replacements and swaps of
/// neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = cell(&table, &a, &b, i, j);
        }
    }
    table[a.len()][b.len()]
}

fn cell(table: &[Vec<usize>], a: &[char], b: &[char], i: usize, j: usize) -> usize {
    if i == 0 || j == 0 {
        return i + j;
    }
    let replaced = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
    let best = replaced.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
        return best.min(table[i - 2][j - 2] + 1);
    }
    best
}
