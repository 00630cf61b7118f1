//! The ops that generated code calls, on libtorch.
//!
//! Dimensions are positions. Every function is fallible: a shape or kind that
//! an op does not accept is an [`crate::Error`] naming the op and the shapes.
//! No op writes to its inputs, and results do not depend on the number of
//! threads beyond libtorch's own kernels.
//!
//! **Two implementations.** Where many tiny libtorch calls would dominate on
//! the CPU, an op has a native kernel beside its composition of libtorch
//! calls (`..._composite`). The choice is by rule and nowhere silent:
//! the native kernel runs when every tensor is on the CPU, is f32 or f64, and
//! takes no part in libtorch autograd; otherwise the composition runs. Both
//! give one meaning and are tested against each other.
//!
//! On a GPU some ops have a tile kernel (`tile`), which runs where kinds and shapes are ones that it has.

mod attention;
mod combine;
mod contract;
mod delta;
mod exchange;
mod expert;
mod fixed;
mod gather;
mod hadamard;
mod indexer;
mod loss;
pub(crate) mod native;
mod pointwise;
mod quantized;
mod reduce;
mod routed;
mod select;
mod sequence;
mod shape;
mod sinkhorn;
pub(crate) mod states;
mod support;
mod tile;

pub use attention::*;
pub use combine::routed_combine;
pub use contract::*;
pub use delta::*;
pub use exchange::{exchange, local_expert};
pub use expert::*;
pub use fixed::*;
pub use gather::*;
pub use hadamard::*;
pub use indexer::*;
pub use lightc_numerics::attention::{AttentionForm, MaskBound};
pub use loss::*;
pub use pointwise::*;
pub use quantized::*;
pub use reduce::*;
pub use routed::*;
pub use select::*;
pub use sequence::*;
pub use shape::*;
pub use sinkhorn::*;
pub use states::*;
pub(crate) use support::{describe, is_float, op_error};
pub(crate) use tile::LIMITS as TILE_LIMITS;
pub use tile::draw;
