//! `lightc memory`: what one GPU holds while it trains a stage.

use crate::failure::Failure;
use crate::source::Loaded;
use crate::table::{Table, counted};
use crate::target::Target;
use crate::terminal::{self, Format};
use lightc_codegen::analysis::{Ledger, MemorySetup, States, memory, memory_of_run};
use lightc_codegen::rewrite::share::Share;
use lightc_codegen::{pipeline, schedule};
use lightc_dsl::diag::Diag;
use lightc_dsl::model::StageModel;
use std::path::PathBuf;

/// Show the memory per GPU by storage class, for three ways to spread a stage over GPUs.
///
/// What lies in memory is counted exactly; what is live within a step is estimated from the graph.
/// docs/memory.md says how.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The source.
    file: PathBuf,
    /// The stage.
    #[arg(long)]
    stage: String,
    /// GPUs that train one copy of the stage.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    gpus: u64,
    /// Sequences per GPU and step.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    micro_batch: u64,
    /// Tokens per sequence.
    #[arg(long, value_parser = clap::value_parser!(u64).range(3..))]
    seq: u64,
    /// Count what the one GPU of a run of this target holds.
    #[arg(long, value_enum)]
    target: Option<Target>,
    /// Count one rank's share of a stage whose experts several ranks divide, such as `1/8`, as
    /// `lightc train --share` runs it for `sm_90a`.
    #[arg(long, value_name = "1/N")]
    share: Option<Share>,
    /// Count a run that stores the states of reversible stacks, as `lightc train .. -- --store-states` does.
    #[arg(long)]
    store_states: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let one_gpu = arguments.target == Some(Target::Sm90a) || arguments.share.is_some();
    if arguments.gpus > 1 && one_gpu {
        let message =
            "`--gpus` does not go with `--target sm_90a` or `--share`: they count one GPU\n";
        clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, message).exit();
    }
    let (loaded, model) = Loaded::read_stage(&arguments.file, &arguments.stage)?;
    let setup = MemorySetup {
        gpus: arguments.gpus,
        micro_batch: arguments.micro_batch,
        seq: arguments.seq,
        states: if arguments.store_states { States::Stored } else { States::HadBack },
    };
    let ledger = match ledger(&model, setup, arguments) {
        Ok(ledger) => ledger,
        Err(found) => return Err(loaded.failure(found)),
    };
    match arguments.format {
        Format::Text => terminal::print(&text(&ledger)),
        Format::Json => terminal::print_json(&ledger),
    }
}

fn ledger(
    model: &StageModel,
    setup: MemorySetup,
    arguments: &Arguments,
) -> Result<Ledger, Vec<Diag>> {
    let counted = match (arguments.target, arguments.share) {
        (None | Some(Target::Cpu), None) => {
            let compiled = pipeline::compile(model)?;
            memory(&compiled.module, compiled.backward, setup)
        }
        (_, share) => {
            let compiled = pipeline::compile_share(model, schedule::Target::Sm90a, share)?;
            memory_of_run(&compiled, setup)
        }
    };
    counted.ok_or_else(|| {
        let message = format!("the memory of `{}` cannot be counted", model.name);
        let label =
            "a size is bound neither here nor by batch and sequence, or a count is above 2^63";
        vec![Diag::error("E0308", message, model.span, label)]
    })
}

fn text(ledger: &Ledger) -> String {
    let head: &[&'static str] = match ledger.layouts.first().map(|layout| layout.name) {
        Some("run") => &["GB per GPU", ">run"],
        Some("share") => &["GB per GPU", ">share"],
        _ => &["GB per GPU", ">plain", ">ZeRO-1", ">expert parallel"],
    };
    let mut table = Table::new(head);
    let gigabytes = |bytes: u64| match bytes {
        0 => "-".to_owned(),
        bytes => format!("{:.3}", bytes as f64 / 1e9),
    };
    let columns: Vec<_> = ledger.layouts.iter().map(|layout| layout.bytes.rows()).collect();
    for (row, (name, _)) in columns.first().into_iter().flatten().enumerate() {
        // A ledger of a stage by itself has none.
        if *name == "reserve" && columns.iter().all(|rows| rows.get(row).is_none_or(|r| r.1 == 0)) {
            continue;
        }
        let mut cells = vec![(*name).to_owned()];
        cells.extend(columns.iter().filter_map(|rows| rows.get(row)).map(|r| gigabytes(r.1)));
        table.row(cells);
    }
    let mut total = vec!["total".to_owned()];
    total.extend(ledger.layouts.iter().map(|layout| gigabytes(layout.total)));
    table.row(total);
    let setup = ledger.setup;
    let stored = match setup.states {
        States::HadBack => "",
        States::Stored => ", states of reversible stacks stored",
    };
    format!(
        "stage {}: {}, {} x {} tokens per GPU and step, bf16 with fp32 optimizer{stored}\n\n{}",
        ledger.stage,
        counted(setup.gpus as usize, "GPU"),
        setup.micro_batch,
        setup.seq,
        table.text()
    )
}
