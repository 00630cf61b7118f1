//! The texts.

/// Headers that a source can include, by the name it includes them with.
pub const HEADERS: &[(&str, &str)] = &[
    ("base.cuh", include_str!("../include/base.cuh")),
    ("copy.cuh", include_str!("../include/copy.cuh")),
    ("elements.cuh", include_str!("../include/elements.cuh")),
    ("experts.cuh", include_str!("../include/experts.cuh")),
    ("experts_planes.cuh", include_str!("../include/experts_planes.cuh")),
    ("experts_tiles.cuh", include_str!("../include/experts_tiles.cuh")),
    ("fixed.cuh", include_str!("../include/fixed.cuh")),
    ("mma.cuh", include_str!("../include/mma.cuh")),
    ("places.cuh", include_str!("../include/places.cuh")),
    ("ptx.cuh", include_str!("../include/ptx.cuh")),
    ("wgmma.cuh", include_str!("../include/wgmma.cuh")),
];

/// Weighed sums over the choices of each row.
pub const COMBINE: &str = include_str!("../combine.cu");
/// Draws of start values.
pub const DRAW: &str = include_str!("../draw.cu");
/// Narrow products of routed rows, and the gradients of their weights.
pub const EXPERT_LOW: &str = include_str!("../expert_low.cu");
/// Wide products of routed rows, forward and for the gradient of the rows.
pub const EXPERT_PRODUCTS: &str = include_str!("../expert_products.cu");
/// The gradient of wide weights of routed rows.
pub const EXPERT_WEIGHT_GRAD: &str = include_str!("../expert_weight_grad.cu");
/// States of reversible stacks: steps, their inverses, packed bits.
pub const FIXED: &str = include_str!("../fixed.cu");
/// The gated delta rule and its gradient, heads of 128 x 128.
pub const GATED_DELTA_RULE: &str = include_str!("../gated_delta_rule.cu");
/// Sums of gathered rows and their gradient.
pub const GATHER: &str = include_str!("../gather.cu");
/// Random signs and the Walsh-Hadamard transform along rows.
pub const HADAMARD: &str = include_str!("../hadamard.cu");
/// Row passes of linear cross entropy.
pub const LINEAR_CROSS_ENTROPY: &str = include_str!("../linear_cross_entropy.cu");
/// AdamW and sums of squares over many tensors.
pub const OPTIMIZER: &str = include_str!("../optimizer.cu");
/// Weights in 8 bits, and adapters merged into them.
pub const QUANTIZE: &str = include_str!("../quantize.cu");
/// Places by expert, counts, the largest scores and the values at them.
pub const ROUTING: &str = include_str!("../routing.cu");
/// Scores of the indexer, their variance, budget and selection.
pub const SELECT_TOP: &str = include_str!("../select_top.cu");

/// A source with a macro that it would else set itself; `#line` keeps its line numbers.
macro_rules! with_macro {
    ($name:literal, $value:literal, $file:literal) => {
        concat!("#define ", $name, " ", $value, "\n#line 1\n", include_str!(concat!("../", $file)))
    };
}

/// Masked attention over selected keys alone, and its gradient, heads of 64.
pub const GATHER_ATTENTION_64: &str = with_macro!("ATTENTION_DIM", "64", "gather_attention.cu");
/// Masked attention over selected keys alone, and its gradient, heads of 128.
pub const GATHER_ATTENTION_128: &str = with_macro!("ATTENTION_DIM", "128", "gather_attention.cu");
/// Masked attention over selected keys alone, and its gradient, heads of 256.
pub const GATHER_ATTENTION_256: &str = with_macro!("ATTENTION_DIM", "256", "gather_attention.cu");
/// Masked attention and its gradient, heads of 64.
pub const MASKED_ATTENTION_64: &str = with_macro!("ATTENTION_DIM", "64", "masked_attention.cu");
/// Masked attention and its gradient, heads of 128.
pub const MASKED_ATTENTION_128: &str = with_macro!("ATTENTION_DIM", "128", "masked_attention.cu");
/// Masked attention and its gradient, heads of 256.
pub const MASKED_ATTENTION_256: &str = with_macro!("ATTENTION_DIM", "256", "masked_attention.cu");

/// Every source of this crate with the name it is compiled under.
pub const SOURCES: &[(&str, &str)] = &[
    ("combine.cu", COMBINE),
    ("draw.cu", DRAW),
    ("expert_low.cu", EXPERT_LOW),
    ("expert_products.cu", EXPERT_PRODUCTS),
    ("expert_weight_grad.cu", EXPERT_WEIGHT_GRAD),
    ("fixed.cu", FIXED),
    ("gated_delta_rule.cu", GATED_DELTA_RULE),
    ("gather.cu", GATHER),
    ("gather_attention_64.cu", GATHER_ATTENTION_64),
    ("gather_attention_128.cu", GATHER_ATTENTION_128),
    ("gather_attention_256.cu", GATHER_ATTENTION_256),
    ("hadamard.cu", HADAMARD),
    ("linear_cross_entropy.cu", LINEAR_CROSS_ENTROPY),
    ("masked_attention_64.cu", MASKED_ATTENTION_64),
    ("masked_attention_128.cu", MASKED_ATTENTION_128),
    ("masked_attention_256.cu", MASKED_ATTENTION_256),
    ("optimizer.cu", OPTIMIZER),
    ("quantize.cu", QUANTIZE),
    ("routing.cu", ROUTING),
    ("select_top.cu", SELECT_TOP),
];
