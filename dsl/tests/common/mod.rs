//! Shared by the tests: the model sources of the repository, and syntax without places.

#![allow(dead_code)]

use lightc_dsl::source::SourceId;
use lightc_dsl::syntax;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Every `.llm` file under `models/`, in order of path, with its text.
pub(crate) fn model_sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, paths);
        } else if path.extension().is_some_and(|e| e == "llm") {
            paths.push(path);
        }
    }
}

/// The syntax of a text that parses, as JSON without places.
pub(crate) fn syntax_of(text: &str) -> Value {
    let (file, diags) = syntax::parse(SourceId(0), text);
    assert!(diags.is_empty(), "{diags:#?}\n{text}");
    let mut value = serde_json::to_value(file).unwrap();
    drop_places(&mut value);
    value
}

fn drop_places(value: &mut Value) {
    match value {
        Value::Object(map) if map.contains_key("source") && map.contains_key("start") => {
            *value = Value::Null;
        }
        Value::Object(map) => map.values_mut().for_each(drop_places),
        Value::Array(items) => items.iter_mut().for_each(drop_places),
        _ => {}
    }
}
