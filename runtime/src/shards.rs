//! A corpus on disk: token shards, their manifest, and the tokenizer.
//!
//! ```text
//! shards/
//!   manifest.json             sealed (see lightc_checkpoint::sealed)
//!   tokenizer.json
//!   documents.jsonl           which document went where; for people
//!   train_00000.tokens        little-endian u32 ids, nothing else
//!   held_out_00000.tokens
//! ```
//!
//! Each document is its tokens and one end token. Documents lie in the order of
//! the BLAKE3 of their text, which is a fixed shuffle; the first of every
//! `held_out_every` by rank are held out. Exact copies of a document are kept
//! once, so that none is on both sides. The tokenizer is trained on the train
//! split alone.

mod prepare;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lightc_checkpoint::sealed;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::tokenizer::Tokenizer;

pub use prepare::{PrepareOptions, Prepared, prepare};

/// The format that this crate reads and writes.
pub const FORMAT: u32 = 1;
/// Tokens per shard file, at most: 128 MiB.
pub const SHARD_TOKENS: usize = 1 << 25;

const MANIFEST_FILE: &str = "manifest.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
const TOKEN_BYTES: usize = 4;

/// The manifest of a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusManifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Digest of the documents and settings that it was prepared from.
    pub input_digest: String,
    /// BLAKE3 of `tokenizer.json`.
    pub tokenizer_hash: String,
    /// Number of ids.
    pub vocab: u32,
    /// The id that ends a document.
    pub end_id: u32,
    /// Element type of the shards: `u32`, little-endian.
    pub dtype: String,
    /// One document in this many is held out.
    pub held_out_every: usize,
    /// Empty documents, which were left out.
    pub n_empty: usize,
    /// Further copies of a document, which were left out.
    pub n_copies: usize,
    /// What training reads.
    pub train: SplitEntry,
    /// What evaluation reads.
    pub held_out: SplitEntry,
}

/// One split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitEntry {
    /// Documents.
    pub n_documents: usize,
    /// Tokens, end tokens included.
    pub n_tokens: usize,
    /// Bytes of the documents as UTF-8.
    pub n_text_bytes: u64,
    /// Its files, in order.
    pub shards: Vec<ShardEntry>,
}

/// One shard file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Its name.
    pub file: String,
    /// Its tokens.
    pub n_tokens: usize,
    /// BLAKE3 of the file, in hexadecimal.
    pub blake3: String,
}

/// A verified corpus.
#[derive(Debug)]
pub struct Corpus {
    /// The manifest.
    pub manifest: CorpusManifest,
    /// Digest of the manifest, and through it of everything else.
    pub digest: String,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// What training reads.
    pub train: Split,
    /// What evaluation reads.
    pub held_out: Split,
}

/// The tokens of a split: one stream over its shards.
#[derive(Debug)]
pub struct Split {
    name: &'static str,
    n_tokens: usize,
    n_text_bytes: u64,
    shards: Vec<(usize, Mmap)>,
}

impl Corpus {
    /// Opens a folder made by [`prepare`] and verifies all of it.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let text = std::fs::read_to_string(&path).map_err(DataError::io("reading", &path))?;
        let manifest = read_manifest(&path, &text)?;
        let tokenizer = Tokenizer::load(&dir.join(TOKENIZER_FILE))?;
        if tokenizer.hash() != manifest.tokenizer_hash {
            return Err(DataError::TokenizerDiffers {
                path: dir.join(TOKENIZER_FILE),
                expected: manifest.tokenizer_hash,
                found: tokenizer.hash().to_owned(),
            }
            .into());
        }
        let train = open_split(dir, "train", &manifest.train, manifest.vocab)?;
        let held_out = open_split(dir, "held_out", &manifest.held_out, manifest.vocab)?;
        let digest = blake3::hash(text.as_bytes()).to_hex().to_string();
        Ok(Corpus { manifest, digest, tokenizer, train, held_out })
    }

    /// Checks that the tokenizer has the ids of a stage; with `fewer` that it has no others. An id
    /// that it lacks occurs in no text: the stage has rows for it that only the loss's sum over ids
    /// reads.
    pub fn check_vocab(&self, stage_vocab: i64, fewer: bool) -> Result<()> {
        let tokenizer = self.tokenizer.n_ids();
        if stage_vocab == tokenizer as i64 || (fewer && (tokenizer as i64) < stage_vocab) {
            return Ok(());
        }
        Err(DataError::VocabDiffers { stage: stage_vocab, tokenizer }.into())
    }

    /// Checks that the tokenizer is the one that a configuration asks for, if
    /// it asks for one.
    pub fn check_pinned(&self, pinned: Option<&str>) -> Result<()> {
        let found = self.tokenizer.hash();
        match pinned {
            Some(expected) if expected != found => {
                let (expected, found) = (expected.to_owned(), found.to_owned());
                Err(DataError::TokenizerPinned { expected, found }.into())
            }
            _ => Ok(()),
        }
    }
}

fn read_manifest(path: &Path, text: &str) -> Result<CorpusManifest> {
    if let Some(found) = other_format(text) {
        let path = path.to_owned();
        return Err(DataError::FormatVersion { path, found, supported: FORMAT }.into());
    }
    let manifest = sealed::unseal(text);
    Ok(manifest.map_err(|detail| DataError::ManifestDamaged { path: path.to_owned(), detail })?)
}

fn other_format(text: &str) -> Option<u32> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let format = u32::try_from(value.get("content")?.get("format")?.as_u64()?).ok()?;
    (format != FORMAT).then_some(format)
}

fn open_split(dir: &Path, name: &'static str, entry: &SplitEntry, vocab: u32) -> Result<Split> {
    let mut shards = Vec::new();
    let mut begin = 0;
    for shard in &entry.shards {
        let path = dir.join(&shard.file);
        let map = map_shard(&path, shard)?;
        check_shard(&path, shard, &map, vocab)?;
        shards.push((begin, map));
        begin += shard.n_tokens;
    }
    if begin != entry.n_tokens {
        let detail = format!("`{name}` has {} tokens, its shards have {begin}", entry.n_tokens);
        return Err(DataError::ManifestDamaged { path: dir.join(MANIFEST_FILE), detail }.into());
    }
    Ok(Split { name, n_tokens: entry.n_tokens, n_text_bytes: entry.n_text_bytes, shards })
}

fn map_shard(path: &Path, shard: &ShardEntry) -> Result<Mmap> {
    let file = File::open(path).map_err(DataError::io("opening", path))?;
    let found = file.metadata().map_err(DataError::io("reading", path))?.len();
    let expected = (shard.n_tokens * TOKEN_BYTES) as u64;
    if found != expected {
        return Err(DataError::ShardLength { path: path.to_owned(), expected, found }.into());
    }
    // SAFETY: the map is read-only, and `prepare` publishes a folder of shards
    // by renaming it and never writes in it again.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) };
    Ok(map.map_err(DataError::io("mapping", path))?)
}

fn check_shard(path: &Path, shard: &ShardEntry, bytes: &[u8], vocab: u32) -> Result<()> {
    let found = blake3::hash(bytes).to_hex().to_string();
    if found != shard.blake3 {
        let expected = shard.blake3.clone();
        return Err(DataError::ShardDigest { path: path.to_owned(), expected, found }.into());
    }
    match ids(bytes).enumerate().find(|(_, id)| *id >= vocab) {
        None => Ok(()),
        Some((index, id)) => {
            Err(DataError::IdOutOfRange { path: path.to_owned(), index, id, vocab }.into())
        }
    }
}

fn ids(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.as_chunks::<TOKEN_BYTES>().0.iter().map(|raw| u32::from_le_bytes(*raw))
}

impl Split {
    /// `train` or `held_out`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Bytes of text per token, end tokens counted as tokens without text.
    pub fn bytes_per_token(&self) -> f64 {
        self.n_text_bytes as f64 / self.n_tokens as f64
    }

    /// The ids at these positions of the stream; positions past its end are
    /// left out.
    pub fn read(&self, range: Range<usize>) -> Vec<i64> {
        let range = range.start..range.end.min(self.n_tokens);
        let mut read = Vec::with_capacity(range.len());
        for (begin, map) in &self.shards {
            let n_tokens = map.len() / TOKEN_BYTES;
            let from = range.start.saturating_sub(*begin).min(n_tokens);
            let to = range.end.saturating_sub(*begin).min(n_tokens);
            let bytes = map.get(from * TOKEN_BYTES..to.max(from) * TOKEN_BYTES);
            read.extend(ids(bytes.unwrap_or_default()).map(i64::from));
        }
        read
    }

    /// How often each id occurs.
    pub fn histogram(&self, vocab: usize) -> Vec<u64> {
        let mut counts = vec![0; vocab];
        for (_, map) in &self.shards {
            for id in ids(map) {
                counts[id as usize] += 1;
            }
        }
        counts
    }
}

/// Where the files of a list lie: one path per line, relative to the current
/// folder; empty lines are skipped.
pub fn read_list(path: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string(path).map_err(DataError::io("reading", path))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests;
