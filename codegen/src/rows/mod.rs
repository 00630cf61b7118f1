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

pub use report::{cuda_text, describe};
