//! `lightc params`: what a stage stores.

use crate::failure::Failure;
use crate::generated;
use crate::source::Loaded;
use crate::terminal::{self, Format};
use lightc_codegen::analysis::{ParamRow, ParamTable, param_table};
use lightc_codegen::ir::Module;
use lightc_codegen::pipeline;
use lightc_dsl::diag::Diag;
use lightc_dsl::model::StageModel;
use serde::Serialize;
use std::path::PathBuf;

/// Count the parameters of a stage and show how each is stored.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The source.
    file: PathBuf,
    /// The stage.
    #[arg(long)]
    stage: String,
    /// List every tensor with its axes, precision, initial values and storage.
    #[arg(long)]
    full: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// The table with every tensor.
#[derive(Serialize)]
struct Full<'a> {
    #[serde(flatten)]
    table: &'a ParamTable,
    params: &'a [ParamRow],
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (loaded, model) = Loaded::read_stage(&arguments.file, &arguments.stage)?;
    let table = match table(&model) {
        Ok(table) => table,
        Err(found) => return Err(loaded.failure(found)),
    };
    match (arguments.format, arguments.full) {
        (Format::Text, full) => terminal::print(&generated::params_text(&table, full)),
        (Format::Json, false) => terminal::print_json(&table),
        (Format::Json, true) => {
            terminal::print_json(&Full { table: &table, params: &table.params })
        }
    }
}

/// The table of a stage that passes every check.
fn table(model: &StageModel) -> Result<ParamTable, Vec<Diag>> {
    let module = pipeline::lower(model)?;
    let module = if pipeline::has_loss(&module) {
        pipeline::differentiate(model, module)?.module
    } else {
        module
    };
    bound_table(model, &module)
}

/// The table of a module; an error where a size is open or the sum is too large.
pub(crate) fn bound_table(model: &StageModel, module: &Module) -> Result<ParamTable, Vec<Diag>> {
    param_table(module).ok_or_else(|| {
        let message = format!("the parameters of `{}` cannot be counted", model.name);
        let label = "a size is not bound, or a count is above 2^63";
        vec![Diag::error("E0308", message, model.span, label)]
    })
}
