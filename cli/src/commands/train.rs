//! `lightc train`: builds the program of a stage and runs it.

use crate::failure::Failure;
use crate::program::Program;
use crate::runtime;
use crate::source::read_text;
use crate::target::Target;
use lightc_codegen::rewrite::share::Share;
use std::ffi::OsString;
use std::path::PathBuf;

/// Build the program of a stage and train it.
///
/// The generated crate lies in the cache folder and is compiled once per content. The program
/// takes this process's place: signals reach it, and its exit code is the result.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The source.
    file: PathBuf,
    /// The stage.
    #[arg(long)]
    stage: String,
    /// The training configuration.
    #[arg(long)]
    config: PathBuf,
    /// The folder for checkpoints and metrics.
    #[arg(long)]
    out: PathBuf,
    /// Go on from the latest checkpoint in the folder.
    #[arg(long)]
    resume: bool,
    /// Begin a new run with the parameters, moments and states of this checkpoint, such as one that
    /// `lightc grow` wrote.
    #[arg(long, value_name = "CKPT", conflicts_with = "resume")]
    from: Option<PathBuf>,
    /// Stop after this many steps in all.
    #[arg(long)]
    steps: Option<u64>,
    /// What to run on.
    #[arg(long, value_enum, default_value_t = Target::Cpu)]
    target: Target,
    /// Train one rank's share of a stage whose experts several ranks divide, such as `1/8`: to measure its
    /// memory and time. Rows for the other ranks' experts go to experts of its own, by way of a copy, and no
    /// checkpoint is written: give `-- --no-checkpoints`.
    #[arg(long, value_name = "1/N")]
    share: Option<Share>,
    #[command(flatten)]
    runtime: runtime::Choice,
    /// After `--`: passed on to the program.
    #[arg(last = true)]
    rest: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    // Compiling takes minutes: what can be said before is said before.
    arguments.target.is_here()?;
    let _ = read_text(&arguments.config)?;
    let (file, stage) = (&arguments.file, &arguments.stage);
    let program =
        Program::build(file, stage, arguments.target, arguments.share, &arguments.runtime)?;
    let mut command = program.command("train");
    command.arg("--config").arg(&arguments.config).arg("--out").arg(&arguments.out);
    if arguments.resume {
        command.arg("--resume");
    }
    if let Some(from) = &arguments.from {
        command.arg("--from").arg(from);
    }
    if let Some(steps) = arguments.steps {
        command.arg("--steps").arg(steps.to_string());
    }
    command.args(&arguments.rest);
    Err(program.run(command))
}
