//! The training loop.

use crate::Tensor;

/// The state of a run between two steps.
#[derive(Debug)]
#[non_exhaustive]
pub struct TrainState {}

/// One batch.
#[derive(Debug)]
pub struct Batch {
    /// Token ids, i64 `[b, u]`.
    pub tokens: Tensor,
    /// See [`crate::stage::Inputs::continues`].
    pub continues: Tensor,
}

/// What a step tells.
#[derive(Debug)]
#[non_exhaustive]
pub struct StepReport {}
