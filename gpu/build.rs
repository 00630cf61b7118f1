//! Generates the stages that are checked and timed.

use lightc_codegen::emit::{Origin, emit_kernels, emit_stage, source_digest};
use lightc_codegen::pipeline::{compile_share, program_for};
use lightc_codegen::rewrite::share::Share;
use lightc_codegen::schedule::Target;
use lightc_dsl::diag::{self, Diag};
use lightc_dsl::source::MapLoader;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Stages whole, and one rank's share of others: of how many ranks.
const STAGES: [(&str, Option<&str>); 9] = [
    ("lightning_2b", None),
    ("lightning_2b_midpoint", None),
    ("narrow_2b", None),
    ("narrow_deep", None),
    ("deep_2b", None),
    ("narrow_5b", None),
    ("lightning_5b", None),
    ("narrow_120b", Some("1/8")),
    ("lightning_120b", Some("1/8")),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=stages.llm");
    println!("cargo:rerun-if-changed=../models/std");
    println!("cargo:rerun-if-changed=../models/lightning");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut library = MapLoader::default();
    for folder in ["std", "lightning"] {
        for entry in fs::read_dir(Path::new("../models").join(folder))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            library = library.with(format!("models/{folder}/{name}"), fs::read_to_string(&path)?);
        }
    }
    let text = fs::read_to_string("stages.llm")?;
    let (program, files, diags) =
        lightc_dsl::resolve::load_program("gpu/stages.llm", &text, &library);
    let report = |diags: &[Diag]| diag::render(diags, &files, false);
    if !diags.is_empty() {
        return Err(report(&diags).into());
    }
    let origin = Origin {
        source: "gpu/stages.llm".to_owned(),
        source_hash: source_digest(&files),
        compiler: env::var("CARGO_PKG_VERSION")?,
    };
    for (stage, share) in STAGES {
        let share = share.map(str::parse::<Share>).transpose()?;
        let model = program.resolve_stage(stage).map_err(|diags| report(&diags))?;
        let compiled = compile_share(&model, Target::Sm90a, share);
        let compiled = compiled.map_err(|diags| report(&diags))?;
        let program = program_for(&compiled, Target::Sm90a).map_err(|diags| report(&diags))?;
        let folder = out.join(stage);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("lib.rs"), emit_stage(&program, &origin)?)?;
        if let Some(kernels) = emit_kernels(&program) {
            fs::write(folder.join(kernels.path), kernels.text)?;
        }
    }
    Ok(())
}
