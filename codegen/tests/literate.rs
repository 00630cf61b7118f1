//! Runs the language reference: every `llm` fence of `docs/language` is a program that the checker
//! accepts, every `llm,error` fence is rejected with exactly the codes that its comments mark, on
//! their lines. The fences of the pages of lowering and liveness (`docs/errors/E04..`, `E05..`) come
//! in pairs: bad, which gives the page's code, and good, which gives nothing; those of the syntax
//! and of names are run by the tests of `lightc-dsl`.

#![allow(clippy::unwrap_used)] // a broken page is a failed test

use lightc_codegen::pipeline;
use lightc_dsl::diag::{self, Diag, Severity};
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::{MapLoader, Sources};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The sources of `models/`, named as the fences import them: `std/norm.llm`.
fn library() -> MapLoader {
    let folder = root().join("models");
    let mut loader = MapLoader::default();
    let mut folders = vec![folder.clone()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "llm") {
                let name = path.strip_prefix(&folder).unwrap().display().to_string();
                loader = loader.with(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    loader
}

struct Fence {
    page: String,
    heading: String,
    line: usize,
    info: String,
    text: String,
}

/// The `llm` fences of every page of a folder, in the order of pages and lines.
fn fences(folder: &str) -> Vec<Fence> {
    let mut pages: Vec<PathBuf> =
        std::fs::read_dir(root().join(folder)).unwrap().map(|e| e.unwrap().path()).collect();
    pages.sort();
    let mut found = Vec::new();
    for path in pages.iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let page = path.strip_prefix(root()).unwrap().display().to_string();
        let text = std::fs::read_to_string(path).unwrap();
        let mut heading = String::new();
        let mut open: Option<Fence> = None;
        for (index, line) in text.lines().enumerate() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(info)) => {
                    let (page, heading, info) = (page.clone(), heading.clone(), info.to_owned());
                    open =
                        Some(Fence { page, heading, line: index + 1, info, text: String::new() });
                }
                (Some(_), Some("")) => found.extend(open.take()),
                (Some(fence), _) => {
                    fence.text.push_str(line);
                    fence.text.push('\n');
                }
                (None, None) if line.starts_with('#') => heading = line.to_owned(),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{page}: a fence does not end");
    }
    found.retain(|fence| fence.info == "llm" || fence.info.starts_with("llm,"));
    found
}

/// Every error of a program, as `lightc check` reports them; with `trains`, also that a stage has
/// no loss, as `lightc build` does.
fn check(text: &str, library: &MapLoader, trains: bool) -> (Vec<Diag>, Sources) {
    let (program, sources, mut diags) = load_program("page.llm", text, library);
    let is_stage = !program.stage_names().is_empty();
    let (models, found) = program.check();
    diags.extend(found);
    for model in &models {
        let result = pipeline::lower(model).and_then(|module| match is_stage {
            true if trains || pipeline::has_loss(&module) => {
                pipeline::differentiate(model, module).map(|_| ())
            }
            _ => Ok(()),
        });
        diags.extend(result.err().into_iter().flatten());
    }
    diag::normalize(&mut diags);
    diags.retain(|d| d.severity == Severity::Error);
    (diags, sources)
}

/// Line and code of each error; a diagnostic in an imported file has line 0.
fn places(diags: &[Diag], sources: &Sources) -> BTreeSet<(usize, String)> {
    let main = sources.find("page.llm");
    let line = |d: &Diag| match Some(d.primary.span.source) == main {
        true => sources.line_column(d.primary.span).0,
        false => 0,
    };
    diags.iter().map(|d| (line(d), d.code.to_owned())).collect()
}

/// Line and code of each `// error: [E0303]` comment.
fn marked(text: &str) -> BTreeSet<(usize, String)> {
    let mut found = BTreeSet::new();
    for (index, line) in text.lines().enumerate() {
        for part in line.split("// error: [").skip(1) {
            let codes = part.split(']').next().unwrap_or_default();
            found.extend(codes.split(", ").map(|code| (index + 1, code.to_owned())));
        }
    }
    found
}

fn complain(report: &mut String, fence: &Fence, what: &str, diags: &[Diag], sources: &Sources) {
    let _ = writeln!(
        report,
        "\n{}:{} {}\n{what}\n{}",
        fence.page,
        fence.line,
        fence.heading,
        diag::render(diags, sources, false)
    );
}

#[test]
fn the_language_reference_runs() {
    let library = library();
    let fences = fences("docs/language");
    let mut report = String::new();
    let (mut accepted, mut rejected) = (0, 0);
    for fence in &fences {
        let (diags, sources) = check(&fence.text, &library, false);
        let (found, wanted) = (places(&diags, &sources), marked(&fence.text));
        match fence.info.as_str() {
            "llm" => {
                accepted += 1;
                if !found.is_empty() || !wanted.is_empty() {
                    complain(&mut report, fence, "is to be accepted", &diags, &sources);
                }
            }
            "llm,error" => {
                rejected += 1;
                if found != wanted || wanted.is_empty() {
                    let what = format!("marks {wanted:?}, gives {found:?}");
                    complain(&mut report, fence, &what, &diags, &sources);
                }
            }
            info => panic!("{}:{}: unknown fence `{info}`", fence.page, fence.line),
        }
    }
    assert!(report.is_empty(), "{report}");
    assert!(
        accepted >= 45 && rejected >= 30,
        "{accepted} accepted, {rejected} rejected: too few ran"
    );
    println!("{accepted} programs accepted, {rejected} rejected as marked");
}

#[test]
fn every_error_page_shows_what_it_says() {
    let library = library();
    let mut report = String::new();
    let mut pages = BTreeSet::new();
    let mut all = fences("docs/errors");
    all.retain(|fence| ["errors/E04", "errors/E05"].iter().any(|part| fence.page.contains(part)));
    for (index, fence) in all.iter().enumerate() {
        let code = Path::new(&fence.page).file_stem().unwrap().to_str().unwrap().to_owned();
        let first = index == 0 || all[index - 1].page != fence.page;
        let (diags, sources) = check(&fence.text, &library, true);
        let found: BTreeSet<&str> = diags.iter().map(|d| d.code).collect();
        let fits = if first { found.contains(code.as_str()) } else { found.is_empty() };
        if !fits {
            let what =
                if first { format!("is to give {code}") } else { "is to be accepted".into() };
            complain(&mut report, fence, &what, &diags, &sources);
        }
        let _ = pages.insert(code);
    }
    assert!(report.is_empty(), "{report}");
    assert!(pages.len() >= 18, "only {} pages have an example", pages.len());
}
