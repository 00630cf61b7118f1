//! `lightc evaluate`: builds the program of a stage and measures a checkpoint.

use crate::failure::Failure;
use crate::program::Program;
use crate::runtime;
use crate::source::read_text;
use crate::target::Target;
use std::ffi::OsString;
use std::path::PathBuf;

/// Build the program of a stage and measure a checkpoint on held-out text.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The source.
    file: PathBuf,
    /// The stage.
    #[arg(long)]
    stage: String,
    /// The configuration that the checkpoint was trained with.
    #[arg(long)]
    config: PathBuf,
    /// The checkpoint.
    #[arg(long)]
    checkpoint: PathBuf,
    /// What to run on.
    #[arg(long, value_enum, default_value_t = Target::Cpu)]
    target: Target,
    #[command(flatten)]
    runtime: runtime::Choice,
    /// After `--`: passed on to the program.
    #[arg(last = true)]
    rest: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let _ = read_text(&arguments.config)?;
    arguments.target.is_here()?;
    let (file, stage) = (&arguments.file, &arguments.stage);
    let program = Program::build(file, stage, arguments.target, None, &arguments.runtime)?;
    let mut command = program.command("evaluate");
    command.arg("--config").arg(&arguments.config);
    command.arg("--checkpoint").arg(&arguments.checkpoint).args(&arguments.rest);
    Err(program.run(command))
}
