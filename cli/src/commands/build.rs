//! `lightc build`: a crate that trains a stage.

use crate::failure::Failure;
use crate::files;
use crate::program;
use crate::runtime;
use crate::source::{Loaded, name_of};
use crate::table::counted;
use crate::target::Target;
use crate::terminal;
use lightc_codegen::rewrite::share::Share;
use std::path::PathBuf;

/// Write a crate that trains and evaluates a stage.
///
/// The folder is made, or must be one that lightc wrote. Files in it that are not generated, such
/// as cargo's `target`, stay.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The source.
    file: PathBuf,
    /// The stage.
    #[arg(long)]
    stage: String,
    /// What the code runs on.
    #[arg(long, value_enum, default_value_t = Target::Cpu)]
    target: Target,
    /// Build one rank's share of a stage whose experts several ranks divide, such as `1/8`.
    #[arg(long, value_name = "1/N")]
    share: Option<Share>,
    /// The folder to write.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    runtime: runtime::Choice,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime = arguments.runtime.find()?;
    let (loaded, model) = Loaded::read_stage(&arguments.file, &arguments.stage)?;
    let origin = loaded.origin(name_of(&arguments.file)?);
    let what = (arguments.target.into(), arguments.share);
    let files = program::generate(loaded, &model, &origin, &runtime, what)?;
    let changed = files::replace_folder(&arguments.out, &files)?;
    for file in &files {
        let path = arguments.out.join(&file.path);
        let state = if changed.contains(&file.path) { "wrote " } else { "same  " };
        terminal::print(&format!("{state} {}\n", path.display()))?;
    }
    let crate_folder = arguments.out.display();
    terminal::say(&format!(
        "{} of stage `{}` in {crate_folder}; `lightc train` builds and runs such a crate\n",
        counted(files.len(), "file"),
        arguments.stage,
    ));
    Ok(())
}
