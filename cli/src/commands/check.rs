//! `lightc check`: every error of a source.

use crate::failure::{Failure, has_errors, show_diags};
use crate::growth;
use crate::source::{Loaded, name_of};
use crate::table::{counted, grouped};
use crate::terminal::{self, Format};
use lightc_codegen::analysis::{param_table, rank_dependent_states};
use lightc_codegen::growth::Decision;
use lightc_codegen::ir::Module;
use lightc_codegen::pipeline;
use lightc_dsl::diag::{self, Diag};
use lightc_dsl::model::StageModel;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Report every error of a source, each with its place and a fix.
///
/// Every stage of the file is compiled: names, sizes, axes, derivatives, and whether a gradient
/// reaches each trained parameter. In a file without stages, each block that can stand alone is.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The source.
    file: PathBuf,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Serialize)]
struct Report {
    diagnostics: Value,
    /// Growth maps and how their claims were decided.
    maps: Vec<Decision>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let loaded = match (Loaded::read(&arguments.file), arguments.format) {
        (Err(Failure::Fault(fault)), Format::Json) => {
            let file = name_of(&arguments.file).unwrap_or_default();
            let place = json!({
                "code": fault.code, "severity": "error", "message": fault.message, "file": file,
                "line": 1, "column": 1, "end_line": 1, "end_column": 1, "span": [0, 0],
                "label": "", "related": [], "help": fault.help,
            });
            print_report(json!([place]), Vec::new())?;
            return Err(Failure::Said(1));
        }
        (loaded, _) => loaded?,
    };
    let (summaries, mut diags) = check(&loaded);
    let mut maps = Vec::new();
    // A map between stages with errors has nothing to say.
    if !has_errors(&diags) {
        let (decisions, found) = growth::decide(&loaded);
        maps = decisions;
        diags.extend(found);
        diag::normalize(&mut diags);
    }
    let failed = has_errors(&diags);
    match arguments.format {
        Format::Json => print_report(diag::to_json(&diags, &loaded.sources), maps)?,
        Format::Text => {
            show_diags(&diags, &loaded.sources);
            if !failed {
                terminal::print(&(summary(&summaries) + &growth::text(&maps)))?;
            }
        }
    }
    if failed { Err(Failure::Said(1)) } else { Ok(()) }
}

fn print_report(diagnostics: Value, maps: Vec<Decision>) -> Result<(), Failure> {
    terminal::print_json(&Report { diagnostics, maps })
}

/// What was checked, a line each, and everything that is wrong.
fn check(loaded: &Loaded) -> (Vec<Summary>, Vec<Diag>) {
    let is_stage = !loaded.program.stage_names().is_empty();
    let (models, found) = loaded.program.check();
    let mut diags = loaded.diags.clone();
    diags.extend(found);
    let mut summaries = Vec::new();
    for model in &models {
        match compile(model, is_stage) {
            Ok((module, program)) => {
                let fed = !program.iter().any(|d| d.code.starts_with("E05"));
                summaries.push(Summary::of(&module, is_stage, fed));
                diags.extend(program);
            }
            Err(found) => diags.extend(found),
        }
    }
    // Beside errors it is not known what would read a binding.
    if !has_errors(&diags) {
        diags.extend(loaded.program.unread_bindings());
    }
    diag::normalize(&mut diags);
    (summaries, diags)
}

/// All passes that apply: derivatives and liveness need a loss. What keeps the trainer from
/// feeding a stage is a warning here, and an error where a program is to be made.
fn compile(model: &StageModel, is_stage: bool) -> Result<(Module, Vec<Diag>), Vec<Diag>> {
    let module = pipeline::lower(model)?;
    if is_stage && pipeline::has_loss(&module) {
        let compiled = pipeline::differentiate(model, module)?;
        let warnings = pipeline::program(&compiled).err().unwrap_or_default();
        let mut warnings: Vec<Diag> = warnings.into_iter().map(Diag::into_warning).collect();
        warnings.extend(rank_dependent_states(&compiled.module));
        return Ok((compiled.module, warnings));
    }
    Ok((module, Vec::new()))
}

struct Summary {
    name: String,
    is_stage: bool,
    text: String,
}

impl Summary {
    fn of(module: &Module, is_stage: bool, is_program: bool) -> Self {
        let text = match param_table(module) {
            Some(table) if table.stored.with_mtp == table.stored.without_mtp => {
                format!("{} parameters", grouped(table.stored.with_mtp))
            }
            Some(table) => format!(
                "{} parameters, {} at inference",
                grouped(table.stored.with_mtp),
                grouped(table.stored.without_mtp)
            ),
            None => "sizes left open".to_owned(),
        };
        let untrained = is_stage && !pipeline::has_loss(module);
        let text = if untrained {
            text + "; no output `loss`, so not trained"
        } else if !is_program {
            text + "; the trainer cannot feed it"
        } else {
            text
        };
        Summary { name: module.name.clone(), is_stage, text }
    }
}

fn summary(checked: &[Summary]) -> String {
    let mut out = String::new();
    for summary in checked {
        let word = if summary.is_stage { "stage" } else { "block" };
        out.push_str(&format!("{word} {}: {}\n", summary.name, summary.text));
    }
    let stages = checked.iter().filter(|summary| summary.is_stage).count();
    let what = if checked.is_empty() || stages > 0 {
        counted(stages, "stage")
    } else {
        counted(checked.len(), "block")
    };
    out + &format!("{what} checked, no errors\n")
}
