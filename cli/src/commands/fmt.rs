//! `lightc fmt`: the one layout of a source.

use crate::diff;
use crate::failure::{Failure, Fault, show_diags};
use crate::files;
use crate::source::{name_of, read_text};
use crate::terminal;
use lightc_dsl::diag::Severity;
use lightc_dsl::source::{SourceId, Sources};
use lightc_dsl::{format, syntax};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Format sources in place.
///
/// A file that does not parse is reported and left as it is.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The sources.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Change nothing; show what would change, and exit with 1 if anything would.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut failed = false;
    for file in &arguments.files {
        match one(file, arguments.check) {
            Ok(clean) => failed |= !clean,
            Err(failure) => {
                // The others are still formatted.
                let _ = failure.report();
                failed = true;
            }
        }
    }
    if failed { Err(Failure::Said(1)) } else { Ok(()) }
}

/// Formats one file; whether it needs no attention.
fn one(path: &Path, check: bool) -> Result<bool, Failure> {
    let name = name_of(path)?;
    let old = read_text(path)?;
    let new = match format::format(&old) {
        Ok(new) => new,
        Err(diags) => {
            let mut sources = Sources::default();
            sources.add(name, old);
            show_diags(&diags, &sources);
            return Ok(false);
        }
    };
    if new == old {
        return Ok(true);
    }
    if meaning(&old) != meaning(&new) {
        let fault = format!("compiler fault: formatting `{name}` would change its meaning");
        return Err(Fault::new("E0701", fault)
            .help("the file is left as it is; please report this with the file")
            .into());
    }
    if check {
        terminal::print(&diff::unified(&name, &format!("{name} (formatted)"), &old, &new))?;
        return Ok(false);
    }
    files::replace(path, &new)?;
    terminal::say(&format!("formatted {name}\n"));
    Ok(true)
}

/// The syntax of a text without places; `None` where it does not parse.
fn meaning(text: &str) -> Option<Value> {
    let (file, diags) = syntax::parse(SourceId(0), text);
    if diags.iter().any(|diag| diag.severity == Severity::Error) {
        return None;
    }
    let mut value = serde_json::to_value(file?).ok()?;
    drop_places(&mut value);
    Some(value)
}

fn drop_places(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let is_place =
                |value: &Value| value.get("source").is_some() && value.get("start").is_some();
            fields.retain(|_, value| !is_place(value));
            fields.values_mut().for_each(drop_places);
        }
        Value::Array(items) => {
            items.retain(|value| value.get("source").is_none() || value.get("start").is_none());
            items.iter_mut().for_each(drop_places);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_has_no_meaning_and_names_have() {
        let of = |text: &str| meaning(text).unwrap();
        let text = "block A(d) {\n    forward(x[d]) -> [d] {\n        x\n    }\n}\n";
        assert_eq!(of(text), of(&text.replace("    ", " ")));
        assert_ne!(of(text), of(&text.replace('x', "y")));
        assert_eq!(meaning("block {"), None);
    }
}
