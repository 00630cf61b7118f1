//! Emitted code: Rust for the target `cpu`.

use crate::ir::Type;
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;

/// What an op's emit rule sees: names of its arguments and their types. Axes become positions here.
pub struct EmitCall<'a> {
    /// Rust expressions of type `&Tensor`, one per argument.
    pub args: &'a [TokenStream],
    /// Types of the arguments.
    pub arg_types: &'a [&'a Type],
    /// Types of the results.
    pub result_types: &'a [&'a Type],
}

impl EmitCall<'_> {
    /// Argument `index` as a Rust expression of type `&Tensor`.
    pub fn arg(&self, index: usize) -> TokenStream {
        self.args.get(index).cloned().unwrap_or_default()
    }

    /// Position of an axis of argument `index` as an `i64` literal.
    pub fn dim(&self, index: usize, axis: &str) -> i64 {
        let position = self.arg_types.get(index).and_then(|ty| ty.position(axis));
        position.map_or(-1, |p| p as i64)
    }

    /// Argument `index`, viewed so that it broadcasts by position against result 0.
    pub fn aligned(&self, index: usize) -> TokenStream {
        let _ = index;
        TokenStream::new()
    }

    /// A size as a Rust expression of type `i64`.
    pub fn size(&self, size: &Size) -> TokenStream {
        let _ = size;
        TokenStream::new()
    }

    /// The compute context in scope (precision of `act`, device).
    pub fn kind(&self) -> TokenStream {
        quote::quote!(cx)
    }
}
