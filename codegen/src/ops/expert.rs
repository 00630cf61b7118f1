//! Products with a weight that an index chooses: the experts of a mixture.

use super::gather::{row_of, with_first};
use super::pointwise::no_second_derivative;
use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, array, count, distinct,
    elements, emit_joined, exactly, join_floats, lengths, need_axis, need_dtype, ordered, product,
    same_size, size_of,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;
use quote::quote;

/// Arguments x`[batch, d]`, w`[e, f, d]` and ids`[batch, free]`; result `[batch, free, f]`:
///
/// `y[batch, free, f] = sum over d of x[batch, d] * w[ids[batch, free], f, d]`
///
/// A negative index gives 0. x can have any part of the axes of ids; those it lacks are free. It
/// rounds as a contraction does: sums of 32 bits or more, rounded once.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertDot {
    /// Axis e.
    pub expert: String,
    /// Axis d.
    pub over: String,
}

/// Cotangent of w in [`ExpertDot`]. Arguments x`[batch, d]`, dy`[batch, free, f]` and
/// ids`[batch, free]`; result `[e, f, d]`:
///
/// `dw[e, f, d] = sum over batch, free with ids = e of dy[batch, free, f] * x[batch, d]`
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertDotWeightGrad {
    /// Axis e with its size.
    pub expert: Axis,
    /// Axis d.
    pub over: String,
}

/// The axes of x that are not summed, which ids must have, in the order of ids.
fn batch_of(x: &Type, ids: &Type, over: &str) -> Vec<String> {
    ids.names().into_iter().filter(|name| x.has(name) && name != over).collect()
}

/// The order of x: batch, d; `None` if it has other axes.
fn x_order(x: &Type, ids: &Type, over: &str) -> Option<Vec<String>> {
    let mut order = batch_of(x, ids, over);
    order.push(over.to_owned());
    (x.has(over) && order.len() == x.axes.len()).then_some(order)
}

/// Checks that x has nothing but d and axes of ids.
pub(super) fn check_rows(what: &str, x: &Type, ids: &Type, over: &str) -> Result<(), TypeError> {
    need_dtype(what, "its ids", ids, DType::Index)?;
    need_axis(what, x, over)?;
    if ids.has(over) {
        let message = format!("`{what}` sums over axis `{over}`, but the ids {ids} have it");
        return Err(TypeError::new("E0406", message).with_help("`rename` one of them"));
    }
    for axis in x.axes.iter().filter(|axis| axis.name != over) {
        let Some(of_ids) = ids.axis(&axis.name) else {
            let message = format!(
                "`{what}`: the value {x} has axis `{}`, for which the ids {ids} choose nothing",
                axis.name
            );
            let help = format!("`broadcast` the ids over `{}`", axis.name);
            return Err(TypeError::new("E0401", message).with_help(help));
        };
        same_size(what, axis, of_ids)?;
    }
    Ok(())
}

impl ExpertDot {
    /// Axis f: what w has beside e and d.
    fn free<'a>(&self, w: &'a Type) -> Option<&'a Axis> {
        w.axes.iter().find(|axis| axis.name != self.expert && axis.name != self.over)
    }
}

/// Two multiplications and additions per element of the result and position of the summed axis.
fn expert_cost(result: Size, over: &Size, args: &[&Type], results: &[&Type]) -> Cost {
    Cost::streaming(product(&[&result, over, &Size::constant(2)]), args, results)
}

impl OpDef for ExpertDot {
    fn mnemonic(&self) -> &'static str {
        "expert_dot"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("expert", &self.expert).word("over", &self.over)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "expert_dot";
        let [x, w, ids] = args else { return Err(super::arity(what, 3, args.len())) };
        let dtype = join_floats(what, &[x, w])?;
        need_axis(what, w, &self.expert)?;
        let over = need_axis(what, w, &self.over)?;
        check_rows(what, x, ids, &self.over)?;
        same_size(what, need_axis(what, x, &self.over)?, over)?;
        let Some(free) = self.free(w).filter(|_| w.axes.len() == 3) else {
            return Err(TypeError::new(
                "E0401",
                format!(
                    "`{what}` takes a weight with one axis beside `{}` and `{}`, not {w}",
                    self.expert, self.over
                ),
            ));
        };
        ordered(self, args)?;
        let axes = [ids.axes.clone(), vec![free.clone()]].concat();
        distinct(what, &axes)?;
        Ok(vec![Type::new(dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let [x, w, ids] = args else { return None };
        match index {
            0 => x_order(x, ids, &self.over),
            1 => {
                let order = [&self.expert, &self.free(w)?.name, &self.over].map(Clone::clone);
                (w.axes.len() == 3).then(|| order.to_vec())
            }
            _ => with_first(ids, &batch_of(x, ids, &self.over)),
        }
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let [n_e, n_f, n_d] = lengths(call.arg(1)?)?;
        let (x, w) = (elements(call.arg(0)?), elements(call.arg(1)?));
        let ids = elements(call.arg(2)?);
        // Rows of x are runs of equal length in ids: its free axes are the last.
        let run = ids.len() / (x.len() / n_d.max(1)).max(1);
        let mut y = vec![0.0; ids.len() * n_f];
        for (place, id) in ids.into_iter().enumerate() {
            let Some(expert) = row_of("expert_dot", id, n_e, true)? else { continue };
            let x = &x[place / run * n_d..][..n_d];
            for f in 0..n_f {
                let w = &w[(expert * n_f + f) * n_d..][..n_d];
                y[place * n_f + f] = x.iter().zip(w).map(|(x, w)| x * w).sum();
            }
        }
        Ok(vec![array(&call.result_shape(0)?, y)?])
    }

    /// For x the same op with f summed; for w an op of its own.
    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (x_type, w_type) = (vjp.arg_type(0)?, vjp.arg_type(1)?);
        let (dy, ids) = (vjp.dy()?, vjp.arg(2)?);
        let mut cotangents = vec![None, None, None];
        if vjp.wants(0) {
            let free = self.free(&w_type).map(|axis| axis.name.clone()).unwrap_or_default();
            let order = vec![self.expert.clone(), self.over.clone(), free.clone()];
            let w = vjp.arg(1)?;
            let turned = vjp.push(super::Permute { order }, &[w])?;
            let op = ExpertDot { expert: self.expert.clone(), over: free };
            let dx = vjp.push(op, &[dy, turned, ids])?;
            cotangents[0] = Some(vjp.conform(dx, &x_type)?);
        }
        if vjp.wants(1) {
            let x = vjp.arg(0)?;
            let expert = need_axis("expert_dot", &w_type, &self.expert)?.clone();
            let op = ExpertDotWeightGrad { expert, over: self.over.clone() };
            let dw = vjp.push(op, &[x, dy, ids])?;
            cotangents[1] = Some(vjp.conform(dw, &w_type)?);
        }
        Ok(cotangents)
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let y = results.first().map(|y| count(y)).unwrap_or_default();
        expert_cost(y, &size_of(args.first(), &self.over), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        emit_joined(call, "expert_dot", &[0, 1], quote!())
    }
}

impl ParseOp for ExpertDot {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "expert_dot" {
            return Ok(None);
        }
        Ok(Some(ExpertDot { expert: attrs.take_word("expert")?, over: attrs.take_word("over")? }))
    }
}

impl OpDef for ExpertDotWeightGrad {
    fn mnemonic(&self) -> &'static str {
        "expert_dot_weight_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().axes("expert", std::slice::from_ref(&self.expert)).word("over", &self.over)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "expert_dot_weight_grad";
        let [x, dy, ids] = args else { return Err(super::arity(what, 3, args.len())) };
        let dtype = join_floats(what, &[x, dy])?;
        check_rows(what, x, ids, &self.over)?;
        let over = need_axis(what, x, &self.over)?.clone();
        ordered(self, args)?;
        let Some((free, _)) = dy.axes.split_last() else {
            return Err(TypeError::new("E0401", format!("`{what}` takes a cotangent, not {dy}")));
        };
        let wanted = [ids.axes.clone(), vec![free.clone()]].concat();
        exactly(what, "the cotangent", dy, &wanted)?;
        let axes = vec![self.expert.clone(), free.clone(), over];
        distinct(what, &axes)?;
        Ok(vec![Type::new(dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let [x, dy, ids] = args else { return None };
        let of_ids = with_first(ids, &batch_of(x, ids, &self.over))?;
        match index {
            0 => x_order(x, ids, &self.over),
            1 => with_first(dy, &of_ids),
            _ => Some(of_ids),
        }
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let shape = call.result_shape(0)?;
        let [n_e, n_f, n_d] = shape[..] else {
            return Err(EvalError("a weight has three axes".into()));
        };
        let (x, dy) = (elements(call.arg(0)?), elements(call.arg(1)?));
        let ids = elements(call.arg(2)?);
        let run = ids.len() / (x.len() / n_d.max(1)).max(1);
        let mut dw = vec![0.0; n_e * n_f * n_d];
        for (place, id) in ids.into_iter().enumerate() {
            let Some(expert) = row_of(self.mnemonic(), id, n_e, true)? else { continue };
            let x = &x[place / run * n_d..][..n_d];
            for f in 0..n_f {
                let dy = dy[place * n_f + f];
                let dw = &mut dw[(expert * n_f + f) * n_d..][..n_d];
                dw.iter_mut().zip(x).for_each(|(dw, x)| *dw += dy * x);
            }
        }
        Ok(vec![array(&shape, dw)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("expert_dot_weight_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let dy = args.get(1).map(|dy| count(dy)).unwrap_or_default();
        expert_cost(dy, &size_of(args.first(), &self.over), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let experts = call.size(&self.expert.size);
        emit_joined(call, "expert_dot_weight_grad", &[0, 1], quote!(#experts))
    }
}

impl ParseOp for ExpertDotWeightGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "expert_dot_weight_grad" {
            return Ok(None);
        }
        Ok(Some(ExpertDotWeightGrad {
            expert: attrs.take_axis("expert")?,
            over: attrs.take_word("over")?,
        }))
    }
}
