//! Checks and times of kernels, here or packed for another machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{self, run};
use crate::{libtorch, suite};

const PACKAGE: &str = "lightc-gpu";

/// Runs `lightc-gpu` with these arguments. Without a GPU it says that everything was skipped.
pub(crate) fn run_here(arguments: &[&str]) -> Result<()> {
    let program = build()?;
    let mut command = Command::new(program);
    libtorch::environment()?.apply(command.args(arguments));
    run(&mut command)
}

/// Puts the program and a script that runs all of it into a folder that can be carried to a machine with
/// a GPU, a driver and Python's `torch` package, and no Rust.
pub(crate) fn pack(out: &Path) -> Result<()> {
    let program = build()?;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let target = out.join(PACKAGE);
    strip(&program, &target)?;
    let script = out.join("run.sh");
    fs::write(&script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&script, executable)
        .with_context(|| format!("cannot make {} executable", script.display()))?;
    let bytes = fs::metadata(&target).map(|file| file.len()).unwrap_or(0);
    eprintln!("{}: {} MB; there, run {}", out.display(), bytes / 1_000_000, script.display());
    Ok(())
}

fn build() -> Result<PathBuf> {
    suite::cargo_in_environment(&["build", "--release", "--package", PACKAGE].map(str::to_owned))?;
    process::built(PACKAGE)
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("strip");
    let stripped = run(command.arg("-o").arg(to).arg(from));
    stripped.context("fix: install binutils (Debian, Ubuntu: `apt install binutils`)")?;
    ensure!(to.exists(), "strip left no {}", to.display());
    Ok(())
}

/// Checks, then times if all is green. Libraries are those of python3's `torch`.
const SCRIPT: &str = r#"#!/bin/sh
# Checks every kernel on this machine's GPU, then times those that are right.
#
#   run.sh [test|bench|run|sanitize] [arguments of lightc-gpu]
#
# Without a word: test, then bench, with PEERS=FILE beside the times that peer_bench.py --json wrote.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
packages=$(python3 -c 'import importlib.util as u, os; print(os.path.dirname(u.find_spec("torch").submodule_search_locations[0]))')
folders=$packages/torch/lib
for folder in "$packages"/nvidia/*/lib; do folders=$folders:$folder; done
export LD_LIBRARY_PATH="$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
what=${1:-all}
[ $# -gt 0 ] && shift
case $what in
test | bench | run) exec "$here/lightc-gpu" "$what" "$@" ;;
# Each tensor is an allocation of its own, so that what is read beside it is found.
sanitize)
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    exec compute-sanitizer --error-exitcode 9 "$here/lightc-gpu" test --small "$@"
    ;;
all)
    "$here/lightc-gpu" test
    "$here/lightc-gpu" bench ${PEERS:+--peers "$PEERS"}
    ;;
*)
    echo "run.sh: unknown word '$what'; it is test, bench, run or sanitize" >&2
    exit 2
    ;;
esac
"#;

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
