//! Runs the language reference: every `llm` fence of `docs/language` is a program that the checker
//! accepts, every `llm,error` fence is rejected with exactly the codes that its comments mark, on
//! their lines. The fences of the pages in `docs/errors` come in pairs: bad, which gives the page's
//! code, and good, which gives nothing. What is accepted stands in the layout of the formatter.

#![allow(clippy::unwrap_used, reason = "a broken page is a failed test")]

mod common;

use common::{library, root};
use lightc_codegen::analysis::rank_dependent_states;
use lightc_codegen::{growth, pipeline};
use lightc_dsl::diag::{self, Diag, Severity};
use lightc_dsl::format;
use lightc_dsl::model::StageModel;
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::{MapLoader, Sources};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

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

/// How far a program is taken.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Steps {
    /// As `lightc check` does: a stage without a loss is only lowered.
    Check,
    /// Differentiated.
    Train,
    /// As `lightc build` does: what the trainer asks of it too.
    Program,
}

/// Everything that a program is told. What keeps the trainer from feeding it is a warning, unless
/// a program is to be made.
fn check(text: &str, library: &MapLoader, steps: Steps) -> (Vec<Diag>, Sources) {
    let (program, sources, mut diags) = load_program("page.llm", text, library);
    let is_stage = !program.stage_names().is_empty();
    let (models, found) = program.check();
    diags.extend(found);
    if diags.is_empty() {
        diags.extend(program.unread_bindings());
    }
    for model in &models {
        let found = passes(model, is_stage, steps);
        diags.extend(found.unwrap_or_else(|errors| errors));
    }
    if !diags.iter().any(|d| d.severity == Severity::Error) {
        for map in program.maps().iter().filter(|map| map.file == program.root()) {
            diags.extend(growth::decide(&program, map).1);
        }
    }
    diag::normalize(&mut diags);
    (diags, sources)
}

/// The passes that apply: warnings, or errors.
fn passes(model: &StageModel, is_stage: bool, steps: Steps) -> Result<Vec<Diag>, Vec<Diag>> {
    let module = pipeline::lower(model)?;
    if !is_stage || (steps == Steps::Check && !pipeline::has_loss(&module)) {
        return Ok(Vec::new());
    }
    let compiled = pipeline::differentiate(model, module)?;
    let mut warnings = rank_dependent_states(&compiled.module);
    match pipeline::program(&compiled) {
        Err(found) if steps == Steps::Program => return Err(found),
        Err(found) => warnings.extend(found.into_iter().map(Diag::into_warning)),
        Ok(_) => {}
    }
    Ok(warnings)
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

/// Line and code of each `// error: [E0303]` comment, or of another severity.
fn marked(text: &str, severity: &str) -> BTreeSet<(usize, String)> {
    let mut found = BTreeSet::new();
    for (index, line) in text.lines().enumerate() {
        for part in line.split(&format!("// {severity}: [")).skip(1) {
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
        let (diags, sources) = check(&fence.text, &library, Steps::Check);
        let (warnings, errors): (Vec<Diag>, Vec<Diag>) =
            diags.iter().cloned().partition(|d| d.severity == Severity::Warning);
        let (found, wanted) = (places(&errors, &sources), marked(&fence.text, "error"));
        let (warned, warns) = (places(&warnings, &sources), marked(&fence.text, "warning"));
        let fits = match fence.info.as_str() {
            "llm" | "llm,layout" => found.is_empty() && wanted.is_empty() && warns.is_empty(),
            "llm,warning" => found.is_empty() && wanted.is_empty() && warned == warns,
            "llm,error" => found == wanted && !wanted.is_empty() && warns.is_empty(),
            info => panic!("{}:{}: unknown fence `{info}`", fence.page, fence.line),
        };
        *(if fence.info == "llm,error" { &mut rejected } else { &mut accepted }) += 1;
        if !fits {
            let what = format!("marks {wanted:?} and {warns:?}, gives {found:?} and {warned:?}");
            complain(&mut report, fence, &what, &diags, &sources);
        }
        // What does not parse has no layout.
        if fence.info != "llm,layout"
            && let Ok(formatted) = format::format(&fence.text)
            && formatted != fence.text
        {
            let what = format!("is in another layout than the formatter's:\n{formatted}");
            complain(&mut report, fence, &what, &[], &sources);
        }
    }
    assert!(report.is_empty(), "{report}");
    assert!(
        accepted >= 45 && rejected >= 30,
        "{accepted} accepted, {rejected} rejected: too few ran"
    );
    println!("{accepted} programs accepted, {rejected} rejected as marked");
}

/// The fences of a page come in pairs, bad and good; a page can have none. Pages with imports are run
/// by the tests of `lightc-dsl`, which make the imported files.
#[test]
fn every_error_page_shows_what_it_says() {
    let library = library();
    let mut report = String::new();
    let mut pages = BTreeSet::new();
    let all = fences("docs/errors");
    for pair in all.chunks(2) {
        let [bad, good] = pair else { panic!("{}: a bad and a good fence", pair[0].page) };
        assert_eq!(bad.page, good.page, "a bad and a good fence");
        let code = Path::new(&bad.page).file_stem().unwrap().to_str().unwrap().to_owned();
        if good.text.contains("import ") {
            continue;
        }
        let steps = match code.as_str() {
            "E0505" | "E0506" | "E0507" | "E0508" => Steps::Program,
            code if code.starts_with("E05") => Steps::Train,
            _ => Steps::Check,
        };
        let errors = |fence: &Fence| {
            let (mut diags, sources) = check(&fence.text, &library, steps);
            // The page of a warning shows that.
            diags.retain(|d| d.severity == Severity::Error || d.code == code);
            (diags, sources)
        };
        let (diags, sources) = errors(bad);
        // These two are given where a stage or block is asked for by its name.
        let by_name = ["E0212", "E0309"].contains(&code.as_str());
        if !by_name && !diags.iter().any(|d| d.code == code) {
            complain(&mut report, bad, &format!("is to give {code}"), &diags, &sources);
        }
        let (diags, sources) = errors(good);
        if !diags.is_empty() {
            complain(&mut report, good, "is to be accepted", &diags, &sources);
        }
        let formatted = format::format(&good.text).unwrap();
        if formatted != good.text {
            let what = format!("is in another layout than the formatter's:\n{formatted}");
            complain(&mut report, good, &what, &[], &sources);
        }
        let _ = pages.insert(code);
    }
    assert!(report.is_empty(), "{report}");
    assert!(pages.len() >= 50, "only {} pages have an example", pages.len());
}

/// The mnemonics of `codegen/src/ops`, as they stand in its sources.
fn mnemonics() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in common::files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops")) {
        let text = std::fs::read_to_string(path).unwrap();
        for rest in text.split("fn mnemonic(&self) -> &'static str {").skip(1) {
            let body = rest.split("\n    }").next().unwrap();
            let literals = body.split('"').skip(1).step_by(2);
            let is_word = |text: &&str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            found.extend(literals.filter(is_word).map(str::to_owned));
        }
    }
    found
}

/// A new op or builtin is written about where a reader looks for it.
#[test]
fn every_op_and_every_builtin_is_described() {
    // Every word inside backquotes.
    let words = |path: &str| -> BTreeSet<String> {
        let text = std::fs::read_to_string(common::root().join(path)).unwrap();
        let quoted = text.split('`').skip(1).step_by(2);
        let words =
            quoted.flat_map(|part| part.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')));
        words.map(str::to_owned).collect()
    };
    let (ops, builtins) = (words("docs/ops.md"), words("docs/language/builtins.md"));
    let named = mnemonics();
    assert!(named.len() >= 35, "{named:?}");
    let missing: Vec<&String> = named.difference(&ops).collect();
    assert!(missing.is_empty(), "ops that docs/ops.md does not describe: {missing:?}");
    let missing = lightc_dsl::names::BUILTINS.iter().filter(|name| !builtins.contains(**name));
    let missing: Vec<_> = missing.collect();
    assert!(missing.is_empty(), "builtins that docs/language/builtins.md lacks: {missing:?}");
}
