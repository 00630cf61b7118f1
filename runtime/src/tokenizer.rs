//! Tokenizers: any Hugging Face `tokenizer.json`, and a small byte-level one
//! trained on a corpus.
//!
//! * The identity of a tokenizer is the BLAKE3 of its file. Shards and
//!   checkpoints carry it.
//! * Text is encoded as text: a control token's spelling in a document becomes
//!   ordinary tokens. The added vocabulary of the file is never matched
//!   against a document, whatever its flags say.
//! * The bytes of a byte-level token are its own, by the inverse of GPT-2's
//!   map from bytes to characters, so that fragments of UTF-8 keep distinct
//!   bytes. (The reference decodes them to U+FFFD and gives many of them the
//!   same.)

mod bytes;
mod train;

use std::path::{Path, PathBuf};

use tokenizers::tokenizer::{Model, Normalizer, OffsetType, PreTokenizedString, PreTokenizer};

use crate::error::{DataError, Result};

pub use bytes::ByteTable;
pub use train::train_byte_level;

/// The control token that ends a document in tokenizers trained here; id 0.
pub const END_TOKEN: &str = "<|end_of_text|>";

/// A loaded tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    hash: String,
    n_ids: usize,
    /// Per id, whether it is in the added vocabulary.
    is_control: Vec<bool>,
    text: String,
}

impl Tokenizer {
    /// Loads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(DataError::io("reading", path))?;
        Tokenizer::from_text(path, text)
    }

    /// The tokenizer of a `tokenizer.json`'s text; `path` is for messages.
    pub fn from_text(path: &Path, text: String) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(text.as_bytes()).map_err(|error| {
            DataError::TokenizerFile { path: path.to_owned(), detail: error.to_string() }
        })?;
        let mut ids: Vec<u32> = inner.get_vocab(true).into_values().collect();
        ids.sort_unstable();
        let n_ids = ids.last().map_or(0, |last| *last as usize + 1);
        let mut is_control = vec![false; n_ids];
        let mut control: Vec<u32> = inner.get_added_tokens_decoder().into_keys().collect();
        control.sort_unstable();
        for id in control {
            if let Some(flag) = is_control.get_mut(id as usize) {
                *flag = true;
            }
        }
        let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
        Ok(Tokenizer { inner, hash, n_ids, is_control, text })
    }

    /// BLAKE3 of the file, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The text of the file.
    pub fn file_text(&self) -> &str {
        &self.text
    }

    /// One more than the largest id.
    pub fn n_ids(&self) -> usize {
        self.n_ids
    }

    /// The id of a token by its spelling in the file.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The spelling of an id in the file.
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id is in the added vocabulary.
    pub fn is_control(&self, id: u32) -> bool {
        self.is_control.get(id as usize).copied().unwrap_or(false)
    }

    /// Encodes a document as plain text, with nothing added. `path` is for
    /// messages.
    pub fn encode(&self, path: &Path, text: &str) -> Result<Vec<u32>> {
        let failed = |error: tokenizers::Error| DataError::TokenizerFile {
            path: path.to_owned(),
            detail: error.to_string(),
        };
        let mut pieces = PreTokenizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            pieces.normalize(|piece| normalizer.normalize(piece)).map_err(failed)?;
        }
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get())).map_err(failed)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(failed)?;
        let ids = encoding.get_ids().to_vec();
        match ids.iter().find(|id| self.is_control(**id)) {
            None => Ok(ids),
            Some(&id) => Err(self.control_in_text(path, id).into()),
        }
    }

    fn control_in_text(&self, path: &Path, id: u32) -> DataError {
        let token = self.token_of(id).unwrap_or_default();
        DataError::ControlToken { path: path.to_owned(), token, id }
    }

    /// The text of ids, control tokens included.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        Ok(self.inner.decode(ids, false).map_err(|error| DataError::TokenizerFile {
            path: PathBuf::from("tokenizer.json"),
            detail: error.to_string(),
        })?)
    }

    /// The bytes of every id, as the Kronecker embedding reads them.
    pub fn byte_table(&self, n_positions: usize) -> Result<ByteTable> {
        bytes::byte_table(self, n_positions)
    }
}

#[cfg(test)]
mod tests;
