//! Diagnostics as text for people and as JSON for tools.

use super::{Diag, Label, Severity};
use crate::source::{Sources, Span};
use codespan_reporting::diagnostic as cs;
use codespan_reporting::files::SimpleFiles;
use codespan_reporting::term::{self, Config, Styles, StylesWriter, termcolor};
use serde::Serialize;

/// Diagnostics as text: message, source lines with labels, help. Equal input gives equal text
/// whatever the terminal.
pub fn render(diags: &[Diag], sources: &Sources, color: bool) -> String {
    let mut files = SimpleFiles::new();
    for (_, source) in sources.iter() {
        files.add(source.name.as_str(), source.text.as_str());
    }
    let config = Config::default();
    let styles = Styles::default();
    let mut buffer = if color { termcolor::Buffer::ansi() } else { termcolor::Buffer::no_color() };
    for diag in diags {
        let report = report(diag, sources);
        let mut writer = StylesWriter::new(&mut buffer, &styles);
        let written = term::emit_to_write_style(&mut writer, &config, &files, &report);
        if written.is_err() {
            // A place outside its text: a fault of the compiler, and no reason to say nothing.
            let line = format!("error[{}]: {}\n", diag.code, diag.message);
            let _ = std::io::Write::write_all(&mut buffer, line.as_bytes());
        }
    }
    String::from_utf8_lossy(buffer.as_slice()).into_owned()
}

fn report(diag: &Diag, sources: &Sources) -> cs::Diagnostic<usize> {
    let severity = match diag.severity {
        Severity::Error => cs::Severity::Error,
        Severity::Warning => cs::Severity::Warning,
    };
    let mut labels = Vec::new();
    if let Some((file, range)) = place(diag.primary.span, sources) {
        labels.push(cs::Label::primary(file, range).with_message(&diag.primary.text));
    }
    for related in &diag.related {
        if let Some((file, range)) = place(related.span, sources) {
            labels.push(cs::Label::secondary(file, range).with_message(&related.text));
        }
    }
    let report = cs::Diagnostic::new(severity)
        .with_code(diag.code)
        .with_message(&diag.message)
        .with_labels(labels);
    match &diag.help {
        Some(help) => report.with_notes(vec![format!("help: {help}")]),
        None => report,
    }
}

/// A range inside its text, for a span of any origin.
fn place(span: Span, sources: &Sources) -> Option<(usize, std::ops::Range<usize>)> {
    let text = &sources.get(span.source)?.text;
    let floor = |at: u32| {
        let mut at = (at as usize).min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let (start, end) = (floor(span.start), floor(span.end));
    Some((span.source.0 as usize, start..end.max(start)))
}

#[derive(Serialize)]
struct JsonDiag<'a> {
    code: &'a str,
    severity: Severity,
    message: &'a str,
    #[serde(flatten)]
    place: JsonPlace<'a>,
    label: &'a str,
    related: Vec<JsonLabel<'a>>,
    help: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonPlace<'a> {
    file: &'a str,
    line: usize,
    column: usize,
    end_line: usize,
    end_column: usize,
    /// Bytes, half-open.
    span: [u32; 2],
}

#[derive(Serialize)]
struct JsonLabel<'a> {
    #[serde(flatten)]
    place: JsonPlace<'a>,
    label: &'a str,
}

/// Diagnostics as a JSON array. Lines and columns count from 1, columns in characters; `span` is
/// a half-open range of bytes.
pub fn to_json(diags: &[Diag], sources: &Sources) -> serde_json::Value {
    let items: Vec<JsonDiag<'_>> = diags.iter().map(|diag| json_diag(diag, sources)).collect();
    // Strings and numbers: nothing in it that JSON cannot hold.
    serde_json::to_value(items).unwrap_or_default()
}

fn json_diag<'a>(diag: &'a Diag, sources: &'a Sources) -> JsonDiag<'a> {
    let label =
        |label: &'a Label| JsonLabel { place: json_place(label.span, sources), label: &label.text };
    JsonDiag {
        code: diag.code,
        severity: diag.severity,
        message: &diag.message,
        place: json_place(diag.primary.span, sources),
        label: &diag.primary.text,
        related: diag.related.iter().map(label).collect(),
        help: diag.help.as_deref(),
    }
}

fn json_place(span: Span, sources: &Sources) -> JsonPlace<'_> {
    let (line, column) = sources.line_column(span);
    let end = Span { start: span.end, ..span };
    let (end_line, end_column) = sources.line_column(end);
    let file = sources.get(span.source).map_or("", |s| s.name.as_str());
    JsonPlace { file, line, column, end_line, end_column, span: [span.start, span.end] }
}
