//! `lightc-gpu`: checks kernels on a GPU and times them. Needs libtorch and a driver, no Rust.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand, ValueEnum};
use lightc_gpu::bench::{Peers, Row, table};
use lightc_gpu::{Case, Ceilings, Gpu, cases, check, stages};
use lightc_runtime::{Target, cuda, program};

/// Checks kernels on a GPU and times them.
#[derive(Parser)]
#[command(name = "lightc-gpu", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare every kernel with its reference; exit code 1 if one differs.
    Test {
        /// Only sizes that a memory checker gets through.
        #[arg(long)]
        small: bool,
        /// Run the kernels on this machine's processor, which needs no GPU but a C++ compiler, at the sizes of `--small`.
        #[arg(long)]
        emulate: bool,
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Time every kernel whose comparison is green; exit code 1 if one is not.
    Bench {
        /// Times of others on this machine: what `peer_bench.py --json` wrote.
        #[arg(long)]
        peers: Option<PathBuf>,
        /// How to print the table.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Run the program of a stage, as `lightc train --target sm_90a` builds it.
    Run {
        /// Run its kernels on this machine's processor: for stages of little width, to see that all goes well together.
        #[arg(long)]
        emulate: bool,
        /// The stage: a name of `lightc_gpu::stages`; `lightning_120b` is one rank's share of eight.
        stage: String,
        /// What the program is given, such as `train --config FILE --out DIR`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Do what must not be done, which `test` looks at from outside.
    #[command(hide = true)]
    Misuse {
        /// What.
        what: String,
        #[command(flatten)]
        chosen: Chosen,
    },
}

#[derive(clap::Args)]
struct Chosen {
    /// Only these cases.
    #[arg(long)]
    only: Vec<String>,
    /// The GPU.
    #[arg(long, default_value_t = 0)]
    gpu: usize,
    /// Where the random inputs start; the time where absent.
    #[arg(long)]
    seed: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Run { emulate, stage, arguments } = &arguments.command {
        if *emulate {
            cuda::emulate();
        }
        return run(stage, arguments);
    }
    let (chosen, small, emulated) = match &arguments.command {
        Command::Test { chosen, small, emulate } => (chosen, *small || *emulate, *emulate),
        Command::Bench { chosen, .. } | Command::Misuse { chosen, .. } => (chosen, true, false),
        Command::Run { .. } => return ExitCode::FAILURE,
    };
    let cases = match pick(&chosen.only) {
        Ok(cases) => cases,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(2);
        }
    };
    if emulated {
        cuda::emulate();
        // References are small, and threads that wait for each other take the processor from the kernels.
        tch::set_num_threads(1);
    // Before anything else of libtorch: it looks for its CUDA library once.
    } else if let Err(error) = cuda::device(chosen.gpu) {
        let absent = ["E1301", "E1302", "E1303"].contains(&error.code());
        if absent {
            println!("SKIPPED: nothing was checked or timed on this machine: {error}");
            return ExitCode::SUCCESS;
        }
        eprint!("{}", error.rendered());
        return ExitCode::FAILURE;
    }
    let gpu = Gpu { ordinal: chosen.gpu, emulated, small };
    describe(&gpu, chosen.seed);
    let green = match &arguments.command {
        Command::Test { .. } => compile(&cases, &gpu) && test(&cases, &gpu),
        Command::Bench { peers, format, .. } => {
            compile(&cases, &gpu) && bench(&cases, &gpu, peers.as_deref(), *format)
        }
        Command::Run { .. } => false,
        Command::Misuse { what, .. } => match cases::misuse(&gpu, what) {
            Ok(()) => true,
            Err(error) => {
                eprint!("{}", error.rendered());
                false
            }
        },
    };
    if green { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The program of a stage with its arguments.
fn run(name: &str, arguments: &[OsString]) -> ExitCode {
    let all = stages::all();
    let Some(stage) = all.iter().find(|stage| stage.name() == name) else {
        let names: Vec<&str> = all.iter().map(|stage| stage.name()).collect();
        eprintln!("error: no stage `{name}`; there are {}", names.join(", "));
        return ExitCode::from(2);
    };
    let arguments = std::iter::once(OsString::from(name)).chain(arguments.iter().cloned());
    ExitCode::from(program::run_on(*stage, Target::Sm90a, arguments))
}

fn pick(only: &[String]) -> Result<Vec<Box<dyn Case>>, String> {
    let all = cases::all();
    let names: Vec<&str> = all.iter().map(|case| case.name()).collect();
    if let Some(unknown) = only.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("no case `{unknown}`; there are {}", names.join(", ")));
    }
    let is_chosen =
        |case: &dyn Case| only.is_empty() || only.iter().any(|name| name == case.name());
    Ok(all.into_iter().filter(|case| is_chosen(case.as_ref())).collect())
}

fn describe(gpu: &Gpu, seed: Option<i64>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = seed.unwrap_or(now as i64);
    tch::manual_seed(seed);
    if gpu.emulated {
        eprintln!("kernels run on the processor, seed {seed}");
        return;
    }
    match cuda::facts(gpu.ordinal) {
        Ok(facts) => eprintln!("{}, driver {}, seed {seed}", facts.name, facts.driver),
        Err(error) => eprint!("{}", error.rendered()),
    }
}

/// Begins to compile what cases run.
fn compile(cases: &[Box<dyn Case>], gpu: &Gpu) -> bool {
    let of_stages = cases.iter().flat_map(|case| case.stages(gpu.small));
    let modules: Vec<_> = of_stages.filter_map(|stage| stage.kernels()).collect();
    let begun = cuda::compile_ahead(gpu.device(), &modules);
    begun.inspect_err(|error| eprint!("{}", error.rendered())).is_ok()
}

fn test(cases: &[Box<dyn Case>], gpu: &Gpu) -> bool {
    let start = Instant::now();
    let outcome = check::run(cases, gpu, &mut |line| println!("{line}"));
    let red: Vec<&str> =
        outcome.iter().filter(|(_, green)| !green).map(|(name, _)| *name).collect();
    let seconds = start.elapsed().as_secs_f64();
    if red.is_empty() {
        println!("all green: {} cases in {seconds:.1} s", outcome.len());
    } else {
        println!("RED: {} of {} cases: {}", red.len(), outcome.len(), red.join(", "));
    }
    red.is_empty()
}

fn bench(
    cases: &[Box<dyn Case>],
    gpu: &Gpu,
    peers: Option<&std::path::Path>,
    format: Format,
) -> bool {
    let peers = match peers.map(Peers::read).transpose() {
        Ok(peers) => peers.unwrap_or_default(),
        Err(message) => {
            eprintln!("error: {message}");
            return false;
        }
    };
    let ceilings = match Ceilings::measure(gpu) {
        Ok(ceilings) => ceilings,
        Err(error) => {
            eprint!("{}", error.rendered());
            return false;
        }
    };
    let outcome = check::run(cases, gpu, &mut |line| {
        if line.starts_with("RED") {
            eprintln!("{line}");
        }
    });
    let mut all_green = true;
    let mut rows = Vec::new();
    for (case, (name, green)) in cases.iter().zip(outcome) {
        if !green {
            eprintln!("{name} differs from its reference and is not timed");
            all_green = false;
            continue;
        }
        match case.bench(gpu) {
            Ok(measured) => {
                rows.extend(measured.iter().map(|row| Row::new(row, &ceilings, &peers)))
            }
            Err(error) => {
                eprintln!("{name}: {}", error.rendered().trim_end());
                all_green = false;
            }
        }
    }
    show(gpu, &ceilings, &rows, format);
    all_green
}

fn show(gpu: &Gpu, ceilings: &Ceilings, rows: &[Row], format: Format) {
    let name = cuda::facts(gpu.ordinal).map_or_else(|_| "GPU".to_owned(), |facts| facts.name);
    match format {
        Format::Text => {
            println!(
                "{name}: a large copy {:.0} GB/s, a bf16 product of 8192 {:.0} TFLOP/s; cold second-level \
                 cache, medians in ms",
                ceilings.copy_gbs, ceilings.product_tflops
            );
            print!("{}", table(rows));
        }
        Format::Json => {
            let value = serde_json::json!({ "gpu": name, "ceilings": ceilings, "rows": rows });
            println!("{value:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_unknown_case_is_named_with_those_there_are() {
        let error = pick(&["norm".to_owned()]).err().unwrap_or_default();
        assert!(error.starts_with("no case `norm`; there are harness, "), "{error}");
        assert_eq!(pick(&["optimizer".to_owned()]).map(|cases| cases.len()).ok(), Some(1));
    }
}
