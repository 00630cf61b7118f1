//! Values at an index along an axis, and the derivative, which adds up in a fixed order.

use super::gather::{add_row, gather_cost, rest_of, row_of, with_first};
use super::pointwise::no_second_derivative;
use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, array, count, distinct,
    elements, float, need_axis, need_dtype, number, ordered, same_size, two,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;
use quote::quote;

/// Arguments x`[batch, e, rest]` (any dtype) and ids`[batch, free]`; result `[batch, free, rest]`:
///
/// `y[batch, free, rest] = x[batch, ids[batch, free], rest]`, 0 where the index is negative.
///
/// Batch axes are those that both have, except e, which ids can have as an axis of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Take {
    /// Axis e.
    pub axis: String,
}

/// Cotangent of x in [`Take`]. Arguments ids`[batch, free]` and dy`[batch, free, rest]`; result
/// `[batch, e, rest]`:
///
/// `dx[batch, e, rest] = sum over free with ids[batch, free] = e of dy[batch, free, rest]`
#[derive(Clone, Debug, PartialEq)]
pub struct TakeGrad {
    /// Axis e with its size.
    pub axis: Axis,
    /// The batch axes, a part of those of ids.
    pub batch: Vec<String>,
}

impl Take {
    /// The batch axes, in the order of ids.
    fn batch(&self, x: &Type, ids: &Type) -> Vec<String> {
        ids.names().into_iter().filter(|name| x.has(name) && *name != self.axis).collect()
    }
}

/// Lengths of what an index walks: batches, indices in each, elements of a row.
struct Lengths {
    n_batch: usize,
    n_free: usize,
    n_rest: usize,
}

fn lengths(ids: &Array, batch: usize, rest: &[usize]) -> Lengths {
    let product = |lengths: &[usize]| lengths.iter().product();
    let (front, free) = ids.shape().split_at_checked(batch).unwrap_or((&[], ids.shape()));
    Lengths { n_batch: product(front), n_free: product(free), n_rest: product(rest) }
}

impl OpDef for Take {
    fn mnemonic(&self) -> &'static str {
        "take"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("axis", &self.axis)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "take";
        let (x, ids) = two(what, args)?;
        need_dtype(what, "its ids", ids, DType::Index)?;
        need_axis(what, x, &self.axis)?;
        for name in self.batch(x, ids) {
            same_size(what, need_axis(what, x, &name)?, need_axis(what, ids, &name)?)?;
        }
        ordered(self, args)?;
        let rest = x.axes.iter().filter(|axis| axis.name != self.axis && !ids.has(&axis.name));
        let axes: Vec<Axis> = ids.axes.iter().chain(rest).cloned().collect();
        distinct(what, &axes)?;
        Ok(vec![Type::new(x.dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let (x, ids) = (args.first()?, args.get(1)?);
        let mut front = self.batch(x, ids);
        if index == 0 {
            front.push(self.axis.clone());
            return with_first(x, &front);
        }
        with_first(ids, &front)
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let batch = self.batch(call.arg_type(0)?, call.arg_type(1)?).len();
        let (x, ids) = (call.arg(0)?, call.arg(1)?);
        let n_rows = x.shape().get(batch).copied().unwrap_or_default();
        let n = lengths(ids, batch, x.shape().get(batch + 1..).unwrap_or_default());
        let (x, ids) = (elements(x), elements(ids));
        let mut y = vec![0.0; ids.len() * n.n_rest];
        for (place, id) in ids.into_iter().enumerate() {
            if let Some(row) = row_of("take", id, n_rows, true)? {
                let from = place / n.n_free * n_rows + row;
                add_row(&mut y, place, &x, from, n.n_rest);
            }
        }
        Ok(vec![array(&call.result_shape(0)?, y)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (x, ids_type) = (vjp.arg_type(0)?, vjp.arg_type(1)?);
        if !vjp.wants(0) || !x.is_float() {
            return Ok(vec![None, None]);
        }
        let (ids, dy) = (vjp.arg(1)?, vjp.dy()?);
        let axis = need_axis("take", &x, &self.axis)?.clone();
        let grad = TakeGrad { axis, batch: self.batch(&x, &ids_type) };
        let d = vjp.push(grad, &[ids, dy])?;
        Ok(vec![Some(vjp.conform(d, &x)?), None])
    }

    /// Reads as many rows as there are ids, not the whole value.
    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let y = results.first().map(|y| count(y)).unwrap_or_default();
        gather_cost(Size::default(), args.get(1), y.clone(), y)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, ids, batch) = (call.arg(0), call.arg(1), number(call.dim(0, &self.axis)));
        quote!(ops::take(#x, #ids, #batch)?)
    }
}

impl ParseOp for Take {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "take" {
            return Ok(None);
        }
        Ok(Some(Take { axis: attrs.take_word("axis")? }))
    }
}

impl OpDef for TakeGrad {
    fn mnemonic(&self) -> &'static str {
        "take_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().axes("axis", std::slice::from_ref(&self.axis)).words("batch", &self.batch)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "take_grad";
        let (ids, dy) = two(what, args)?;
        float(what, dy)?;
        need_dtype(what, "its ids", ids, DType::Index)?;
        let mut axes = Vec::new();
        for name in &self.batch {
            axes.push(need_axis(what, ids, name)?.clone());
        }
        ordered(self, args)?;
        axes.push(self.axis.clone());
        axes.extend(rest_of(what, dy, &ids.axes)?);
        distinct(what, &axes)?;
        Ok(vec![Type::new(dy.dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let ids = with_first(args.first()?, &self.batch)?;
        match index {
            0 => Some(ids),
            _ => with_first(args.get(1)?, &ids),
        }
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (ids, shape) = (call.arg(0)?, call.result_shape(0)?);
        let n_rows = call.size(&self.axis.size)?;
        let rest = shape.get(self.batch.len() + 1..).unwrap_or_default();
        let n = lengths(ids, self.batch.len(), rest);
        let (ids, dy) = (elements(ids), elements(call.arg(1)?));
        let mut dx = vec![0.0; n.n_batch * n_rows * n.n_rest];
        for (place, id) in ids.into_iter().enumerate() {
            if let Some(row) = row_of("take_grad", id, n_rows, true)? {
                add_row(&mut dx, place / n.n_free * n_rows + row, &dy, place, n.n_rest);
            }
        }
        Ok(vec![array(&shape, dx)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("take_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let dy = args.get(1).map(|dy| count(dy)).unwrap_or_default();
        Cost::streaming(dy, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (ids, dy, rows) = (call.arg(0), call.arg(1), call.size(&self.axis.size));
        let batch = number(self.batch.len() as i64);
        quote!(ops::take_grad(#ids, #dy, #batch, #rows)?)
    }
}

impl ParseOp for TakeGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "take_grad" {
            return Ok(None);
        }
        Ok(Some(TakeGrad { axis: attrs.take_axis("axis")?, batch: attrs.take_words("batch")? }))
    }
}
