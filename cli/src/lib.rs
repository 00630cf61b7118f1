//! The command `lightc`: reads files, runs the passes of `dsl` and `codegen`, prints.
//!
//! | module | does |
//! |---|---|
//! | `commands` | one file per subcommand |
//! | `source` | reads a source with its imports |
//! | [`generated`] | the text of everything that is generated from a stage |
//! | `files` | writes that are whole or not at all |
//! | `program` | builds and runs the program of a stage |
//! | `failure`, `terminal` | what is printed where |
//!
//! Invariants:
//! - What was asked for goes to stdout, everything else to stderr.
//! - Exit code 0: done. 1: an error, or a difference that was looked for. 2: a command line that
//!   is not understood. A program that was run: its own.
//! - A file is replaced as a whole, after its new content is on the disk; on an error nothing
//!   is written.
//! - A closed pipe ends output, not the command.

mod commands;
mod diff;
mod failure;
mod files;
pub mod generated;
mod growth;
mod program;
mod runtime;
mod source;
mod table;
mod target;
mod terminal;

use clap::Parser;
use std::process::ExitCode;

/// The version that generated files and cache keys name.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Compiler for language models that grow.
#[derive(Parser)]
#[command(name = "lightc", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match commands::run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Arguments::command().debug_assert();
    }
}
