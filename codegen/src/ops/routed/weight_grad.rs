//! The gradient of a chosen weight.

use super::{ROUTING, emit_routing, routing};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use crate::ops::gather::{row_of, with_first};
use crate::ops::pointwise::no_second_derivative;
use crate::ops::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, arity, array, count,
    distinct, elements, ordered, product, same_size, size_of,
};
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;
use quote::quote;

/// Arguments ids`[places..]`, their order and bounds, a`[batch, f]` and b`[batch, d]`, each with any part of the
/// axes of ids and one axis of its own; result `[e, f, d]`:
///
/// `dw[i, f, d] = sum over places p with ids[p] = i of a[p, f] * b[p, d]`
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedWeightGrad {
    /// Axis e with its size.
    pub expert: Axis,
}

/// The axis of rows that the ids lack, which is to be the last, and the only one.
fn own_axis<'a>(what: &str, rows: &'a Type, ids: &Type) -> Result<&'a Axis, TypeError> {
    let mut own = rows.axes.iter().filter(|axis| !ids.has(&axis.name));
    let (Some(axis), None) = (own.next(), own.next()) else {
        let message =
            format!("`{what}` takes rows with one axis that the ids {ids} lack, not {rows}");
        return Err(TypeError::new("E0401", message));
    };
    for axis in &rows.axes {
        if let Some(of_ids) = ids.axis(&axis.name) {
            same_size(what, axis, of_ids)?;
        }
    }
    Ok(axis)
}

/// The order of rows: batch as in the ids, then the axis of their own.
fn rows_order(rows: &Type, ids: &Type) -> Option<Vec<String>> {
    let mut order: Vec<String> = ids.names().into_iter().filter(|name| rows.has(name)).collect();
    order.extend(rows.names().into_iter().filter(|name| !ids.has(name)));
    (order.len() == rows.axes.len()).then_some(order)
}

impl OpDef for RoutedWeightGrad {
    fn mnemonic(&self) -> &'static str {
        "routed_weight_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().axes("expert", std::slice::from_ref(&self.expert))
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "routed_weight_grad";
        let [_, _, _, a, b] = args else { return Err(arity(what, 5, args.len())) };
        let ids = routing(what, args, &self.expert)?;
        let axes = vec![
            self.expert.clone(),
            own_axis(what, a, ids)?.clone(),
            own_axis(what, b, ids)?.clone(),
        ];
        distinct(what, &axes)?;
        for ty in [a, b] {
            crate::ops::float(what, ty)?;
            if ty.dtype != a.dtype {
                let message = format!("`{what}` takes values of one class, here are {a} and {b}");
                return Err(TypeError::new("E0404", message));
            }
        }
        ordered(self, args)?;
        Ok(vec![Type::new(a.dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let (ids, own) = (args.first()?, args.get(index)?);
        match index {
            0 => {
                let batch = args.get(ROUTING..)?.iter().max_by_key(|rows| rows.axes.len())?;
                let first: Vec<String> =
                    ids.names().into_iter().filter(|name| batch.has(name)).collect();
                with_first(ids, &first)
            }
            1 | 2 => None,
            _ => rows_order(own, ids),
        }
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let shape = call.result_shape(0)?;
        let [n_e, n_f, n_d] = shape[..] else {
            return Err(EvalError("a weight has three axes".into()));
        };
        let ids = elements(call.arg(0)?);
        let (a, b) = (elements(call.arg(ROUTING)?), elements(call.arg(ROUTING + 1)?));
        // Rows are runs of equal length in the ids: the axes they lack are the last.
        let run = |rows: usize, n: usize| ids.len() / (rows / n.max(1)).max(1);
        let (run_a, run_b) = (run(a.len(), n_f).max(1), run(b.len(), n_d).max(1));
        let mut dw = vec![0.0; n_e * n_f * n_d];
        for (place, id) in ids.iter().enumerate() {
            let Some(expert) = row_of(self.mnemonic(), *id, n_e, true)? else { continue };
            let b = &b[place / run_b * n_d..][..n_d];
            for f in 0..n_f {
                let a = a[place / run_a * n_f + f];
                let dw = &mut dw[(expert * n_f + f) * n_d..][..n_d];
                dw.iter_mut().zip(b).for_each(|(dw, b)| *dw += a * b);
            }
        }
        Ok(vec![array(&shape, dw)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("routed_weight_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let places = args.first().map(|ids| count(ids)).unwrap_or_default();
        let names = results.first().map(|dw| dw.names()).unwrap_or_default();
        let size = |index: usize| size_of(results.first(), names.get(index).map_or("", |n| n));
        let flops = product(&[&places, &size(1), &size(2), &Size::constant(2)]);
        Cost::streaming(flops, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (routing, experts) = (emit_routing(call, 0), call.size(&self.expert.size));
        let (a, b) = (call.arg(ROUTING), call.arg(ROUTING + 1));
        quote!(ops::routed_weight_grad(#routing, #b, #a, #experts)?)
    }
}

impl ParseOp for RoutedWeightGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "routed_weight_grad" {
            return Ok(None);
        }
        Ok(Some(RoutedWeightGrad { expert: attrs.take_axis("expert")? }))
    }
}
