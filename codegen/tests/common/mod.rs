//! Shared by the tests: sources in memory, and what the passes say of them.

#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod modules;

use lightc_codegen::pipeline::{self, Compiled};
use lightc_dsl::diag::{self, Diag};
use lightc_dsl::model::StageModel;
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::{Loader, MapLoader, Sources};
use std::path::{Path, PathBuf};

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file below a folder, in the order of paths.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// The sources of `models/`, named as the language reference imports them: `std/norm.llm`.
pub(crate) fn library() -> MapLoader {
    let folder = root().join("models");
    let mut loader = MapLoader::default();
    for path in files(&folder) {
        if path.extension().is_some_and(|e| e == "llm") {
            let name = path.strip_prefix(&folder).unwrap().display().to_string();
            loader = loader.with(name, std::fs::read_to_string(&path).unwrap());
        }
    }
    loader
}

/// A stage of a source of the library, or what is wrong with it.
pub(crate) fn compile_stage(
    library: &MapLoader,
    source: &str,
    stage: &str,
) -> Result<Compiled, (Vec<Diag>, Sources)> {
    let (name, text) = library.load("", source).unwrap();
    let (program, sources, diags) = load_program(&name, &text, library);
    if !diags.is_empty() {
        return Err((diags, sources));
    }
    let model = program.resolve_stage(stage).map_err(|found| (found, sources.clone()))?;
    pipeline::compile(&model).map_err(|found| (found, sources))
}

/// Everything from lowering to what the trainer asks.
fn passes(model: &StageModel) -> Result<(), Vec<Diag>> {
    pipeline::program(&pipeline::compile(model)?).map(|_| ())
}

/// The source, and what is reported about it.
pub(crate) fn check_errors(source: &str) -> String {
    let (program, sources, diags) = load_program("main.llm", source, &MapLoader::default());
    assert!(diags.is_empty(), "{}", diag::render(&diags, &sources, false));
    let is_stage = !program.stage_names().is_empty();
    let (models, diags) = program.check();
    assert!(diags.is_empty(), "{}", diag::render(&diags, &sources, false));
    let mut diags = Vec::new();
    for model in &models {
        let result = if is_stage { passes(model) } else { pipeline::lower(model).map(|_| ()) };
        diags.extend(result.err().unwrap_or_default());
    }
    shown(source, diags, &sources)
}

/// The same for the program of a block that is taken alone.
pub(crate) fn check_program_of_block(source: &str, block: &str) -> String {
    let (program, sources, _) = load_program("main.llm", source, &MapLoader::default());
    let model = program.resolve_block(block).unwrap();
    shown(source, passes(&model).err().unwrap_or_default(), &sources)
}

/// The same for one rank's share of the stages of a source.
pub(crate) fn check_share(source: &str, share: &str) -> String {
    let (program, sources, _) = load_program("main.llm", source, &MapLoader::default());
    let share = share.parse().unwrap();
    let target = lightc_codegen::schedule::Target::Sm90a;
    let mut diags = Vec::new();
    for stage in program.stage_names() {
        let model = program.resolve_stage(stage).unwrap();
        let compiled = pipeline::compile_share(&model, target, Some(share));
        diags.extend(compiled.err().unwrap_or_default());
    }
    shown(source, diags, &sources)
}

/// Compares with the snapshot of a name. The source stands in the snapshot, so that the expression
/// it came from does not have to.
pub(crate) fn assert_shown(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_snapshot_path("../snapshots");
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// The source, then what is reported about it.
pub(crate) fn shown(source: &str, mut diags: Vec<Diag>, sources: &Sources) -> String {
    assert!(!diags.is_empty(), "no error in:\n{source}");
    diag::normalize(&mut diags);
    let rendered = diag::render(&diags, sources, false);
    format!("{}\n{}\n{rendered}", source.trim_end(), "=".repeat(80))
}
