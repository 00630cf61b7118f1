//! Set-up, demo, test and benchmark commands: `cargo xtask COMMAND`.
//!
//! Every command prints the commands it runs, gives them the environment of
//! libtorch where they need it, and ends with the exit code of the first one
//! that fails. It needs Rust, and Python 3.10 or newer for libtorch.

mod bench;
mod chart;
mod corpus;
mod demo;
mod gpu;
mod libtorch;
mod process;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

/// Set-up, demo, test and benchmark commands of the repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile the tiny stage and train it on this repository's own text.
    Demo,
    /// The fast tier: formatting, lints and tests of the crates that need no libtorch.
    Check,
    /// Every test of the workspace.
    Test {
        /// Passed on to the test runner, for example `-p lightc-runtime NAME`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Formatting and lints of the whole workspace; warnings are errors.
    Lint,
    /// Run the tests and accept every snapshot that changed.
    Bless {
        /// Passed on to the test runner.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Time `lightc check` and `lightc inspect` on the full-size 2B stage.
    Bench {
        /// Runs of each command.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// How to print the result.
        #[arg(long, value_enum, default_value_t = BenchFormat::Text)]
        format: BenchFormat,
    },
    /// Draw the loss of several runs, each grown from the one before, as SVG.
    Chart {
        /// A lineage: `NAME=STAGE:METRICS,STAGE:METRICS,...` with the `metrics.jsonl` of each run.
        #[arg(required = true)]
        lineages: Vec<String>,
        /// The title.
        #[arg(long, default_value = "Loss across growth steps")]
        title: String,
        /// The picture to write.
        #[arg(long)]
        out: PathBuf,
    },
    /// Grow a synthetic checkpoint: memory, rate against a plain copy, and kills.
    ///
    /// Needs room for two checkpoints of that size in the folder, which is removed afterwards.
    GrowBench {
        /// Size of the checkpoint.
        #[arg(long, default_value_t = 8.0)]
        gigabytes: f64,
        /// How often a growth is killed.
        #[arg(long, default_value_t = 4)]
        kills: u32,
        /// Where; a folder for temporary files where absent.
        #[arg(long)]
        folder: Option<PathBuf>,
    },
    /// Compare every kernel with its reference on this machine's GPU.
    GpuTest {
        /// Arguments of `lightc-gpu test`: `--small`, `--only CASE`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Time every kernel that equals its reference, beside ceilings and peers.
    GpuBench {
        /// Arguments of `lightc-gpu bench`: `--peers FILE`, `--format json`, `--only CASE`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Pack both for a machine with a GPU and no Rust; `run.sh` there runs all of it.
    GpuPack {
        /// The folder to write.
        #[arg(long)]
        out: PathBuf,
        /// Token shards to pack beside them, for its training words.
        #[arg(long, value_name = "DIR")]
        shards: Option<PathBuf>,
    },
    /// Print the environment that builds against libtorch and runs the result.
    ///
    /// For a shell: eval "$(cargo xtask env)"
    Env {
        /// How to print it.
        #[arg(long, value_enum, default_value_t = EnvFormat::Shell)]
        format: EnvFormat,
    },
    /// Run any cargo command in that environment, for example `build -p lightc-runtime`.
    Cargo {
        /// The arguments of cargo.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BenchFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EnvFormat {
    Shell,
    Json,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            process::exit_code_of(&error)
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Demo => demo::run(),
        Command::Check => suite::check(),
        Command::Test { arguments } => suite::test(arguments),
        Command::Lint => suite::lint(),
        Command::Bless { arguments } => suite::bless(arguments),
        Command::Bench { runs, format } => bench::run(*runs, *format == BenchFormat::Json),
        Command::Chart { lineages, title, out } => chart::run(lineages, title, out),
        Command::GrowBench { gigabytes, kills, folder } => {
            bench::grow(*gigabytes, *kills, folder.as_deref())
        }
        Command::GpuTest { arguments } => gpu::run_here(&words("test", arguments)),
        Command::GpuBench { arguments } => gpu::run_here(&words("bench", arguments)),
        Command::GpuPack { out, shards } => gpu::pack(out, shards.as_deref()),
        Command::Env { format } => libtorch::print_environment(*format == EnvFormat::Json),
        Command::Cargo { arguments } => suite::cargo_in_environment(arguments),
    }
}

fn words<'a>(first: &'a str, rest: &'a [String]) -> Vec<&'a str> {
    std::iter::once(first).chain(rest.iter().map(String::as_str)).collect()
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
    fn flags_after_test_go_to_the_runner() {
        let parsed = Arguments::parse_from(["xtask", "test", "-p", "lightc-dsl", "axis"]);
        let Command::Test { arguments } = parsed.command else { panic!("not the test command") };
        assert_eq!(arguments, ["-p", "lightc-dsl", "axis"]);
    }
}
