//! Bytes of tokens, and the tables that the Kronecker embedding reads.

use crate::error::{DataError, Result};

use super::Tokenizer;

/// The bytes of every token, cut to `p` positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteTable {
    /// `p`.
    pub n_positions: usize,
    /// `[n_ids, p]`: `byte * p + position` for each byte of the token, then -1.
    pub codes: Vec<i64>,
    /// `[n_ids]`: how many codes each token has.
    pub counts: Vec<i64>,
}

/// The byte table of a byte-level tokenizer.
///
/// An ordinary token's bytes come from the inverse byte map; a control token's
/// are the UTF-8 of its spelling; an id that the file leaves out has none. A
/// token longer than `p` bytes is cut after the last whole character within
/// `p`, or after `p` bytes where no character ends there.
pub(super) fn byte_table(tokenizer: &Tokenizer, n_positions: usize) -> Result<ByteTable> {
    let mut codes = Vec::with_capacity(tokenizer.n_ids() * n_positions);
    let mut counts = Vec::with_capacity(tokenizer.n_ids());
    for id in 0..tokenizer.n_ids() as u32 {
        let bytes = token_bytes(tokenizer, id)?;
        let kept = cut(&bytes, n_positions);
        counts.push(kept.len() as i64);
        let present = kept
            .iter()
            .enumerate()
            .map(|(i, byte)| i64::from(*byte) * n_positions as i64 + i as i64);
        codes.extend(present.chain(std::iter::repeat(-1)).take(n_positions));
    }
    Ok(ByteTable { n_positions, codes, counts })
}

fn token_bytes(tokenizer: &Tokenizer, id: u32) -> Result<Vec<u8>> {
    let Some(token) = tokenizer.token_of(id) else {
        return Ok(Vec::new());
    };
    if tokenizer.is_control(id) {
        return Ok(token.into_bytes());
    }
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
    Ok(bytes.ok_or(DataError::NotByteLevel { token, id })?)
}

fn cut(bytes: &[u8], n_positions: usize) -> &[u8] {
    let Some(short) = bytes.get(..n_positions).filter(|_| bytes.len() > n_positions) else {
        return bytes;
    };
    match std::str::from_utf8(short) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => {
            &short[..error.valid_up_to()]
        }
        _ => short,
    }
}

/// GPT-2's map from bytes to printable characters: the printable bytes of
/// Latin-1 stand for themselves, the others take the characters from U+0100 in
/// order.
pub(super) fn char_of_byte(byte: u8) -> char {
    if prints(byte) {
        return char::from(byte);
    }
    let n_before = (0..byte).filter(|other| !prints(*other)).count() as u32;
    char::from_u32(0x100 + n_before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn byte_of_char(c: char) -> Option<u8> {
    (0..=u8::MAX).find(|byte| char_of_byte(*byte) == c)
}

fn prints(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_map_is_that_of_the_tokenizers_crate_and_inverts() {
        let mut mine: Vec<char> = (0..=u8::MAX).map(char_of_byte).collect();
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        let theirs = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        mine.sort_unstable();
        let mut theirs: Vec<char> = theirs.into_iter().collect();
        theirs.sort_unstable();
        assert_eq!(mine, theirs);
        assert_eq!(char_of_byte(b' '), '\u{120}');
        assert_eq!(char_of_byte(b'\n'), '\u{10a}');
        assert_eq!(byte_of_char('\u{3b1}'), None);
    }

    #[test]
    fn long_tokens_are_cut_at_a_character() {
        assert_eq!(cut(b"abc", 3), b"abc");
        assert_eq!(cut(b"abcd", 3), b"abc");
        // A two-byte character over the border is dropped whole.
        assert_eq!(cut("abé".as_bytes(), 3), b"ab");
        assert_eq!(cut("aéb".as_bytes(), 3), "aé".as_bytes());
        // Bytes that are no UTF-8 are cut where they are.
        assert_eq!(cut(&[0x80, 0x81, 0x82, 0x83], 3), [0x80, 0x81, 0x82]);
        assert_eq!(cut(&[b'a', 0x81, 0x82, 0x83], 3), [b'a', 0x81, 0x82]);
    }
}
