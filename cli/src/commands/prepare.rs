//! `lightc prepare`: makes the token shards that a stage trains on.

use crate::failure::Failure;
use crate::program::Program;
use crate::runtime;
use crate::source::read_text;
use crate::target::Target;
use std::ffi::OsString;
use std::path::PathBuf;

/// Build the program of a stage and make token shards with it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The source.
    file: PathBuf,
    /// The stage.
    #[arg(long)]
    stage: String,
    /// A file with the path of one document per line.
    #[arg(long, value_name = "LIST")]
    files_from: PathBuf,
    /// The folder to make.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    runtime: runtime::Choice,
    /// After `--`: passed on to the program.
    #[arg(last = true)]
    rest: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let _ = read_text(&arguments.files_from)?;
    // Shards are the same for every target.
    let (file, stage) = (&arguments.file, &arguments.stage);
    let program = Program::build(file, stage, Target::Cpu, None, &arguments.runtime)?;
    let mut command = program.command("prepare");
    command.arg("--files-from").arg(&arguments.files_from);
    command.arg("--out").arg(&arguments.out).args(&arguments.rest);
    Err(program.run(command))
}
