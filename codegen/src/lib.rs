//! From checked model to code: IR, interpreter, autodiff, analyses, schedule, emitted Rust.
//!
//! | step | module | type |
//! |---|---|---|
//! | model to graph | [`lower`] | [`ir::Module`] |
//! | derivatives | [`autodiff`] | [`ir::Module`] with [`ir::Backward`] functions |
//! | liveness, storage | [`analysis`] | diagnostics |
//! | target `cpu` | [`schedule`] | schedule |
//! | code | [`emit`] | Rust text |
//! | update of parameters | [`optimizer`] | [`ir::Module`], CUDA text |
//!
//! No IO, no GPU, no native library.

pub mod analysis;
pub mod autodiff;
pub mod emit;
pub mod growth;
pub mod interp;
pub mod ir;
pub mod lower;
pub mod ops;
pub mod optimizer;
pub mod pipeline;
pub mod rewrite;
pub mod rows;
pub mod schedule;
