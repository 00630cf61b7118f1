//! From documents to shards.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lightc_checkpoint::{durable, sealed};
use serde::Serialize;

use super::{
    Corpus, CorpusManifest, FORMAT, MANIFEST_FILE, SHARD_TOKENS, ShardEntry, SplitEntry,
    TOKENIZER_FILE,
};
use crate::error::{DataError, Result};
use crate::tokenizer::{END_TOKEN, Tokenizer, train_byte_level};

/// What to prepare.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// The documents, one file each.
    pub documents: Vec<PathBuf>,
    /// The folder to make.
    pub out: PathBuf,
    /// Ids of the tokenizer that is trained; with `tokenizer`, what it must have.
    pub vocab: usize,
    /// A tokenizer to use in place of a trained one.
    pub tokenizer: Option<PathBuf>,
    /// Its token that ends a document.
    pub end_token: String,
    /// One document in this many is held out.
    pub held_out_every: usize,
    /// Tokens per shard file, at most.
    pub shard_tokens: usize,
}

impl PrepareOptions {
    /// The options with their defaults: a trained tokenizer, one document in 20
    /// held out.
    pub fn new(documents: Vec<PathBuf>, out: PathBuf, vocab: usize) -> Self {
        PrepareOptions {
            documents,
            out,
            vocab,
            tokenizer: None,
            end_token: END_TOKEN.to_owned(),
            held_out_every: 20,
            shard_tokens: SHARD_TOKENS,
        }
    }
}

/// What [`prepare`] did.
#[derive(Debug)]
pub struct Prepared {
    /// The verified result.
    pub corpus: Corpus,
    /// Whether it was there already, from the same documents and settings.
    pub was_there: bool,
}

struct Document {
    path: PathBuf,
    text: String,
    digest: blake3::Hash,
}

/// Makes a folder of shards. The folder appears whole or not at all. Where it
/// exists and comes from the same documents and settings it is verified and
/// kept; where it holds anything else, that is an error.
pub fn prepare(options: &PrepareOptions) -> Result<Prepared> {
    let (documents, dropped) = read_documents(&options.documents)?;
    let given = options.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    let input_digest = input_digest(options, given.as_ref(), &documents);
    if options.out.exists() {
        return keep_existing(&options.out, &input_digest);
    }
    let (held_out, train) = divide(&documents, options.held_out_every)?;
    let tokenizer = match given {
        Some(tokenizer) => tokenizer,
        None => train_byte_level(train.iter().map(|d| d.text.as_str()), options.vocab)?,
    };
    if tokenizer.n_ids() != options.vocab {
        let (stage, tokenizer) = (options.vocab as i64, tokenizer.n_ids());
        return Err(DataError::VocabDiffers { stage, tokenizer }.into());
    }
    let job = Job { options, tokenizer: &tokenizer, dir: make_temporary(&options.out)? };
    let done = job
        .write(&train, &held_out, dropped, input_digest)
        .and_then(|manifest| job.publish(&manifest));
    if let Err(error) = done {
        std::fs::remove_dir_all(&job.dir).map_err(DataError::io("removing", &job.dir))?;
        return Err(error);
    }
    Ok(Prepared { corpus: Corpus::open(&options.out)?, was_there: false })
}

#[derive(Debug, Clone, Copy, Default)]
struct Dropped {
    n_empty: usize,
    n_copies: usize,
}

/// The distinct documents that are not empty, in the order of their digests.
fn read_documents(paths: &[PathBuf]) -> Result<(Vec<Document>, Dropped)> {
    let mut seen = BTreeSet::new();
    let mut dropped = Dropped::default();
    let mut documents = Vec::new();
    for path in paths {
        let bytes = std::fs::read(path).map_err(DataError::io("reading", path))?;
        let text = String::from_utf8(bytes).map_err(|error| DataError::NotUtf8 {
            path: path.clone(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        let digest = blake3::hash(text.as_bytes());
        if text.is_empty() {
            dropped.n_empty += 1;
        } else if !seen.insert(*digest.as_bytes()) {
            dropped.n_copies += 1;
        } else {
            documents.push(Document { path: path.clone(), text, digest });
        }
    }
    documents.sort_by(|a, b| a.digest.as_bytes().cmp(b.digest.as_bytes()));
    Ok((documents, dropped))
}

fn input_digest(
    options: &PrepareOptions,
    tokenizer: Option<&Tokenizer>,
    documents: &[Document],
) -> String {
    let PrepareOptions { vocab, end_token, held_out_every, shard_tokens, .. } = options;
    let tokenizer = tokenizer.map_or("trained", Tokenizer::hash);
    let settings = format!(
        "format {FORMAT} vocab {vocab} tokenizer {tokenizer} end {end_token} every \
         {held_out_every} shard {shard_tokens}\n"
    );
    let mut hasher = blake3::Hasher::new();
    hasher.update(settings.as_bytes());
    for document in documents {
        hasher.update(document.digest.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn keep_existing(out: &Path, input_digest: &str) -> Result<Prepared> {
    let exists = || DataError::OutputExists { path: out.to_owned() };
    if !out.join(MANIFEST_FILE).is_file() {
        return Err(exists().into());
    }
    let corpus = Corpus::open(out)?;
    if corpus.manifest.input_digest != input_digest {
        return Err(exists().into());
    }
    Ok(Prepared { corpus, was_there: true })
}

type Documents<'a> = Vec<&'a Document>;

/// Held-out documents and the others.
fn divide(documents: &[Document], every: usize) -> Result<(Documents<'_>, Documents<'_>)> {
    let is_held_out = |rank: usize| every > 0 && rank.is_multiple_of(every);
    let pick = |held_out| {
        let ranked = documents.iter().enumerate();
        ranked.filter(move |(rank, _)| is_held_out(*rank) == held_out).map(|(_, d)| d).collect()
    };
    let (held_out, train): (Documents<'_>, Documents<'_>) = (pick(true), pick(false));
    for (split, of_split) in [("train", &train), ("held_out", &held_out)] {
        if of_split.is_empty() {
            let n_documents = documents.len();
            return Err(DataError::EmptySplit { split, n_documents, every }.into());
        }
    }
    Ok((held_out, train))
}

fn make_temporary(out: &Path) -> Result<PathBuf> {
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(DataError::io("creating", parent))?;
    let dir = durable::temporary_beside(out)?;
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(DataError::io("removing", &dir))?;
    }
    std::fs::create_dir(&dir).map_err(DataError::io("creating", &dir))?;
    Ok(dir)
}

struct Job<'a> {
    options: &'a PrepareOptions,
    tokenizer: &'a Tokenizer,
    dir: PathBuf,
}

#[derive(Serialize)]
struct DocumentRow<'a> {
    path: &'a Path,
    split: &'a str,
    n_tokens: usize,
    n_text_bytes: usize,
    blake3: String,
}

impl Job<'_> {
    fn write(
        &self,
        train: &[&Document],
        held_out: &[&Document],
        dropped: Dropped,
        input_digest: String,
    ) -> Result<CorpusManifest> {
        let end_token = &self.options.end_token;
        let end_id = self.tokenizer.id_of(end_token);
        let end_id = end_id.ok_or_else(|| DataError::NoEndToken { token: end_token.clone() })?;
        let mut rows = Vec::new();
        let train = self.write_split("train", train, end_id, &mut rows)?;
        let held_out = self.write_split("held_out", held_out, end_id, &mut rows)?;
        durable::write_synced(&self.dir.join("documents.jsonl"), &rows)?;
        let text = self.tokenizer.file_text();
        durable::write_synced(&self.dir.join(TOKENIZER_FILE), text.as_bytes())?;
        Ok(CorpusManifest {
            format: FORMAT,
            input_digest,
            tokenizer_hash: self.tokenizer.hash().to_owned(),
            vocab: self.tokenizer.n_ids() as u32,
            end_id,
            dtype: "u32".to_owned(),
            held_out_every: self.options.held_out_every,
            n_empty: dropped.n_empty,
            n_copies: dropped.n_copies,
            train,
            held_out,
        })
    }

    fn publish(&self, manifest: &CorpusManifest) -> Result<()> {
        let path = self.dir.join(MANIFEST_FILE);
        let text = sealed::seal(manifest)
            .map_err(|error| DataError::io("writing", &path)(error.into()))?;
        durable::write_synced(&path, text.as_bytes())?;
        durable::sync_dir(&self.dir)?;
        Ok(durable::publish(&self.dir, &self.options.out)?)
    }

    fn write_split(
        &self,
        split: &str,
        documents: &[&Document],
        end_id: u32,
        rows: &mut Vec<u8>,
    ) -> Result<SplitEntry> {
        let mut writer = ShardWriter::new(&self.dir, split, self.options.shard_tokens);
        let mut n_text_bytes = 0;
        for document in documents {
            let mut ids = self.tokenizer.encode(&document.path, &document.text)?;
            ids.push(end_id);
            n_text_bytes += document.text.len() as u64;
            rows.extend(row(document, split, ids.len()));
            writer.push(&ids)?;
        }
        let n_tokens = writer.n_tokens;
        let shards = writer.finish()?;
        Ok(SplitEntry { n_documents: documents.len(), n_tokens, n_text_bytes, shards })
    }
}

fn row(document: &Document, split: &str, n_tokens: usize) -> Vec<u8> {
    let row = DocumentRow {
        path: &document.path,
        split,
        n_tokens,
        n_text_bytes: document.text.len(),
        blake3: document.digest.to_hex().to_string(),
    };
    // A path that is not UTF-8 has no JSON; its row is left empty.
    let mut line = serde_json::to_vec(&row).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Cuts one stream of tokens into files.
struct ShardWriter<'a> {
    dir: &'a Path,
    split: &'a str,
    shard_tokens: usize,
    n_tokens: usize,
    bytes: Vec<u8>,
    shards: Vec<ShardEntry>,
}

impl<'a> ShardWriter<'a> {
    fn new(dir: &'a Path, split: &'a str, shard_tokens: usize) -> Self {
        let (bytes, shards) = (Vec::new(), Vec::new());
        ShardWriter { dir, split, shard_tokens: shard_tokens.max(1), n_tokens: 0, bytes, shards }
    }

    fn push(&mut self, ids: &[u32]) -> Result<()> {
        for id in ids {
            self.bytes.extend(id.to_le_bytes());
            self.n_tokens += 1;
            if self.bytes.len() == self.shard_tokens * super::TOKEN_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let file = format!("{}_{:05}.tokens", self.split, self.shards.len());
        durable::write_synced(&self.dir.join(&file), &self.bytes)?;
        self.shards.push(ShardEntry {
            file,
            n_tokens: self.bytes.len() / super::TOKEN_BYTES,
            blake3: blake3::hash(&self.bytes).to_hex().to_string(),
        });
        self.bytes.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<ShardEntry>> {
        if !self.bytes.is_empty() {
            self.flush()?;
        }
        Ok(self.shards)
    }
}
