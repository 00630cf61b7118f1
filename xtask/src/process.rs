//! Child processes: said before they run, with their exit code passed on.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result};

/// A child that did not succeed.
#[derive(Debug)]
pub(crate) struct Failed {
    line: String,
    status: ExitStatus,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` failed with {}", self.line, self.status)
    }
}

impl std::error::Error for Failed {}

/// The exit code to end with: that of the failed child, if there is one.
pub(crate) fn exit_code_of(error: &anyhow::Error) -> ExitCode {
    let status = error.downcast_ref::<Failed>().map(|failed| failed.status);
    ExitCode::from(status.map_or(1, code_of))
}

/// Shells report death by a signal as 128 plus its number.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(1)
}

/// The cargo that runs this program, started at the repository's root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let _ = command.args(arguments).current_dir(root());
    command
}

/// Says what runs, runs it, and fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", line_of(command));
    run_quietly(command)
}

/// Runs a command without saying so, and fails if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if status.success() { Ok(()) } else { Err(Failed { line, status }.into()) }
}

/// Runs a command for its output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(Failed { line, status: output.status }.into());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{line}` printed bytes that are not UTF-8"))
}

/// The command as it would be typed; the program by its file name alone.
fn line_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    if text.is_empty() || text.contains(char::is_whitespace) {
        format!("'{text}'")
    } else {
        text.into_owned()
    }
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Builds a program of the workspace in release and returns its path.
pub(crate) fn build_release(package: &str) -> Result<PathBuf> {
    run(&mut cargo(&["build", "--release", "--package", package]))?;
    built(package)
}

/// Where a program of the workspace lies that was built in release.
pub(crate) fn built(package: &str) -> Result<PathBuf> {
    Ok(target_folder()?.join("release").join(package))
}

/// The path of a program that was built with the profile of the tests.
pub(crate) fn built_for_tests(package: &str) -> Result<PathBuf> {
    Ok(target_folder()?.join("debug").join(package))
}

/// Where cargo puts what it builds.
fn target_folder() -> Result<PathBuf> {
    let text = output(&mut cargo(&["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&text).context("`cargo metadata` printed no JSON")?;
    let folder = metadata["target_directory"].as_str();
    folder.map(PathBuf::from).context("`cargo metadata` names no target directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_of_a_child_is_passed_on() {
        let error = run(Command::new("sh").args(["-c", "exit 7"])).unwrap_err();
        assert_eq!(error.downcast_ref::<Failed>().map(|f| code_of(f.status)), Some(7));
        assert_eq!(error.to_string(), "`sh -c 'exit 7'` failed with exit status: 7");
    }

    #[test]
    fn a_child_killed_by_a_signal_reads_as_in_a_shell() {
        let error = run(Command::new("sh").args(["-c", "kill -9 $$"])).unwrap_err();
        assert_eq!(error.downcast_ref::<Failed>().map(|f| code_of(f.status)), Some(137));
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = run(&mut Command::new("/nonexistent/program")).unwrap_err();
        assert!(format!("{error:#}").contains("cannot start `program`"), "{error:#}");
    }
}
