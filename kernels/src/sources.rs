//! The texts.

/// Headers that a source can include, by the name it includes them with.
pub const HEADERS: &[(&str, &str)] = &[
    ("base.cuh", include_str!("../include/base.cuh")),
    ("copy.cuh", include_str!("../include/copy.cuh")),
    ("fixed.cuh", include_str!("../include/fixed.cuh")),
    ("mma.cuh", include_str!("../include/mma.cuh")),
    ("wgmma.cuh", include_str!("../include/wgmma.cuh")),
];

/// States of reversible stacks: steps, their inverses, packed bits.
pub const FIXED: &str = include_str!("../fixed.cu");
/// The gated delta rule and its gradient, heads of 128 x 128.
pub const GATED_DELTA_RULE: &str = include_str!("../gated_delta_rule.cu");
/// Sums of gathered rows and their gradient.
pub const GATHER: &str = include_str!("../gather.cu");
/// Row passes of linear cross entropy.
pub const LINEAR_CROSS_ENTROPY: &str = include_str!("../linear_cross_entropy.cu");
/// AdamW and sums of squares over many tensors.
pub const OPTIMIZER: &str = include_str!("../optimizer.cu");
/// Scores of the indexer, their variance, budget and selection.
pub const SELECT_TOP: &str = include_str!("../select_top.cu");

/// A source with a macro that it would else set itself; `#line` keeps its line numbers.
macro_rules! with_macro {
    ($name:literal, $value:literal, $file:literal) => {
        concat!("#define ", $name, " ", $value, "\n#line 1\n", include_str!(concat!("../", $file)))
    };
}

/// Masked attention and its gradient, heads of 64.
pub const MASKED_ATTENTION_64: &str = with_macro!("ATTENTION_DIM", "64", "masked_attention.cu");
/// Masked attention and its gradient, heads of 128.
pub const MASKED_ATTENTION_128: &str = with_macro!("ATTENTION_DIM", "128", "masked_attention.cu");
/// Masked attention and its gradient, heads of 256.
pub const MASKED_ATTENTION_256: &str = with_macro!("ATTENTION_DIM", "256", "masked_attention.cu");

/// Every source of this crate with the name it is compiled under.
pub const SOURCES: &[(&str, &str)] = &[
    ("fixed.cu", FIXED),
    ("gated_delta_rule.cu", GATED_DELTA_RULE),
    ("gather.cu", GATHER),
    ("linear_cross_entropy.cu", LINEAR_CROSS_ENTROPY),
    ("masked_attention_64.cu", MASKED_ATTENTION_64),
    ("masked_attention_128.cu", MASKED_ATTENTION_128),
    ("masked_attention_256.cu", MASKED_ATTENTION_256),
    ("optimizer.cu", OPTIMIZER),
    ("select_top.cu", SELECT_TOP),
];
