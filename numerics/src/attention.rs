//! How attention under a mask runs on a GPU: over dense tiles, or by gathering the selected keys of each query.
//!
//! **Rule.** The form with the smaller prediction for the calls of a training step, a forward and a gradient, which
//! runs a forward again where it goes by tiles; tiles where both are equal, or where nothing bounds the
//! keys of a query. Predictions are of the shapes and of what is known of the mask without looking at it, so
//! the choice is the same in every step, on every GPU, and in both directions.
//!
//! - **Tiles** are bound by products: `4 + (4 + 10)` operations of a channel and a pair of query and key, of all
//!   pairs, or of half where the mask is causal. Every tile is taken to hold a bit: keys that a selection scatters touch
//!   nearly all of them up to some `4096 L` tokens, `L` being the most keys of a query.
//! - **Gathering** is bound by rows from the second-level cache: `4 + 8` bytes of a channel and a selected pair, of which memory
//!   delivers what is more than that cache holds of one head's two arrays. Beside it the mask's bits are read for the lists,
//!   twice for the forward and four times for the gradient, at the rate of memory.

/// Products of the tile kernels, operations a second: `kernels/masked_attention.cu`, measured.
pub const PRODUCT_RATE: f64 = 650e12;
/// Gathered rows from the second-level cache, bytes a second: `kernels/README.md`, measured.
pub const CACHE_RATE: f64 = 5.0e12;
/// A large copy, bytes a second, measured.
pub const MEMORY_RATE: f64 = 4.2e12;
/// What the second-level cache holds, bytes.
pub const CACHE_BYTES: f64 = 50e6;

/// What is known of a mask before it is looked at. It is a claim: a mask that breaks it stops a program on a GPU where
/// memory would else be overrun or confused, and is an error of the interpreter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MaskBound {
    /// No query sees a later key.
    pub causal: bool,
    /// The most keys that one query sees, if there is such a number.
    pub most_keys: Option<u32>,
}

/// The sizes that a prediction depends on; all are linear in the sequences of a batch, which leave the choice alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionSize {
    /// Queries of a sequence, as many as keys.
    pub tokens: u64,
    /// Heads.
    pub heads: u64,
    /// Channels of a head, as many of values as of keys.
    pub channels: u64,
}

/// How attention runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionForm {
    /// `kernels/masked_attention.cu`.
    Tiles,
    /// `kernels/gather_attention.cu`.
    Gather,
}

impl AttentionForm {
    /// A word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            AttentionForm::Tiles => "tiles",
            AttentionForm::Gather => "gather",
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a prediction has no use for the last bits")]
fn number(size: u64) -> f64 {
    size as f64
}

/// Seconds of the calls of a training step over dense tiles, for one sequence.
#[must_use]
pub fn tiles_seconds(size: AttentionSize, bound: MaskBound) -> f64 {
    let tokens = number(size.tokens);
    let pairs = if bound.causal { tokens * tokens / 2.0 } else { tokens * tokens };
    18.0 * pairs * number(size.heads) * number(size.channels) / PRODUCT_RATE
}

/// Seconds of the calls of a training step that gathers at most `most_keys` of each query, for one sequence.
#[must_use]
pub fn gather_seconds(size: AttentionSize, most_keys: u32) -> f64 {
    let (tokens, channels) = (number(size.tokens), number(size.channels));
    let bytes = 12.0 * tokens * tokens.min(f64::from(most_keys)) * number(size.heads) * channels;
    let beyond = (1.0 - CACHE_BYTES / (4.0 * tokens * channels)).max(0.0);
    let lists = 6.0 * tokens * tokens / 8.0;
    (bytes / CACHE_RATE).max(beyond * bytes / MEMORY_RATE) + lists / MEMORY_RATE
}

/// The form of attention of this size under a mask of which this is known.
#[must_use]
pub fn attention_form(size: AttentionSize, bound: MaskBound) -> AttentionForm {
    match bound.most_keys {
        Some(most) if gather_seconds(size, most) < tiles_seconds(size, bound) => {
            AttentionForm::Gather
        }
        _ => AttentionForm::Tiles,
    }
}

/// The fewest tokens from which keys are gathered, up to 2^30; `None` if there are none.
#[must_use]
pub fn gathers_from(heads: u64, channels: u64, bound: MaskBound) -> Option<u64> {
    const MOST: u64 = 1 << 30;
    let gathers = |tokens: u64| {
        attention_form(AttentionSize { tokens, heads, channels }, bound) == AttentionForm::Gather
    };
    // Tiles grow with the square of the tokens, gathered rows in proportion: one crossing, found by halves.
    let (mut below, mut from) = (0, MOST);
    if !gathers(from) {
        return None;
    }
    while from - below > 1 {
        let middle = below + (from - below) / 2;
        if gathers(middle) {
            from = middle;
        } else {
            below = middle;
        }
    }
    Some(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SELECTED: MaskBound = MaskBound { causal: true, most_keys: Some(256) };

    fn form(tokens: u64, bound: MaskBound) -> AttentionForm {
        attention_form(AttentionSize { tokens, heads: 16, channels: 256 }, bound)
    }

    #[test]
    fn short_sequences_go_by_tiles_and_long_ones_gather() {
        for tokens in [1, 64, 256, 4096, 8192, 16384, 32768] {
            assert_eq!(form(tokens, SELECTED), AttentionForm::Tiles, "{tokens} tokens");
        }
        for tokens in [65536, 131_072, 262_144, 1 << 20] {
            assert_eq!(form(tokens, SELECTED), AttentionForm::Gather, "{tokens} tokens");
        }
    }

    #[test]
    fn without_a_bound_there_is_nothing_to_gather() {
        let causal = MaskBound { causal: true, most_keys: None };
        assert_eq!(form(1 << 20, causal), AttentionForm::Tiles);
        assert_eq!(gathers_from(16, 256, causal), None);
    }

    #[test]
    fn more_keys_gather_later_and_a_mask_of_both_directions_earlier() {
        let from = |bound| gathers_from(16, 256, bound).unwrap_or(u64::MAX);
        let of = |keys| MaskBound { causal: true, most_keys: Some(keys) };
        assert!(from(of(64)) < from(of(256)) && from(of(256)) < from(of(1024)));
        assert!(from(MaskBound { causal: false, ..SELECTED }) < from(SELECTED));
        assert_eq!(form(65536, of(4096)), AttentionForm::Tiles);
    }

    #[test]
    fn one_crossing_and_it_is_where_the_predictions_say() {
        for channels in [64, 128, 256] {
            for heads in [1, 16] {
                for keys in [32, 256, 2048] {
                    let bound = MaskBound { causal: true, most_keys: Some(keys) };
                    let Some(from) = gathers_from(heads, channels, bound) else {
                        panic!("{heads} heads of {channels} never gather {keys} keys")
                    };
                    for step in 1..200 {
                        let tokens = from * step / 50;
                        let size = AttentionSize { tokens, heads, channels };
                        let gathers = attention_form(size, bound) == AttentionForm::Gather;
                        assert_eq!(gathers, tokens >= from, "{size:?}, {keys} keys");
                    }
                }
            }
        }
        // As docs/gpu.md says.
        assert_eq!(gathers_from(16, 256, SELECTED), Some(44_514));
    }
}
