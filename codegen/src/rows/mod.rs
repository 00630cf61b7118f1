//! Fused row kernels: parts of a function that one pass over memory computes.
mod access;
mod axes;
mod cuda;
mod express;
mod group;
mod layout;
mod phases;
mod plan;
mod report;
mod shape;
mod text;

pub(crate) use cuda::Kernel;
pub(crate) use group::is_literal;
pub(crate) use plan::Step;
pub use report::{Plans, cuda_text, describe};
