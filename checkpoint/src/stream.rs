//! A checkpoint that is read in pieces, for one that does not fit in memory.
//!
//! [`Checkpoint`](crate::Checkpoint) maps its files, and every page that is touched counts as
//! resident. Here a read goes through a buffer of the caller's, so that what is resident is what
//! the caller holds. The checks are the same: [`Streamed::open`] reads the manifest and the
//! headers, [`Streamed::verify`] every byte. What is read before `verify` has ended is not to be
//! used before it has succeeded.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::{Error, Result};
use crate::format::{FileEntry, Manifest, TensorEntry, whole_name};
use crate::read::{compare_header, first_not_finite, open_files, read_manifest};

/// Bytes per read of [`Streamed::verify`].
const BLOCK: usize = 4 << 20;
/// No header of a real checkpoint comes near; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// A checkpoint whose files are open and whose headers fit the manifest.
#[derive(Debug)]
pub struct Streamed {
    dir: PathBuf,
    manifest: Manifest,
    files: BTreeMap<String, OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: PathBuf,
    /// Where each tensor's bytes are.
    ranges: BTreeMap<String, Range<u64>>,
}

impl Streamed {
    /// Opens a `step_*` folder. Reads the manifest and the headers, not the tensors.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = read_manifest(dir)?;
        let files = open_files(dir, &manifest, open_file)?;
        Ok(Streamed { dir: dir.to_owned(), manifest, files })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bytes of all files.
    pub fn n_bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.n_bytes).sum()
    }

    /// A tensor of a file, in whichever of its shards it is.
    pub fn tensor(&self, file: &str, name: &str) -> Option<Piecewise<'_>> {
        let (shard, entry) = self.manifest.entry(file, name)?;
        let file = self.files.get(shard)?;
        let range = file.ranges.get(name)?.clone();
        Some(Piecewise { entry, file, range })
    }

    /// Checks that it has exactly the tensors of a list, of these shapes and of element types that
    /// `is_known`, in files that are not `unread`. All differences are told at once.
    pub fn check_tensors(
        &self,
        wanted: &[Wanted<'_>],
        unread: &[&str],
        is_known: &dyn Fn(Dtype) -> bool,
    ) -> Result<()> {
        let by = || "the stage".to_owned();
        let mut errors = Vec::new();
        let key = |file: &str, name: &str| (file.to_owned(), name.to_owned());
        let mut missing: BTreeMap<_, &Wanted<'_>> =
            wanted.iter().map(|tensor| (key(tensor.file, tensor.name), tensor)).collect();
        for file in &self.manifest.files {
            let whole = whole_name(&file.name);
            if unread.contains(&whole.as_str()) {
                continue;
            }
            for entry in &file.tensors {
                let (path, tensor) = (self.dir.join(&file.name), entry.name.clone());
                match missing.remove(&key(&whole, &entry.name)) {
                    None => errors.push(Error::ExtraTensor { path, tensor, by: by() }),
                    Some(wanted) if wanted.shape != entry.shape => {
                        let (expected, found) = (wanted.shape.to_vec(), entry.shape.clone());
                        errors.push(Error::Shape { path, tensor, by: by(), expected, found });
                    }
                    Some(_) if !is_known(entry.dtype) => {
                        let (expected, found) = (Dtype::F32, entry.dtype);
                        errors.push(Error::DtypeDiffers {
                            path,
                            tensor,
                            by: by(),
                            expected,
                            found,
                        });
                    }
                    Some(_) => {}
                }
            }
        }
        errors.extend(missing.values().map(|tensor| Error::MissingTensor {
            path: self.dir.join(tensor.file),
            tensor: tensor.name.to_owned(),
            by: by(),
        }));
        Error::from_list(errors).map_or(Ok(()), Err)
    }

    /// Verifies every byte of one file: the digest of each tensor, that all floats are finite, the
    /// digest of the file. `seen` gets the number of bytes after each block and says whether to go
    /// on.
    pub fn verify_file(&self, entry: &FileEntry, seen: &dyn Fn(u64) -> bool) -> Result<()> {
        let Some(file) = self.files.get(&entry.name) else { return Ok(()) };
        let mut whole = blake3::Hasher::new();
        let mut buffer = vec![0; BLOCK];
        let begin = file.ranges.values().map(|range| range.start).min().unwrap_or(entry.n_bytes);
        let _ = file.feed(0..begin, &mut buffer, &mut |bytes, _| {
            whole.update(bytes);
            Ok(true)
        })?;
        let mut tensors: Vec<&TensorEntry> = entry.tensors.iter().collect();
        tensors.sort_by_key(|tensor| file.ranges.get(&tensor.name).map_or(0, |range| range.start));
        for tensor in tensors {
            let Some(range) = file.ranges.get(&tensor.name).cloned() else { continue };
            let mut digest = blake3::Hasher::new();
            let mut bad = None;
            let width = (tensor.dtype.bitsize() / 8).max(1);
            let went_on = file.feed(range.clone(), &mut buffer, &mut |bytes, at| {
                whole.update(bytes);
                digest.update(bytes);
                if bad.is_none() {
                    let before = (at - range.start) as usize / width;
                    bad = first_not_finite(tensor.dtype, bytes)
                        .map(|(index, value)| (before + index, value));
                }
                Ok(seen(bytes.len() as u64))
            })?;
            if !went_on {
                return Ok(());
            }
            let path = || file.path.clone();
            let found = digest.finalize().to_hex().to_string();
            if found != tensor.blake3 {
                let (expected, tensor) = (tensor.blake3.clone(), tensor.name.clone());
                return Err(Error::TensorDigest { path: path(), tensor, expected, found });
            }
            if let Some((index, value)) = bad {
                let tensor = tensor.name.clone();
                return Err(Error::NotFinite { path: path(), tensor, index, value });
            }
        }
        let found = whole.finalize().to_hex().to_string();
        if found == entry.blake3 {
            return Ok(());
        }
        let detail = format!("the file has BLAKE3 {found}, the manifest says {}", entry.blake3);
        Err(Error::Header { path: file.path.clone(), detail })
    }

    /// Verifies every byte of every file.
    pub fn verify(&self, seen: &dyn Fn(u64) -> bool) -> Result<()> {
        let files = self.manifest.files.iter();
        let errors = files.filter_map(|entry| self.verify_file(entry, seen).err()).collect();
        Error::from_list(errors).map_or(Ok(()), Err)
    }
}

impl OpenFile {
    /// Hands out a range in blocks, each with its place in the file, until `take` says no. Tells
    /// whether it never did.
    fn feed(
        &self,
        range: Range<u64>,
        buffer: &mut [u8],
        take: &mut dyn FnMut(&[u8], u64) -> Result<bool>,
    ) -> Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let n = buffer.len().min((range.end - at) as usize);
            let Some(block) = buffer.get_mut(..n) else { break };
            self.read(at, block)?;
            if !take(block, at)? {
                return Ok(false);
            }
            at += n as u64;
        }
        Ok(true)
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, at).map_err(Error::io("reading", &self.path))
    }
}

/// A tensor that is asked for, whatever its element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The file it is in, without the number of a shard.
    pub file: &'a str,
    /// Its name there.
    pub name: &'a str,
    /// Sizes.
    pub shape: &'a [usize],
}

/// One tensor of a [`Streamed`] checkpoint.
#[derive(Debug, Clone)]
pub struct Piecewise<'a> {
    /// What the manifest says about it.
    pub entry: &'a TensorEntry,
    file: &'a OpenFile,
    range: Range<u64>,
}

impl Piecewise<'_> {
    /// Fills `buffer` with the tensor's bytes from `offset` on.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).map(|end| end + self.range.start);
        if end.is_none_or(|end| end > self.range.end) {
            let (tensor, path) = (&self.entry.name, self.file.path.clone());
            let detail = format!("`{tensor}` ends before byte {offset} + {}", buffer.len());
            return Err(Error::Header { path, detail });
        }
        self.file.read(self.range.start + offset, buffer)
    }
}

fn open_file(path: &Path, entry: &FileEntry) -> Result<OpenFile> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::FileMissing { path: path.to_owned(), n_bytes: entry.n_bytes });
        }
        Err(error) => return Err(Error::io("reading", path)(error)),
    };
    let found = file.metadata().map_err(Error::io("reading", path))?.len();
    let expected = entry.n_bytes;
    if found != expected {
        return Err(Error::FileLength { path: path.to_owned(), expected, found });
    }
    let (metadata, begin) = read_header(&file, path, found)?;
    let ranges = compare_header(path, entry, &metadata)?;
    let ranges = ranges
        .into_iter()
        .map(|(name, range)| (name, begin + range.start as u64..begin + range.end as u64));
    let ranges = ranges.collect();
    Ok(OpenFile { file, path: path.to_owned(), ranges })
}

/// The header of a safetensors file and where the tensors begin.
fn read_header(file: &File, path: &Path, n_bytes: u64) -> Result<(Metadata, u64)> {
    let damaged = |detail: String| Error::Header { path: path.to_owned(), detail };
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).map_err(|error| damaged(error.to_string()))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length + 8 > n_bytes {
        return Err(damaged(format!("its length is given as {length} bytes")));
    }
    let mut text = vec![0; length as usize];
    file.read_exact_at(&mut text, 8).map_err(Error::io("reading", path))?;
    let metadata: Metadata =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    let end = length + 8 + metadata.data_len() as u64;
    if end != n_bytes {
        return Err(damaged(format!("the tensors end at byte {end} of {n_bytes}")));
    }
    Ok((metadata, length + 8))
}
