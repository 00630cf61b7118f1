//! What an op's emit rule sees. Axes become positions here.

use crate::ir::Type;
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::quote;

/// One application of an op: Rust expressions for its arguments, and all types.
pub struct EmitCall<'a> {
    /// Rust expressions of type `&Tensor`, one per argument.
    pub args: &'a [TokenStream],
    /// Types of the arguments.
    pub arg_types: &'a [&'a Type],
    /// Types of the results.
    pub result_types: &'a [&'a Type],
    /// For each argument that is handed over as 8-bit codes, the Rust expression of their scales. Only
    /// where [`crate::ops::OpDef::takes_codes`].
    pub scales: &'a [Option<TokenStream>],
}

impl EmitCall<'_> {
    /// Argument `index` as a Rust expression of type `&Tensor`.
    pub fn arg(&self, index: usize) -> TokenStream {
        self.args.get(index).cloned().unwrap_or_default()
    }

    /// The scales of argument `index`, where it is 8-bit codes.
    pub fn scale(&self, index: usize) -> Option<&TokenStream> {
        self.scales.get(index)?.as_ref()
    }

    /// Position of an axis of argument `index` as a number; -1 for an axis it does not have,
    /// which the verifier rules out.
    pub fn dim(&self, index: usize, axis: &str) -> i64 {
        let position = self.arg_types.get(index).and_then(|ty| ty.position(axis));
        position.map_or(-1, |p| p as i64)
    }

    /// Argument `index`, viewed so that it broadcasts by position against result 0.
    pub fn aligned(&self, index: usize) -> TokenStream {
        let arg = self.arg(index);
        let (Some(from), Some(to)) = (self.arg_types.get(index), self.result_types.first()) else {
            return arg;
        };
        let skipped = to.axes.len().saturating_sub(from.axes.len());
        let trailing: Vec<_> = to.axes.iter().skip(skipped).map(|axis| &axis.name).collect();
        if trailing == from.axes.iter().map(|axis| &axis.name).collect::<Vec<_>>() {
            return arg;
        }
        let entries = align_entries(from, to);
        quote!(&ops::align(#arg, &[#(#entries),*])?)
    }

    /// [`EmitCall::aligned`], of the class that the arguments have together. libtorch joins
    /// kinds by itself, except that a tensor without axes does not widen one with axes.
    pub fn joined(&self, index: usize) -> TokenStream {
        let wide_scalar = |ty: &&&Type| ty.dtype == DType::F32 && ty.axes.is_empty();
        let own = self.arg_types.get(index);
        let is_narrow = own.is_some_and(|ty| ty.dtype == DType::Act && !ty.axes.is_empty());
        let aligned = self.aligned(index);
        if is_narrow && self.arg_types.iter().any(|ty| wide_scalar(&ty)) {
            let like = self.kind();
            return quote!(&ops::to_f32(#aligned, #like)?);
        }
        aligned
    }

    /// A size as a Rust expression of type `i64`.
    pub fn size(&self, size: &Size) -> TokenStream {
        size_expression(size)
    }

    /// A tensor of the compute precision and device: what constants are made like.
    pub fn kind(&self) -> TokenStream {
        quote!(like)
    }
}

/// For each axis of `to`, where it is in `from`, or -1.
pub(crate) fn align_entries(from: &Type, to: &Type) -> Vec<Literal> {
    let entry = |name: &str| from.position(name).map_or(-1, |p| p as i64);
    to.axes.iter().map(|axis| Literal::i64_unsuffixed(entry(&axis.name))).collect()
}

/// The Rust variable that holds a size name.
pub(crate) fn size_variable(name: &str) -> Ident {
    Ident::new(&format!("size_{name}"), Span::call_site())
}

/// A size as a Rust expression of type `i64`.
pub(crate) fn size_expression(size: &Size) -> TokenStream {
    if let Some(value) = size.as_constant() {
        let literal = Literal::i64_unsuffixed(value);
        return quote!(#literal);
    }
    sum_of_products(size).unwrap_or_else(|| quote!(0))
}

/// Terms with names first, the number last.
fn sum_of_products(size: &Size) -> Option<TokenStream> {
    let mut sum: Option<TokenStream> = None;
    let named = size.terms().filter(|(monomial, _)| !monomial.is_empty());
    let plain = size.terms().filter(|(monomial, _)| monomial.is_empty());
    for (monomial, coefficient) in named.chain(plain) {
        let magnitude = Literal::i64_unsuffixed(coefficient.checked_abs()?);
        let variables = monomial
            .iter()
            .flat_map(|(name, &power)| std::iter::repeat_n(size_variable(name), power as usize));
        let mut product: Option<TokenStream> = None;
        if coefficient.checked_abs()? != 1 || monomial.is_empty() {
            product = Some(quote!(#magnitude));
        }
        for variable in variables {
            product = Some(match product {
                Some(before) => quote!(#before * #variable),
                None => quote!(#variable),
            });
        }
        let product = product?;
        sum = Some(match (sum, coefficient < 0) {
            (Some(before), false) => quote!(#before + #product),
            (Some(before), true) => quote!(#before - #product),
            (None, false) => product,
            (None, true) => quote!(-(#product)),
        });
    }
    sum
}
