//! Diagnostics as data: a stable code, a place, the two values that disagree, a fix.
//!
//! Wording: what is wrong, the values, the fix; no "you", no "might", no blame. The first
//! message stands alone. Each code has a page under `docs/errors/` that `lightc explain` prints.

use crate::source::Span;
use serde::Serialize;

pub mod codes;
mod render;

pub use render::{render, to_json};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is emitted.
    Error,
    /// Emitted, but worth a look.
    Warning,
}

/// A place with a short text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Label {
    /// Where.
    pub span: Span,
    /// What is there, in a few words.
    pub text: String,
}

/// One diagnostic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diag {
    /// Stable code, such as `E0201`. See [`crate::diag::codes`].
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// One sentence that stands alone.
    pub message: String,
    /// The place that is at fault.
    pub primary: Label,
    /// Further places that explain it.
    pub related: Vec<Label>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diag {
    /// An error at `span`, with `label` as the text at the place.
    pub fn error(
        code: &'static str,
        message: impl Into<String>,
        span: Span,
        label: impl Into<String>,
    ) -> Self {
        Diag {
            code,
            severity: Severity::Error,
            message: message.into(),
            primary: Label { span, text: label.into() },
            related: Vec::new(),
            help: None,
        }
    }

    /// The same as a warning, where what is wrong stands in the way of a later step only.
    #[must_use]
    pub fn into_warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Adds a further place.
    #[must_use]
    pub fn with_related(mut self, span: Span, text: impl Into<String>) -> Self {
        self.related.push(Label { span, text: text.into() });
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Puts diagnostics in the order of the source, the root file first, and keeps one of those that
/// say the same about the same place.
pub fn normalize(diags: &mut Vec<Diag>) {
    diags.sort_by_key(|d| d.primary.span);
    dedup(diags);
}

/// Keeps the first of diagnostics that say the same about the same place, in their order.
pub fn dedup(diags: &mut Vec<Diag>) {
    let mut seen = std::collections::BTreeSet::new();
    diags.retain(|d| seen.insert((d.code, d.primary.span, d.message.clone())));
}
