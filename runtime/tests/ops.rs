//! The ops against naive loops in f64, against libtorch's autograd and
//! against central differences, on fresh random inputs.
//!
//! Every test draws its inputs from a seed that it prints, and that
//! `LIGHTC_TEST_SEED` sets.

#[path = "ops/support.rs"]
mod support;

#[path = "ops/attention.rs"]
mod attention;
#[path = "ops/contract.rs"]
mod contract;
#[path = "ops/delta.rs"]
mod delta;
#[path = "ops/errors.rs"]
mod errors;
#[path = "ops/experts.rs"]
mod experts;
#[path = "ops/fixed.rs"]
mod fixed;
#[path = "ops/gather.rs"]
mod gather;
#[path = "ops/indexer.rs"]
mod indexer;
#[path = "ops/loss.rs"]
mod loss;
#[path = "ops/pointwise.rs"]
mod pointwise;
#[path = "ops/quantized.rs"]
mod quantized;
#[path = "ops/repeat.rs"]
mod repeat;
#[path = "ops/routed.rs"]
mod routed;
#[path = "ops/sequence.rs"]
mod sequence;
#[path = "ops/shape.rs"]
mod shape;
#[path = "ops/sinkhorn.rs"]
mod sinkhorn;
