//! Reading rows by index, and the derivatives, which add up what goes to the same row. A sum into
//! a row runs over the indices in storage order, so results do not depend on scheduling.

use super::pointwise::no_second_derivative;
use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, array, count, distinct,
    elements, exactly, float, lengths, need_axis, need_dtype, ordered, size_of, split_last, two,
    with_last,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;
use quote::quote;

/// Arguments w`[j, d]` and index`[.., p]`; result `[.., d]`:
///
/// `y[.., d] = sum over p with index[.., p] >= 0 of w[index[.., p], d]`
///
/// A negative index is an empty slot.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherSum {
    /// Axis j.
    pub rows: String,
    /// Axis p.
    pub slots: String,
}

/// Cotangent of w in [`GatherSum`]. Arguments index`[.., p]` and dy`[.., d]`; result `[j, d]`:
///
/// `dw[j, d] = sum over .., p with index[.., p] = j of dy[.., d]`
#[derive(Clone, Debug, PartialEq)]
pub struct GatherSumGrad {
    /// Axis j with the number of rows.
    pub rows: Axis,
    /// Axis p.
    pub slots: String,
}

/// Arguments table`[v, ..rest]` (any dtype) and ids`[..]`; result `[.., ..rest]`:
///
/// `y[.., rest] = table[ids[..], rest]`
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup {
    /// Axis v.
    pub rows: String,
}

/// Cotangent of the table in [`Lookup`]. Arguments ids`[..]` and dy`[.., ..rest]`; result
/// `[v, ..rest]`:
///
/// `dtable[v, rest] = sum over .. with ids[..] = v of dy[.., rest]`
#[derive(Clone, Debug, PartialEq)]
pub struct LookupGrad {
    /// Axis v with the number of rows.
    pub rows: Axis,
}

/// The row of an index, `None` for an empty slot where slots can be empty.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
pub(super) fn row_of(
    what: &str,
    index: f64,
    n_rows: usize,
    empty: bool,
) -> Result<Option<usize>, EvalError> {
    if empty && index < 0.0 {
        return Ok(None);
    }
    if index >= 0.0 && index < n_rows as f64 {
        return Ok(Some(index as usize));
    }
    Err(EvalError(format!("`{what}`: index {index} is not a row of {n_rows}")))
}

/// Adds the row `from` of `source` to the row `to` of `target`, rows being `n` long.
#[allow(clippy::indexing_slicing)]
pub(super) fn add_row(target: &mut [f64], to: usize, source: &[f64], from: usize, n: usize) {
    for (t, s) in target[to * n..(to + 1) * n].iter_mut().zip(&source[from * n..(from + 1) * n]) {
        *t += s;
    }
}

/// The axes of the rows of dy: what it has beside the axes in front, which must be there.
pub(super) fn rest_of(what: &str, dy: &Type, front: &[Axis]) -> Result<Vec<Axis>, TypeError> {
    let rest = dy.axes.get(front.len()..).unwrap_or_default().to_vec();
    exactly(what, "the cotangent", dy, &[front, &rest].concat())?;
    Ok(rest)
}

/// The axes of `first` in its order, then the others of `ty`; `None` if one is missing.
pub(super) fn with_first(ty: &Type, first: &[String]) -> Option<Vec<String>> {
    let rest = ty.names().into_iter().filter(|name| !first.contains(name));
    first.iter().all(|name| ty.has(name)).then(|| first.iter().cloned().chain(rest).collect())
}

impl OpDef for GatherSum {
    fn mnemonic(&self) -> &'static str {
        "gather_sum"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("rows", &self.rows).word("slots", &self.slots)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "gather_sum";
        let (w, index) = two(what, args)?;
        float(what, w)?;
        need_dtype(what, "its index", index, DType::Index)?;
        need_axis(what, w, &self.rows)?;
        need_axis(what, index, &self.slots)?;
        ordered(self, args)?;
        let [_, channel] = w.axes.as_slice() else {
            return Err(TypeError::new(
                "E0401",
                format!("`{what}` takes a weight with one axis beside `{}`, not {w}", self.rows),
            ));
        };
        let mut axes: Vec<Axis> =
            index.axes.iter().filter(|axis| axis.name != self.slots).cloned().collect();
        axes.push(channel.clone());
        distinct(what, &axes)?;
        Ok(vec![Type::new(w.dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let ty = args.get(index)?;
        match index {
            0 => with_first(ty, std::slice::from_ref(&self.rows)),
            _ => with_last(ty, &[&self.slots]),
        }
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let [n_rows, n_d] = lengths(call.arg(0)?)?;
        let (n, [n_slots]) = split_last(call.arg(1)?)?;
        let (w, index) = (elements(call.arg(0)?), elements(call.arg(1)?));
        let mut y = vec![0.0; n * n_d];
        for (slot, index) in index.into_iter().enumerate() {
            if let Some(row) = row_of("gather_sum", index, n_rows, true)? {
                add_row(&mut y, slot / n_slots, &w, row, n_d);
            }
        }
        Ok(vec![array(&call.result_shape(0)?, y)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        if !vjp.wants(0) {
            return Ok(vec![None, None]);
        }
        let (index, dy, w) = (vjp.arg(1)?, vjp.dy()?, vjp.arg_type(0)?);
        let rows = need_axis("gather_sum", &w, &self.rows)?.clone();
        let dw = vjp.push(GatherSumGrad { rows, slots: self.slots.clone() }, &[index, dy])?;
        Ok(vec![Some(vjp.conform(dw, &w)?), None])
    }

    /// Reads as many rows as there are slots, not the whole weight.
    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let y = results.first().map(|y| count(y)).unwrap_or_default();
        let gathered = super::product(&[&y, &size_of(args.get(1), &self.slots)]);
        gather_cost(gathered.clone(), args.get(1), gathered, y)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (w, index) = (call.arg(0), call.arg(1));
        quote!(ops::gather_sum(#w, #index)?)
    }
}

/// `flops`, one reading of the indices and of `gathered` elements, one writing of the result.
pub(super) fn gather_cost(
    flops: Size,
    index: Option<&&Type>,
    gathered: Size,
    written: Size,
) -> Cost {
    let index = index.map(|ty| count(ty)).unwrap_or_default();
    let elements_read = gathered.checked_add(&index).unwrap_or(gathered);
    Cost { flops, elements_read, elements_written: written }
}

impl ParseOp for GatherSum {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "gather_sum" {
            return Ok(None);
        }
        Ok(Some(GatherSum { rows: attrs.take_word("rows")?, slots: attrs.take_word("slots")? }))
    }
}

impl OpDef for GatherSumGrad {
    fn mnemonic(&self) -> &'static str {
        "gather_sum_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().axes("rows", std::slice::from_ref(&self.rows)).word("slots", &self.slots)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "gather_sum_grad";
        let (index, dy) = two(what, args)?;
        float(what, dy)?;
        need_dtype(what, "its index", index, DType::Index)?;
        need_axis(what, index, &self.slots)?;
        ordered(self, args)?;
        let mut front = index.axes.clone();
        front.retain(|axis| axis.name != self.slots);
        let rest = rest_of(what, dy, &front)?;
        let [channel] = rest.as_slice() else {
            return Err(TypeError::new(
                "E0401",
                format!(
                    "`{what}` takes a cotangent with one axis beside those of {index}, not {dy}"
                ),
            ));
        };
        let axes = vec![self.rows.clone(), channel.clone()];
        distinct(what, &axes)?;
        Ok(vec![Type::new(dy.dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let first = args.first()?;
        match index {
            0 => with_last(first, &[&self.slots]),
            _ => {
                let mut front = first.names();
                front.retain(|name| *name != self.slots);
                with_first(args.get(index)?, &front)
            }
        }
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (_, [n_slots]) = split_last(call.arg(0)?)?;
        let (_, [n_d]) = split_last(call.arg(1)?)?;
        let n_rows = call.size(&self.rows.size)?;
        let (index, dy) = (elements(call.arg(0)?), elements(call.arg(1)?));
        let mut dw = vec![0.0; n_rows * n_d];
        for (slot, index) in index.into_iter().enumerate() {
            if let Some(row) = row_of("gather_sum_grad", index, n_rows, true)? {
                add_row(&mut dw, row, &dy, slot / n_slots, n_d);
            }
        }
        Ok(vec![array(&[n_rows, n_d], dw)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("gather_sum_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let dy = args.get(1).map(|dy| count(dy)).unwrap_or_default();
        let added = super::product(&[&dy, &size_of(args.first(), &self.slots)]);
        let written = results.first().map(|dw| count(dw)).unwrap_or_default();
        gather_cost(added, args.first(), dy, written)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (index, dy, rows) = (call.arg(0), call.arg(1), call.size(&self.rows.size));
        quote!(ops::gather_sum_grad(#index, #dy, #rows)?)
    }
}

impl ParseOp for GatherSumGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "gather_sum_grad" {
            return Ok(None);
        }
        Ok(Some(GatherSumGrad { rows: attrs.take_axis("rows")?, slots: attrs.take_word("slots")? }))
    }
}

impl OpDef for Lookup {
    fn mnemonic(&self) -> &'static str {
        "lookup"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("rows", &self.rows)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "lookup";
        let (table, ids) = two(what, args)?;
        need_dtype(what, "its ids", ids, DType::Index)?;
        need_axis(what, table, &self.rows)?;
        ordered(self, args)?;
        let rest = table.axes.iter().filter(|axis| axis.name != self.rows);
        let axes: Vec<Axis> = ids.axes.iter().chain(rest).cloned().collect();
        distinct(what, &axes)?;
        Ok(vec![Type::new(table.dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        match index {
            0 => with_first(args.first()?, std::slice::from_ref(&self.rows)),
            _ => None,
        }
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let table = call.arg(0)?;
        let n_rows = table.shape().first().copied().unwrap_or_default();
        let n_rest: usize = table.shape().iter().skip(1).product();
        let (table, ids) = (elements(table), elements(call.arg(1)?));
        let mut y = Vec::with_capacity(ids.len() * n_rest);
        for id in ids {
            if let Some(row) = row_of("lookup", id, n_rows, false)? {
                y.extend_from_slice(&table[row * n_rest..(row + 1) * n_rest]);
            }
        }
        Ok(vec![array(&call.result_shape(0)?, y)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let table = vjp.arg_type(0)?;
        if !vjp.wants(0) || !table.is_float() {
            return Ok(vec![None, None]);
        }
        let (ids, dy) = (vjp.arg(1)?, vjp.dy()?);
        let rows = need_axis("lookup", &table, &self.rows)?.clone();
        let d = vjp.push(LookupGrad { rows }, &[ids, dy])?;
        Ok(vec![Some(vjp.conform(d, &table)?), None])
    }

    /// Reads as many rows as there are ids, not the whole table.
    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let y = results.first().map(|y| count(y)).unwrap_or_default();
        gather_cost(Size::default(), args.get(1), y.clone(), y)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (table, ids) = (call.arg(0), call.arg(1));
        quote!(ops::lookup(#table, #ids)?)
    }
}

impl ParseOp for Lookup {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "lookup" {
            return Ok(None);
        }
        Ok(Some(Lookup { rows: attrs.take_word("rows")? }))
    }
}

impl OpDef for LookupGrad {
    fn mnemonic(&self) -> &'static str {
        "lookup_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().axes("rows", std::slice::from_ref(&self.rows))
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "lookup_grad";
        let (ids, dy) = two(what, args)?;
        float(what, dy)?;
        need_dtype(what, "its ids", ids, DType::Index)?;
        ordered(self, args)?;
        let rest = rest_of(what, dy, &ids.axes)?;
        let axes = [vec![self.rows.clone()], rest].concat();
        distinct(what, &axes)?;
        Ok(vec![Type::new(dy.dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        match index {
            1 => with_first(args.get(1)?, &args.first()?.names()),
            _ => None,
        }
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let shape = call.result_shape(0)?;
        let n_rows = call.size(&self.rows.size)?;
        let n_rest: usize = shape.iter().skip(1).product();
        let (ids, dy) = (elements(call.arg(0)?), elements(call.arg(1)?));
        let mut table = vec![0.0; n_rows * n_rest];
        for (position, id) in ids.into_iter().enumerate() {
            if let Some(row) = row_of("lookup_grad", id, n_rows, false)? {
                add_row(&mut table, row, &dy, position, n_rest);
            }
        }
        Ok(vec![array(&shape, table)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("lookup_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let dy = args.get(1).map(|dy| count(dy)).unwrap_or_default();
        Cost::streaming(dy, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (ids, dy, rows) = (call.arg(0), call.arg(1), call.size(&self.rows.size));
        quote!(ops::lookup_grad(#ids, #dy, #rows)?)
    }
}

impl ParseOp for LookupGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "lookup_grad" {
            return Ok(None);
        }
        Ok(Some(LookupGrad { rows: attrs.take_axis("rows")? }))
    }
}
