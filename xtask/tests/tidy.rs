//! Rules of the repository that no compiler checks.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The Markdown files that git tracks or would track.
fn documents() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "the repository's rules are checked in a git clone");
    let text = String::from_utf8(output.stdout).unwrap();
    let paths = text.split('\0').filter(|path| !path.is_empty()).map(|path| root().join(path));
    // A file that was deleted and not yet committed is still listed.
    paths.filter(|path| path.exists()).collect()
}

/// The targets of the links `[text](target)` outside code.
fn links(markdown: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        // Parts with an odd index are inside backquotes.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("_");
        let parts = prose.split("](").skip(1).filter(|_| !in_code);
        found.extend(parts.filter_map(|part| Some(part.split_once(')')?.0.to_owned())));
    }
    found
}

#[test]
fn links_are_found_outside_code() {
    let text = "[`a`](a.md) `[b](b.md)`\n```\n[c](c.md)\n```\n- [d](d/e.md#f)";
    assert_eq!(links(text), ["a.md", "d/e.md#f"]);
}

#[test]
fn every_relative_link_leads_to_a_file() {
    let mut broken = Vec::new();
    for document in documents() {
        let folder = document.parent().unwrap().to_owned();
        for link in links(&fs::read_to_string(&document).unwrap()) {
            let path = link.split('#').next().unwrap_or_default();
            let is_local = !path.is_empty() && !path.contains(':');
            if is_local && !folder.join(path).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn no_document_holds_two_sides_of_a_merge() {
    let is_mark = |line: &str| line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ");
    assert!(is_mark("<<<<<<< one") && is_mark(">>>>>>> other") && !is_mark("======="));
    let undecided: Vec<PathBuf> = documents()
        .into_iter()
        .filter(|path| fs::read_to_string(path).unwrap().lines().any(is_mark))
        .collect();
    assert!(undecided.is_empty(), "{undecided:?}");
}

#[test]
fn the_book_lists_every_chapter() {
    let docs = root().join("docs");
    let listed: Vec<PathBuf> = links(&fs::read_to_string(docs.join("SUMMARY.md")).unwrap())
        .into_iter()
        .map(|link| docs.join(link))
        .collect();
    let missing: Vec<PathBuf> = documents()
        .into_iter()
        .filter(|path| path.starts_with(&docs) && !path.ends_with("SUMMARY.md"))
        .filter(|path| !listed.contains(path))
        .collect();
    assert!(missing.is_empty(), "chapters that docs/SUMMARY.md does not list: {missing:?}");
}

/// The Rust files below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// String literals that are codes: `"E0101"`.
fn codes(text: &str) -> BTreeSet<String> {
    let literals = text.split('"');
    let is_code = |literal: &&str| {
        literal.len() == 5
            && literal.starts_with(['E', 'W'])
            && literal.chars().skip(1).all(|c| c.is_ascii_digit())
    };
    literals.filter(is_code).map(str::to_owned).collect()
}

#[test]
fn codes_are_found_in_literals() {
    let text = r#"error("E0101", "x E0102"); [("E0103"), "E01"] // E0104"#;
    assert_eq!(codes(text), ["E0101", "E0103"].map(str::to_owned).into());
}

/// A code is raised by some crate, or it has no page.
#[test]
fn every_code_in_use_has_a_page_and_every_page_a_use() {
    let table = root().join("dsl/src/diag/codes.rs");
    let constants = fs::read_to_string(&table).unwrap();
    let mut used = BTreeSet::new();
    let mut all = String::new();
    for name in [
        "dsl",
        "codegen",
        "runtime",
        "checkpoint",
        "grow",
        "cli",
        "libtorch-env",
        "kernels",
        "xtask",
    ] {
        for path in rust_files(&root().join(name).join("src")) {
            if path != table {
                let text = fs::read_to_string(&path).unwrap();
                used.extend(codes(&text));
                all.push_str(&text);
            }
        }
    }
    // Codes with a constant are used where the constant is.
    for line in constants.lines().filter(|line| line.contains(": &str = \"")) {
        let name = line.trim_start_matches("pub const ").split(':').next().unwrap();
        if all.contains(&format!("codes::{name}")) {
            used.extend(codes(line));
        }
    }
    let pages: BTreeSet<String> = fs::read_dir(root().join("docs/errors"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    let table: BTreeSet<String> = constants.split("pages! {").last().map(codes).unwrap_or_default();
    let without_page: Vec<&String> = used.difference(&pages).collect();
    let without_use: Vec<&String> = pages.difference(&used).collect();
    assert!(without_page.is_empty(), "codes without a page in docs/errors: {without_page:?}");
    assert!(without_use.is_empty(), "pages of codes that nothing raises: {without_use:?}");
    assert_eq!(table, pages, "rows of PAGES and files in docs/errors");
    assert!(used.len() >= 100, "only {} codes found", used.len());
}
