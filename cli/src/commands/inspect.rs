//! `lightc inspect`: one form of a stage on its way to code.

use crate::failure::{Failure, Fault, codes};
use crate::generated::{self, Functions};
use crate::source::{Loaded, name_of, read_text};
use crate::table::Table;
use crate::target::Target;
use crate::terminal::{self, Format};
use clap::ValueEnum;
use lightc_codegen::emit::emit_stage;
use lightc_codegen::ir::Module;
use lightc_codegen::pipeline::{self, Program};
use lightc_codegen::rewrite::share::Share;
use lightc_codegen::schedule::{DeviceStep, H200, Work, schedule_cpu, schedule_device};
use lightc_dsl::diag::Diag;
use lightc_dsl::model::StageModel;
use lightc_dsl::source::Sources;
use lightc_dsl::{names, syntax};
use serde_json::json;
use std::path::PathBuf;

/// Print one form of a stage on its way to code.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The source.
    file: PathBuf,
    /// The stage; needed for every form but `ast`.
    #[arg(long)]
    stage: Option<String>,
    /// The form.
    #[arg(long, value_enum)]
    emit: Emit,
    /// Show one function alone: a name in `ir`, `backward` and `schedule`, a block in `model`.
    #[arg(long)]
    function: Option<String>,
    /// As this target has it: for `sm_90a`, `ir`, `backward` and `rust` are those of the rewritten module,
    /// and `schedule` lists what a step of training runs, and the form of each attention.
    #[arg(long, value_enum, default_value_t = Target::Cpu)]
    target: Target,
    /// One rank's share of a stage whose experts several ranks divide, such as `1/8`, for `sm_90a`.
    #[arg(long, value_name = "1/N", requires = "target")]
    share: Option<Share>,
    /// Sequences of a step, for the predicted times of `schedule` for `sm_90a`.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    micro_batch: i64,
    /// Tokens of a sequence, likewise.
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(i64).range(3..))]
    seq: i64,
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Emit {
    /// The syntax of the file, as JSON.
    Ast,
    /// Blocks with every name resolved and every size bound.
    Model,
    /// Forward functions in IR text.
    Ir,
    /// Backward functions in IR text.
    Backward,
    /// Steps, operations and kept values per function; with `--function`, its steps.
    Schedule,
    /// The generated Rust.
    Rust,
    /// Row kernels of target `sm_90a`: their text, or as JSON how they are launched.
    Cuda,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.emit == Emit::Ast {
        return ast(arguments);
    }
    let Some(stage) = &arguments.stage else {
        return Err(no_stage(&Loaded::read(&arguments.file)?));
    };
    let (loaded, model) = Loaded::read_stage(&arguments.file, stage)?;
    match text(arguments, &loaded, &model) {
        Ok(text) => terminal::print(&text?),
        Err(found) => Err(loaded.failure(found)),
    }
}

fn no_stage(loaded: &Loaded) -> Failure {
    let names = loaded.program.stage_names().join(", ");
    let help = if names.is_empty() {
        "this file defines none".into()
    } else {
        format!("this file defines: {names}")
    };
    Fault::new("E0208", "--stage is missing: only `--emit ast` goes without one").help(help).into()
}

fn ast(arguments: &Arguments) -> Result<(), Failure> {
    let mut sources = Sources::default();
    let text = read_text(&arguments.file)?;
    let id = sources.add(name_of(&arguments.file)?, text.as_str());
    let (file, diags) = syntax::parse(id, &text);
    match file {
        Some(file) if !crate::failure::has_errors(&diags) => match arguments.format {
            Format::Text => terminal::print(&terminal::pretty_json(&file)?),
            Format::Json => terminal::print_json(&file),
        },
        _ => Err(Failure::Source { diags, sources }),
    }
}

/// The form as text, or what is wrong with the source (outer) or the request (inner).
fn text(
    arguments: &Arguments,
    loaded: &Loaded,
    model: &StageModel,
) -> Result<Result<String, Failure>, Vec<Diag>> {
    let wanted = arguments.function.as_deref();
    Ok(match arguments.emit {
        Emit::Ast | Emit::Model => model_text(arguments, model),
        Emit::Ir => {
            let module = match arguments.target {
                Target::Cpu => pipeline::lower(model)?,
                Target::Sm90a => fused(model, arguments.share)?,
            };
            functions(arguments, &module, generated::forward_functions(&module))
        }
        Emit::Backward => {
            let module =
                pipeline::compile_share(model, arguments.target.into(), arguments.share)?.module;
            functions(arguments, &module, generated::backward_functions(&module))
        }
        Emit::Schedule => match arguments.target {
            Target::Cpu => schedule(arguments.format, wanted, &differentiated(model)?),
            Target::Sm90a => device_schedule(arguments, &fused(model, arguments.share)?),
        },
        Emit::Cuda => cuda(arguments.format, &fused(model, arguments.share)?),
        Emit::Rust => {
            let target = arguments.target.into();
            let compiled = pipeline::compile_share(model, target, arguments.share)?;
            rust(arguments, loaded, &pipeline::program_for(&compiled, target)?)
        }
    })
}

fn cuda(format: Format, module: &Module) -> Result<String, Failure> {
    match format {
        Format::Text => Ok(lightc_codegen::rows::cuda_text(module)),
        Format::Json => terminal::pretty_json(&lightc_codegen::rows::describe(module)),
    }
}

/// As target `sm_90a` has it, with backward functions where there is a loss.
fn fused(model: &StageModel, share: Option<Share>) -> Result<Module, Vec<Diag>> {
    let module = pipeline::lower(model)?;
    if pipeline::has_loss(&module) {
        let target = lightc_codegen::schedule::Target::Sm90a;
        return Ok(pipeline::compile_share(model, target, share)?.module);
    }
    Ok(module)
}

/// With backward functions where there is a loss.
fn differentiated(model: &StageModel) -> Result<Module, Vec<Diag>> {
    let module = pipeline::lower(model)?;
    if pipeline::has_loss(&module) {
        return Ok(pipeline::differentiate(model, module)?.module);
    }
    Ok(module)
}

fn model_text(arguments: &Arguments, model: &StageModel) -> Result<String, Failure> {
    let blocks = || model.instances.iter().map(|instance| instance.block.as_str());
    if let Some(name) = &arguments.function {
        let _ = find(name, blocks())?;
    }
    match (arguments.format, &arguments.function) {
        (Format::Text, block) => Ok(generated::model_text(model, block.as_deref())),
        (Format::Json, None) => line(model),
        (Format::Json, Some(name)) => {
            let found: Vec<_> = model.instances.iter().filter(|i| i.block == *name).collect();
            line(&found)
        }
    }
}

fn functions(
    arguments: &Arguments,
    module: &Module,
    mut functions: Functions,
) -> Result<String, Failure> {
    if let Some(name) = &arguments.function {
        let index = find(name, functions.iter().map(|(name, _)| name.as_str()))?;
        functions = functions.into_iter().skip(index).take(1).collect();
    }
    if arguments.format == Format::Json {
        let functions: Vec<_> = functions
            .into_iter()
            .map(|(name, text)| json!({ "name": name, "text": text }))
            .collect();
        return line(&json!({ "stage": module.name, "functions": functions }));
    }
    let texts: Vec<String> = functions.into_iter().map(|(_, text)| text).collect();
    if arguments.function.is_some() {
        return Ok(texts.concat());
    }
    Ok(format!("{}\n{}", generated::module_line(module), texts.join("\n")))
}

fn schedule(format: Format, wanted: Option<&str>, module: &Module) -> Result<String, Failure> {
    let schedule = schedule_cpu(module);
    let Some(name) = wanted else {
        return match format {
            Format::Text => Ok(generated::schedule_text(&schedule)),
            Format::Json => line(&schedule),
        };
    };
    let index = find(name, schedule.functions.iter().map(|f| f.function.as_str()))?;
    let found = schedule.functions.get(index);
    match format {
        Format::Text => Ok(found.map(generated::steps_text).unwrap_or_default()),
        Format::Json => line(&found),
    }
}

/// What a step of training runs on a GPU, what each part moves and computes, and how long that takes by a simple model
/// of an H200.
fn device_schedule(arguments: &Arguments, module: &Module) -> Result<String, Failure> {
    if arguments.function.is_some() {
        let message = "--function does not apply to the schedule of `sm_90a`, which lists kernels";
        return Err(Fault::new(codes::UNKNOWN_FUNCTION, message).into());
    }
    // Tokens of a sequence, positions that learn, and embedded positions, as the standard model names them.
    let sizes = [
        ("b", arguments.micro_batch),
        ("u", arguments.seq),
        ("t", arguments.seq - 2),
        ("w", arguments.seq - 1),
    ];
    let sizes = sizes.map(|(name, size)| (name.to_owned(), size)).into_iter().collect();
    let schedule = schedule_device(module, &sizes, H200);
    let works = [Work::Row, Work::Product, Work::Tile, Work::Library];
    let totals = works.map(|work| (work, schedule.milliseconds(work)));
    let whole: f64 = totals.iter().map(|(_, ms)| ms).sum();
    let uncounted = schedule.steps.iter().filter(|step| step.microseconds.is_none()).count();
    if arguments.format == Format::Json {
        let totals = totals.map(|(work, ms)| json!({ "work": work, "milliseconds": ms }));
        return line(&json!({
            "stage": module.name, "machine": schedule.machine, "kernels": schedule.steps,
            "totals": totals, "milliseconds": whole, "uncounted": uncounted,
        }));
    }
    let (b, seq) = (arguments.micro_batch, arguments.seq);
    let totals = totals.map(|(work, ms)| format!("{} {ms:.1}", work.word()));
    let without = match uncounted {
        0 => String::new(),
        n => format!(" without the {n} rows of `-`, whose sizes are open or above 2^63"),
    };
    Ok(format!(
        "stage {}, target sm_90a: forward and backward of {b} x {seq} tokens, predicted for an {}\n\n{}\n\
         in all {whole:.1} ms{without}: {}\n{}",
        module.name,
        schedule.machine.name,
        steps_table(&schedule.steps).text(),
        totals.join(", "),
        attention_text(&schedule.steps)
    ))
}

fn steps_table(steps: &[DeviceStep]) -> Table {
    let titles = [
        "kernel or op",
        "function",
        "by",
        ">calls",
        ">nodes",
        ">MB",
        ">MFLOP",
        ">us",
        ">ms",
        "bound",
    ];
    let mut table = Table::new(&titles);
    let or_dash = |number: Option<f64>| number.map_or("-".to_owned(), |x| format!("{x:.1}"));
    for step in steps {
        let millions = |n: Option<f64>| or_dash(n.map(|n| n / 1e6));
        table.row(vec![
            step.kernel.clone(),
            step.function.clone(),
            step.work.word().to_owned(),
            step.calls.to_string(),
            step.nodes.to_string(),
            millions(step.bytes),
            millions(step.flops),
            or_dash(step.microseconds),
            or_dash(step.microseconds.map(|us| us * step.calls as f64 / 1e3)),
            step.bound.to_owned(),
        ]);
    }
    table
}

/// The form of each attention, what decided it, and where it changes.
fn attention_text(steps: &[DeviceStep]) -> String {
    let mut table = Table::new(&[
        "attention",
        "function",
        ">tokens",
        ">heads",
        ">channels",
        "mask",
        ">keys",
        "form",
        ">tiles ms",
        ">gather ms",
        ">gathers from",
    ]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut any = false;
    for (step, choice) in steps.iter().filter_map(|step| Some((step, step.attention.as_ref()?))) {
        any = true;
        table.row(vec![
            step.kernel.clone(),
            step.function.clone(),
            choice.tokens.to_string(),
            choice.heads.to_string(),
            choice.channels.to_string(),
            if choice.causal { "causal" } else { "any" }.to_owned(),
            or_dash(choice.most_keys.map(|most| most.to_string())),
            choice.form.to_owned(),
            format!("{:.2}", choice.tiles_ms),
            or_dash(choice.gather_ms.map(|ms| format!("{ms:.2}"))),
            or_dash(choice.gathers_from.map(|tokens| tokens.to_string())),
        ]);
    }
    if any { format!("\n{}", table.text()) } else { String::new() }
}

fn rust(arguments: &Arguments, loaded: &Loaded, program: &Program<'_>) -> Result<String, Failure> {
    if arguments.function.is_some() {
        let message = "--function does not apply to `--emit rust`, which is one file";
        return Err(Fault::new(codes::UNKNOWN_FUNCTION, message).into());
    }
    let origin = loaded.origin(name_of(&arguments.file)?);
    let text = emit_stage(program, &origin).map_err(crate::program::compiler_fault)?;
    match arguments.format {
        Format::Text => Ok(text),
        Format::Json => line(&json!({ "stage": program.compiled.module.name, "text": text })),
    }
}

fn line(value: &impl serde::Serialize) -> Result<String, Failure> {
    Ok(terminal::json(value)? + "\n")
}

/// The position of a name, or an error with the nearest one.
fn find<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Result<usize, Failure> {
    let known: Vec<&str> = known.collect();
    if let Some(index) = known.iter().position(|name| *name == wanted) {
        return Ok(index);
    }
    let help = match names::closest(wanted, known.iter().copied()) {
        Some(near) => format!("`{near}` exists"),
        None => {
            let mut distinct: Vec<&str> = Vec::new();
            known.iter().for_each(|name| {
                if !distinct.contains(name) {
                    distinct.push(name)
                }
            });
            format!("there are: {}", distinct.join(", "))
        }
    };
    let message = format!("there is no function `{wanted}` in this form of the stage");
    Err(Fault::new(codes::UNKNOWN_FUNCTION, message).help(help).into())
}
