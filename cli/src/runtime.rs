//! Where the runtime lies that generated crates depend on.

use crate::failure::{Failure, Fault, codes};
use std::path::{Path, PathBuf};

/// The variable that names the runtime.
pub(crate) const VARIABLE: &str = "LIGHTC_RUNTIME";

/// How the runtime is chosen.
#[derive(clap::Args)]
pub(crate) struct Choice {
    /// The folder of the crate lightc-runtime. Else: LIGHTC_RUNTIME, or the checkout that this
    /// lightc was built in.
    #[arg(long = "runtime", value_name = "PATH")]
    path: Option<PathBuf>,
}

/// A runtime that was found.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    /// The folder of the crate, from the root of the file system.
    pub(crate) path: PathBuf,
    /// What named it.
    pub(crate) origin: &'static str,
}

impl Choice {
    pub(crate) fn find(&self) -> Result<Runtime, Failure> {
        find(self.path.as_deref(), std::env::var_os(VARIABLE).map(PathBuf::from), built_in())
    }

    /// The choice of a command that has no such option.
    pub(crate) fn default_choice() -> Self {
        Choice { path: None }
    }
}

/// The runtime beside the sources of this command.
fn built_in() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).join("runtime")
}

fn find(
    option: Option<&Path>,
    variable: Option<PathBuf>,
    beside: PathBuf,
) -> Result<Runtime, Failure> {
    let named = [
        (option.map(Path::to_owned), "--runtime"),
        (variable.filter(|path| !path.as_os_str().is_empty()), VARIABLE),
    ];
    for (path, origin) in named {
        if let Some(path) = path {
            return inspect(&path, origin).map_err(|reason| absent(&path, origin, &reason));
        }
    }
    let origin = "the checkout that lightc was built in";
    inspect(&beside, origin).map_err(|reason| absent(&beside, origin, &reason))
}

fn inspect(path: &Path, origin: &'static str) -> Result<Runtime, String> {
    let manifest = path.join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest)
        .map_err(|error| format!("{}: {error}", manifest.display()))?;
    if !text.lines().any(|line| line.trim() == "name = \"lightc-runtime\"") {
        return Err(format!("{} is of another crate", manifest.display()));
    }
    let path = path.canonicalize().map_err(|error| error.to_string())?;
    Ok(Runtime { path, origin })
}

fn absent(path: &Path, origin: &str, reason: &str) -> Failure {
    Fault::new(
        codes::NO_RUNTIME,
        format!("no crate lightc-runtime in `{}`, named by {origin}: {reason}", path.display()),
    )
    .help(format!("name the folder `runtime` of a lightc checkout with --runtime or {VARIABLE}"))
    .into()
}

impl Runtime {
    /// The workspace that the runtime is part of, if it is still there.
    pub(crate) fn workspace(&self) -> Option<&Path> {
        self.path.parent().filter(|folder| folder.join("Cargo.lock").is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_in(dir: &Path, name: &str) -> PathBuf {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("Cargo.toml"), format!("[package]\nname = \"{name}\"\n")).unwrap();
        dir.to_owned()
    }

    #[test]
    fn the_option_goes_before_the_variable_and_that_before_the_checkout() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| crate_in(&dir.path().join(name), "lightc-runtime");
        let (option, variable, beside) = (at("option"), at("variable"), at("beside"));
        let origin = |o: Option<&Path>, v: Option<&PathBuf>| {
            find(o, v.cloned(), beside.clone()).unwrap().origin
        };
        assert_eq!(origin(Some(&option), Some(&variable)), "--runtime");
        assert_eq!(origin(None, Some(&variable)), VARIABLE);
        assert_eq!(origin(None, Some(&PathBuf::new())), "the checkout that lightc was built in");
    }

    #[test]
    fn a_named_runtime_that_is_none_is_an_error_and_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let beside = crate_in(&dir.path().join("beside"), "lightc-runtime");
        let other = crate_in(&dir.path().join("other"), "other");
        for named in [other, dir.path().join("nowhere")] {
            let Err(Failure::Fault(fault)) = find(Some(&named), None, beside.clone()) else {
                panic!("accepted {}", named.display())
            };
            assert_eq!(fault.code, codes::NO_RUNTIME);
        }
    }
}
