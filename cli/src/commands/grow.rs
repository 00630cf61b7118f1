//! `lightc grow`: a checkpoint of one stage becomes one of the next.

use crate::failure::{Failure, Fault, codes, has_errors, show_diags};
use crate::source::Loaded;
use crate::table::counted;
use crate::terminal::{self, Format};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lightc_codegen::growth::{self, Claim, Decision, GrowthMap, Verdict};
use lightc_codegen::ir::Module;
use lightc_codegen::pipeline;
use lightc_dsl::diag::Diag;
use lightc_grow::plan::Side;
use lightc_grow::{Options, Plan, Probe, Progress, Report};
use serde::Serialize;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Grow a checkpoint by a map: every tensor of the target from its rule, with a receipt.
///
/// The map's claim is decided first. The source is verified, byte by byte; the target has its name
/// only when it is complete. Interrupted at any point, the same command goes on.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The source that has the map.
    file: PathBuf,
    /// The map, between two stages.
    #[arg(long)]
    map: String,
    /// The checkpoint to grow: its folder, that of its run, or that of the run's checkpoints.
    #[arg(long, value_name = "CKPT")]
    from: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "CKPT")]
    to: PathBuf,
    /// Threads; all processors where absent.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Bytes that one file of the target is not to exceed, unless a single tensor does.
    #[arg(long, default_value_t = 1 << 30, value_parser = clap::value_parser!(u64).range(1..))]
    shard_bytes: u64,
    /// Grow a checkpoint that was written by another source of its stage.
    #[arg(long)]
    accept_changed_source: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Printed<'a> {
    to: String,
    was_there: bool,
    n_files: usize,
    n_resumed: usize,
    n_bytes: u64,
    receipt: &'a lightc_grow::Receipt,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let loaded = Loaded::read(&arguments.file)?.without_errors()?;
    let (map, probe) = decided(&loaded, &arguments.map)?;
    let plan = match plan(&loaded, &map, !arguments.accept_changed_source) {
        Ok(plan) => plan,
        Err(Planning::Source(diags)) => return Err(loaded.failure(diags)),
        Err(Planning::Map(error)) => return Err(refused(&error)),
    };
    let options = Options {
        shard_bytes: arguments.shard_bytes,
        probe: Some(probe),
        ..Options::new(crate::VERSION)
    };
    let n_threads = arguments.threads.map_or(options.n_threads, usize::from);
    let meter = Meter::new();
    let grown = lightc_grow::grow(
        &plan,
        &arguments.from,
        &arguments.to,
        &Options { n_threads, ..options },
        &|progress| meter.show(progress),
    );
    meter.finish();
    let report = grown.map_err(|error| refused(&error))?;
    match arguments.format {
        Format::Text => terminal::print(&text(arguments, &report)),
        Format::Json => terminal::print_json(&Printed {
            to: arguments.to.display().to_string(),
            was_there: report.was_there,
            n_files: report.n_files,
            n_resumed: report.n_resumed,
            n_bytes: report.n_bytes,
            receipt: &report.receipt,
        }),
    }
}

fn refused(error: &lightc_grow::Error) -> Failure {
    Fault::new(error.code(), error.to_string()).help(error.help()).into()
}

/// The map at its own sizes, and what is known of its claim. A claim that is refuted, or not
/// decided, ends here.
fn decided(loaded: &Loaded, name: &str) -> Result<(GrowthMap, Probe), Failure> {
    let map = match growth::bound(&loaded.program, name) {
        Ok(map) => map,
        Err(found) => return Err(failure(loaded, found)),
    };
    let Some(def) = loaded.program.map(name) else {
        return Err(Fault::new(codes::UNKNOWN_FUNCTION, format!("no map `{name}`")).into());
    };
    let (decision, found) = growth::decide(&loaded.program, def);
    if has_errors(&found) {
        return Err(failure(loaded, found));
    }
    show_diags(&found, &loaded.sources);
    let probe = match decision {
        Some(decision) => probe(&decision),
        None => Probe {
            verdict: "unknown".to_owned(),
            change: None,
            detail: "the map could not be tried".to_owned(),
        },
    };
    Ok((map, probe))
}

/// [`Loaded::failure`] without giving the sources up.
fn failure(loaded: &Loaded, found: Vec<Diag>) -> Failure {
    let mut diags = loaded.diags.clone();
    diags.extend(found);
    lightc_dsl::diag::normalize(&mut diags);
    Failure::Source { diags, sources: loaded.sources.clone() }
}

fn probe(decision: &Decision) -> Probe {
    let verdict = match decision.verdict {
        Verdict::Proved => "proved",
        Verdict::Refuted => "refuted",
        Verdict::Unknown => "unknown",
        Verdict::Declared => "declared",
    };
    let outputs = decision.change.iter().flat_map(|change| &change.outputs);
    let change = outputs.map(|output| output.error).reduce(f64::max);
    let what = match &decision.claim {
        Claim::Exactly if !decision.rules.is_empty() => {
            format!("{} rules used", decision.rules.len())
        }
        _ => "largest relative error of an output at the probe's sizes".to_owned(),
    };
    let detail = decision.why.clone().unwrap_or(what);
    Probe { verdict: verdict.to_owned(), change, detail }
}

enum Planning {
    Source(Vec<Diag>),
    Map(Box<lightc_grow::Error>),
}

fn plan(loaded: &Loaded, map: &GrowthMap, is_strict: bool) -> Result<Plan, Planning> {
    let source = pipeline::lower(&map.source).map_err(Planning::Source)?;
    let target = pipeline::lower(&map.target).map_err(Planning::Source)?;
    let source_hash = lightc_codegen::emit::source_digest(&loaded.sources);
    let side = |module: &Module| Side {
        stage: module.name.clone(),
        source_hash: source_hash.clone(),
        is_strict,
        integrators: module.integrators(),
    };
    let sides = (side(&source), side(&target));
    Plan::new(map, (&source, &target), sides).map_err(|error| Planning::Map(Box::new(error)))
}

fn text(arguments: &Arguments, report: &Report) -> String {
    let receipt = &report.receipt;
    let how = match (report.was_there, report.n_resumed) {
        (true, _) => "was there already, verified".to_owned(),
        (false, 0) => "written".to_owned(),
        (false, n) => format!("written; {} of an interrupted run", counted(n, "file")),
    };
    let n_moved = receipt.tensors.iter().filter(|tensor| !tensor.sources.is_empty()).count();
    let n_new = receipt.tensors.len() - n_moved;
    let probe = receipt.probe.as_ref().map_or_else(String::new, |probe| {
        let change = probe.change.map(|change| format!(", change {change:.3e}"));
        format!("claim      {}{} ({})\n", probe.verdict, change.unwrap_or_default(), probe.detail)
    });
    format!(
        "map        {}: {} to {}\n{probe}target     {} ({how}), {}, {} bytes\ntensors    {} from \
         the source, {} without it\nroot       {}\nreceipt    {}\n",
        receipt.map,
        receipt.source.stage,
        receipt.target.stage,
        arguments.to.display(),
        counted(report.n_files, "file"),
        report.n_bytes,
        n_moved,
        n_new,
        receipt.target.root,
        arguments.to.join(lightc_grow::receipt::RECEIPT_TABLE).display(),
    )
}

/// Progress on stderr: a bar on a terminal, a line every few seconds elsewhere.
struct Meter {
    bar: Option<ProgressBar>,
    last: Mutex<Instant>,
}

const INTERVAL: Duration = Duration::from_secs(5);

impl Meter {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template =
                "{bar:30} {bytes}/{total_bytes}  {elapsed} of {duration}  {bytes_per_sec}";
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Meter { bar, last: Mutex::new(Instant::now()) }
    }

    fn show(&self, progress: Progress) {
        if let Some(bar) = &self.bar {
            bar.set_length(progress.n_bytes);
            bar.set_position(progress.n_done);
            return;
        }
        let Ok(mut last) = self.last.try_lock() else { return };
        if last.elapsed() >= INTERVAL {
            *last = Instant::now();
            let (done, all) = (progress.n_done / 1_000_000, progress.n_bytes / 1_000_000);
            terminal::say(&format!("{done} of {all} MB verified or written\n"));
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
