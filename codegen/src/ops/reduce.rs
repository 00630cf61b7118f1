//! Reductions over named axes. The axes that remain keep their order.

use super::{
    Affine, Array, Attrs, Binary, BinaryFn, Broadcast, Cost, EvalCall, EvalError, OpDef, ParseOp,
    SizeValue, TypeError, Unary, UnaryFn, count, float, need_axis, numbers, one, sized,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use ndarray::Axis as Dim;
use proc_macro2::{Literal, TokenStream};
use quote::quote;

/// `y[rest] = sum over the named axes of x`
#[derive(Clone, Debug, PartialEq)]
pub struct Sum {
    /// Axes that are summed.
    pub over: Vec<String>,
}

/// `y[rest] = (sum over the named axes of x) / (number of elements summed)`
#[derive(Clone, Debug, PartialEq)]
pub struct Mean {
    /// Axes that are averaged.
    pub over: Vec<String>,
}

/// `y[rest] = ln(sum over the named axes of e^x)` in f32, without overflow: with m the largest x
/// along them, `m + ln(sum of e^(x - m))`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSumExp {
    /// Axes that are summed.
    pub over: Vec<String>,
}

/// The type without the named axes, each of which must be there once.
fn infer_reduction(what: &str, over: &[String], args: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let x = one(what, args)?;
    float(what, x)?;
    if over.is_empty() {
        return Err(TypeError::new("E0405", format!("`{what}` names no axis to reduce over")));
    }
    for (position, name) in over.iter().enumerate() {
        need_axis(what, x, name)?;
        if over.iter().take(position).any(|earlier| earlier == name) {
            return Err(TypeError::new("E0406", format!("`{what}` names axis `{name}` twice"))
                .with_help("remove one of them"));
        }
    }
    let axes = x.axes.iter().filter(|axis| !over.contains(&axis.name)).cloned().collect();
    Ok(vec![Type::new(x.dtype, axes)])
}

fn eval_sum(over: &[String], call: &EvalCall<'_>) -> Result<Array, EvalError> {
    let (x, ty) = (call.arg(0)?, call.arg_type(0)?);
    let mut sum = x.clone();
    for position in positions(over, ty).into_iter().rev() {
        sum = sum.sum_axis(Dim(position));
    }
    Ok(sum)
}

/// Positions of axes, in storage order.
fn positions(over: &[String], ty: &Type) -> Vec<usize> {
    let named = ty.axes.iter().enumerate().filter(|(_, axis)| over.contains(&axis.name));
    named.map(|(position, _)| position).collect()
}

fn emitted_dims(over: &[String], call: &EmitCall<'_>) -> Vec<Literal> {
    numbers(over.iter().map(|name| call.dim(0, name)))
}

fn reduction_cost(args: &[&Type], results: &[&Type]) -> Cost {
    Cost::streaming(args.first().map(|x| count(x)).unwrap_or_default(), args, results)
}

impl OpDef for Sum {
    fn mnemonic(&self) -> &'static str {
        "sum"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().words("over", &self.over)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        infer_reduction("sum", &self.over, args)
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![eval_sum(&self.over, call)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (dy, x) = (vjp.dy()?, vjp.arg_type(0)?);
        Ok(vec![Some(vjp.push(Broadcast { axes: x.axes }, &[dy])?)])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        reduction_cost(args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, dims) = (call.arg(0), emitted_dims(&self.over, call));
        quote!(ops::sum(#x, &[#(#dims),*])?)
    }
}

impl ParseOp for Sum {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "sum" {
            return Ok(None);
        }
        Ok(Some(Sum { over: attrs.take_words("over")? }))
    }
}

impl OpDef for Mean {
    fn mnemonic(&self) -> &'static str {
        "mean"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().words("over", &self.over)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        infer_reduction("mean", &self.over, args)
    }

    #[allow(clippy::cast_precision_loss)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let shape = call.arg(0)?.shape();
        let n: usize = positions(&self.over, call.arg_type(0)?)
            .into_iter()
            .filter_map(|p| shape.get(p))
            .product();
        Ok(vec![eval_sum(&self.over, call)? / n as f64])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (dy, x) = (vjp.dy()?, vjp.arg_type(0)?);
        let sizes: Vec<&Size> =
            x.axes.iter().filter(|a| self.over.contains(&a.name)).map(|a| &a.size).collect();
        let n = sizes.iter().try_fold(Size::constant(1), |n, size| n.checked_mul(size));
        let share = mean_share(vjp, dy, &sized("mean", n)?)?;
        Ok(vec![Some(vjp.conform(share, &x)?)])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        reduction_cost(args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, dims) = (call.arg(0), emitted_dims(&self.over, call));
        quote!(ops::mean(#x, &[#(#dims),*])?)
    }
}

/// `dy / n`, by a factor where `n` is known.
#[allow(clippy::cast_precision_loss)]
fn mean_share(vjp: &mut Vjp<'_>, dy: ValueId, n: &Size) -> Result<ValueId, TypeError> {
    if let Some(n) = n.as_constant() {
        return vjp.push(Affine { mul: 1.0 / n as f64, add: 0.0 }, &[dy]);
    }
    let n = vjp.push(SizeValue { size: n.clone() }, &[])?;
    vjp.push(Binary { function: BinaryFn::Div }, &[dy, n])
}

impl ParseOp for Mean {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "mean" {
            return Ok(None);
        }
        Ok(Some(Mean { over: attrs.take_words("over")? }))
    }
}

impl OpDef for LogSumExp {
    fn mnemonic(&self) -> &'static str {
        "logsumexp"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().words("over", &self.over)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let reduced = infer_reduction("logsumexp", &self.over, args)?;
        Ok(reduced.into_iter().map(|ty| ty.with_dtype(DType::F32)).collect())
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (x, ty) = (call.arg(0)?, call.arg_type(0)?);
        let dims = || positions(&self.over, ty).into_iter().rev();
        let mut largest = x.clone();
        for dim in dims() {
            // `f64::max` would leave out what is not a number.
            let max = |m: &f64, x: &f64| if *x > *m || x.is_nan() { *x } else { *m };
            largest = largest.fold_axis(Dim(dim), f64::NEG_INFINITY, max);
        }
        // All of them -inf: e^(x - m) would not be a number.
        let shift = largest.mapv(|m| if m.is_infinite() { 0.0 } else { m });
        let mut along = shift.clone();
        for position in positions(&self.over, ty) {
            along = along.insert_axis(Dim(position));
        }
        let mut sum = (x - &along).mapv(f64::exp);
        for dim in dims() {
            sum = sum.sum_axis(Dim(dim));
        }
        Ok(vec![sum.mapv(f64::ln) + shift])
    }

    /// `dy e^(x - y)`: the softmax, scaled.
    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (dy, x, y) = (vjp.dy()?, vjp.arg(0)?, vjp.result(0)?);
        let below = vjp.push(Binary { function: BinaryFn::Sub }, &[x, y])?;
        let share = vjp.push(Unary { function: UnaryFn::Exp }, &[below])?;
        let dx = vjp.push(Binary { function: BinaryFn::Mul }, &[share, dy])?;
        Ok(vec![Some(vjp.reduce_to_arg(0, dx)?)])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let x = args.first().map(|x| count(x)).unwrap_or_default();
        Cost::streaming(super::product(&[&x, &Size::constant(4)]), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, dims) = (call.arg(0), emitted_dims(&self.over, call));
        let narrow = call.arg_types.first().is_some_and(|ty| ty.dtype == DType::Act);
        let x = if narrow { quote!(&ops::to_f32(#x, like)?) } else { x };
        quote!(ops::logsumexp(#x, &[#(#dims),*])?)
    }
}

impl ParseOp for LogSumExp {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "logsumexp" {
            return Ok(None);
        }
        Ok(Some(LogSumExp { over: attrs.take_words("over")? }))
    }
}
