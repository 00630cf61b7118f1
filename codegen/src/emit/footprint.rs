//! What a step takes, as code: the compiler's counts for the program of a GPU, which asks them before it
//! allocates anything.

use crate::analysis::{self, BATCH, SEQUENCE, States};
use crate::pipeline::Program;
use crate::schedule::Target;
use lightc_dsl::size::Size;
use proc_macro2::{Literal, TokenStream};
use quote::quote;

/// The method of the stage and the table that it gives; nothing for `cpu`.
pub(super) fn footprint_items(program: &Program<'_>) -> Result<(TokenStream, TokenStream), String> {
    if program.target == Target::Cpu {
        return Ok((TokenStream::new(), TokenStream::new()));
    }
    let uncounted = || "compiler fault: the memory of a step cannot be counted".to_owned();
    let compiled = program.compiled;
    let rest = analysis::at_rest(compiled).ok_or_else(uncounted)?;
    let rows = |states| {
        let mut rows = Vec::new();
        for (class, bytes) in rest.rows().into_iter().filter(|(_, bytes)| *bytes > 0) {
            rows.push((class, vec![Size::constant(i64::try_from(bytes).ok()?)]));
        }
        let live = analysis::live_for(compiled, program.target, states)?;
        rows.extend(live.polynomials()?);
        classes(&rows).map(|classes| (rows, classes))
    };
    let (had_back, bytes) = rows(States::HadBack).ok_or_else(uncounted)?;
    let (stored, stored_bytes) = rows(States::Stored).ok_or_else(uncounted)?;
    let stored_bytes = if stored == had_back { TokenStream::new() } else { stored_bytes };
    let flops = analysis::contraction_flops(&compiled.module).ok_or_else(uncounted)?;
    let flops = polynomial(&flops).ok_or_else(uncounted)?;
    let method = quote! {
        fn footprint(&self) -> Option<&'static lightc_runtime::Footprint> { Some(&FOOTPRINT) }
    };
    let table = quote! {
        /// What a step takes.
        pub static FOOTPRINT: lightc_runtime::Footprint = lightc_runtime::Footprint {
            bytes: &[#bytes],
            stored_bytes: &[#stored_bytes],
            forward_flops: #flops,
        };
    };
    Ok((method, table))
}

/// Classes with their polynomials.
fn classes(rows: &[(&'static str, Vec<Size>)]) -> Option<TokenStream> {
    let mut classes = Vec::new();
    for (class, peaks) in rows {
        let peaks = peaks.iter().map(polynomial).collect::<Option<Vec<_>>>()?;
        classes.push(quote!((#class, &[#(#peaks),*])));
    }
    Some(quote!(#(#classes),*))
}

/// The terms of a size over the lanes of a micro-batch and the tokens of a sequence.
fn polynomial(size: &Size) -> Option<TokenStream> {
    let mut terms = Vec::new();
    for (monomial, factor) in size.terms() {
        if monomial.keys().any(|name| name != BATCH && name != SEQUENCE) {
            return None;
        }
        let power =
            |name: &str| Literal::u32_unsuffixed(monomial.get(name).copied().unwrap_or_default());
        let (batch, sequence) = (power(BATCH), power(SEQUENCE));
        let factor = Literal::i64_unsuffixed(factor);
        terms.push(quote! {
            lightc_runtime::Term { factor: #factor, batch: #batch, sequence: #sequence }
        });
    }
    Some(quote!(&[#(#terms),*]))
}
