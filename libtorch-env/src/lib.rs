//! Finds libtorch, installs it when it is missing, and says which environment
//! variables a child `cargo` and the programs it builds need.
//!
//! Both `cargo xtask` and `lightc` start builds that link libtorch; this crate
//! is the one place that knows where it comes from. In order:
//!
//! 1. `LIBTORCH`: a folder with `include/` and `lib/`;
//! 2. `LIBTORCH_USE_PYTORCH=1`: the `torch` package of the current `python3`;
//! 3. a virtual environment in the cache folder, which [`find_or_install`]
//!    creates.
//!
//! Invariants:
//! - A libtorch that is returned has the version this workspace is bound to
//!   and the files that a build opens first.
//! - An install that was cut short is never returned: the stamp file that marks
//!   a good one is written last, after every installed file was compared with
//!   the size its package records.
//! - Nothing here prints. Progress goes to a callback.

mod environment;
mod error;
mod install;
mod layout;
mod record;
mod settings;

use std::path::Path;

pub use environment::Environment;
pub use error::Error;
pub use install::Progress;
pub use layout::{Libtorch, Origin};
pub use settings::Settings;

/// The release of libtorch that `tch` is bound to.
pub const VERSION: &str = "2.11.0";

/// Finds libtorch without installing anything.
///
/// `Ok(None)` means that no variable names one and that the cache holds none;
/// a libtorch that is named but unusable is an error, never skipped.
pub fn find(settings: &Settings) -> Result<Option<Libtorch>, Error> {
    if let Some(root) = &settings.libtorch {
        return layout::inspect_named(root, settings).map(Some);
    }
    if settings.use_pytorch {
        return layout::inspect_python(&settings.python).map(Some);
    }
    match &settings.venv {
        Some(venv) if install::is_complete(venv) => inspect_venv(venv).map(Some),
        _ => Ok(None),
    }
}

/// Finds libtorch, and installs it into the cache folder when there is none.
pub fn find_or_install(
    settings: &Settings,
    report: &mut dyn FnMut(Progress<'_>),
) -> Result<Libtorch, Error> {
    if let Some(found) = find(settings)? {
        return Ok(found);
    }
    let venv = settings.venv.as_deref().ok_or(Error::NoCacheFolder)?;
    install::install(&settings.python, venv, report)?;
    inspect_venv(venv)
}

fn inspect_venv(venv: &Path) -> Result<Libtorch, Error> {
    let packages = install::site_packages(venv)?;
    layout::inspect(&packages.join("torch"), Origin::Cache)
}
