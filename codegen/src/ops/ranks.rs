//! What the data-parallel ranks know together.

use super::{Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, need_dtype, one};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use proc_macro2::TokenStream;
use quote::quote;

/// The sum of x over the data-parallel ranks, added in the order of the ranks; on one rank, and
/// in the interpreter, x itself. In f32: sums of counts below 2^24 are exact in any order.
///
/// No gradient: what other ranks give does not depend on this one.
#[derive(Clone, Debug, PartialEq)]
pub struct SumRanks;

impl OpDef for SumRanks {
    fn mnemonic(&self) -> &'static str {
        "sum_ranks"
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("sum_ranks", args)?;
        need_dtype("sum_ranks", "its value", x, DType::F32)?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![call.arg(0)?.clone()])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(1, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let x = call.arg(0);
        quote!(ops::sum_ranks(#x)?)
    }
}

impl ParseOp for SumRanks {
    fn parse(mnemonic: &str, _: &mut Attrs) -> Result<Option<Self>, String> {
        Ok((mnemonic == "sum_ranks").then_some(SumRanks))
    }
}
