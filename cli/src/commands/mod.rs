//! The subcommands, one file each.

mod build;
mod check;
mod doctor;
mod evaluate;
mod explain;
mod fmt;
mod grow;
mod hash;
mod inspect;
mod memory;
mod params;
mod prepare;
mod snapshot;
mod train;

use crate::failure::Failure;
use clap::Subcommand;

/// What is to be done.
#[derive(Subcommand)]
pub(crate) enum Command {
    Check(check::Arguments),
    Fmt(fmt::Arguments),
    Params(params::Arguments),
    Memory(memory::Arguments),
    Inspect(inspect::Arguments),
    Build(build::Arguments),
    Prepare(prepare::Arguments),
    Train(train::Arguments),
    Evaluate(evaluate::Arguments),
    Grow(Box<grow::Arguments>),
    Snapshot(snapshot::Arguments),
    Hash(hash::Arguments),
    Doctor(doctor::Arguments),
    Explain(explain::Arguments),
}

/// Does it.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Check(arguments) => check::run(&arguments),
        Command::Fmt(arguments) => fmt::run(&arguments),
        Command::Params(arguments) => params::run(&arguments),
        Command::Memory(arguments) => memory::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Build(arguments) => build::run(&arguments),
        Command::Prepare(arguments) => prepare::run(&arguments),
        Command::Train(arguments) => train::run(&arguments),
        Command::Evaluate(arguments) => evaluate::run(&arguments),
        Command::Grow(arguments) => grow::run(&arguments),
        Command::Snapshot(arguments) => snapshot::run(&arguments),
        Command::Hash(arguments) => hash::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
    }
}
