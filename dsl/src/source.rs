//! Source texts, places in them, and how imports are found without doing IO here.

use serde::Serialize;

/// A source text, by its index in [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SourceId(pub u32);

/// A half-open byte range in one source text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Span {
    /// The text that the range is in.
    pub source: SourceId,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// One source text.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name shown in diagnostics and headers: a path as the user wrote it.
    pub name: String,
    /// The whole text.
    pub text: String,
}

/// Every source text of one compilation, in the order they were read.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    texts: Vec<Source>,
}

impl Sources {
    /// Adds a text and returns its id.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> SourceId {
        let id = SourceId(self.texts.len() as u32);
        self.texts.push(Source { name: name.into(), text: text.into() });
        id
    }

    /// The text of an id made by [`Sources::add`] on this same collection.
    pub fn get(&self, id: SourceId) -> Option<&Source> {
        self.texts.get(id.0 as usize)
    }

    /// The id of an already added text.
    pub fn find(&self, name: &str) -> Option<SourceId> {
        self.texts.iter().position(|s| s.name == name).map(|i| SourceId(i as u32))
    }

    /// All texts with their ids, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (SourceId, &Source)> {
        self.texts.iter().enumerate().map(|(i, s)| (SourceId(i as u32), s))
    }

    /// One-based line and column (in characters) of the start of a span.
    pub fn line_column(&self, span: Span) -> (usize, usize) {
        let Some(source) = self.get(span.source) else {
            return (0, 0);
        };
        let before = source.text.get(..span.start as usize).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }
}

/// Gives the text of an imported file. The command line reads files; tests use a map.
pub trait Loader {
    /// Resolves `path` as written in the file named `from` and returns the name under which
    /// the text is known (two imports of one file must give one name) and its text.
    ///
    /// # Errors
    /// A sentence that says why the text could not be had.
    fn load(&self, from: &str, path: &str) -> Result<(String, String), String>;
}

/// The path that `path`, as written in the file `from`, names: relative to the folder of
/// `from`, with `.` and `..` taken out. Two spellings of one file give one path.
pub fn join_path(from: &str, path: &str) -> String {
    let folder = match from.rfind('/') {
        Some(slash) if !path.starts_with('/') => from.get(..=slash).unwrap_or(""),
        _ => "",
    };
    let rooted = folder.starts_with('/') || path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("{}{}", if rooted { "/" } else { "" }, parts.join("/"))
}

/// Texts in memory, by path.
#[derive(Clone, Debug, Default)]
pub struct MapLoader {
    texts: std::collections::BTreeMap<String, String>,
}

impl MapLoader {
    /// Adds or replaces a text.
    #[must_use]
    pub fn with(mut self, path: impl Into<String>, text: impl Into<String>) -> Self {
        self.texts.insert(path.into(), text.into());
        self
    }
}

impl Loader for MapLoader {
    fn load(&self, from: &str, path: &str) -> Result<(String, String), String> {
        let name = join_path(from, path);
        match self.texts.get(&name) {
            Some(text) => Ok((name, text.clone())),
            None => Err("no such file".to_owned()),
        }
    }
}
