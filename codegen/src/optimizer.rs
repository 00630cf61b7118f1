//! What the optimizer does to one element, as IR: its definition.
//!
//! The libtorch calls of the runtime and the kernel for a GPU are compared with interp of these functions, and the
//! arithmetic of that kernel is generated from them: `kernels/include/elements.cuh`, which a test keeps up to date.
//! Scalars come from the host: factors that all elements share, such as `1 - beta1`, are one rounding there. A gradient
//! is read in 32 bits, whatever it is stored in.

use crate::ir::Module;
use crate::ir::text::{self, ParseError};
use crate::rows::{Number, element_function};

/// AdamW with decoupled weight decay. With a gradient times `clip` as `g`, `rest` = 1 - `beta`, `correction` =
/// 1 - `beta`^n, `keep` = 1 - rate · decay:
///
/// `m <- beta1 m + rest1 g`, `v <- beta2 v + rest2 g²`,
/// `w <- keep w - rate (m / correction1) / (sqrt(v / correction2) + eps)`.
///
/// Outputs: the new `w`, `m` and `v` in 32 bits, and the copy of `w` that the forward reads.
pub const ADAMW: &str = "\
module adamw entry @AdamW

func @AdamW {
  %0.w = input name=\"w\" () : f32[n]
  %1.m = input name=\"m\" () : f32[n]
  %2.v = input name=\"v\" () : f32[n]
  %3.gradient = input name=\"gradient\" () : f32[n]
  %4.clip = input name=\"clip\" () : f32[]
  %5.beta1 = input name=\"beta1\" () : f32[]
  %6.rest1 = input name=\"rest1\" () : f32[]
  %7.beta2 = input name=\"beta2\" () : f32[]
  %8.rest2 = input name=\"rest2\" () : f32[]
  %9.correction1 = input name=\"correction1\" () : f32[]
  %10.correction2 = input name=\"correction2\" () : f32[]
  %11.eps = input name=\"eps\" () : f32[]
  %12.rate = input name=\"rate\" () : f32[]
  %13.keep = input name=\"keep\" () : f32[]
  %14.clipped = mul (%3, %4) : f32[n]
  %15.old_m = mul (%1, %5) : f32[n]
  %16.new_m = mul (%14, %6) : f32[n]
  %17.moment1 = add (%15, %16) : f32[n]
  %18.old_v = mul (%2, %7) : f32[n]
  %19.squared = square (%14) : f32[n]
  %20.new_v = mul (%19, %8) : f32[n]
  %21.moment2 = add (%18, %20) : f32[n]
  %22.variance = div (%21, %10) : f32[n]
  %23.deviation = sqrt (%22) : f32[n]
  %24.root = add (%23, %11) : f32[n]
  %25.mean = div (%17, %9) : f32[n]
  %26.direction = div (%25, %24) : f32[n]
  %27.change = mul (%26, %12) : f32[n]
  %28.kept = mul (%0, %13) : f32[n]
  %29.weight = sub (%28, %27) : f32[n]
  %30.act = cast to=act (%29) : act[n]
  return w: %29, m: %17, v: %21, act: %30
}
";

/// What is summed for the norm of all gradients, over all elements, in 64 bits: there the square of a number of 32 bits
/// has no rounding.
pub const SQUARE: &str = "\
module square entry @Square

func @Square {
  %0.gradient = input name=\"gradient\" () : f32[n]
  %1.squared = square (%0) : f32[n]
  return square: %1
}
";

/// A function of this file.
///
/// # Errors
/// Its text does not parse: a fault of this file.
pub fn module(source: &str) -> Result<Module, ParseError> {
    text::parse(source)
}

/// The header of device functions that kernels include: `kernels/include/elements.cuh`.
///
/// # Errors
/// A function of this file that is no arithmetic of single elements: a fault of this file.
pub fn header() -> Result<String, String> {
    let mut text = HEAD.to_owned();
    for (source, entry, kind) in
        [(ADAMW, "adamw_element", Number::Float), (SQUARE, "square_element", Number::Double)]
    {
        let module = module(source).map_err(|error| format!("{entry}: {error:?}"))?;
        text += "\n";
        text += &element_function(module.entry_function(), entry, kind)?;
    }
    Ok(text)
}

const HEAD: &str = "\
// Arithmetic of single elements, generated from codegen/src/optimizer.rs, which defines it. Do not edit:
// `cargo xtask bless` writes it anew.
#pragma once
#include \"base.cuh\"
";
