//! The errors of this crate, codes E1001 to E1021. One page each in
//! `docs/errors/`.

use std::path::PathBuf;

use safetensors::Dtype;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// One setting that differs between a checkpoint and the run that resumes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    /// The configuration key, dotted.
    pub key: String,
    /// Its value when the checkpoint was written.
    pub was: String,
    /// Its value now.
    pub now: String,
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing to open.
    #[error("no checkpoint at {}", path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The `latest` pointer does not name a checkpoint.
    #[error("{} names `{content}`, which {why}", path.display())]
    BadLatest {
        /// The pointer file.
        path: PathBuf,
        /// What it says.
        content: String,
        /// Why that is no checkpoint.
        why: &'static str,
    },
    /// The manifest cannot be believed.
    #[error("{}: the manifest is damaged: {detail}", path.display())]
    ManifestDamaged {
        /// The manifest.
        path: PathBuf,
        /// What disagrees.
        detail: String,
    },
    /// Another format.
    #[error("{}: checkpoint format {found}, this program reads format {supported}", path.display())]
    FormatVersion {
        /// The manifest.
        path: PathBuf,
        /// Format of the checkpoint.
        found: u32,
        /// Format of this program.
        supported: u32,
    },
    /// A file of the manifest is not there.
    #[error("{} is missing: the manifest lists it with {n_bytes} bytes", path.display())]
    FileMissing {
        /// The file.
        path: PathBuf,
        /// Its size in the manifest.
        n_bytes: u64,
    },
    /// A file has another length.
    #[error("{} has {found} bytes, the manifest says {expected}", path.display())]
    FileLength {
        /// The file.
        path: PathBuf,
        /// Bytes in the manifest.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// The bytes around the tensors are not what was written.
    #[error("{}: the safetensors header is damaged: {detail}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What disagrees.
        detail: String,
    },
    /// The bytes of a tensor are not what was written.
    #[error("{}: tensor `{tensor}` has BLAKE3 {found}, the manifest says {expected}", path.display())]
    TensorDigest {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Digest in the manifest.
        expected: String,
        /// Digest of the bytes on disk.
        found: String,
    },
    /// A tensor that must be there is not.
    #[error("{}: tensor `{tensor}` is missing: {by} has it", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Who has it: the manifest or the stage.
        by: String,
    },
    /// A tensor that nothing asks for.
    #[error("{}: tensor `{tensor}` is not expected: {by} has none of that name", path.display())]
    ExtraTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Who does not have it: the manifest or the stage.
        by: String,
    },
    /// A tensor of another shape.
    #[error("{}: tensor `{tensor}` has shape {found:?}, {by} says {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Who says otherwise: the manifest or the stage.
        by: String,
        /// The shape asked for.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A tensor of another dtype.
    #[error("{}: tensor `{tensor}` has dtype {found:?}, {by} says {expected:?}", path.display())]
    DtypeDiffers {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Who says otherwise: the manifest or the stage.
        by: String,
        /// The dtype asked for.
        expected: Dtype,
        /// The dtype found.
        found: Dtype,
    },
    /// A NaN or an infinity.
    #[error("{}: tensor `{tensor}` has {value} at element {index}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row-major index of the first such element.
        index: usize,
        /// `NaN`, `inf` or `-inf`.
        value: f64,
    },
    /// Another stage.
    #[error("{} holds stage `{found}`, and stage `{expected}` is wanted", path.display())]
    Stage {
        /// The checkpoint.
        path: PathBuf,
        /// The stage of the program, or of the source of a map.
        expected: String,
        /// The stage in the checkpoint.
        found: String,
    },
    /// The same stage from another source.
    #[error(
        "{} was written by a program of source {found}, this one has source {expected}",
        path.display()
    )]
    Source {
        /// The checkpoint.
        path: PathBuf,
        /// Source hash of this program.
        expected: String,
        /// Source hash in the checkpoint.
        found: String,
    },
    /// Another tokenizer.
    #[error("{} belongs to tokenizer {found}, this run has tokenizer {expected}", path.display())]
    Tokenizer {
        /// The checkpoint.
        path: PathBuf,
        /// Tokenizer hash of this run.
        expected: String,
        /// Tokenizer hash in the checkpoint.
        found: String,
    },
    /// Another corpus, so that the data position means nothing.
    #[error("{} belongs to corpus {found}, this run has corpus {expected}", path.display())]
    Corpus {
        /// The checkpoint.
        path: PathBuf,
        /// Corpus digest of this run.
        expected: String,
        /// Corpus digest in the checkpoint.
        found: String,
    },
    /// Settings that shape the run were changed.
    #[error("{} was written with other settings: {}", path.display(), list_changes(changes))]
    Settings {
        /// The checkpoint.
        path: PathBuf,
        /// Every difference, ordered by key.
        changes: Vec<SettingChange>,
    },
    /// A save would replace the checkpoint that `latest` names.
    #[error("{} exists and is the latest checkpoint", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a gerund: `writing`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// A file that is neither a checkpoint nor a safetensors file.
    #[error("{} is neither a checkpoint folder nor a safetensors file: {detail}", path.display())]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// What its reader said.
        detail: String,
    },
    /// The latest checkpoint is damaged. The code is that of the cause.
    #[error("the latest checkpoint cannot be used: {cause}")]
    LatestDamaged {
        /// What is wrong with it.
        cause: Box<Error>,
        /// The newest earlier checkpoint that passes every check.
        previous: Option<String>,
    },
    /// More than one thing is wrong. The code is that of the first.
    #[error("{}", list_errors(errors))]
    Several {
        /// At least two errors, none of them `Several`.
        errors: Vec<Error>,
    },
}

/// Every code of this crate, in order.
pub const CODES: [&str; 21] = [
    "E1001", "E1002", "E1003", "E1004", "E1005", "E1006", "E1007", "E1008", "E1009", "E1010",
    "E1011", "E1012", "E1013", "E1014", "E1015", "E1016", "E1017", "E1018", "E1019", "E1020",
    "E1021",
];

impl Error {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Error::NotFound { .. } => "E1001",
            Error::BadLatest { .. } => "E1002",
            Error::ManifestDamaged { .. } => "E1003",
            Error::FormatVersion { .. } => "E1004",
            Error::FileMissing { .. } => "E1005",
            Error::FileLength { .. } => "E1006",
            Error::Header { .. } => "E1007",
            Error::TensorDigest { .. } => "E1008",
            Error::MissingTensor { .. } => "E1009",
            Error::ExtraTensor { .. } => "E1010",
            Error::Shape { .. } => "E1011",
            Error::DtypeDiffers { .. } => "E1012",
            Error::NotFinite { .. } => "E1013",
            Error::Stage { .. } => "E1014",
            Error::Source { .. } => "E1015",
            Error::Tokenizer { .. } => "E1016",
            Error::Corpus { .. } => "E1017",
            Error::Settings { .. } => "E1018",
            Error::Exists { .. } => "E1019",
            Error::Io { .. } => "E1020",
            Error::NotACheckpoint { .. } => "E1021",
            Error::LatestDamaged { cause, .. } => cause.code(),
            Error::Several { errors } => errors.first().map_or("E1003", Error::code),
        }
    }

    /// How to mend it.
    pub fn help(&self) -> String {
        match self {
            Error::LatestDamaged { previous: Some(previous), .. } => format!(
                "nothing was loaded; the newest intact checkpoint is `{previous}`: resume from it \
                 with `--resume-from {previous}`"
            ),
            Error::LatestDamaged { previous: None, .. } => {
                "nothing was loaded, and no earlier checkpoint in the folder is intact: start a \
                 new run, or restore the folder from a copy"
                    .to_owned()
            }
            Error::Several { errors } => errors.first().map_or_else(String::new, Error::help),
            other => other.plain_help().to_owned(),
        }
    }

    fn plain_help(&self) -> &'static str {
        match self {
            Error::NotFound { .. } => "give the folder of a run that has saved at least once",
            Error::BadLatest { .. } => {
                "resume from one of the `step_*` folders beside it with `--resume-from`"
            }
            Error::FormatVersion { .. } => "use the version of lightc that wrote it",
            Error::ManifestDamaged { .. }
            | Error::FileMissing { .. }
            | Error::FileLength { .. }
            | Error::Header { .. }
            | Error::TensorDigest { .. } => {
                "the files changed after they were written: restore them from a copy, or use an \
                 earlier checkpoint"
            }
            Error::MissingTensor { .. }
            | Error::ExtraTensor { .. }
            | Error::Shape { .. }
            | Error::DtypeDiffers { .. } => {
                "use the program built from the source that wrote this checkpoint, or write a \
                 growth map"
            }
            Error::NotFinite { .. } => {
                "the numbers diverged before this was saved: use an earlier checkpoint and a \
                 smaller learning rate"
            }
            Error::Stage { .. } => "build and run the stage that the checkpoint names",
            Error::Source { .. } => {
                "build the source that wrote it, or pass `--accept-changed-source` to go on with \
                 the new one"
            }
            Error::Tokenizer { .. } => {
                "point `data.shards` at shards of the checkpoint's tokenizer"
            }
            Error::Corpus { .. } => "point `data.shards` at the shards that the run began with",
            Error::Settings { .. } => {
                "restore these values, or pass `--accept-changed-config` to go on with the new ones"
            }
            Error::Exists { .. } => "resume the run with `--resume`, or give another `--out`",
            Error::Io { .. } => "check that the path exists, is writable and has free space",
            Error::NotACheckpoint { .. } => {
                "give a `step_*` folder, a folder with a `latest` file, or a `.safetensors` file"
            }
            Error::LatestDamaged { .. } | Error::Several { .. } => "",
        }
    }

    /// One error from a list: itself when there is one, `Several` otherwise.
    pub(crate) fn from_list(mut errors: Vec<Error>) -> Option<Error> {
        match errors.len() {
            0 | 1 => errors.pop(),
            _ => Some(Error::Several { errors }),
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}

fn list_changes(changes: &[SettingChange]) -> String {
    let lines: Vec<String> = changes
        .iter()
        .map(|change| format!("`{}` was {}, is {}", change.key, change.was, change.now))
        .collect();
    lines.join("; ")
}

fn list_errors(errors: &[Error]) -> String {
    let lines: Vec<String> = errors.iter().map(Error::to_string).collect();
    lines.join("\n")
}
