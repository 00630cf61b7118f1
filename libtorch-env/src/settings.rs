//! What the caller's environment says about libtorch.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where to look for libtorch and where to install it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `LIBTORCH`: a folder with `include/` and `lib/`.
    pub libtorch: Option<PathBuf>,
    /// `LIBTORCH_INCLUDE`: the folder that holds `include/`, if not `LIBTORCH`.
    pub libtorch_include: Option<PathBuf>,
    /// `LIBTORCH_LIB`: the folder that holds `lib/`, if not `LIBTORCH`.
    pub libtorch_lib: Option<PathBuf>,
    /// `LIBTORCH_USE_PYTORCH`: take the `torch` package of [`Settings::python`].
    pub use_pytorch: bool,
    /// The Python that has, or that installs, the `torch` package.
    pub python: PathBuf,
    /// The virtual environment that an install goes to. `None` when neither
    /// `XDG_CACHE_HOME` nor `HOME` is set.
    pub venv: Option<PathBuf>,
}

impl Settings {
    /// Reads the settings from the environment of this process.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| env::var_os(name))
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let switched_on = lookup("LIBTORCH_USE_PYTORCH")
            .is_some_and(|v| !["", "0", "false"].contains(&&*v.to_string_lossy()));
        // The XDG rules say that a relative path in the variable is to be ignored.
        let cache = path("XDG_CACHE_HOME")
            .filter(|p| p.is_absolute())
            .or_else(|| path("HOME").map(|home| home.join(".cache")));
        // The build script of torch-sys makes the same choice.
        let python = if path("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
        Self {
            libtorch: path("LIBTORCH"),
            libtorch_include: path("LIBTORCH_INCLUDE"),
            libtorch_lib: path("LIBTORCH_LIB"),
            use_pytorch: switched_on,
            python: PathBuf::from(python),
            venv: cache.map(|dir| dir.join("lightc").join(format!("venv-{}", crate::VERSION))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> Settings {
        Settings::from_lookup(|name| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_cache_folder_follows_xdg_then_home() {
        let venv = |vars| settings(vars).venv;
        assert_eq!(venv(&[("HOME", "/h")]), Some("/h/.cache/lightc/venv-2.11.0".into()));
        assert_eq!(
            venv(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]),
            Some("/c/lightc/venv-2.11.0".into())
        );
        assert_eq!(
            venv(&[("HOME", "/h"), ("XDG_CACHE_HOME", "relative")]),
            Some("/h/.cache/lightc/venv-2.11.0".into())
        );
        assert_eq!(venv(&[]), None);
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        assert_eq!(settings(&[("LIBTORCH", "")]).libtorch, None);
        assert_eq!(settings(&[("LIBTORCH", "/t")]).libtorch, Some("/t".into()));
    }

    #[test]
    fn use_pytorch_is_a_switch() {
        for off in ["", "0", "false"] {
            assert!(!settings(&[("LIBTORCH_USE_PYTORCH", off)]).use_pytorch, "{off:?}");
        }
        assert!(settings(&[("LIBTORCH_USE_PYTORCH", "1")]).use_pytorch);
    }

    #[test]
    fn an_active_virtual_environment_changes_the_python() {
        assert_eq!(settings(&[]).python, PathBuf::from("python3"));
        assert_eq!(settings(&[("VIRTUAL_ENV", "/v")]).python, PathBuf::from("python"));
    }
}
