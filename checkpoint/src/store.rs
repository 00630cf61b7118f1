//! The folder of a run's checkpoints: saving, the `latest` pointer, pruning.
//!
//! # The order of a save
//! 1. Remove what interrupted saves left (`.tmp_*`).
//! 2. Write and sync every file in `.tmp_step_N`, the manifest last, then sync
//!    the folder.
//! 3. Rename it to `step_N`; sync the parent.
//! 4. Replace `latest` (temporary, sync, rename, sync the parent).
//!
//! A crash before 4 leaves `latest` on the checkpoint before; after 3 there is
//! also a complete newer folder, which a resumed run replaces when it gets
//! there. One writer at a time is the caller's duty.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, View};

use crate::durable;
use crate::error::{Error, Result};
use crate::format::{
    FORMAT, FileEntry, Head, LATEST_FILE, MANIFEST_FILE, Manifest, TensorEntry, step_name,
    step_of_name,
};
use crate::read::{Checkpoint, first_not_finite};
use crate::sealed;

/// A tensor to save.
#[derive(Debug, Clone)]
pub struct TensorData<'a> {
    /// Name, unique in its file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Raw little-endian row-major bytes.
    pub bytes: Cow<'a, [u8]>,
}

impl View for &TensorData<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A file to save.
#[derive(Debug, Clone)]
pub struct FileContents<'a> {
    /// Name in the checkpoint folder, with `.safetensors`.
    pub name: String,
    /// Its tensors.
    pub tensors: Vec<TensorData<'a>>,
}

/// A point of the save at which a crash is tried in tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Point {
    Begin,
    FileWritten(String),
    ManifestWritten,
    FolderNamed,
    LatestNamed,
}

/// The folder that holds a run's checkpoints.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store in this folder, which need not exist before the first save.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Store { root: root.into() }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Saves a checkpoint and points `latest` at it. Refuses NaN and
    /// infinities (E1013) before it writes anything.
    pub fn save(&self, head: &Head, files: &[FileContents<'_>]) -> Result<PathBuf> {
        check_finite(files)?;
        self.save_with(head, files, &mut |_| Ok(()))
    }

    pub(crate) fn save_with(
        &self,
        head: &Head,
        files: &[FileContents<'_>],
        at: &mut dyn FnMut(Point) -> Result<()>,
    ) -> Result<PathBuf> {
        at(Point::Begin)?;
        fs::create_dir_all(&self.root).map_err(Error::io("creating", &self.root))?;
        durable::clear_temporaries(&self.root)?;
        let name = step_name(head.step);
        let path = self.root.join(&name);
        self.make_room(&name)?;
        let temporary = durable::temporary_beside(&path)?;
        write_folder(&temporary, head, files, at)?;
        durable::publish(&temporary, &path)?;
        at(Point::FolderNamed)?;
        self.set_latest(&name)?;
        at(Point::LatestNamed)?;
        Ok(path)
    }

    /// Removes a folder of this name, unless `latest` names it.
    fn make_room(&self, name: &str) -> Result<()> {
        let path = self.root.join(name);
        if !path.exists() {
            return Ok(());
        }
        if self.latest_text()?.as_deref() == Some(name) {
            return Err(Error::Exists { path });
        }
        durable::remove_dir(&path)
    }

    /// Points `latest` at a folder of this store.
    pub fn set_latest(&self, name: &str) -> Result<()> {
        durable::replace_file(&self.root.join(LATEST_FILE), format!("{name}\n").as_bytes())
    }

    /// The name in `latest`, or `None` where the store has never been saved to.
    pub fn latest(&self) -> Result<Option<String>> {
        let Some(name) = self.latest_text()? else {
            return Ok(None);
        };
        let path = self.root.join(LATEST_FILE);
        if step_of_name(&name).is_none() {
            return Err(Error::BadLatest { path, content: name, why: "is not a step name" });
        }
        if !self.root.join(&name).is_dir() {
            return Err(Error::BadLatest { path, content: name, why: "does not exist" });
        }
        Ok(Some(name))
    }

    fn latest_text(&self) -> Result<Option<String>> {
        let path = self.root.join(LATEST_FILE);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("reading", path)(error)),
        }
    }

    /// Opens and verifies the checkpoint that `latest` names. Where it is
    /// damaged, the error names the newest intact one; it is not opened in its
    /// stead.
    pub fn open_latest(&self) -> Result<Checkpoint> {
        let name = match self.latest() {
            Ok(Some(name)) => name,
            Ok(None) => {
                return Err(Error::NotFound { path: self.root.clone() });
            }
            Err(error) => return Err(self.damaged(error, None)),
        };
        self.open(&name).map_err(|error| self.damaged(error, Some(&name)))
    }

    /// Opens and verifies one checkpoint by its folder name.
    pub fn open(&self, name: &str) -> Result<Checkpoint> {
        Checkpoint::open(&self.root.join(name))
    }

    fn damaged(&self, cause: Error, name: Option<&str>) -> Error {
        let steps = self.steps().unwrap_or_default();
        let previous = steps
            .into_iter()
            .rev()
            .map(step_name)
            .filter(|candidate| Some(candidate.as_str()) != name)
            .find(|candidate| self.open(candidate).is_ok());
        Error::LatestDamaged { cause: Box::new(cause), previous }
    }

    /// The steps that have a folder, in ascending order.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("listing", &self.root)(error)),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("listing", &self.root))?;
            steps.extend(step_of_name(&entry.file_name().to_string_lossy()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Removes all but the newest `keep_last` checkpoints up to the latest one,
    /// and never the latest itself. Call it after a save that succeeded.
    /// Returns the names removed.
    pub fn prune(&self, keep_last: usize) -> Result<Vec<String>> {
        let Some(latest) = self.latest()?.as_deref().and_then(step_of_name) else {
            return Ok(Vec::new());
        };
        let mut steps = self.steps()?;
        steps.retain(|&step| step <= latest);
        let n_removed = steps.len().saturating_sub(keep_last.max(1));
        let names: Vec<String> = steps.into_iter().take(n_removed).map(step_name).collect();
        for name in &names {
            durable::remove_dir(&self.root.join(name))?;
        }
        Ok(names)
    }
}

/// The folder of a checkpoint by its own path, or by that of a run or of the folder of its
/// checkpoints: then the one that `latest` names. Which files are in it is not guessed.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    for root in [path.to_owned(), path.join("checkpoints")] {
        if root.join(LATEST_FILE).is_file() {
            let store = Store::new(root);
            let latest = store.latest()?;
            let found = latest.map(|name| store.root.join(name));
            return found.ok_or_else(|| Error::NotFound { path: path.to_owned() });
        }
    }
    Ok(path.to_owned())
}

fn check_finite(files: &[FileContents<'_>]) -> Result<()> {
    for file in files {
        for tensor in &file.tensors {
            if let Some((index, value)) = first_not_finite(tensor.dtype, &tensor.bytes) {
                return Err(Error::NotFinite {
                    path: PathBuf::from(&file.name),
                    tensor: tensor.name.clone(),
                    index,
                    value,
                });
            }
        }
    }
    Ok(())
}

/// Writes a whole checkpoint folder and syncs it, manifest last.
pub(crate) fn write_folder(
    dir: &Path,
    head: &Head,
    files: &[FileContents<'_>],
    at: &mut dyn FnMut(Point) -> Result<()>,
) -> Result<()> {
    fs::create_dir(dir).map_err(Error::io("creating", dir))?;
    let mut entries = Vec::new();
    for file in files {
        entries.push(write_file(dir, file)?);
        at(Point::FileWritten(file.name.clone()))?;
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let manifest = Manifest { format: FORMAT, head: head.clone(), files: entries };
    let path = dir.join(MANIFEST_FILE);
    let text = sealed::seal(&manifest).map_err(|error| Error::Io {
        action: "writing",
        path: path.clone(),
        source: error.into(),
    })?;
    durable::write_synced(&path, text.as_bytes())?;
    durable::sync_dir(dir)?;
    at(Point::ManifestWritten)
}

fn write_file(dir: &Path, file: &FileContents<'_>) -> Result<FileEntry> {
    let path = dir.join(&file.name);
    let views = file.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
    safetensors::serialize_to_file(views, None, &path)
        .map_err(|error| Error::Header { path: path.clone(), detail: error.to_string() })?;
    durable::sync_file(&path)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(&path).map_err(Error::io("reading", &path))?;
    let n_bytes = fs::metadata(&path).map_err(Error::io("reading", &path))?.len();
    let mut tensors: Vec<TensorEntry> = file.tensors.iter().map(entry).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(FileEntry {
        name: file.name.clone(),
        n_bytes,
        blake3: hasher.finalize().to_hex().to_string(),
        tensors,
    })
}

fn entry(tensor: &TensorData<'_>) -> TensorEntry {
    TensorEntry {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        blake3: blake3::hash(&tensor.bytes).to_hex().to_string(),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
