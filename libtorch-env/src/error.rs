//! Every way in which libtorch is not to be had, each with a fix.

use std::io;
use std::path::PathBuf;

use crate::VERSION;

/// Why libtorch cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A folder that is named as libtorch lacks a file that a build needs.
    #[error(
        "{} is not a usable libtorch: {} does not exist\n  \
         named by: {origin}\n  fix: {fix}",
        root.display(), missing.display()
    )]
    Incomplete {
        /// The folder that is named as libtorch.
        root: PathBuf,
        /// The file or folder that does not exist.
        missing: PathBuf,
        /// What named the folder.
        origin: &'static str,
        /// What to do.
        fix: String,
    },
    /// The libtorch found is of another release.
    #[error(
        "libtorch {found} found, {VERSION} needed (in {})\n  \
         named by: {origin}\n  fix: {fix}",
        root.display()
    )]
    Version {
        /// The folder that holds it.
        root: PathBuf,
        /// The version that its files state.
        found: String,
        /// What named the folder.
        origin: &'static str,
        /// What to do.
        fix: String,
    },
    /// `LIBTORCH_USE_PYTORCH` is set and Python has no `torch`.
    #[error(
        "LIBTORCH_USE_PYTORCH is set, and `{}` finds no package `torch`: {reason}\n  \
         fix: install torch=={VERSION} there, or unset LIBTORCH_USE_PYTORCH",
        python.display()
    )]
    NoTorchPackage {
        /// The Python that was asked.
        python: PathBuf,
        /// What it answered.
        reason: String,
    },
    /// No place to install to is known.
    #[error(
        "no cache folder for libtorch: neither XDG_CACHE_HOME nor HOME is set\n  \
         fix: set one of them, or set LIBTORCH to a folder with libtorch {VERSION}"
    )]
    NoCacheFolder,
    /// Python is missing, or is not one that torch is published for.
    #[error(
        "`{}` cannot install torch=={VERSION}: {reason}\n  \
         fix: install Python 3.10 or newer with its venv module, or set LIBTORCH to a folder with libtorch {VERSION}",
        python.display()
    )]
    Python {
        /// The Python that was tried.
        python: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A command of the install failed.
    #[error(
        "`{command}` failed with {status}; its last lines:\n{tail}\n  \
         fix: {fix}"
    )]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        tail: String,
        /// What to do.
        fix: &'static str,
    },
    /// An installed file differs from what its package records.
    #[error(
        "the install in {} is damaged: {damage}\n  \
         fix: delete that folder and run the command again",
        venv.display()
    )]
    Damaged {
        /// The virtual environment.
        venv: PathBuf,
        /// The first difference found.
        damage: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// What it was applied to.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// Wraps an IO error with the operation and its path.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
