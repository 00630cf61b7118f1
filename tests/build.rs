//! Emits the modules of `cases/` as Rust, beside their IR text.

#[path = "cases/mod.rs"]
mod cases;

use cases::Case;
use lightc_codegen::emit::{Origin, emit_blocks, emit_stage, source_digest};
use lightc_codegen::ir::{FuncId, Function, Module, text};
use lightc_codegen::pipeline::{compile, program};
use lightc_dsl::diag::{self, Diag};
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::MapLoader;
use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=cases");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut rust = String::new();
    let mut list = String::new();
    for case in cases::all() {
        let name = &case.name;
        fs::write(out.join(format!("{name}.ir")), text::print(&case.module))?;
        write!(rust, "{}", case_module(&case)?)?;
        let ir = format!("include_str!(concat!(env!(\"OUT_DIR\"), \"/{name}.ir\"))");
        writeln!(list, "    Emitted {{ name: {name:?}, ir: {ir}, run: {name}::run }},")?;
    }
    writeln!(rust, "/// Every case.\npub(crate) static EMITTED: &[Emitted] = &[\n{list}];")?;
    fs::write(out.join("cases.rs"), rust)?;
    fs::write(out.join("stages.rs"), stages()?)?;
    Ok(())
}

/// Every stage of `stages/`, a Rust module each.
fn stages() -> Result<String, Box<dyn Error>> {
    println!("cargo:rerun-if-changed=stages");
    println!("cargo:rerun-if-changed=../models/std");
    let mut library = MapLoader::default();
    for entry in fs::read_dir("../models/std")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        library = library.with(format!("std/{name}"), fs::read_to_string(&path)?);
    }
    let mut rust = String::new();
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir("stages")? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path)?;
        let (sources, files, diags) = load_program(&name, &text, &library);
        let report = |diags: &[Diag]| diag::render(diags, &files, false);
        if !diags.is_empty() {
            return Err(report(&diags).into());
        }
        for stage in sources.stage_names() {
            let model = sources.resolve_stage(stage).map_err(|diags| report(&diags))?;
            let compiled = compile(&model).map_err(|diags| report(&diags))?;
            let program = program(&compiled).map_err(|diags| report(&diags))?;
            let origin = Origin {
                source: name.clone(),
                source_hash: source_digest(&files),
                compiler: "test".to_owned(),
            };
            let text = emit_stage(&program, &origin)?;
            write!(
                rust,
                "#[allow(missing_docs, unreachable_pub, dead_code, clippy::all)]\n\
                 pub mod {stage} {{\n{text}\n}}\n"
            )?;
        }
    }
    Ok(rust)
}

/// The blocks of a case, and a function that runs its entry forward and, if it has one, backward.
fn case_module(case: &Case) -> Result<String, Box<dyn Error>> {
    let (module, name) = (&case.module, &case.name);
    let entry = module.entry_function();
    let block = block_of(entry);
    let inputs: String =
        (0..entry.inputs().count()).map(|i| format!(", &call.inputs[{i}]")).collect();
    let outputs: Vec<String> = (0..entry.outputs.len()).map(|i| format!("y{i}")).collect();
    let results: String = outputs.iter().map(|y| format!("{y}, ")).collect();
    let (next, pass, states) = if has_states(module, module.entry) {
        (
            format!("let mut next = {block}::Tensors::build(&mut Empty)?;"),
            ", &mut next",
            "lightc_runtime::bind::FlatStates::collect(&call.flat(), |sink| next.take(sink))?",
        )
    } else {
        (String::new(), "", "Vec::new()")
    };
    let backward = if !module.backward.is_empty() {
        let function = if outputs.len() == 1 { "backward" } else { "backward_loss" };
        format!(
            "let _ = {block}::{function}(&call.like, &weights, &saved, &mut grads, &call.seed)?;"
        )
    } else {
        "let _ = saved;".to_owned()
    };
    let blocks = emit_blocks(module)?;
    Ok(format!(
        "#[allow(clippy::all, dead_code, non_snake_case, unreachable_pub, unused_mut)]\n\
         pub mod {name} {{\n\
         use super::{{Call, Ran}};\n\
         use lightc_runtime::bind::{{Empty, FlatSource, ParamGrads}};\n\
         pub fn run(call: &Call) -> lightc_runtime::Result<Ran> {{\n\
         let weights = {block}::Tensors::build(&mut FlatSource::new(&call.flat()))?;\n\
         let mut grads = {block}::Tensors::build(&mut Empty)?;\n\
         {next}\n\
         let ({results}saved) = {block}::forward(&call.like, &weights{pass}{inputs})?;\n\
         {backward}\n\
         let grads = ParamGrads::collect(|sink| grads.take(sink));\n\
         Ok(Ran {{ outputs: vec![{results}], grads, states: {states} }})\n\
         }}\n{blocks}\n}}\n"
    ))
}

/// The Rust module of a block; the names in `cases/` are one word.
fn block_of(function: &Function) -> String {
    let name = function.name.to_lowercase();
    if ["self", "type"].contains(&name.as_str()) { format!("{name}_") } else { name }
}

fn has_states(module: &Module, id: FuncId) -> bool {
    let function = module.function(id);
    let mut below = function.subs.iter().flat_map(|sub| &sub.callees);
    !function.states.is_empty() || below.any(|callee| has_states(module, *callee))
}
