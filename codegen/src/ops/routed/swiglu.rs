//! Gate and up of routed experts in one pass.

use super::dot::cotangents_of_terms;
use super::{
    ROUTING, emit_routing, emit_terms, eval_sum, expert_axis, ids_order, is_weight, routing,
    sum_of, term_order, terms, terms_cost,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use crate::ops::{
    Array, Attrs, Binary, BinaryFn, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, Unary,
    UnaryFn, UnaryGrad, count, distinct, ordered,
};
use proc_macro2::TokenStream;
use quote::quote;

/// Arguments as of [`super::RoutedDot`], the terms of the gate before those of up; results of one type
/// `[places.., f]`:
///
/// `gated = routed_dot(gate terms)`, `lifted = routed_dot(up terms)`, `hidden = silu(gated) * lifted`
///
/// Each is rounded once, from sums in 32 bits or more.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedSwiglu {
    /// Axis e.
    pub expert: String,
    /// The summed axis of each term of the gate.
    pub gate: Vec<String>,
    /// The summed axis of each term of up.
    pub up: Vec<String>,
}

impl RoutedSwiglu {
    fn over(&self) -> Vec<String> {
        [self.gate.clone(), self.up.clone()].concat()
    }

    /// The first argument of up.
    fn up_at(&self) -> usize {
        ROUTING + 2 * self.gate.len()
    }
}

impl OpDef for RoutedSwiglu {
    fn mnemonic(&self) -> &'static str {
        "routed_swiglu"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("expert", &self.expert)
            .words("gate", &self.gate)
            .words("up", &self.up)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "routed_swiglu";
        let rest = args.get(ROUTING..).unwrap_or_default();
        let ids = routing(what, args, &expert_axis(what, rest, &self.expert)?)?;
        let over = self.over();
        let terms = terms(what, rest, &over)?;
        if self.gate.is_empty() || self.up.is_empty() {
            return Err(TypeError::new("E0405", format!("`{what}` takes a gate and an up")));
        }
        let (free, dtype) = sum_of(what, &terms, &self.expert, ids)?;
        ordered(self, args)?;
        let axes = [ids.axes.clone(), vec![free.clone()]].concat();
        distinct(what, &axes)?;
        Ok(vec![Type::new(dtype, axes); 3])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let (ids, rest) = (args.first()?, args.get(ROUTING..)?);
        let over = self.over();
        let terms = terms("routed_swiglu", rest, &over).ok()?;
        match index {
            0 => Some(ids_order(&terms, ids)),
            1 | 2 => None,
            _ => term_order(&terms, index - ROUTING, ids),
        }
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let gated = eval_sum(call, 0, ROUTING, &self.gate, &self.expert)?;
        let lifted = eval_sum(call, 0, self.up_at(), &self.up, &self.expert)?;
        let hidden = gated.mapv(|g| UnaryFn::Silu.value(g)) * &lifted;
        Ok(vec![gated, lifted, hidden])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (dgated, dlifted) = opened(vjp)?;
        let sides = [(ROUTING, &self.gate, dgated), (self.up_at(), &self.up, dlifted)];
        let mut cotangents = vec![None; vjp.n_args()];
        for (from, over, dy) in sides {
            cotangents_of_terms(vjp, from, over, &self.expert, dy, &mut cotangents)?;
        }
        Ok(cotangents)
    }

    fn takes_codes(&self, index: usize) -> bool {
        is_weight(index, ROUTING)
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let y = results.first().map(|y| count(y)).unwrap_or_default();
        let over = self.over();
        let terms = terms("routed_swiglu", args.get(ROUTING..).unwrap_or_default(), &over);
        Cost::streaming(terms_cost(&y, &terms.unwrap_or_default()), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let routing = emit_routing(call, 0);
        let gate = emit_terms(call, ROUTING, &self.gate);
        let up = emit_terms(call, self.up_at(), &self.up);
        quote!(ops::routed_swiglu(#routing, #gate, #up)?)
    }
}

/// The cotangents of gated and lifted, of those of all three results.
fn opened(vjp: &mut Vjp<'_>) -> Result<(ValueId, ValueId), TypeError> {
    let mul = || Binary { function: BinaryFn::Mul };
    let (gated, lifted) = (vjp.result(0)?, vjp.result(1)?);
    let mut both = match vjp.dy_of(2) {
        Some(dy) => {
            let open = vjp.push(Unary { function: UnaryFn::Silu }, &[gated])?;
            let dlifted = vjp.push(mul(), &[dy, open])?;
            let dopen = vjp.push(mul(), &[dy, lifted])?;
            let dgated = vjp.push(UnaryGrad { function: UnaryFn::Silu }, &[gated, dopen])?;
            [Some(dgated), Some(dlifted)]
        }
        None => [None, None],
    };
    for (index, total) in both.iter_mut().enumerate() {
        if let Some(own) = vjp.dy_of(index) {
            *total = Some(match *total {
                Some(before) => vjp.push(Binary { function: BinaryFn::Add }, &[before, own])?,
                None => own,
            });
        }
    }
    let zero = |vjp: &mut Vjp<'_>, found: Option<ValueId>| match found {
        Some(found) => Ok(found),
        None => {
            let zero = vjp.zero_like(gated)?;
            let axes = vjp.ty(gated).axes.clone();
            vjp.push(crate::ops::Broadcast { axes }, &[zero])
        }
    };
    Ok((zero(vjp, both[0])?, zero(vjp, both[1])?))
}

impl ParseOp for RoutedSwiglu {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "routed_swiglu" {
            return Ok(None);
        }
        Ok(Some(RoutedSwiglu {
            expert: attrs.take_word("expert")?,
            gate: attrs.take_words("gate")?,
            up: attrs.take_words("up")?,
        }))
    }
}
