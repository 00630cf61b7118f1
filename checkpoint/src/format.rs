//! What a manifest says.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// The format that this crate reads and writes.
pub const FORMAT: u32 = 1;
/// Name of the manifest in a checkpoint folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the pointer file beside the checkpoint folders.
pub const LATEST_FILE: &str = "latest";

/// Everything in a checkpoint that is not a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Name of the stage.
    pub stage: String,
    /// Digest of the sources of the stage.
    pub source_hash: String,
    /// Version of the compiler's runtime that wrote this.
    pub compiler: String,
    /// Optimizer updates done. It is the position of the schedule, of the data
    /// and of every random stream: all are functions of it.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// BLAKE3 of the tokenizer file.
    pub tokenizer_hash: String,
    /// Digest of the shards that the data position refers to.
    pub corpus_digest: String,
    /// Every setting that shapes the run, by dotted key.
    pub settings: BTreeMap<String, String>,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Name in its file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes.
    pub shape: Vec<usize>,
    /// BLAKE3 of the raw little-endian row-major bytes, in hexadecimal.
    pub blake3: String,
}

/// One safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name in the checkpoint folder.
    pub name: String,
    /// Length.
    pub n_bytes: u64,
    /// BLAKE3 of the whole file, in hexadecimal.
    pub blake3: String,
    /// Its tensors, ordered by name.
    pub tensors: Vec<TensorEntry>,
}

/// The manifest of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What the run was.
    pub head: Head,
    /// The files, ordered by name.
    pub files: Vec<FileEntry>,
}

/// Folder name of a step.
pub fn step_name(step: u64) -> String {
    format!("step_{step:08}")
}

/// The step of a folder name, if it is one.
pub fn step_of_name(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step_")?.parse().ok()?;
    (step_name(step) == name).then_some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_names_round_trip_and_nothing_else_is_one() {
        assert_eq!(step_name(100), "step_00000100");
        assert_eq!(step_of_name("step_00000100"), Some(100));
        assert_eq!(step_of_name("step_1234567890"), Some(1_234_567_890));
        for other in ["step_100", "step_", "step_0000010x", ".tmp_step_00000100", "latest"] {
            assert_eq!(step_of_name(other), None, "{other}");
        }
    }
}
