//! The one error type of this crate.
//!
//! Every variant has a stable code (`docs/errors/`), a message that names the
//! place and the two values that disagree, and a help line with a fix. Codes
//! are grouped: E08xx configuration, E09xx data and tokenizer, E10xx
//! checkpoints, E11xx training and libtorch, E13xx GPUs.

use std::path::PathBuf;

use crate::cuda::DeviceError;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A place in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.path.display(), self.line, self.column)
    }
}

/// What went wrong. See the module documentation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused a call.
    #[error("libtorch: {}", without_trace(.0))]
    Torch(#[from] tch::TchError),
    /// An op was given tensors that it does not accept.
    #[error("{op}: {detail}")]
    Op {
        /// The op, by its IR name.
        op: &'static str,
        /// What disagrees, with both values.
        detail: String,
    },
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The corpus, its tokenizer or its shards.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(Box<lightc_checkpoint::Error>),
    /// The run itself.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The GPU, its compiler or a kernel.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<lightc_checkpoint::Error> for Error {
    fn from(error: lightc_checkpoint::Error) -> Self {
        Error::Checkpoint(Box::new(error))
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{place}: {detail}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the TOML parser said.
        detail: String,
    },
    /// A key that no one reads.
    #[error("{place}: unknown key `{key}`")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// The known key of the most similar spelling, if one is close.
        nearest: Option<String>,
        /// The keys of that table.
        known: Vec<String>,
    },
    /// A key without default is absent.
    #[error("{place}: key `{key}` is missing and has no default")]
    MissingKey {
        /// The table that lacks it.
        place: Place,
        /// The key.
        key: String,
    },
    /// A value of the wrong type.
    #[error("{place}: {detail}")]
    WrongType {
        /// Where.
        place: Place,
        /// Both types.
        detail: String,
    },
    /// A word that is not one of a fixed list.
    #[error("{place}: unknown value `{value}`")]
    UnknownValue {
        /// Where.
        place: Place,
        /// The word.
        value: String,
        /// The list.
        known: Vec<String>,
    },
    /// A number outside its range.
    #[error("{place}: `{key}` is {value}, it must be {wanted}")]
    OutOfRange {
        /// Where.
        place: Place,
        /// The key, dotted.
        key: String,
        /// Its value.
        value: String,
        /// The range, in words.
        wanted: String,
    },
    /// A key that the chosen kind does not read.
    #[error("{place}: `{key}` is not read when `kind` is `{kind}`")]
    NotForKind {
        /// Where.
        place: Place,
        /// The key, dotted.
        key: String,
        /// The kind.
        kind: &'static str,
    },
    /// Two groups of one name.
    #[error("{place}: two groups are named `{name}`")]
    DoubledGroup {
        /// The second one.
        place: Place,
        /// The name.
        name: String,
    },
    /// A trained parameter in no group.
    #[error("no group matches the parameter `{parameter}` (groups: {})", groups.join(", "))]
    Ungrouped {
        /// The first such parameter.
        parameter: String,
        /// The names of all groups.
        groups: Vec<String>,
    },
    /// A pattern that matches no trained parameter.
    #[error("pattern `{pattern}` of group `{group}` matches no trained parameter")]
    UnusedPattern {
        /// The group.
        group: String,
        /// The pattern.
        pattern: String,
    },
    /// A pattern all of whose parameters went to earlier patterns.
    #[error(
        "pattern `{pattern}` of group `{group}` takes no parameter: earlier patterns match all \
         {n_matched} that it matches, the first being `{first}`"
    )]
    ShadowedPattern {
        /// The group.
        group: String,
        /// The pattern.
        pattern: String,
        /// How many parameters it matches.
        n_matched: usize,
        /// The first of them.
        first: String,
    },
}

/// What is wrong with a corpus, its tokenizer or its shards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a gerund.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// A document that is not text.
    #[error("{}: not UTF-8 at byte {offset}", path.display())]
    NotUtf8 {
        /// The document.
        path: PathBuf,
        /// The first byte that is wrong.
        offset: usize,
    },
    /// A tokenizer file that does not load.
    #[error("{}: not a tokenizer: {detail}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What its reader said.
        detail: String,
    },
    /// The tokenizer beside the shards is not the one they were made with.
    #[error("{} has BLAKE3 {found}, the shards were made with {expected}", path.display())]
    TokenizerDiffers {
        /// The tokenizer file.
        path: PathBuf,
        /// The hash in the shards' manifest.
        expected: String,
        /// The hash of the file.
        found: String,
    },
    /// The stage and the tokenizer disagree on the number of ids.
    #[error("the stage has vocab = {stage}, the tokenizer has {tokenizer} ids")]
    VocabDiffers {
        /// Ids of the stage.
        stage: i64,
        /// Ids of the tokenizer.
        tokenizer: usize,
    },
    /// Text that encodes to a control token.
    #[error("{}: its text encodes to the control token `{token}` (id {id})", path.display())]
    ControlToken {
        /// The document.
        path: PathBuf,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
    },
    /// Byte tables of a tokenizer whose tokens are not bytes.
    #[error("the tokenizer is not byte-level: token {id} `{token}` has no bytes of its own")]
    NotByteLevel {
        /// A token that shows it.
        token: String,
        /// Its id.
        id: u32,
    },
    /// A vocabulary that cannot hold the bytes.
    #[error("a vocabulary of {asked} ids is too small: 256 bytes and one control token take 257")]
    VocabTooSmall {
        /// Ids asked for.
        asked: usize,
    },
    /// A corpus that gives no more merges.
    #[error(
        "the corpus gives {found} of the {asked} ids asked for: no pair is left that occurs twice"
    )]
    CorpusTooSmall {
        /// Ids asked for.
        asked: usize,
        /// Ids found.
        found: usize,
    },
    /// A split without a document.
    #[error("the {split} split is empty: {n_documents} documents, every {every}th held out")]
    EmptySplit {
        /// `train` or `held_out`.
        split: &'static str,
        /// Distinct documents that are not empty.
        n_documents: usize,
        /// The setting.
        every: usize,
    },
    /// The output folder holds something else.
    #[error("{} exists and was not prepared from these documents and settings", path.display())]
    OutputExists {
        /// The folder.
        path: PathBuf,
    },
    /// The manifest of the shards cannot be believed.
    #[error("{}: the manifest is damaged: {detail}", path.display())]
    ManifestDamaged {
        /// The manifest.
        path: PathBuf,
        /// What disagrees.
        detail: String,
    },
    /// A shard of another length.
    #[error("{} has {found} bytes, the manifest says {expected}", path.display())]
    ShardLength {
        /// The shard.
        path: PathBuf,
        /// Bytes in the manifest.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// A shard of other content.
    #[error("{} has BLAKE3 {found}, the manifest says {expected}", path.display())]
    ShardDigest {
        /// The shard.
        path: PathBuf,
        /// Digest in the manifest.
        expected: String,
        /// Digest of the bytes on disk.
        found: String,
    },
    /// An id that the tokenizer does not have.
    #[error("{}: id {id} at token {index}, the vocabulary has {vocab}", path.display())]
    IdOutOfRange {
        /// The shard.
        path: PathBuf,
        /// Position in the shard, in tokens.
        index: usize,
        /// The id.
        id: u32,
        /// Number of ids.
        vocab: u32,
    },
    /// A split too short for one batch.
    #[error(
        "the {split} split has {n_tokens} tokens, that is {found} sequences of length \
         {sequence_length}; at least {needed} are needed"
    )]
    TooFewTokens {
        /// `train` or `held_out`.
        split: &'static str,
        /// Its tokens.
        n_tokens: usize,
        /// The setting.
        sequence_length: usize,
        /// Whole sequences in it.
        found: usize,
        /// Sequences that one batch or one run takes.
        needed: usize,
    },
    /// A table whose source nothing makes.
    #[error("table `{table}` comes from `{source_name}`, which nothing makes")]
    UnknownTable {
        /// Path of the table.
        table: String,
        /// Its source.
        source_name: String,
    },
    /// A table of a shape that its source does not have.
    #[error("table `{table}` has shape {found:?}, `{source_name}` makes {expected}")]
    TableShape {
        /// Path of the table.
        table: String,
        /// Its source.
        source_name: String,
        /// The shapes it makes, in words.
        expected: String,
        /// The shape in the stage.
        found: Vec<i64>,
    },
    /// The tokenizer lacks the end-of-text token.
    #[error("the tokenizer has no token `{token}` to end a document with")]
    NoEndToken {
        /// The token asked for.
        token: String,
    },
    /// The configuration asks for another tokenizer than the shards have.
    #[error("`data.tokenizer` is {expected}, the shards have tokenizer {found}")]
    TokenizerPinned {
        /// The hash in the configuration.
        expected: String,
        /// The hash of the shards' tokenizer.
        found: String,
    },
    /// Shards of another format.
    #[error("{}: shard format {found}, this program reads format {supported}", path.display())]
    FormatVersion {
        /// The manifest.
        path: PathBuf,
        /// Format of the shards.
        found: u32,
        /// Format of this program.
        supported: u32,
    },
}

/// What is wrong with a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A NaN or an infinity. The update was not made.
    #[error("step {step}: {what} is {value}{}", origin_text(origin.as_deref()))]
    NotFinite {
        /// The step that would have been made, from 1.
        step: u64,
        /// The first such thing, in the order values, states, carries,
        /// gradients: ``the gradient of `layers.0.q` ``.
        what: String,
        /// The first such number in it.
        value: f64,
        /// The first op of the step, done again, that gave such a number, where one was found.
        origin: Option<String>,
        /// The last checkpoint, where the run has one.
        last_checkpoint: Option<String>,
    },
    /// Another process trains in this folder.
    #[error("{} is in use by another run", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has checkpoints and `--resume` was not given.
    #[error("{} holds a run that has reached {latest}", path.display())]
    RunExists {
        /// The folder.
        path: PathBuf,
        /// Its latest checkpoint.
        latest: String,
    },
    /// Generated code did not keep the contract of a stage.
    #[error("stage `{stage}`: {detail}")]
    Contract {
        /// The stage.
        stage: &'static str,
        /// What disagrees, with both values.
        detail: String,
    },
    /// The operating system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a gerund.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// A state of a reversible stack left the range in which nothing wraps.
    #[error("in step {step}, {n_elements} elements of states went beyond half of their range")]
    OutOfRange {
        /// The step, from 1.
        step: u64,
        /// How many, over all layers.
        n_elements: i64,
    },
    /// The backward pass did not get back the state that the forward pass had.
    #[error("the states of a reversible stack could not be had back: layer {layer} differs")]
    NotReconstructed {
        /// Where it shows.
        layer: usize,
    },
    /// A checkpoint of one rank's share was asked for.
    #[error("`{stage}` is one rank's share (1/{ranks}), of which no checkpoint is written or read")]
    ShareCheckpoint {
        /// The stage.
        stage: &'static str,
        /// How many ranks there are.
        ranks: u32,
    },
    /// A metrics file that cannot be continued.
    #[error("{}:{line}: not a metrics row: {detail}", path.display())]
    Metrics {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What its reader said.
        detail: String,
    },
}

/// Every code of this crate, in order, but for those of checkpoints, in
/// [`lightc_checkpoint::error::CODES`], and of GPUs, in [`crate::cuda::error::CODES`].
pub const CODES: [&str; 44] = [
    "E0801", "E0802", "E0803", "E0804", "E0805", "E0806", "E0807", "E0808", "E0809", "E0810",
    "E0811", "E0812", "E0901", "E0902", "E0903", "E0904", "E0905", "E0906", "E0907", "E0908",
    "E0909", "E0910", "E0911", "E0912", "E0913", "E0914", "E0915", "E0916", "E0917", "E0918",
    "E0919", "E0920", "E0921", "E1101", "E1102", "E1103", "E1104", "E1105", "E1106", "E1107",
    "E1108", "E1109", "E1120", "E1121",
];

/// What libtorch says, without the addresses of its callers that follow.
fn without_trace(error: &tch::TchError) -> String {
    let text = error.to_string();
    let said = text.split("Exception raised from").next().unwrap_or_default();
    said.trim_end().to_owned()
}

/// Whether a call was refused for want of memory, of the host or of a GPU.
fn is_of_memory(error: &tch::TchError) -> bool {
    let text = error.to_string();
    ["out of memory", "allocate memory", "not enough memory"]
        .iter()
        .any(|words| text.contains(words))
}

impl Error {
    /// The stable code, for example `E0901`.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Torch(_) => "E1101",
            Error::Op { .. } => "E1102",
            Error::Config(error) => error.code(),
            Error::Data(error) => error.code(),
            Error::Checkpoint(error) => error.code(),
            Error::Train(error) => error.code(),
            Error::Device(error) => error.code(),
        }
    }

    /// How to mend it.
    pub fn help(&self) -> String {
        match self {
            Error::Torch(error) if is_of_memory(error) => {
                "lower `data.micro_batch`, `data.batch` or `data.sequence_length`; `lightc memory` lists what \
                 a run holds, with `--target sm_90a` on a GPU"
                    .to_owned()
            }
            Error::Torch(_) | Error::Op { .. } => {
                "this is a fault of the generated code or of the runtime: please report it with \
                 the stage's source"
                    .to_owned()
            }
            Error::Config(error) => error.help(),
            Error::Data(error) => error.help(),
            Error::Checkpoint(error) => error.help(),
            Error::Train(error) => error.help(),
            Error::Device(error) => error.help(),
        }
    }

    /// The text that a program prints: code, message and help.
    pub fn rendered(&self) -> String {
        format!("error[{}]: {self}\n  help: {}\n", self.code(), self.help())
    }
}

impl ConfigError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            ConfigError::Read { .. } => "E0801",
            ConfigError::Syntax { .. } => "E0802",
            ConfigError::UnknownKey { .. } => "E0803",
            ConfigError::MissingKey { .. } => "E0804",
            ConfigError::WrongType { .. } => "E0805",
            ConfigError::UnknownValue { .. } => "E0806",
            ConfigError::OutOfRange { .. } => "E0807",
            ConfigError::NotForKind { .. } => "E0808",
            ConfigError::DoubledGroup { .. } => "E0809",
            ConfigError::Ungrouped { .. } => "E0810",
            ConfigError::UnusedPattern { .. } => "E0811",
            ConfigError::ShadowedPattern { .. } => "E0812",
        }
    }

    /// How to mend it.
    pub fn help(&self) -> String {
        match self {
            ConfigError::Read { .. } => "give the path of a TOML file to `--config`".to_owned(),
            ConfigError::Syntax { .. } => "see https://toml.io for the syntax".to_owned(),
            ConfigError::UnknownKey { nearest: Some(nearest), .. } => {
                format!("the key of nearest spelling is `{nearest}`")
            }
            ConfigError::UnknownKey { known, .. } => {
                format!("the keys of this table are {}", quoted(known))
            }
            ConfigError::MissingKey { key, .. } => {
                format!("add `{key}`; `docs/training-config.md` lists every key")
            }
            ConfigError::WrongType { .. } => "`docs/training-config.md` lists every key".to_owned(),
            ConfigError::UnknownValue { known, .. } => {
                format!("the values known here are {}", quoted(known))
            }
            ConfigError::OutOfRange { wanted, .. } => format!("give a value that is {wanted}"),
            ConfigError::NotForKind { .. } => "remove the key, or choose another kind".to_owned(),
            ConfigError::DoubledGroup { .. } => "give each group a name of its own".to_owned(),
            ConfigError::Ungrouped { .. } => {
                "add a last group with `match = [\"**\"]`, or a pattern for this parameter"
                    .to_owned()
            }
            ConfigError::UnusedPattern { .. } => {
                "remove it or correct it: `*` stands for one segment of a path, `**` for any number"
                    .to_owned()
            }
            ConfigError::ShadowedPattern { .. } => {
                "the first pattern that matches decides: move this group before the others"
                    .to_owned()
            }
        }
    }
}

impl DataError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            DataError::Io { .. } => "E0901",
            DataError::NotUtf8 { .. } => "E0902",
            DataError::TokenizerFile { .. } => "E0903",
            DataError::TokenizerDiffers { .. } => "E0904",
            DataError::VocabDiffers { .. } => "E0905",
            DataError::ControlToken { .. } => "E0906",
            DataError::NotByteLevel { .. } => "E0907",
            DataError::VocabTooSmall { .. } => "E0908",
            DataError::CorpusTooSmall { .. } => "E0909",
            DataError::EmptySplit { .. } => "E0910",
            DataError::OutputExists { .. } => "E0911",
            DataError::ManifestDamaged { .. } => "E0912",
            DataError::ShardLength { .. } => "E0913",
            DataError::ShardDigest { .. } => "E0914",
            DataError::IdOutOfRange { .. } => "E0915",
            DataError::TooFewTokens { .. } => "E0916",
            DataError::UnknownTable { .. } => "E0917",
            DataError::TableShape { .. } => "E0918",
            DataError::NoEndToken { .. } => "E0919",
            DataError::FormatVersion { .. } => "E0920",
            DataError::TokenizerPinned { .. } => "E0921",
        }
    }

    /// How to mend it.
    pub fn help(&self) -> String {
        let text = match self {
            DataError::Io { .. } => "check that the path exists and can be read or written",
            DataError::NotUtf8 { .. } => "convert the document to UTF-8 or take it off the list",
            DataError::TokenizerFile { .. } => "give a `tokenizer.json` of the Hugging Face format",
            DataError::TokenizerDiffers { .. }
            | DataError::ManifestDamaged { .. }
            | DataError::ShardLength { .. }
            | DataError::ShardDigest { .. }
            | DataError::FormatVersion { .. } => {
                "remove the shards' folder and run `prepare` again"
            }
            DataError::VocabDiffers { tokenizer, .. } => {
                return format!(
                    "set `vocab = {tokenizer}` in the stage, or prepare the shards with the \
                     stage's number; `data.unused_ids = true` accepts a tokenizer with fewer ids"
                );
            }
            DataError::ControlToken { .. } => {
                "use a tokenizer whose ordinary tokens do not spell a control token"
            }
            DataError::NotByteLevel { .. } => {
                "use a byte-level tokenizer, or a stage without `tokenizer.byte_*` tables"
            }
            DataError::VocabTooSmall { .. } => "ask for at least 257 ids",
            DataError::CorpusTooSmall { found, .. } => {
                return format!("add documents, or ask for at most {found} ids");
            }
            DataError::EmptySplit { .. } => "add documents, or change `--held-out-every`",
            DataError::OutputExists { .. } => "give another `--out`, or remove the folder",
            DataError::IdOutOfRange { .. } => {
                "the shard belongs to another tokenizer: run `prepare` again"
            }
            DataError::TooFewTokens { .. } => {
                "add documents, or lower `data.sequence_length`, `data.batch` or `data.run_length`"
            }
            DataError::UnknownTable { .. } => {
                "the sources are `tokenizer.byte_codes` and `tokenizer.byte_counts`"
            }
            DataError::TableShape { .. } => "correct the axes of the table in the block",
            DataError::TokenizerPinned { .. } => {
                "point `data.shards` at shards of that tokenizer, or remove `data.tokenizer`"
            }
            DataError::NoEndToken { .. } => "name the token that ends a text with `--end-token`",
        };
        text.to_owned()
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> DataError {
        let path = path.into();
        move |source| DataError::Io { action, path, source }
    }
}

impl TrainError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            TrainError::NotFinite { .. } => "E1103",
            TrainError::Busy { .. } => "E1104",
            TrainError::RunExists { .. } => "E1105",
            TrainError::Contract { .. } => "E1106",
            TrainError::Io { .. } => "E1107",
            TrainError::Metrics { .. } => "E1108",
            TrainError::ShareCheckpoint { .. } => "E1109",
            TrainError::OutOfRange { .. } => "E1120",
            TrainError::NotReconstructed { .. } => "E1121",
        }
    }

    /// How to mend it.
    pub fn help(&self) -> String {
        let text = match self {
            TrainError::NotFinite { last_checkpoint: Some(name), .. } => {
                return format!(
                    "the update was not made and the last good checkpoint is `{name}`: resume \
                     from it with a smaller `schedule.peak` or a longer warmup"
                );
            }
            TrainError::NotFinite { last_checkpoint: None, .. } => {
                "the update was not made and there is no checkpoint yet: start again with a \
                 smaller `schedule.peak` or a longer warmup"
            }
            TrainError::Busy { .. } => "wait for the other run to end, or give another `--out`",
            TrainError::RunExists { .. } => "go on with it by `--resume`, or give another `--out`",
            TrainError::Contract { .. } => {
                "this is a fault of the compiler: please report it with the stage's source"
            }
            TrainError::Io { .. } => "check that the path is writable and has free space",
            TrainError::Metrics { .. } => "remove the damaged line, or move the file away",
            TrainError::ShareCheckpoint { .. } => {
                "give `--no-checkpoints` (of `lightc train`: after `--`): a share measures memory and time"
            }
            TrainError::OutOfRange { .. } => {
                "lower the learning rate, or give the integrator fewer `fraction_bits`: one less \
                 doubles the range"
            }
            TrainError::NotReconstructed { .. } => {
                "an op gave other bits the second time, or memory is faulty: run again; if it \
                 comes back, please report it with the stage's source"
            }
        };
        text.to_owned()
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.into();
        move |source| TrainError::Io { action, path, source }
    }
}

fn origin_text(origin: Option<&str>) -> String {
    origin.map_or_else(String::new, |origin| format!("; done again, {origin}"))
}

fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    /// What libtorch says of a GPU without memory ends where its callers' addresses begin, and names what to lower; a
    /// call that is wrong stays a fault of the compiler.
    #[test]
    fn what_libtorch_refuses_has_no_trace_and_a_help_of_its_kind() {
        let refused = |text: &str| Error::Torch(tch::TchError::Torch(text.to_owned())).rendered();
        let memory = refused(
            "CUDA out of memory. Tried to allocate 12.00 GiB.\nException raised from malloc at \
             c10/cuda/CUDACachingAllocator.cpp:1574 (most recent call first):\nframe #0: c10::Error\n",
        );
        insta::assert_snapshot!("memory_of_libtorch", memory);
        let wrong = refused("The size of tensor a (2) must match the size of tensor b (3)");
        assert!(wrong.contains("(2) must match") && wrong.contains("please report it"), "{wrong}");
    }

    /// The words by which it is told apart are those that libtorch has.
    #[test]
    fn too_large_a_tensor_is_a_want_of_memory() {
        let on = (crate::Kind::Double, crate::Device::Cpu);
        let error = Error::from(Tensor::f_empty([1 << 40, 1 << 10], on).expect_err("no memory"));
        assert!(error.help().contains("data.micro_batch"), "{}", error.rendered());
    }
}
