//! Opening a checkpoint: every check, before anything is given out.
//!
//! Per file, in this order, so that each kind of damage has its own code: the
//! header parses; it lists the manifest's tensors with their dtypes and shapes;
//! the length is the manifest's; each tensor has its digest and only finite
//! numbers; the whole file has its digest (which covers the header's spelling).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result, SettingChange};
use crate::format::{FORMAT, FileEntry, MANIFEST_FILE, Manifest, TensorEntry, whole_name};
use crate::sealed;

/// A verified checkpoint, mapped into memory.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    manifest: Manifest,
    files: BTreeMap<String, MappedFile>,
}

#[derive(Debug)]
struct MappedFile {
    bytes: Bytes,
    ranges: BTreeMap<String, Range<usize>>,
}

/// One tensor of a verified checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes.
    pub shape: &'a [usize],
    /// Raw little-endian row-major bytes.
    pub bytes: &'a [u8],
}

/// A tensor that a stage asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// The file it is in.
    pub file: String,
    /// Its name there.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes.
    pub shape: Vec<usize>,
}

/// What a program asks of a checkpoint.
#[derive(Debug, Clone)]
pub struct Expected<'a> {
    /// Name of the stage.
    pub stage: &'a str,
    /// Digest of its sources; `None` accepts any.
    pub source_hash: Option<&'a str>,
    /// BLAKE3 of the tokenizer file.
    pub tokenizer_hash: &'a str,
    /// Digest of the shards; `None` accepts any (evaluation on other text).
    pub corpus_digest: Option<&'a str>,
    /// The settings that must be the same; `None` accepts any.
    pub settings: Option<&'a BTreeMap<String, String>>,
    /// The tensors, all of them.
    pub tensors: &'a [ExpectedTensor],
    /// Files that the program leaves unread: what is in them is not compared.
    pub unread: &'a [&'a str],
}

/// Opens every file of a checkpoint; all that is wrong with any of them is told at once.
pub(crate) fn open_files<F>(
    dir: &Path,
    manifest: &Manifest,
    open: impl Fn(&Path, &FileEntry) -> Result<F>,
) -> Result<BTreeMap<String, F>> {
    let mut files = BTreeMap::new();
    let mut errors = Vec::new();
    for entry in &manifest.files {
        match open(&dir.join(&entry.name), entry) {
            Ok(file) => {
                files.insert(entry.name.clone(), file);
            }
            Err(Error::Several { errors: more }) => errors.extend(more),
            Err(error) => errors.push(error),
        }
    }
    Error::from_list(errors).map_or(Ok(files), Err)
}

impl Checkpoint {
    /// Opens a `step_*` folder and verifies all of it.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = read_manifest(dir)?;
        let files = open_files(dir, &manifest, open_file)?;
        Ok(Checkpoint { dir: dir.to_owned(), manifest, files })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// One tensor of a file, in whichever of its shards it is.
    pub fn tensor(&self, file: &str, name: &str) -> Result<TensorRef<'_>> {
        let missing = || Error::MissingTensor {
            path: self.dir.join(file),
            tensor: name.to_owned(),
            by: "the stage".to_owned(),
        };
        let (shard, entry) = self.entry(file, name).ok_or_else(missing)?;
        let mapped = self.files.get(shard).ok_or_else(missing)?;
        let range = mapped.ranges.get(name).ok_or_else(missing)?;
        let bytes = mapped.bytes.as_slice().get(range.clone()).ok_or_else(missing)?;
        Ok(TensorRef { dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// The shard that has a tensor, and its entry there.
    fn entry(&self, file: &str, name: &str) -> Option<(&str, &TensorEntry)> {
        self.manifest.entry(file, name)
    }

    /// Checks that this checkpoint is what a program asks for: same stage,
    /// source, tokenizer, corpus and settings, and exactly its tensors. All
    /// tensor differences are told at once.
    pub fn check(&self, expected: &Expected<'_>) -> Result<()> {
        self.check_identity(expected)?;
        self.check_settings(expected)?;
        let mut errors = Vec::new();
        for tensor in expected.tensors {
            self.check_tensor(tensor, &mut errors);
        }
        for file in self.manifest.files.iter().filter(|f| !expected.unread.contains(&&*f.name)) {
            self.check_extra(file, expected.tensors, &mut errors);
        }
        Error::from_list(errors).map_or(Ok(()), Err)
    }

    fn check_identity(&self, expected: &Expected<'_>) -> Result<()> {
        let head = &self.manifest.head;
        let path = self.dir.clone();
        if head.stage != expected.stage {
            let (expected, found) = (expected.stage.to_owned(), head.stage.clone());
            return Err(Error::Stage { path, expected, found });
        }
        if let Some(differs) = differs(expected.source_hash, &head.source_hash) {
            return Err(Error::Source { path, expected: differs, found: head.source_hash.clone() });
        }
        if head.tokenizer_hash != expected.tokenizer_hash {
            let (expected, found) =
                (expected.tokenizer_hash.to_owned(), head.tokenizer_hash.clone());
            return Err(Error::Tokenizer { path, expected, found });
        }
        if let Some(differs) = differs(expected.corpus_digest, &head.corpus_digest) {
            let found = head.corpus_digest.clone();
            return Err(Error::Corpus { path, expected: differs, found });
        }
        Ok(())
    }

    fn check_settings(&self, expected: &Expected<'_>) -> Result<()> {
        let Some(now) = expected.settings else {
            return Ok(());
        };
        let changes = setting_changes(&self.manifest.head.settings, now);
        if changes.is_empty() {
            return Ok(());
        }
        Err(Error::Settings { path: self.dir.clone(), changes })
    }

    fn check_tensor(&self, tensor: &ExpectedTensor, errors: &mut Vec<Error>) {
        let path = self.dir.join(&tensor.file);
        let by = "the stage".to_owned();
        match self.entry(&tensor.file, &tensor.name) {
            None => errors.push(Error::MissingTensor { path, tensor: tensor.name.clone(), by }),
            Some((_, found)) => {
                let wanted = (tensor.dtype, tensor.shape.as_slice());
                compare(&path, &tensor.name, &by, wanted, (found.dtype, &found.shape), errors);
            }
        }
    }

    fn check_extra(&self, file: &FileEntry, tensors: &[ExpectedTensor], errors: &mut Vec<Error>) {
        let whole = whole_name(&file.name);
        for entry in &file.tensors {
            let known =
                tensors.iter().any(|tensor| tensor.file == whole && tensor.name == entry.name);
            if !known {
                errors.push(Error::ExtraTensor {
                    path: self.dir.join(&file.name),
                    tensor: entry.name.clone(),
                    by: "the stage".to_owned(),
                });
            }
        }
    }
}

/// Every setting whose value differs, ordered by key.
pub fn setting_changes(
    was: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
) -> Vec<SettingChange> {
    let absent = || "absent".to_owned();
    let mut keys: Vec<&String> = was.keys().chain(now.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| was.get(*key) != now.get(*key))
        .map(|key| SettingChange {
            key: key.clone(),
            was: was.get(key).cloned().unwrap_or_else(absent),
            now: now.get(key).cloned().unwrap_or_else(absent),
        })
        .collect()
}

fn differs(expected: Option<&str>, found: &str) -> Option<String> {
    expected.filter(|expected| *expected != found).map(str::to_owned)
}

/// Reads and checks the manifest of a checkpoint folder.
pub fn read_manifest(dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST_FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NotFound { path });
        }
        Err(error) => return Err(Error::io("reading", path)(error)),
    };
    let text = String::from_utf8(bytes).map_err(|error| Error::ManifestDamaged {
        path: path.clone(),
        detail: error.to_string(),
    })?;
    if let Some(found) = other_format(&text) {
        return Err(Error::FormatVersion { path, found, supported: FORMAT });
    }
    sealed::unseal(&text).map_err(|detail| Error::ManifestDamaged { path, detail })
}

/// The format number of a manifest that is not of [`FORMAT`]; read before the
/// rest, which may have other fields.
fn other_format(text: &str) -> Option<u32> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let format = value.get("content")?.get("format")?.as_u64()?;
    let format = u32::try_from(format).ok()?;
    (format != FORMAT).then_some(format)
}

/// The bytes of a file. An empty file cannot be mapped.
#[derive(Debug)]
enum Bytes {
    Empty,
    Mapped(Mmap),
}

impl Bytes {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::Empty);
        }
        // SAFETY: the map is read-only, and a published checkpoint file is never
        // written again (see `store`): it is replaced or removed by renaming its
        // folder, which leaves the mapped pages as they are.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file)? };
        Ok(Bytes::Mapped(map))
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Empty => &[],
            Bytes::Mapped(map) => map,
        }
    }
}

fn open_file(path: &Path, entry: &FileEntry) -> Result<MappedFile> {
    let bytes = match Bytes::open(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::FileMissing { path: path.to_owned(), n_bytes: entry.n_bytes });
        }
        Err(error) => return Err(Error::io("reading", path)(error)),
    };
    let ranges = check_file(path, bytes.as_slice(), entry)?;
    Ok(MappedFile { bytes, ranges })
}

fn check_file(
    path: &Path,
    bytes: &[u8],
    entry: &FileEntry,
) -> Result<BTreeMap<String, Range<usize>>> {
    let found = bytes.len() as u64;
    let length = || Error::FileLength { path: path.to_owned(), expected: entry.n_bytes, found };
    let ranges = match read_header(bytes, entry, path) {
        Ok(ranges) => ranges,
        Err(Error::Header { .. }) if found != entry.n_bytes => return Err(length()),
        Err(error) => return Err(error),
    };
    if found != entry.n_bytes {
        return Err(length());
    }
    for tensor in &entry.tensors {
        check_bytes(path, tensor, ranges.get(&tensor.name), bytes)?;
    }
    let digest = blake3::hash(bytes).to_hex().to_string();
    if digest != entry.blake3 {
        let detail = format!("the file has BLAKE3 {digest}, the manifest says {}", entry.blake3);
        return Err(Error::Header { path: path.to_owned(), detail });
    }
    Ok(ranges)
}

/// Parses the header and compares it with the manifest.
fn read_header(
    bytes: &[u8],
    entry: &FileEntry,
    path: &Path,
) -> Result<BTreeMap<String, Range<usize>>> {
    let (n_header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|error| Error::Header { path: path.to_owned(), detail: error.to_string() })?;
    let begin = n_header + 8;
    let ranges = compare_header(path, entry, &metadata)?;
    let shifted = |range: Range<usize>| begin + range.start..begin + range.end;
    Ok(ranges.into_iter().map(|(name, range)| (name, shifted(range))).collect())
}

/// Where each tensor of the manifest is, counted from the end of the header. All differences
/// between the two are collected.
pub(crate) fn compare_header(
    path: &Path,
    entry: &FileEntry,
    metadata: &Metadata,
) -> Result<BTreeMap<String, Range<usize>>> {
    let mut errors = Vec::new();
    let mut ranges = BTreeMap::new();
    let by = "the manifest".to_owned();
    for tensor in &entry.tensors {
        let Some(info) = metadata.info(&tensor.name) else {
            let (path, tensor) = (path.to_owned(), tensor.name.clone());
            errors.push(Error::MissingTensor { path, tensor, by: by.clone() });
            continue;
        };
        let wanted = (tensor.dtype, tensor.shape.as_slice());
        compare(path, &tensor.name, &by, wanted, (info.dtype, &info.shape), &mut errors);
        let (from, to) = info.data_offsets;
        ranges.insert(tensor.name.clone(), from..to);
    }
    for name in metadata.offset_keys() {
        if !ranges.contains_key(&name) {
            errors.push(Error::ExtraTensor { path: path.to_owned(), tensor: name, by: by.clone() });
        }
    }
    Error::from_list(errors).map_or(Ok(ranges), Err)
}

fn compare(
    path: &Path,
    tensor: &str,
    by: &str,
    expected: (Dtype, &[usize]),
    found: (Dtype, &[usize]),
    errors: &mut Vec<Error>,
) {
    let (path, tensor, by) = (path.to_owned(), tensor.to_owned(), by.to_owned());
    if expected.0 != found.0 {
        let (expected, found) = (expected.0, found.0);
        errors.push(Error::DtypeDiffers { path, tensor, by, expected, found });
    } else if expected.1 != found.1 {
        let (expected, found) = (expected.1.to_vec(), found.1.to_vec());
        errors.push(Error::Shape { path, tensor, by, expected, found });
    }
}

fn check_bytes(
    path: &Path,
    tensor: &TensorEntry,
    range: Option<&Range<usize>>,
    bytes: &[u8],
) -> Result<()> {
    let data = range.and_then(|range| bytes.get(range.clone())).unwrap_or_default();
    let found = blake3::hash(data).to_hex().to_string();
    if found != tensor.blake3 {
        return Err(Error::TensorDigest {
            path: path.to_owned(),
            tensor: tensor.name.clone(),
            expected: tensor.blake3.clone(),
            found,
        });
    }
    match first_not_finite(tensor.dtype, data) {
        None => Ok(()),
        Some((index, value)) => Err(Error::NotFinite {
            path: path.to_owned(),
            tensor: tensor.name.clone(),
            index,
            value,
        }),
    }
}

/// The first NaN or infinity of a float tensor; `None` for other dtypes.
pub fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f64)> {
    match dtype {
        Dtype::F64 => first(bytes, f64::from_le_bytes),
        Dtype::F32 => first(bytes, |raw| f64::from(f32::from_le_bytes(raw))),
        Dtype::F16 => first(bytes, |raw| half::f16::from_le_bytes(raw).to_f64()),
        Dtype::BF16 => first(bytes, |raw| half::bf16::from_le_bytes(raw).to_f64()),
        _ => None,
    }
}

fn first<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Option<(usize, f64)> {
    let (elements, _) = bytes.as_chunks::<N>();
    // Whole runs first: without an exit in it, the inner loop is vectorised.
    const RUN: usize = 1024;
    for (run_idx, run) in elements.chunks(RUN).enumerate() {
        if run.iter().fold(true, |all, raw| all & value(*raw).is_finite()) {
            continue;
        }
        let found = run.iter().map(|raw| value(*raw)).enumerate();
        let mut found = found.filter(|(_, value)| !value.is_finite());
        return found.next().map(|(index, value)| (run_idx * RUN + index, value));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_non_finite_element_is_found_in_every_float_dtype() {
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bytes: Vec<u8> = floats(&[1.0, f32::MAX, f32::NEG_INFINITY, f32::NAN]);
        assert_eq!(first_not_finite(Dtype::F32, &bytes), Some((2, f64::NEG_INFINITY)));
        assert_eq!(first_not_finite(Dtype::I32, &bytes), None);
        assert_eq!(first_not_finite(Dtype::BF16, &[0x80, 0x3f, 0xc0, 0x7f]).map(|x| x.0), Some(1));
        assert_eq!(first_not_finite(Dtype::F16, &[0, 0x7c]), Some((0, f64::INFINITY)));
        assert_eq!(first_not_finite(Dtype::F64, &1e300f64.to_le_bytes()), None);
    }
}
