//! Formatting, lints and tests.
//!
//! Everything is compiled in cargo's `dev` profile (the `test` profile is the
//! same one), so that lints and tests share the dependencies and, above all,
//! the C++ of torch-sys. Only the demo and the benchmark use `release`.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::libtorch;
use crate::process::{cargo, run};

/// The fast tier. Without `--workspace`, cargo takes the workspace's default
/// members, which are exactly the crates that need no libtorch.
pub(crate) fn check() -> Result<()> {
    format_check()?;
    run(&mut cargo(&["clippy", "--all-targets", "--", "--deny", "warnings"]))?;
    run(&mut cargo(runner().tests))
}

/// Every test of the workspace. The runner's summary stays the last output.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    run_tests(arguments, |_| {})
}

/// Every test, with changed snapshots accepted.
pub(crate) fn bless(arguments: &[String]) -> Result<()> {
    run_tests(arguments, |command| {
        let _ = command.env("INSTA_UPDATE", "always").env("INSTA_FORCE_PASS", "1");
    })
}

/// Formatting and lints of the whole workspace.
pub(crate) fn lint() -> Result<()> {
    format_check()?;
    let mut command =
        cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
    libtorch::environment()?.apply(&mut command);
    run(&mut command)
}

/// Any cargo command in the environment of libtorch.
pub(crate) fn cargo_in_environment(arguments: &[String]) -> Result<()> {
    let mut command = cargo(&[]);
    // The user's own folder, not the root: relative paths are theirs.
    if let Ok(here) = std::env::current_dir() {
        let _ = command.current_dir(here);
    }
    libtorch::environment()?.apply(command.args(arguments));
    run(&mut command)
}

fn format_check() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))
}

fn run_tests(arguments: &[String], adjust: impl Fn(&mut Command)) -> Result<()> {
    let environment = libtorch::environment()?;
    let runner = runner();
    let prepared = |first: &[&str]| {
        let mut command = cargo(first);
        if !names_a_package(arguments) {
            let _ = command.arg("--workspace");
        }
        environment.apply(&mut command);
        adjust(&mut command);
        command
    };
    // First, because nextest runs no documentation tests and its summary is to
    // be the last output. A filter is meant for named tests.
    if arguments.is_empty() && !runner.has_doc_tests {
        run(&mut prepared(&["test", "--doc", "--no-fail-fast"]))?;
    }
    run(prepared(runner.tests).args(arguments))
}

struct Runner {
    tests: &'static [&'static str],
    has_doc_tests: bool,
}

/// cargo-nextest if it is installed, else cargo's own runner.
fn runner() -> Runner {
    let mut probe = cargo(&["nextest", "--version"]);
    let found = probe.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        Runner { tests: &["nextest", "run", "--no-fail-fast"], has_doc_tests: false }
    } else {
        Runner { tests: &["test", "--no-fail-fast"], has_doc_tests: true }
    }
}

/// Whether the arguments choose packages; `--workspace` would undo that.
fn names_a_package(arguments: &[String]) -> bool {
    let own = arguments.iter().take_while(|argument| *argument != "--");
    own.into_iter().any(|argument| {
        argument.starts_with("-p")
            || ["--package", "--workspace"].iter().any(|name| argument.starts_with(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naming_a_package_replaces_the_whole_workspace() {
        let names = |words: &[&str]| {
            names_a_package(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        assert!(names(&["-p", "lightc-dsl"]));
        assert!(names(&["-plightc-dsl"]));
        assert!(names(&["--package=lightc-dsl", "axis"]));
        assert!(!names(&["axis"]));
        assert!(!names(&["axis", "--", "-p"]));
        assert!(!names(&[]));
    }
}
