//! Training a byte-level BPE tokenizer, the same one every time.
//!
//! The trainer of the `tokenizers` crate walks hash maps while it breaks ties,
//! so two runs can differ. Here every table is ordered: the pair of the
//! largest count is merged, among equals the one of the smallest ids. The
//! result is an ordinary `tokenizer.json`, and encoding is the crate's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::bytes::char_of_byte;
use super::{END_TOKEN, Tokenizer};
use crate::error::{DataError, Result};

/// The end token and the bytes.
const N_FIXED_IDS: usize = 257;
/// A pair that occurs less often is not merged.
const MIN_COUNT: i64 = 2;

type Pair = (u32, u32);

/// Trains a tokenizer of exactly `n_ids` ids on the documents: id 0 is
/// [`END_TOKEN`], ids 1 to 256 are the bytes in order, then the merges.
pub fn train_byte_level<'a>(
    documents: impl Iterator<Item = &'a str>,
    n_ids: usize,
) -> Result<Tokenizer> {
    if n_ids < N_FIXED_IDS {
        return Err(DataError::VocabTooSmall { asked: n_ids }.into());
    }
    let mut counts = BTreeMap::new();
    for document in documents {
        count_words(document, &mut counts).map_err(internal)?;
    }
    let (tokens, merges) = merge(&counts, n_ids)?;
    build(tokens, merges)
}

fn internal(error: tokenizers::Error) -> DataError {
    let path = Path::new("tokenizer.json").to_owned();
    DataError::TokenizerFile { path, detail: error.to_string() }
}

fn byte_level() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

/// Adds the words of a document, as the pre-tokenizer splits it.
fn count_words(
    document: &str,
    counts: &mut BTreeMap<String, i64>,
) -> std::result::Result<(), tokenizers::Error> {
    let mut pieces = PreTokenizedString::from(document);
    byte_level().pre_tokenize(&mut pieces)?;
    for (word, _, _) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
        match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => {
                counts.insert(word.to_owned(), 1);
            }
        }
    }
    Ok(())
}

/// Every pair with its count and the words it occurs in.
#[derive(Default)]
struct Pairs {
    counts: BTreeMap<Pair, i64>,
    by_count: BTreeSet<(i64, Reverse<Pair>)>,
    words: BTreeMap<Pair, BTreeSet<usize>>,
}

impl Pairs {
    fn add(&mut self, pair: Pair, change: i64, word: usize) {
        let count = self.counts.entry(pair).or_insert(0);
        self.by_count.remove(&(*count, Reverse(pair)));
        *count += change;
        self.by_count.insert((*count, Reverse(pair)));
        if change > 0 {
            self.words.entry(pair).or_default().insert(word);
        }
    }

    fn best(&self) -> Option<Pair> {
        let (count, Reverse(pair)) = self.by_count.last()?;
        (*count >= MIN_COUNT).then_some(*pair)
    }
}

type Merges = Vec<(String, String)>;

fn merge(counts: &BTreeMap<String, i64>, n_ids: usize) -> Result<(Vec<String>, Merges)> {
    let bytes: Vec<char> = (0..=u8::MAX).map(char_of_byte).collect();
    let ids: BTreeMap<char, u32> = bytes.iter().copied().zip(1..).collect();
    let mut tokens = vec![END_TOKEN.to_owned()];
    tokens.extend(bytes.iter().map(char::to_string));
    let mut words: Vec<(Vec<u32>, i64)> = counts
        .iter()
        .map(|(word, count)| (word.chars().filter_map(|c| ids.get(&c).copied()).collect(), *count))
        .collect();
    let mut pairs = Pairs::default();
    for (index, (word, count)) in words.iter().enumerate() {
        add_word(&mut pairs, word, *count, index);
    }
    let mut merges = Vec::new();
    while tokens.len() < n_ids {
        let Some(pair) = pairs.best() else {
            let found = tokens.len();
            return Err(DataError::CorpusTooSmall { asked: n_ids, found }.into());
        };
        let new_id = tokens.len() as u32;
        let (left, right) = (tokens[pair.0 as usize].clone(), tokens[pair.1 as usize].clone());
        tokens.push(format!("{left}{right}"));
        merges.push((left, right));
        for index in pairs.words.remove(&pair).unwrap_or_default() {
            let (word, count) = &mut words[index];
            add_word(&mut pairs, word, -*count, index);
            *word = replace(word, pair, new_id);
            add_word(&mut pairs, word, *count, index);
        }
    }
    Ok((tokens, merges))
}

fn add_word(pairs: &mut Pairs, word: &[u32], change: i64, index: usize) {
    for pair in word.windows(2) {
        pairs.add((pair[0], pair[1]), change, index);
    }
}

/// The word with every occurrence of a pair, from the left, as one token.
fn replace(word: &[u32], pair: Pair, new_id: u32) -> Vec<u32> {
    let mut replaced = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, others)) = rest.split_first() {
        if *first == pair.0 && others.first() == Some(&pair.1) {
            replaced.push(new_id);
            rest = &others[1..];
        } else {
            replaced.push(*first);
            rest = others;
        }
    }
    replaced
}

fn build(tokens: Vec<String>, merges: Merges) -> Result<Tokenizer> {
    let vocab: Vec<(String, u32)> = tokens.into_iter().zip(0..).collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .build()
        .map_err(internal)?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(byte_level()));
    inner.with_decoder(Some(byte_level()));
    inner.add_special_tokens(&[AddedToken::from(END_TOKEN, true)]);
    let text = inner.to_string(true).map_err(internal)?;
    Tokenizer::from_text(Path::new("tokenizer.json"), text)
}
