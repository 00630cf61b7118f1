//! Everything that is generated from the standard blocks, in the text that `lightc inspect` prints. Each snapshot shows the source and then what comes of it: model, IR,
//! backward, schedule, and the Rust of small blocks.
//!
//! The stages are pinned beside their sources by `lightc snapshot`. `lightc-models` is the Rust of
//! those stages: rustc compiles it in every full test run, and `lightc-tests` runs it, and the Rust of
//! every small case, against the interpreter.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use lightc_cli::generated;
use lightc_codegen::autodiff::differentiate_block;
use lightc_codegen::emit::emit_blocks;
use lightc_codegen::ir::Module;
use lightc_codegen::ir::verify::verify;
use lightc_codegen::pipeline;
use lightc_codegen::schedule::schedule_cpu;
use lightc_dsl::diag;
use lightc_dsl::model::StageModel;
use lightc_dsl::resolve::{Program, load_program};
use lightc_dsl::source::{MapLoader, Sources};
use std::path::{Path, PathBuf};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(models().join(path)).unwrap()
}

/// The standard library and the stages, named from `models/`.
fn library() -> MapLoader {
    let mut loader = MapLoader::default();
    for folder in ["std", "lightning", "tiny"] {
        for entry in std::fs::read_dir(models().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".llm") {
                let path = format!("{folder}/{name}");
                loader = loader.with(path.as_str(), read(&path));
            }
        }
    }
    loader
}

fn load(name: &str, text: &str) -> (Program, Sources) {
    let (program, sources, diags) = load_program(name, text, &library());
    assert!(diags.is_empty(), "{}", diag::render(&diags, &sources, false));
    (program, sources)
}

/// The text of a block with its documentation.
fn block_source(program: &Program, sources: &Sources, block: &str) -> String {
    let def = program.block(block).unwrap();
    let text = &sources.get(def.file).unwrap().text;
    let (start, end) = (def.ast.span.start as usize, def.ast.span.end as usize);
    let doc: Vec<&str> =
        text[..start].lines().rev().take_while(|line| line.starts_with("///")).collect();
    let doc: String = doc.into_iter().rev().map(|line| format!("{line}\n")).collect();
    format!("{doc}{}\n", &text[start..end])
}

fn section(title: &str, text: &str) -> String {
    format!("==== {title} {}\n{}\n", "=".repeat(74 - title.len()), text.trim_end())
}

fn joined(functions: generated::Functions) -> String {
    functions.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("\n")
}

/// Model, IR, backward and schedule.
fn forms(model: &StageModel, module: &Module) -> String {
    assert_eq!(verify(module), Vec::new());
    section("model", &generated::model_text(model, None))
        + &section("ir", &joined(generated::forward_functions(module)))
        + &section("backward", &joined(generated::backward_functions(module)))
        + &section("schedule", &generated::schedule_text(&schedule_cpu(module)))
}

/// A block alone, with symbolic sizes.
fn block(program: &Program, name: &str, source: &str, rust: bool) -> String {
    let model = program.resolve_block(name).unwrap();
    let mut module = pipeline::lower(&model).unwrap();
    differentiate_block(&mut module).unwrap();
    let mut shown = format!("{}\n{}", source.trim_end(), forms(&model, &module));
    if rust {
        shown.push_str(&section("rust", &emit_blocks(&module).unwrap()));
    }
    shown
}

fn assert_shown(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Blocks whose Rust is pinned too.
const WITH_RUST: [&str; 3] = ["RmsNorm", "SwiGlu", "ShortConv"];

#[test]
fn every_standard_block_that_stands_alone() {
    let mut shown = Vec::new();
    let mut files: Vec<String> = std::fs::read_dir(models().join("std"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    for file in files {
        let path = format!("std/{file}");
        let (program, sources) = load(&path, &read(&path));
        for name in program.block_names() {
            if program.is_standalone(name) {
                let source = block_source(&program, &sources, name);
                let rust = WITH_RUST.contains(&name);
                assert_shown(&format!("block_{name}"), &block(&program, name, &source, rust));
                shown.push(name.to_owned());
            }
        }
    }
    assert!(shown.len() >= 7, "{shown:?}");
}

/// The wrapper needs a block to wrap and bound streams.
#[test]
fn a_hyper_connection() {
    let source = r#"import "std/mhc.llm"
import "std/swiglu.llm"

block Wrapped(d, n, f) {
    sub wrapped = HyperConnection(sinkhorn_iterations: 20, inner: SwiGlu())

    forward(x[.., n, d]) -> [.., n, d] {
        wrapped(x)
    }
}
"#;
    let (program, _) = load("wrapped.llm", source);
    assert_shown("hyper_connection", &block(&program, "Wrapped", source, true));
}

/// The checked model of the tiny stage. Its parameters, IR, backward, schedule and Rust are pinned
/// beside its source, in `models/tiny/tiny.llm.snapshots`.
#[test]
fn the_model_of_the_tiny_stage() {
    let text = read("tiny/tiny.llm");
    let (program, _) = load("tiny/tiny.llm", &text);
    let model = program.resolve_stage("tiny_2b").unwrap();
    let shown = generated::model_text(&model, None);
    assert_shown("stage_tiny_2b", &format!("{}\n{}", text.trim_end(), section("model", &shown)));
}
