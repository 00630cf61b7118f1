//! Ops that move elements or rename axes, and compute nothing. They take values of every
//! precision class.

use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, distinct, need_axis,
    number, numbers, one, same_size, sized,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::interp::align;
use crate::ir::{Type, ValueId, promote};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use ndarray::{ArrayD, Axis as Dim, Slice as Range, concatenate};
use proc_macro2::TokenStream;
use quote::quote;

/// The value repeated along the axes that it lacks. The result has exactly `axes`, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Broadcast {
    /// All axes of the result.
    pub axes: Vec<Axis>,
}

/// The same axes in another storage order.
#[derive(Clone, Debug, PartialEq)]
pub struct Permute {
    /// Axis names in the new order.
    pub order: Vec<String>,
}

/// One axis under another name.
#[derive(Clone, Debug, PartialEq)]
pub struct Rename {
    /// Its name in the argument.
    pub from: String,
    /// Its name in the result.
    pub to: String,
}

/// One axis as several, the last running fastest: `y[.., p, q, ..] = x[.., p*size(q) + q, ..]`
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// The axis that is taken apart.
    pub axis: String,
    /// What it becomes, in its place. The product of the sizes is its size.
    pub into: Vec<Axis>,
}

/// Several axes as one, the last running fastest: the inverse of [`Split`].
#[derive(Clone, Debug, PartialEq)]
pub struct Merge {
    /// Axes that are next to each other in storage order, in this order.
    pub axes: Vec<String>,
    /// The name of the one axis.
    pub into: String,
}

/// A range of one axis: `y[i] = x[start + i]` for `i < end - start`
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// The axis in the argument.
    pub axis: String,
    /// First index that is taken.
    pub start: Size,
    /// First index after that is not.
    pub end: Size,
    /// The axis in the result.
    pub to: String,
}

/// Zeros before and after: `y[before + i] = x[i]`, else 0
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    /// The axis in the argument.
    pub axis: String,
    /// Number of zeros in front.
    pub before: Size,
    /// Number of zeros at the end.
    pub after: Size,
    /// The axis in the result.
    pub to: String,
}

/// Any number of values one after the other along an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Concat {
    /// The axis in the arguments.
    pub axis: String,
    /// The axis in the result.
    pub to: String,
}

/// A new axis, zero except at one index: `y[.., i, ..] = x[.., ..]` where `i = index`, else 0
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The new axis.
    pub axis: Axis,
    /// Where on it the argument stands.
    pub index: Size,
    /// Where the new axis stands in storage order.
    pub position: usize,
}

/// One index of an axis: `y[.., ..] = x[.., index, ..]`
#[derive(Clone, Debug, PartialEq)]
pub struct Pick {
    /// The axis; the result lacks it.
    pub axis: String,
    /// Which index.
    pub index: Size,
}

/// The argument's axes with the one of that name replaced.
fn replaced(what: &str, x: &Type, name: &str, by: Vec<Axis>) -> Result<Vec<Type>, TypeError> {
    let mut axes: Vec<Axis> = Vec::new();
    for axis in &x.axes {
        if axis.name == name {
            axes.extend(by.iter().cloned());
        } else {
            axes.push(axis.clone());
        }
    }
    distinct(what, &axes)?;
    Ok(vec![Type::new(x.dtype, axes)])
}

/// Checks `low <= high` where the difference is a number; what depends on a size name is checked
/// when it runs.
fn not_above(
    what: &str,
    low_name: &str,
    low: &Size,
    high_name: &str,
    high: &Size,
) -> Result<(), TypeError> {
    let difference = sized(what, high.checked_sub(low))?;
    if difference.as_constant().is_some_and(|n| n < 0) {
        return Err(TypeError::new(
            "E0402",
            format!("`{what}`: {low_name} {low} lies after {high_name} {high}"),
        ));
    }
    Ok(())
}

/// The same, when it runs.
fn within(what: &str, low: usize, high: usize) -> Result<(), EvalError> {
    if low <= high {
        return Ok(());
    }
    Err(EvalError(format!("`{what}`: index {low} lies after {high}")))
}

fn position(ty: &Type, name: &str) -> Result<usize, EvalError> {
    ty.position(name).ok_or_else(|| EvalError(format!("{ty} has no axis `{name}`")))
}

impl OpDef for Broadcast {
    fn mnemonic(&self) -> &'static str {
        "broadcast"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().axes("axes", &self.axes)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("broadcast", args)?;
        distinct("broadcast", &self.axes)?;
        let result = Type::new(x.dtype, self.axes.clone());
        for axis in &x.axes {
            let Some(wide) = result.axis(&axis.name) else {
                return Err(TypeError::new(
                    "E0401",
                    format!("`broadcast` to {result} leaves out axis `{}` of {x}", axis.name),
                ));
            };
            same_size("broadcast", wide, axis)?;
        }
        Ok(vec![result])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let ty = call.result_types.first().ok_or_else(|| EvalError("no result".into()))?;
        Ok(vec![align(call.arg(0)?, call.arg_type(0)?, ty, &call.result_shape(0)?)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        Ok(vec![Some(vjp.reduce_to_arg(0, dy)?)])
    }

    fn cost(&self, _: &[&Type], _: &[&Type]) -> Cost {
        Cost::default()
    }

    /// The first list has, for each result axis, its position in the argument, or -1.
    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let x = call.arg(0);
        let entries = numbers(self.axes.iter().map(|axis| call.dim(0, &axis.name)));
        let sizes = self.axes.iter().map(|axis| call.size(&axis.size));
        quote!(ops::broadcast(#x, &[#(#entries),*], &[#(#sizes),*])?)
    }
}

impl ParseOp for Broadcast {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "broadcast" {
            return Ok(None);
        }
        Ok(Some(Broadcast { axes: attrs.take_axes("axes")? }))
    }
}

impl OpDef for Permute {
    fn mnemonic(&self) -> &'static str {
        "permute"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().words("order", &self.order)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("permute", args)?;
        let mut axes = Vec::new();
        for name in &self.order {
            axes.push(need_axis("permute", x, name)?.clone());
        }
        distinct("permute", &axes)?;
        if axes.len() != x.axes.len() {
            return Err(TypeError::new(
                "E0401",
                format!("`permute` to [{}] leaves out axes of {x}", self.order.join(", ")),
            ));
        }
        Ok(vec![Type::new(x.dtype, axes)])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let ty = call.arg_type(0)?;
        let order =
            self.order.iter().map(|name| position(ty, name)).collect::<Result<Vec<_>, _>>()?;
        Ok(vec![call.arg(0)?.view().permuted_axes(order).as_standard_layout().into_owned()])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (dy, order) = (vjp.dy()?, vjp.arg_type(0)?.names());
        Ok(vec![Some(vjp.push(Permute { order }, &[dy])?)])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(Size::default(), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let x = call.arg(0);
        let dims = numbers(self.order.iter().map(|name| call.dim(0, name)));
        quote!(ops::permute(#x, &[#(#dims),*])?)
    }
}

impl ParseOp for Permute {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "permute" {
            return Ok(None);
        }
        Ok(Some(Permute { order: attrs.take_words("order")? }))
    }
}

impl OpDef for Rename {
    fn mnemonic(&self) -> &'static str {
        "rename"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("from", &self.from).word("to", &self.to)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("rename", args)?;
        let axis = need_axis("rename", x, &self.from)?;
        let renamed = Axis { name: self.to.clone(), size: axis.size.clone() };
        replaced("rename", x, &self.from, vec![renamed])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![call.arg(0)?.clone()])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let back = Rename { from: self.to.clone(), to: self.from.clone() };
        Ok(vec![Some(vjp.push(back, &[dy])?)])
    }

    fn cost(&self, _: &[&Type], _: &[&Type]) -> Cost {
        Cost::default()
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let x = call.arg(0);
        quote!(Tensor::shallow_clone(#x))
    }
}

impl ParseOp for Rename {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "rename" {
            return Ok(None);
        }
        Ok(Some(Rename { from: attrs.take_word("from")?, to: attrs.take_word("to")? }))
    }
}

impl OpDef for Split {
    fn mnemonic(&self) -> &'static str {
        "split"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("axis", &self.axis).axes("into", &self.into)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("split", args)?;
        let axis = need_axis("split", x, &self.axis)?;
        if self.into.is_empty() {
            return Err(TypeError::new("E0405", "`split` names no axis to split into"));
        }
        let total = Type::new(x.dtype, self.into.clone()).count();
        let total = sized("split", total)?;
        if total != axis.size {
            let parts: Vec<String> =
                self.into.iter().map(|part| format!("{}={}", part.name, part.size)).collect();
            return Err(TypeError::new(
                "E0402",
                format!(
                    "`split`: axis `{}` has size {}, its parts {} have the product {total}",
                    axis.name,
                    axis.size,
                    parts.join(", ")
                ),
            ));
        }
        replaced("split", x, &self.axis, self.into.clone())
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let x = call.arg(0)?.as_standard_layout();
        Ok(vec![x.to_shape(call.result_shape(0)?)?.into_owned()])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let axes = self.into.iter().map(|part| part.name.clone()).collect();
        Ok(vec![Some(vjp.push(Merge { axes, into: self.axis.clone() }, &[dy])?)])
    }

    fn cost(&self, _: &[&Type], _: &[&Type]) -> Cost {
        Cost::default()
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, dim) = (call.arg(0), number(call.dim(0, &self.axis)));
        let sizes = self.into.iter().map(|part| call.size(&part.size));
        quote!(ops::split(#x, #dim, &[#(#sizes),*])?)
    }
}

impl ParseOp for Split {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "split" {
            return Ok(None);
        }
        Ok(Some(Split { axis: attrs.take_word("axis")?, into: attrs.take_axes("into")? }))
    }
}

impl Merge {
    /// The axes that are merged, with their sizes.
    fn parts(&self, x: &Type) -> Result<Vec<Axis>, TypeError> {
        self.axes.iter().map(|name| need_axis("merge", x, name).cloned()).collect()
    }
}

impl OpDef for Merge {
    fn mnemonic(&self) -> &'static str {
        "merge"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().words("axes", &self.axes).word("into", &self.into)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("merge", args)?;
        let parts = self.parts(x)?;
        let Some(first) = parts.first() else {
            return Err(TypeError::new("E0405", "`merge` names no axes"));
        };
        distinct("merge", &parts)?;
        super::ordered(self, args)?;
        let size = sized("merge", Type::new(x.dtype, parts.clone()).count())?;
        let merged = Axis { name: self.into.clone(), size };
        let mut axes = Vec::new();
        for axis in &x.axes {
            if axis.name == first.name {
                axes.push(merged.clone());
            } else if !self.axes.contains(&axis.name) {
                axes.push(axis.clone());
            }
        }
        distinct("merge", &axes)?;
        Ok(vec![Type::new(x.dtype, axes)])
    }

    /// The merged axes next to each other, where the first of them stands.
    fn arg_order(&self, _: usize, args: &[&Type]) -> Option<Vec<String>> {
        let (ty, first) = (args.first()?, self.axes.first()?);
        let mut order = Vec::new();
        for name in ty.names() {
            if name == *first {
                order.extend(self.axes.iter().cloned());
            } else if !self.axes.contains(&name) {
                order.push(name);
            }
        }
        (order.len() == ty.axes.len()).then_some(order)
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let x = call.arg(0)?.as_standard_layout();
        Ok(vec![x.to_shape(call.result_shape(0)?)?.into_owned()])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let into = self.parts(&vjp.arg_type(0)?)?;
        Ok(vec![Some(vjp.push(Split { axis: self.into.clone(), into }, &[dy])?)])
    }

    fn cost(&self, _: &[&Type], _: &[&Type]) -> Cost {
        Cost::default()
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let x = call.arg(0);
        let first = number(self.axes.first().map_or(0, |name| call.dim(0, name)));
        let n_dims = number(self.axes.len() as i64);
        quote!(ops::merge(#x, #first, #n_dims)?)
    }
}

impl ParseOp for Merge {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "merge" {
            return Ok(None);
        }
        Ok(Some(Merge { axes: attrs.take_words("axes")?, into: attrs.take_word("into")? }))
    }
}

impl OpDef for Slice {
    fn mnemonic(&self) -> &'static str {
        "slice"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("axis", &self.axis)
            .size("start", &self.start)
            .size("end", &self.end)
            .word("to", &self.to)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("slice", args)?;
        let axis = need_axis("slice", x, &self.axis)?;
        not_above("slice", "index", &Size::constant(0), "the start", &self.start)?;
        not_above("slice", "the start", &self.start, "the end", &self.end)?;
        not_above("slice", "the end", &self.end, "the size", &axis.size)?;
        let size = sized("slice", self.end.checked_sub(&self.start))?;
        replaced("slice", x, &self.axis, vec![Axis { name: self.to.clone(), size }])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (x, dim) = (call.arg(0)?, position(call.arg_type(0)?, &self.axis)?);
        let (start, end) = (call.size(&self.start)?, call.size(&self.end)?);
        within("slice", start, end)?;
        within("slice", end, x.len_of(Dim(dim)))?;
        Ok(vec![x.slice_axis(Dim(dim), Range::from(start..end)).to_owned()])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (dy, x) = (vjp.dy()?, vjp.arg_type(0)?);
        let whole = &need_axis("slice", &x, &self.axis)?.size;
        let pad = Pad {
            axis: self.to.clone(),
            before: self.start.clone(),
            after: sized("slice", whole.checked_sub(&self.end))?,
            to: self.axis.clone(),
        };
        Ok(vec![Some(vjp.push(pad, &[dy])?)])
    }

    fn cost(&self, _: &[&Type], _: &[&Type]) -> Cost {
        Cost::default()
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, dim) = (call.arg(0), number(call.dim(0, &self.axis)));
        let (start, end) = (call.size(&self.start), call.size(&self.end));
        quote!(ops::slice(#x, #dim, #start, #end)?)
    }
}

impl ParseOp for Slice {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "slice" {
            return Ok(None);
        }
        Ok(Some(Slice {
            axis: attrs.take_word("axis")?,
            start: attrs.take_size("start")?,
            end: attrs.take_size("end")?,
            to: attrs.take_word("to")?,
        }))
    }
}

impl OpDef for Pad {
    fn mnemonic(&self) -> &'static str {
        "pad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("axis", &self.axis)
            .size("before", &self.before)
            .size("after", &self.after)
            .word("to", &self.to)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("pad", args)?;
        let axis = need_axis("pad", x, &self.axis)?;
        not_above("pad", "zero", &Size::constant(0), "the number in front", &self.before)?;
        not_above("pad", "zero", &Size::constant(0), "the number at the end", &self.after)?;
        let size = axis.size.checked_add(&self.before).and_then(|n| n.checked_add(&self.after));
        let size = sized("pad", size)?;
        replaced("pad", x, &self.axis, vec![Axis { name: self.to.clone(), size }])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (x, dim) = (call.arg(0)?, position(call.arg_type(0)?, &self.axis)?);
        let (before, after) = (call.size(&self.before)?, call.size(&self.after)?);
        let length = x.len_of(Dim(dim));
        let mut shape = x.shape().to_vec();
        if let Some(padded) = shape.get_mut(dim) {
            *padded = before + length + after;
        }
        let mut y = ArrayD::zeros(shape);
        y.slice_axis_mut(Dim(dim), Range::from(before..before + length)).assign(x);
        Ok(vec![y])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (dy, x) = (vjp.dy()?, vjp.arg_type(0)?);
        let length = &need_axis("pad", &x, &self.axis)?.size;
        let slice = Slice {
            axis: self.to.clone(),
            start: self.before.clone(),
            end: sized("pad", self.before.checked_add(length))?,
            to: self.axis.clone(),
        };
        Ok(vec![Some(vjp.push(slice, &[dy])?)])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(Size::default(), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, dim) = (call.arg(0), number(call.dim(0, &self.axis)));
        let (before, after) = (call.size(&self.before), call.size(&self.after));
        quote!(ops::pad(#x, #dim, #before, #after)?)
    }
}

impl ParseOp for Pad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "pad" {
            return Ok(None);
        }
        Ok(Some(Pad {
            axis: attrs.take_word("axis")?,
            before: attrs.take_size("before")?,
            after: attrs.take_size("after")?,
            to: attrs.take_word("to")?,
        }))
    }
}

impl OpDef for Concat {
    fn mnemonic(&self) -> &'static str {
        "concat"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("axis", &self.axis).word("to", &self.to)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let Some(first) = args.first() else {
            return Err(TypeError::new("E0405", "`concat` takes at least one tensor argument"));
        };
        let mut size = Size::default();
        let mut dtype = first.dtype;
        for part in args {
            let axis = need_axis("concat", part, &self.axis)?;
            size = sized("concat", size.checked_add(&axis.size))?;
            for other in &first.axes {
                let here = need_axis("concat", part, &other.name)?;
                if other.name != self.axis {
                    same_size("concat", other, here)?;
                }
            }
            if let Some(extra) = part.axes.iter().find(|axis| !first.has(&axis.name)) {
                need_axis("concat", first, &extra.name)?;
            }
            if dtype != part.dtype {
                dtype = promote(dtype, part.dtype).ok_or_else(|| {
                    TypeError::new(
                        "E0404",
                        format!("`concat` joins {first} and {part}, which are of different kinds"),
                    )
                })?;
            }
        }
        super::ordered(self, args)?;
        let joined = vec![Axis { name: self.to.clone(), size }];
        replaced("concat", &first.with_dtype(dtype), &self.axis, joined)
    }

    /// All parts lie like the first.
    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let (first, ty) = (args.first()?, args.get(index)?);
        let order = first.names();
        (order.len() == ty.axes.len() && order.iter().all(|name| ty.has(name))).then_some(order)
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let dim = position(call.arg_type(0)?, &self.axis)?;
        let parts: Vec<_> = call.args.iter().map(|part| part.view()).collect();
        Ok(vec![concatenate(Dim(dim), &parts)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let mut start = Size::default();
        let mut cotangents = Vec::new();
        for index in 0..vjp.n_args() {
            let ty = vjp.arg_type(index)?;
            let length = &need_axis("concat", &ty, &self.axis)?.size;
            let end = sized("concat", start.checked_add(length))?;
            cotangents.push(if vjp.wants(index) {
                let slice =
                    Slice { axis: self.to.clone(), start, end: end.clone(), to: self.axis.clone() };
                let part = vjp.push(slice, &[dy])?;
                Some(vjp.conform(part, &ty)?)
            } else {
                None
            });
            start = end;
        }
        Ok(cotangents)
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(Size::default(), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let dim = number(call.dim(0, &self.axis));
        let result = call.result_types.first().map(|ty| ty.dtype);
        let parts = call.args.iter().zip(call.arg_types).map(|(part, ty)| {
            let widened = result == Some(DType::F32) && ty.dtype == DType::Act;
            if widened { quote!(&ops::to_f32(#part, like)?) } else { part.clone() }
        });
        quote!(ops::concat(&[#(#parts),*], #dim)?)
    }
}

impl ParseOp for Concat {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "concat" {
            return Ok(None);
        }
        Ok(Some(Concat { axis: attrs.take_word("axis")?, to: attrs.take_word("to")? }))
    }
}

/// Checks that an index lies on an axis, where both are known well enough.
fn on_axis(what: &str, index: &Size, axis: &Axis) -> Result<(), TypeError> {
    not_above(what, "zero", &Size::constant(0), "index", index)?;
    let after = sized(what, index.checked_add(&Size::constant(1)))?;
    if sized(what, axis.size.checked_sub(&after))?.as_constant().is_some_and(|n| n < 0) {
        return Err(TypeError::new(
            "E0402",
            format!("`{what}`: index {index} is not on axis `{}` of size {}", axis.name, axis.size),
        )
        .with_help(format!("positions of `{0}` run from 0 to {1} - 1", axis.name, axis.size)));
    }
    Ok(())
}

impl OpDef for Place {
    fn mnemonic(&self) -> &'static str {
        "place"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .axes("axis", std::slice::from_ref(&self.axis))
            .size("index", &self.index)
            .int("position", self.position as i64)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("place", args)?;
        on_axis("place", &self.index, &self.axis)?;
        let mut axes = x.axes.clone();
        if self.position > axes.len() {
            return Err(TypeError::new(
                "E0405",
                format!("`place` puts an axis at position {}, but the value is {x}", self.position),
            ));
        }
        axes.insert(self.position, self.axis.clone());
        distinct("place", &axes)?;
        Ok(vec![Type::new(x.dtype, axes)])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let index = call.size(&self.index)?;
        let mut y = ArrayD::zeros(call.result_shape(0)?);
        within("place", index + 1, y.len_of(Dim(self.position)))?;
        y.index_axis_mut(Dim(self.position), index).assign(call.arg(0)?);
        Ok(vec![y])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let pick = Pick { axis: self.axis.name.clone(), index: self.index.clone() };
        Ok(vec![Some(vjp.push(pick, &[dy])?)])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(Size::default(), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, position) = (call.arg(0), number(self.position as i64));
        let (index, size) = (call.size(&self.index), call.size(&self.axis.size));
        quote!(ops::place(#x, #position, #index, #size)?)
    }
}

impl ParseOp for Place {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "place" {
            return Ok(None);
        }
        Ok(Some(Place {
            axis: attrs.take_axis("axis")?,
            index: attrs.take_size("index")?,
            position: attrs.take_index("position")? as usize,
        }))
    }
}

impl OpDef for Pick {
    fn mnemonic(&self) -> &'static str {
        "pick"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("axis", &self.axis).size("index", &self.index)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("pick", args)?;
        on_axis("pick", &self.index, need_axis("pick", x, &self.axis)?)?;
        replaced("pick", x, &self.axis, vec![])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (x, dim) = (call.arg(0)?, position(call.arg_type(0)?, &self.axis)?);
        let index = call.size(&self.index)?;
        within("pick", index + 1, x.len_of(Dim(dim)))?;
        Ok(vec![x.index_axis(Dim(dim), index).to_owned()])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (dy, x) = (vjp.dy()?, vjp.arg_type(0)?);
        let axis = need_axis("pick", &x, &self.axis)?.clone();
        let position = x.position(&self.axis).unwrap_or_default();
        let place = Place { axis, index: self.index.clone(), position };
        Ok(vec![Some(vjp.push(place, &[dy])?)])
    }

    fn cost(&self, _: &[&Type], _: &[&Type]) -> Cost {
        Cost::default()
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, dim) = (call.arg(0), number(call.dim(0, &self.axis)));
        let index = call.size(&self.index);
        quote!(ops::pick(#x, #dim, #index)?)
    }
}

impl ParseOp for Pick {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "pick" {
            return Ok(None);
        }
        Ok(Some(Pick { axis: attrs.take_word("axis")?, index: attrs.take_size("index")? }))
    }
}
