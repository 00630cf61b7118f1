//! The places of ids, sorted by expert.

use super::{BOUNDS, PLACES, order_types};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use crate::ops::gather::row_of;
use crate::ops::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, array, elements,
    need_dtype, one,
};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use proc_macro2::TokenStream;
use quote::quote;

/// Argument ids`[..]`; results order`[places]` and bounds`[e + 1]`:
///
/// `order` has the places of the ids, numbered in storage order, sorted by expert and within one expert
/// rising; those of a negative id come last. The places of expert `i` are
/// `order[bounds[i] .. bounds[i + 1]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertOrder {
    /// Axis e with its size.
    pub expert: Axis,
}

impl OpDef for ExpertOrder {
    fn mnemonic(&self) -> &'static str {
        "expert_order"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().axes("expert", std::slice::from_ref(&self.expert))
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let ids = one("expert_order", args)?;
        need_dtype("expert_order", "its ids", ids, DType::Index)?;
        debug_assert_ne!(PLACES, BOUNDS);
        Ok(order_types(ids, &self.expert)?.to_vec())
    }

    #[allow(clippy::cast_precision_loss, clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let n_experts = call.size(&self.expert.size)?;
        let mut lists: Vec<Vec<usize>> = vec![Vec::new(); n_experts + 1];
        for (place, id) in elements(call.arg(0)?).into_iter().enumerate() {
            let expert = row_of("expert_order", id, n_experts, true)?.unwrap_or(n_experts);
            lists[expert].push(place);
        }
        let mut bounds = vec![0.0];
        let mut end = 0;
        for list in lists.iter().take(n_experts) {
            end += list.len();
            bounds.push(end as f64);
        }
        let order: Vec<f64> = lists.into_iter().flatten().map(|place| place as f64).collect();
        Ok(vec![array(&[order.len()], order)?, array(&[bounds.len()], bounds)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(2, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (ids, experts) = (call.arg(0), call.size(&self.expert.size));
        quote!(ops::expert_order(#ids, #experts)?)
    }
}

impl ParseOp for ExpertOrder {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "expert_order" {
            return Ok(None);
        }
        Ok(Some(ExpertOrder { expert: attrs.take_axis("expert")? }))
    }
}
