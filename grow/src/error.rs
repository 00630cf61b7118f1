//! What can go wrong, codes E0680 to E0689; damage of the source keeps the codes of
//! `lightc_checkpoint`.

use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a checkpoint was not grown. The target folder is untouched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source, or a file of the target.
    #[error(transparent)]
    Checkpoint(#[from] lightc_checkpoint::Error),
    /// The folder to write is there, and is not what this growth would write.
    #[error("{} exists, and {why}", path.display())]
    TargetExists {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        why: String,
    },
    /// Another process grows into the same folder.
    #[error("another process is writing {}", path.display())]
    Busy {
        /// The target.
        path: PathBuf,
    },
    /// The checkpoint was trained under another integrator.
    #[error(
        "{} was trained with `{stack}` integrated by {found}, stage `{stage}` says {expected}",
        path.display()
    )]
    Integrator {
        /// The checkpoint.
        path: Box<Path>,
        /// Path of the stack.
        stack: String,
        /// The source stage of the map.
        stage: String,
        /// What the checkpoint says.
        found: String,
        /// What the stage says.
        expected: String,
    },
    /// A computed tensor has a NaN or an infinity.
    #[error("growing `{tensor}` of {file} gives {value} at element {index}: {rule}")]
    NotFinite {
        /// The file.
        file: String,
        /// The target tensor.
        tensor: String,
        /// Row-major index of the first such element.
        index: u64,
        /// `NaN`, `inf` or `-inf`.
        value: f64,
        /// Its rule in words.
        rule: String,
    },
    /// Moments are to follow, and the source has none.
    #[error("the moments of `{target}` are to follow, but `{source_path}` has none in the source")]
    NoMoments {
        /// The target parameter.
        target: String,
        /// The source parameter.
        source_path: String,
    },
    /// A size of the map is open.
    #[error("`{path}` has an axis `{axis}` of size `{size}`, which no stage binds")]
    Open {
        /// The tensor.
        path: String,
        /// The axis.
        axis: String,
        /// Its size.
        size: String,
    },
    /// A rule that does not fit together: a fault of the compiler.
    #[error("compiler fault: the rule of `{path}`: {detail}")]
    Rule {
        /// The tensor.
        path: String,
        /// What does not fit.
        detail: String,
    },
}

/// Every code of this crate, in order.
pub const CODES: [&str; 6] = ["E0680", "E0681", "E0682", "E0683", "E0684", "E0685"];

impl Error {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Checkpoint(error) => error.code(),
            Error::TargetExists { .. } => "E0680",
            Error::Busy { .. } => "E0681",
            Error::Integrator { .. } => "E0682",
            Error::NotFinite { .. } => "E0683",
            Error::NoMoments { .. } => "E0684",
            Error::Open { .. } => "E0685",
            Error::Rule { .. } => "E0701",
        }
    }

    /// How to mend it.
    pub fn help(&self) -> String {
        let text = match self {
            Error::Checkpoint(lightc_checkpoint::Error::Stage { found, .. }) => {
                return format!("use a map that grows `{found}`, or another checkpoint");
            }
            Error::Checkpoint(error) => return error.help(),
            Error::TargetExists { .. } => "give another `--to`, or remove the folder",
            Error::Busy { .. } => "wait for it to end, or give another `--to`",
            Error::Integrator { .. } => {
                "grow it with the map of the stage that trained it; a change of integrator is \
                 written in a map as `setting`"
            }
            Error::NotFinite { .. } => {
                "a factor is too large for the element type, or divides by 0: change the rule"
            }
            Error::NoMoments { .. } => {
                "write `moments reset \"reason\"` for it: a parameter that was not trained has no \
                 moments"
            }
            Error::Open { .. } => "bind the size in the stage",
            Error::Rule { .. } => "please report it with the source",
        };
        text.to_owned()
    }
}
