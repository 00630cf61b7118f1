//! What a manifest says.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// The format that this crate reads and writes.
pub const FORMAT: u32 = 1;
/// Name of the manifest in a checkpoint folder.
pub const MANIFEST_FILE: &str = "manifest.json";
const SUFFIX: &str = ".safetensors";
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
    /// What tensors of equal names and shapes do not show: the integrator of each stack, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub integrators: BTreeMap<String, String>,
    /// Updates that the moments have seen before step 0 of the run: 0 where all began anew. The
    /// optimizer's bias correction counts them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub moment_updates: u64,
    /// Where a stage that was grown comes from; kept by all later checkpoints of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grown: Option<Grown>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The growth that a run begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grown {
    /// Name of the map.
    pub map: String,
    /// Name of the stage that was grown.
    pub from_stage: String,
    /// Root digest of the tensors that were grown, as `lightc hash` prints it.
    pub from_root: String,
    /// Optimizer updates that the source had had.
    pub from_step: u64,
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

impl Manifest {
    /// The shard that has a tensor of a file, and the tensor's entry there.
    pub fn entry(&self, file: &str, name: &str) -> Option<(&str, &TensorEntry)> {
        let shards = self.files.iter().filter(|entry| whole_name(&entry.name) == file);
        let mut found = shards.filter_map(|shard| {
            let entry = shard.tensors.iter().find(|entry| entry.name == name)?;
            Some((shard.name.as_str(), entry))
        });
        found.next()
    }
}

/// The name of one of several files that together are `file`: shard `index` of `n_shards`,
/// counted from 1. One shard has the name of the file.
pub fn shard_name(file: &str, index: usize, n_shards: usize) -> String {
    let stem = file.strip_suffix(SUFFIX).unwrap_or(file);
    if n_shards == 1 {
        file.to_owned()
    } else {
        format!("{stem}-{index:05}-of-{n_shards:05}{SUFFIX}")
    }
}

/// The file that a shard is part of: `params.safetensors` for
/// `params-00002-of-00008.safetensors`, and any other name for itself.
pub fn whole_name(name: &str) -> String {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.strip_suffix(SUFFIX).and_then(|stem| {
        let (rest, n_shards) = stem.rsplit_once("-of-")?;
        let (whole, index) = rest.rsplit_once('-')?;
        (is_number(index) && is_number(n_shards)).then_some(whole)
    });
    parts.map_or_else(|| name.to_owned(), |whole| format!("{whole}{SUFFIX}"))
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
    fn a_shard_names_the_file_that_it_is_part_of() {
        assert_eq!(shard_name("params.safetensors", 1, 1), "params.safetensors");
        let shard = shard_name("params.safetensors", 2, 8);
        assert_eq!(shard, "params-00002-of-00008.safetensors");
        assert_eq!(whole_name(&shard), "params.safetensors");
        for other in ["params.safetensors", "a-1-of-2.safetensors", "b-00001-of-00002", "x"] {
            assert_eq!(whole_name(other), other);
        }
    }

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
