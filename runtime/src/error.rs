//! The one error type of this crate.
//!
//! Every variant has a stable code (`docs/errors/`), a message that names the
//! place and the two values that disagree, and a help line with a fix. Codes
//! are grouped: E08xx configuration, E09xx data and tokenizer, E10xx
//! checkpoints, E11xx training and libtorch.

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. See the module documentation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused a call.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// An op was given tensors that it does not accept.
    #[error("{op}: {detail}")]
    Op {
        /// The op, by its IR name.
        op: &'static str,
        /// What disagrees, with both values.
        detail: String,
    },
}

impl Error {
    /// The stable code, for example `E0901`.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Torch(_) => "E1101",
            Error::Op { .. } => "E1102",
        }
    }

    /// How to mend it.
    pub fn help(&self) -> String {
        match self {
            Error::Torch(_) | Error::Op { .. } => {
                "this is a fault of the generated code or of the runtime: please report it with \
                 the stage's source"
                    .to_owned()
            }
        }
    }
}
