//! Rows of routed experts on their way between ranks.

use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, array, elements, float,
    need_dtype, one, two,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;
use quote::quote;

/// Arguments x`[places.., d]` and ids`[places..]`; result as x:
///
/// `y = x`, by way of the rank that has the expert of each place.
///
/// Nothing changes but where a row is. It stands on both sides of the products of experts that several
/// ranks share: rows go out with it, and results come back.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// Experts of all ranks.
    pub experts: i64,
}

/// Argument ids`[..]`; result as ids: the number of an expert among those of its rank, `id mod experts`;
/// negative ids stay.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalExpert {
    /// Experts of a rank.
    pub experts: i64,
}

impl OpDef for Exchange {
    fn mnemonic(&self) -> &'static str {
        "exchange"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().int("experts", self.experts)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let (x, ids) = two("exchange", args)?;
        float("exchange", x)?;
        need_dtype("exchange", "its ids", ids, DType::Index)?;
        let lead = x.axes.split_last().map(|(_, lead)| lead).unwrap_or_default();
        if lead != ids.axes {
            let message = format!("`exchange` takes a row per id {ids}, but the value is {x}");
            return Err(TypeError::new("E0401", message));
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![call.arg(0)?.clone()])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (dy, ids) = (vjp.dy()?, vjp.arg(1)?);
        Ok(vec![Some(vjp.push(self.clone(), &[dy, ids])?), None])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(Size::default(), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, ids, experts) = (call.arg(0), call.arg(1), super::number(self.experts));
        quote!(ops::exchange(#x, #ids, #experts)?)
    }
}

impl ParseOp for Exchange {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "exchange" {
            return Ok(None);
        }
        Ok(Some(Exchange { experts: attrs.take_int("experts")? }))
    }
}

impl OpDef for LocalExpert {
    fn mnemonic(&self) -> &'static str {
        "local_expert"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().int("experts", self.experts)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let ids = one("local_expert", args)?;
        need_dtype("local_expert", "its ids", ids, DType::Index)?;
        if self.experts < 1 {
            let message = format!("`local_expert` takes 1 expert or more, not {}", self.experts);
            return Err(TypeError::new("E0402", message));
        }
        Ok(vec![ids.clone()])
    }

    #[allow(clippy::cast_precision_loss)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let ids = call.arg(0)?;
        let experts = self.experts as f64;
        let local = elements(ids).into_iter().map(|id| if id < 0.0 { id } else { id % experts });
        Ok(vec![array(ids.shape(), local.collect())?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None])
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (ids, experts) = (call.arg(0), super::number(self.experts));
        quote!(ops::local_expert(#ids, #experts)?)
    }
}

impl ParseOp for LocalExpert {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "local_expert" {
            return Ok(None);
        }
        Ok(Some(LocalExpert { experts: attrs.take_int("experts")? }))
    }
}
