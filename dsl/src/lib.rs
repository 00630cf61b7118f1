//! The `.llm` language: text to a checked model.
//!
//! | step | module | type |
//! |---|---|---|
//! | text to syntax | [`syntax`] | [`ast::File`] |
//! | names, sizes, `extends`, blocks instantiated | [`resolve`] | [`model::StageModel`] |
//! | layout | [`mod@format`] | text |
//!
//! Axes and dtypes of *values* are inferred later, while the forward bodies are
//! lowered to IR: each op's own shape rule does it, so the rule stands in one place.
//!
//! Nothing here reads a file: sources come from a [`source::Loader`]. No function panics
//! on user input; every step returns what it could make together with all diagnostics.

pub mod ast;
pub mod diag;
pub mod format;
pub mod integrator;
mod layout;
pub mod model;
pub mod names;
pub mod resolve;
pub mod size;
pub mod source;
pub mod syntax;
