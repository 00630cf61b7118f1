//! Generates the Rust code of the stages in this folder.

use lightc_codegen::emit::{CrateFile, Origin, emit_kernels, emit_stage, source_digest};
use lightc_codegen::schedule::Target;
use lightc_dsl::source::MapLoader;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Source file and stage of everything that this crate offers.
const STAGES: &[(&str, &str)] = &[
    ("models/tiny/tiny.llm", "tiny_2b"),
    ("models/tiny/tiny.llm", "tiny_5b"),
    ("models/tiny/tiny.llm", "tiny_9b"),
    ("models/tiny/tiny.llm", "tiny_120b"),
    ("models/tiny/tiny.llm", "tiny_2b_midpoint"),
    ("models/tiny/tiny.llm", "tiny_9b_exact"),
    ("models/tiny/tiny.llm", "tiny_120b_exact"),
    ("models/lightning/lightning.llm", "lightning_2b"),
];

/// Stages that are also generated as GPUs get them: calls written out, values recomputed, rows fused.
/// Without a GPU they run on libtorch, so their code is tested where there is none.
const FUSED: &[(&str, &str)] =
    &[("models/tiny/tiny.llm", "tiny_2b"), ("models/tiny/tiny.llm", "tiny_5b")];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut files = Vec::new();
    collect(&folder, &mut files)?;
    files.sort();
    let mut loader = MapLoader::default();
    for path in &files {
        println!("cargo:rerun-if-changed={}", path.display());
        let text = fs::read_to_string(path)?;
        let name = format!("models/{}", path.strip_prefix(&folder)?.display());
        loader = loader.with(name, text);
    }
    for (source, stage) in STAGES {
        let (text, _) = generate(&folder, &loader, source, stage, Target::Cpu)?;
        fs::write(out.join(format!("{stage}.rs")), text)?;
    }
    for (source, stage) in FUSED {
        let (text, kernels) = generate(&folder, &loader, source, stage, Target::Sm90a)?;
        if let Some(kernels) = kernels {
            fs::write(out.join(kernels.path), kernels.text)?;
        }
        fs::write(out.join(format!("{stage}_sm_90a.rs")), text)?;
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={}", folder.display());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("src") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "llm") {
            files.push(path);
        }
    }
    Ok(())
}

fn generate(
    folder: &Path,
    loader: &MapLoader,
    source: &str,
    stage: &str,
    target: Target,
) -> Result<(String, Option<CrateFile>), Box<dyn Error>> {
    let path = folder.join(source.strip_prefix("models/").unwrap_or(source));
    let text = fs::read_to_string(path)?;
    let (program, sources, diags) = lightc_dsl::resolve::load_program(source, &text, loader);
    let explain = |diags: &[lightc_dsl::diag::Diag]| {
        let lines = diags.iter().map(|d| {
            let (line, column) = sources.line_column(d.primary.span);
            let file = sources.get(d.primary.span.source).map_or("?", |s| s.name.as_str());
            format!("{file}:{line}:{column}: {}: {}", d.code, d.message)
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    if !diags.is_empty() {
        return Err(explain(&diags).into());
    }
    let model = program.resolve_stage(stage).map_err(|diags| explain(&diags))?;
    let compiled = lightc_codegen::pipeline::compile_for(&model, target);
    let compiled = compiled.map_err(|diags| explain(&diags))?;
    let program = lightc_codegen::pipeline::program_for(&compiled, target)
        .map_err(|diags| explain(&diags))?;
    let origin = Origin {
        source: source.to_owned(),
        source_hash: source_digest(&sources),
        compiler: env::var("CARGO_PKG_VERSION")?,
    };
    Ok((emit_stage(&program, &origin)?, emit_kernels(&program)))
}
