//! The variables that a child process needs.
//!
//! Building: torch-sys needs `LIBTORCH` only. It watches seven variables, and a
//! change of any of them compiles its C++ again (over a minute), so the set is
//! kept as small as possible and is the same for every command.
//!
//! Running: libtorch's threads wait for each other many times in a step. They spin unless told
//! otherwise, and where other processes want the same cores a step then takes up to twenty times as
//! long (2 threads on 2 shared cores: 2 to 9 s against 0.5 s).
//!
//! A program that links tch holds no run path to libtorch (a
//! dependency's build script cannot add one), so the library folder must be on
//! the search path. `RUSTFLAGS` with a run path would work too but would build
//! every crate again.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Libtorch, Origin, VERSION};

/// The variable by which the dynamic linker finds libraries.
const SEARCH_PATH: &str = "LD_LIBRARY_PATH";

/// Changes to make to a process's environment.
///
/// `Display` writes them as lines for a POSIX shell.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Environment {
    /// Variables to set.
    pub set: BTreeMap<&'static str, PathBuf>,
    /// Folders to put in front of what a search path variable already holds.
    pub prepend: BTreeMap<&'static str, Vec<PathBuf>>,
    /// Variables to set where nothing has set them.
    pub default: BTreeMap<&'static str, &'static str>,
    /// Variables to remove: each would send torch-sys elsewhere.
    pub unset: Vec<&'static str>,
}

impl Libtorch {
    /// The environment in which cargo builds against this libtorch and in
    /// which the built programs run.
    pub fn environment(&self) -> Environment {
        let mut set = BTreeMap::from([("LIBTORCH", self.root.clone())]);
        let mut unset = vec!["LIBTORCH_USE_PYTORCH"];
        if self.origin != Origin::Variable {
            unset.extend([
                "LIBTORCH_INCLUDE",
                "LIBTORCH_LIB",
                "LIBTORCH_CXX11_ABI",
                "LIBTORCH_STATIC",
            ]);
        }
        if self.version == VERSION {
            unset.push("LIBTORCH_BYPASS_VERSION_CHECK");
        } else {
            // Another patch release: torch-sys compares all three numbers.
            let _ = set.insert("LIBTORCH_BYPASS_VERSION_CHECK", PathBuf::from("1"));
        }
        let prepend = BTreeMap::from([(SEARCH_PATH, self.library_folders.clone())]);
        let default = BTreeMap::from([("OMP_WAIT_POLICY", "PASSIVE")]);
        Environment { set, prepend, default, unset }
    }
}

impl Environment {
    /// Applies the changes to a command, on top of this process's environment.
    pub fn apply(&self, command: &mut Command) {
        for name in &self.unset {
            let _ = command.env_remove(name);
        }
        let _ = command.envs(&self.set);
        for (name, value) in &self.default {
            if env::var_os(name).is_none() {
                let _ = command.env(name, value);
            }
        }
        for (name, folders) in &self.prepend {
            let _ = command.env(name, in_front(folders, env::var_os(name).as_deref()));
        }
    }
}

/// Joins a search path, dropping folders that are already in front, so that
/// nested commands do not grow it.
fn in_front(folders: &[PathBuf], inherited: Option<&OsStr>) -> OsString {
    let rest = inherited.map(env::split_paths).into_iter().flatten();
    let kept = rest.filter(|path| !path.as_os_str().is_empty() && !folders.contains(path));
    let mut joined = OsString::new();
    for path in folders.iter().cloned().chain(kept) {
        if !joined.is_empty() {
            joined.push(":");
        }
        joined.push(path);
    }
    joined
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.unset {
            writeln!(f, "unset {name}")?;
        }
        for (name, value) in &self.set {
            writeln!(f, "export {name}={}", quoted(value))?;
        }
        for (name, value) in &self.default {
            writeln!(f, "export {name}=\"${{{name}:-{value}}}\"")?;
        }
        for (name, folders) in &self.prepend {
            let joined = in_front(folders, None);
            writeln!(f, "export {name}={}\"${{{name}:+:${name}}}\"", quoted(Path::new(&joined)))?;
        }
        Ok(())
    }
}

/// Quotes a value for a POSIX shell.
fn quoted(value: &Path) -> String {
    format!("'{}'", value.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libtorch(origin: Origin, version: &str) -> Libtorch {
        Libtorch {
            root: "/t/torch".into(),
            version: version.into(),
            origin,
            library_folders: vec!["/t/torch/lib".into(), "/t/nvidia/cu13/lib".into()],
        }
    }

    #[test]
    fn the_cached_libtorch_hides_every_other_variable() {
        let text = libtorch(Origin::Cache, "2.11.0").environment().to_string();
        assert_eq!(
            text,
            "unset LIBTORCH_USE_PYTORCH\n\
             unset LIBTORCH_INCLUDE\n\
             unset LIBTORCH_LIB\n\
             unset LIBTORCH_CXX11_ABI\n\
             unset LIBTORCH_STATIC\n\
             unset LIBTORCH_BYPASS_VERSION_CHECK\n\
             export LIBTORCH='/t/torch'\n\
             export OMP_WAIT_POLICY=\"${OMP_WAIT_POLICY:-PASSIVE}\"\n\
             export LD_LIBRARY_PATH='/t/torch/lib:/t/nvidia/cu13/lib'\"${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\"\n"
        );
    }

    #[test]
    fn a_named_libtorch_keeps_its_companion_variables() {
        let environment = libtorch(Origin::Variable, "2.11.0").environment();
        assert!(!environment.unset.contains(&"LIBTORCH_LIB"));
        assert!(environment.unset.contains(&"LIBTORCH_USE_PYTORCH"));
    }

    #[test]
    fn a_patch_release_switches_the_exact_check_off() {
        let set = libtorch(Origin::Variable, "2.11.1").environment().set;
        assert!(set.contains_key("LIBTORCH_BYPASS_VERSION_CHECK"));
    }

    #[test]
    fn nested_commands_do_not_grow_the_search_path() {
        let folders = [PathBuf::from("/a"), PathBuf::from("/b")];
        let once = in_front(&folders, Some(OsStr::new("/x::/a")));
        assert_eq!(once, OsString::from("/a:/b:/x"));
        assert_eq!(in_front(&folders, Some(&once)), once);
        assert_eq!(in_front(&folders, None), OsString::from("/a:/b"));
    }

    #[test]
    fn values_are_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("/it's here")), r"'/it'\''s here'");
    }
}
