//! Rules of the repository that no compiler checks.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

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
