//! Routed products, weighed and added up over the choices of each row.

use super::dot::places;
use super::{
    ROUTING, emit_routing, emit_terms, eval_sum, expert_axis, ids_order, is_weight, routing,
    sum_of, terms, terms_cost,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use crate::ops::{
    Array, Attrs, Binary, BinaryFn, Cast, Cost, EvalCall, EvalError, OpDef, ParseOp, RoutedDot,
    RoutedWeightGrad, Sum, TypeError, arity, count, distinct, exactly, need_axis, need_dtype,
    ordered,
};
use lightc_dsl::ast::DType;
use ndarray::Axis as Along;
use proc_macro2::TokenStream;
use quote::quote;

/// Arguments weights`[batch, k]` of f32, then those of [`RoutedDot`] with ids`[batch, k]`; result
/// `[batch, f]`, of the terms' class:
///
/// `y[batch, f] = sum over k of weights[batch, k] * routed_dot(terms)[batch, k, f]`
///
/// Each product is rounded to the terms' class, their weighed sum is in 32 bits or more and rounded once.
///
/// The gradients do not need the products: with `z = routed_dot(dy)`, the product of the cotangent with
/// the turned weight, `dx = weights * z` and `dweights = sum of z * x`.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedCombine {
    /// Axis e.
    pub expert: String,
    /// The summed axis of each term.
    pub over: Vec<String>,
    /// Axis k.
    pub slots: String,
}

/// Where the routing starts: behind the weights.
const IDS: usize = 1;
/// Where the terms start.
const TERMS: usize = IDS + ROUTING;

impl OpDef for RoutedCombine {
    fn mnemonic(&self) -> &'static str {
        "routed_combine"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("expert", &self.expert)
            .words("over", &self.over)
            .word("slots", &self.slots)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "routed_combine";
        let (Some(weights), Some(routed), Some(rest)) =
            (args.first(), args.get(IDS..), args.get(TERMS..))
        else {
            return Err(arity(what, TERMS + 2, args.len()));
        };
        let ids = routing(what, routed, &expert_axis(what, rest, &self.expert)?)?;
        need_axis(what, ids, &self.slots)?;
        need_dtype(what, "its weights", weights, DType::F32)?;
        exactly(what, "its weights", weights, &ids.axes)?;
        let terms = terms(what, rest, &self.over)?;
        let (free, dtype) = sum_of(what, &terms, &self.expert, ids)?;
        ordered(self, args)?;
        let mut axes = ids.axes.clone();
        axes.retain(|axis| axis.name != self.slots);
        axes.push(free.clone());
        distinct(what, &axes)?;
        Ok(vec![Type::new(dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let (ids, rest) = (args.get(IDS)?, args.get(TERMS..)?);
        let terms = terms("routed_combine", rest, &self.over).ok()?;
        let mut places = ids_order(&terms, ids);
        places.retain(|name| *name != self.slots);
        places.push(self.slots.clone());
        match index {
            0 | IDS => Some(places),
            2 | 3 => None,
            _ if (index - TERMS).is_multiple_of(2) => {
                terms.get((index - TERMS) / 2)?.x_order(&places)
            }
            _ => None,
        }
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let each = eval_sum(call, IDS, TERMS, &self.over, &self.expert)?;
        let weights = call.arg(0)?;
        let slots = weights.ndim().saturating_sub(1);
        let weights = weights.clone().insert_axis(Along(weights.ndim()));
        Ok(vec![(each * weights).sum_axis(Along(slots))])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let mut cotangents = vec![None; vjp.n_args()];
        let mut dweights: Option<ValueId> = None;
        for (position, over) in self.over.iter().enumerate() {
            let (x, w) = (TERMS + 2 * position, TERMS + 2 * position + 1);
            let own = Own { x, w, over, expert: &self.expert };
            let (dx, dw, weighed) = own.cotangents(vjp, dy)?;
            dweights = match (dweights, weighed) {
                (Some(a), Some(b)) => Some(vjp.push(Binary { function: BinaryFn::Add }, &[a, b])?),
                (a, b) => a.or(b),
            };
            for (slot, value) in [(x, dx), (w, dw)] {
                if let Some(cotangent) = cotangents.get_mut(slot) {
                    *cotangent = value;
                }
            }
        }
        if let (Some(slot), Some(dweights)) = (cotangents.first_mut(), dweights) {
            *slot = Some(vjp.reduce_to_arg(0, dweights)?);
        }
        Ok(cotangents)
    }

    fn takes_codes(&self, index: usize) -> bool {
        is_weight(index, TERMS)
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let terms = terms("routed_combine", args.get(TERMS..).unwrap_or_default(), &self.over);
        let places = args.get(IDS).map(|ids| count(ids)).unwrap_or_default();
        let free = results.first().and_then(|y| y.axes.last()).map(|axis| axis.size.clone());
        let each = crate::ops::product(&[&places, &free.unwrap_or_default()]);
        Cost::streaming(terms_cost(&each, &terms.unwrap_or_default()), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (weights, routing) = (call.arg(0), emit_routing(call, IDS));
        let terms = emit_terms(call, TERMS, &self.over);
        quote!(ops::routed_combine(#weights, #routing, #terms)?)
    }
}

/// One term, where its cotangents are made.
struct Own<'a> {
    x: usize,
    w: usize,
    over: &'a str,
    expert: &'a str,
}

impl Own<'_> {
    /// The cotangents of x, of the weight, and the term's part of that of the weights.
    #[allow(clippy::type_complexity)]
    fn cotangents(
        &self,
        vjp: &mut Vjp<'_>,
        dy: ValueId,
    ) -> Result<(Option<ValueId>, Option<ValueId>, Option<ValueId>), TypeError> {
        let mul = || Binary { function: BinaryFn::Mul };
        let (x_type, w_type) = (vjp.arg_type(self.x)?, vjp.arg_type(self.w)?);
        let free = w_type.axes.iter().find(|a| a.name != self.expert && a.name != self.over);
        let free = free.map(|axis| axis.name.clone()).unwrap_or_default();
        let [ids, order, bounds] = places(vjp, IDS)?;
        let (wants_x, wants_weights) = (vjp.wants(self.x), vjp.wants(0));
        let mut dx = None;
        let mut dweights = None;
        if wants_x || wants_weights {
            let op = RoutedDot { expert: self.expert.to_owned(), over: vec![free] };
            let w = vjp.arg(self.w)?;
            let z = vjp.push(op, &[ids, order, bounds, dy, w])?;
            let z = vjp.push(Cast { to: DType::F32 }, &[z])?;
            if wants_x {
                let weights = vjp.arg(0)?;
                let weighed = vjp.push(mul(), &[z, weights])?;
                let weighed = vjp.push(Cast { to: x_type.dtype }, &[weighed])?;
                dx = Some(vjp.conform(weighed, &x_type)?);
            }
            if wants_weights {
                let x = vjp.arg(self.x)?;
                let x = vjp.push(Cast { to: DType::F32 }, &[x])?;
                let both = vjp.push(mul(), &[z, x])?;
                dweights = Some(vjp.push(Sum { over: vec![self.over.to_owned()] }, &[both])?);
            }
        }
        let mut dw = None;
        if vjp.wants(self.w) {
            let (x, weights) = (vjp.arg(self.x)?, vjp.arg(0)?);
            let x = vjp.push(Cast { to: DType::F32 }, &[x])?;
            // In the order of the ids: rows, then the summed axis.
            let outer = !vjp.arg_type(IDS)?.names().iter().all(|name| x_type.has(name));
            let weighed = match outer {
                true => vjp.push(crate::ops::Contract { over: vec![] }, &[x, weights])?,
                false => vjp.push(mul(), &[x, weights])?,
            };
            let weighed = vjp.push(Cast { to: x_type.dtype }, &[weighed])?;
            let ids_type = vjp.arg_type(IDS)?;
            let order_of = [ids_type.names(), vec![self.over.to_owned()]].concat();
            let weighed = match vjp.ty(weighed).names() == order_of {
                true => weighed,
                false => vjp.push(crate::ops::Permute { order: order_of }, &[weighed])?,
            };
            let expert = need_axis("routed_combine", &w_type, self.expert)?.clone();
            let own = vjp.push(RoutedWeightGrad { expert }, &[ids, order, bounds, dy, weighed])?;
            dw = Some(vjp.conform(own, &w_type)?);
        }
        Ok((dx, dw, dweights))
    }
}

impl ParseOp for RoutedCombine {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "routed_combine" {
            return Ok(None);
        }
        Ok(Some(RoutedCombine {
            expert: attrs.take_word("expert")?,
            over: attrs.take_words("over")?,
            slots: attrs.take_word("slots")?,
        }))
    }
}
