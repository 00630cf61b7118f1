//! The digests of a checkpoint, for `lightc hash`.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::format::{FileEntry, LATEST_FILE, MANIFEST_FILE, TensorEntry, whole_name};
use crate::read::Checkpoint;
use crate::store::Store;

/// One tensor and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorHash {
    /// The file that holds it.
    pub file: String,
    /// Its name there.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes.
    pub shape: Vec<usize>,
    /// BLAKE3 of the raw little-endian row-major bytes, in hexadecimal.
    pub blake3: String,
}

/// The digests of a checkpoint or of one safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HashReport {
    /// BLAKE3 over the tensors' lines `file name dtype shape blake3`, in order:
    /// equal for two checkpoints exactly when all their tensors are.
    pub root: String,
    /// The tensors, ordered by file and name.
    pub tensors: Vec<TensorHash>,
}

/// Verifies and digests a `step_*` folder, a folder with a `latest` pointer
/// (itself, or in `checkpoints/`), or a single safetensors file.
pub fn hash(path: &Path) -> Result<HashReport> {
    if path.join(MANIFEST_FILE).is_file() {
        return Ok(report(&Checkpoint::open(path)?));
    }
    for root in [path.to_owned(), path.join("checkpoints")] {
        if root.join(LATEST_FILE).is_file() {
            return Ok(report(&Store::new(root).open_latest()?));
        }
    }
    if path.is_file() {
        return hash_file(path);
    }
    Err(Error::NotFound { path: path.to_owned() })
}

fn report(checkpoint: &Checkpoint) -> HashReport {
    of_files(&checkpoint.manifest().files)
}

fn of_files(files: &[FileEntry]) -> HashReport {
    let mut tensors = Vec::new();
    for file in files {
        let whole = whole_name(&file.name);
        tensors.extend(file.tensors.iter().map(|entry| from_entry(&whole, entry)));
    }
    finish(tensors)
}

/// The root digest of a checkpoint with these files. How a file is cut into shards does not count.
pub fn root_of(files: &[FileEntry]) -> String {
    of_files(files).root
}

fn from_entry(file: &str, entry: &TensorEntry) -> TensorHash {
    TensorHash {
        file: file.to_owned(),
        name: entry.name.clone(),
        dtype: entry.dtype,
        shape: entry.shape.clone(),
        blake3: entry.blake3.clone(),
    }
}

fn hash_file(path: &Path) -> Result<HashReport> {
    let bytes = std::fs::read(path).map_err(Error::io("reading", path))?;
    let parsed = SafeTensors::deserialize(&bytes).map_err(|error| Error::NotACheckpoint {
        path: path.to_owned(),
        detail: error.to_string(),
    })?;
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let tensors = parsed.tensors().into_iter().map(|(name, view)| TensorHash {
        file: file.clone(),
        name,
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        blake3: blake3::hash(view.data()).to_hex().to_string(),
    });
    Ok(finish(tensors.collect()))
}

fn finish(mut tensors: Vec<TensorHash>) -> HashReport {
    tensors.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
    let mut hasher = blake3::Hasher::new();
    for tensor in &tensors {
        let TensorHash { file, name, dtype, shape, blake3 } = tensor;
        hasher.update(format!("{file} {name} {dtype:?} {shape:?} {blake3}\n").as_bytes());
    }
    HashReport { root: hasher.finalize().to_hex().to_string(), tensors }
}
