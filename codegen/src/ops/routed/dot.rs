//! A sum of products with chosen weights.

use super::{
    ROUTING, emit_routing, emit_terms, eval_sum, expert_axis, ids_order, is_weight, routing,
    sum_of, term_order, terms, terms_cost,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use crate::ops::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, RoutedWeightGrad, TypeError, count,
    distinct, need_axis, ordered,
};
use proc_macro2::TokenStream;
use quote::quote;

/// Arguments ids`[places..]`, their order and bounds ([`super::ExpertOrder`]), then for each summed axis
/// rows x`[batch, d]` and a weight `[e, f, d]` or `[e, d, f]`; result `[places.., f]`:
///
/// `y[p, f] = sum over terms, over d of x[p, d] * w[ids[p], f, d]`, 0 where the id is negative.
///
/// An x can have any part of the axes of ids. All values are of one class; the sum is in 32 bits or more,
/// rounded once.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedDot {
    /// Axis e.
    pub expert: String,
    /// The summed axis of each term.
    pub over: Vec<String>,
}

impl OpDef for RoutedDot {
    fn mnemonic(&self) -> &'static str {
        "routed_dot"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("expert", &self.expert).words("over", &self.over)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "routed_dot";
        let rest = args.get(ROUTING..).unwrap_or_default();
        let ids = routing(what, args, &expert_axis(what, rest, &self.expert)?)?;
        let terms = terms(what, rest, &self.over)?;
        let (free, dtype) = sum_of(what, &terms, &self.expert, ids)?;
        ordered(self, args)?;
        let axes = [ids.axes.clone(), vec![free.clone()]].concat();
        distinct(what, &axes)?;
        Ok(vec![Type::new(dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let (ids, rest) = (args.first()?, args.get(ROUTING..)?);
        let terms = terms("routed_dot", rest, &self.over).ok()?;
        match index {
            0 => Some(ids_order(&terms, ids)),
            1 | 2 => None,
            _ => term_order(&terms, index - ROUTING, ids),
        }
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![eval_sum(call, 0, ROUTING, &self.over, &self.expert)?])
    }

    /// For an x the product with the weight turned; for a weight an op of its own.
    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let mut cotangents = vec![None; vjp.n_args()];
        cotangents_of_terms(vjp, ROUTING, &self.over, &self.expert, dy, &mut cotangents)?;
        Ok(cotangents)
    }

    fn takes_codes(&self, index: usize) -> bool {
        is_weight(index, ROUTING)
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let y = results.first().map(|y| count(y)).unwrap_or_default();
        let terms = terms("routed_dot", args.get(ROUTING..).unwrap_or_default(), &self.over);
        Cost::streaming(terms_cost(&y, &terms.unwrap_or_default()), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (routing, terms) = (emit_routing(call, 0), emit_terms(call, ROUTING, &self.over));
        quote!(ops::routed_dot(#routing, #terms)?)
    }
}

/// Ids, order and bounds in a backward, where `at` is the position of the ids.
pub(super) fn places(vjp: &mut Vjp<'_>, at: usize) -> Result<[ValueId; 3], TypeError> {
    Ok([vjp.arg(at)?, vjp.arg(at + 1)?, vjp.arg(at + 2)?])
}

/// Sets the cotangents of the terms from argument `from` on, as far as they are wanted, given that of their
/// sum. The ids are the first argument.
pub(super) fn cotangents_of_terms(
    vjp: &mut Vjp<'_>,
    from: usize,
    over: &[String],
    expert: &str,
    dy: ValueId,
    cotangents: &mut [Option<ValueId>],
) -> Result<(), TypeError> {
    let [ids, order, bounds] = places(vjp, 0)?;
    for (over, at) in over.iter().zip((from..).step_by(2)) {
        let (x_type, w_type) = (vjp.arg_type(at)?, vjp.arg_type(at + 1)?);
        let free = w_type.axes.iter().find(|axis| axis.name != expert && axis.name != *over);
        let free = free.map(|axis| axis.name.clone()).unwrap_or_default();
        if vjp.wants(at) {
            let op = RoutedDot { expert: expert.to_owned(), over: vec![free] };
            let w = vjp.arg(at + 1)?;
            let own = vjp.push(op, &[ids, order, bounds, dy, w])?;
            set(cotangents, at, vjp.conform(own, &x_type)?);
        }
        if vjp.wants(at + 1) {
            let x = vjp.arg(at)?;
            let expert = need_axis("routed_dot", &w_type, expert)?.clone();
            let own = vjp.push(RoutedWeightGrad { expert }, &[ids, order, bounds, dy, x])?;
            set(cotangents, at + 1, vjp.conform(own, &w_type)?);
        }
    }
    Ok(())
}

/// Sets a cotangent.
fn set(cotangents: &mut [Option<ValueId>], slot: usize, value: ValueId) {
    if let Some(cotangent) = cotangents.get_mut(slot) {
        *cotangent = Some(value);
    }
}

impl ParseOp for RoutedDot {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "routed_dot" {
            return Ok(None);
        }
        Ok(Some(RoutedDot { expert: attrs.take_word("expert")?, over: attrs.take_words("over")? }))
    }
}
