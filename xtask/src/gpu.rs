//! Checks and times of kernels, here or packed for another machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{self, run};
use crate::{libtorch, suite};

const PACKAGE: &str = "lightc-gpu";
const COMMAND: &str = "lightc";

/// Runs `lightc-gpu` with these arguments. Without a GPU it says that everything was skipped.
pub(crate) fn run_here(arguments: &[&str]) -> Result<()> {
    let program = build()?;
    let mut command = Command::new(program);
    libtorch::environment()?.apply(command.args(arguments));
    run(&mut command)
}

/// Puts the programs, what they read and a script that runs all of it into a folder that can be carried to a machine
/// with a GPU, a driver and Python's `torch` package, and no Rust. `shards` are token shards to train on.
pub(crate) fn pack(out: &Path, shards: Option<&Path>) -> Result<()> {
    let program = build()?;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let target = out.join(PACKAGE);
    strip(&program, &target)?;
    strip(&process::built_for_tests(COMMAND)?, &out.join(COMMAND))?;
    let root = process::root();
    for folder in ["configs", "models"] {
        copy_folder(&root.join(folder), &out.join(folder))?;
    }
    if let Some(shards) = shards {
        copy_folder(shards, &out.join("shards"))?;
    }
    let script = out.join("run.sh");
    fs::write(&script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&script, executable)
        .with_context(|| format!("cannot make {} executable", script.display()))?;
    let bytes = fs::metadata(&target).map(|file| file.len()).unwrap_or(0);
    eprintln!("{}: {} MB; there, run {}", out.display(), bytes / 1_000_000, script.display());
    Ok(())
}

/// With the profile of the tests: what takes time runs on the GPU, and nothing is compiled again.
fn build() -> Result<PathBuf> {
    let words = ["build", "--workspace", "--bin", PACKAGE, "--bin", COMMAND];
    suite::cargo_in_environment(&words.map(str::to_owned))?;
    process::built_for_tests(PACKAGE)
}

/// Copies the texts and shards of a folder, and of the folders in it.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("cannot copy {} to {}", from.display(), to.display());
    fs::create_dir_all(to).with_context(failed)?;
    for entry in fs::read_dir(from).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let target = to.join(entry.file_name());
        if entry.file_type().with_context(failed)?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            let _ = fs::copy(entry.path(), target).with_context(failed)?;
        }
    }
    Ok(())
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("strip");
    let stripped = run(command.arg("-o").arg(to).arg(from));
    stripped.context("fix: install binutils (Debian, Ubuntu: `apt install binutils`)")?;
    ensure!(to.exists(), "strip left no {}", to.display());
    Ok(())
}

/// What runs there: checks, times, training.
const SCRIPT: &str = include_str!("../../gpu/run.sh");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_one_for_a_shell() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("run.sh");
        fs::write(&script, SCRIPT).unwrap();
        let status = Command::new("sh").arg("-n").arg(&script).status().unwrap();
        assert!(status.success());
    }
}
