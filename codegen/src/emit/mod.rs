//! Emitted code for the target `cpu`: one Rust file per stage, over `lightc_runtime`.
//!
//! The text is a function of the module alone: same source, same bytes. It is built with `quote`
//! and laid out by `prettyplease`, so it is Rust by construction; a header names the
//! source, its digest and the compiler.

mod call;
mod digest;
mod footprint;
mod function;
mod names;
mod replay;
mod rows;
mod stack;
mod stage;

pub use call::EmitCall;
pub use digest::source_digest;
pub(crate) use names::module_name;
pub use stage::{CrateFile, Origin, emit_blocks, emit_crate, emit_kernels, emit_stage};
