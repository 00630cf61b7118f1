//! `lightc explain`: the page of an error code.

use crate::failure::{Failure, Fault, codes};
use crate::terminal::{self, Format};
use lightc_dsl::diag::codes::{PAGES, Page, page};
use lightc_dsl::names;
use serde_json::json;

/// Explain an error code.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Such as `E0201`.
    #[arg(required_unless_present = "list")]
    code: Option<String>,
    /// List all codes.
    #[arg(long, conflicts_with = "code")]
    list: bool,
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.code {
        Some(code) => one(code, arguments.format),
        None => list(arguments.format),
    }
}

fn one(code: &str, format: Format) -> Result<(), Failure> {
    let found = page(code.trim()).ok_or_else(|| unknown(code))?;
    match format {
        Format::Text => terminal::print(found.text),
        Format::Json => terminal::print_json(&value(found, true)),
    }
}

fn unknown(code: &str) -> Fault {
    let help = match names::closest(&code.to_uppercase(), PAGES.iter().map(|page| page.code)) {
        Some(near) => format!("`{near}` exists; `lightc explain --list` lists all"),
        None => "`lightc explain --list` lists all".to_owned(),
    };
    Fault::new(codes::UNKNOWN_CODE, format!("there is no error code `{code}`")).help(help)
}

fn list(format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let pages: Vec<_> = PAGES.iter().map(|page| value(page, false)).collect();
        return terminal::print_json(&pages);
    }
    let lines: String =
        PAGES.iter().map(|page| format!("{}  {}\n", page.code, page.title())).collect();
    terminal::print(&lines)
}

fn value(page: &Page, whole: bool) -> serde_json::Value {
    let mut value = json!({ "code": page.code, "title": page.title() });
    if whole && let Some(fields) = value.as_object_mut() {
        let _ = fields.insert("text".to_owned(), page.text.into());
    }
    value
}
