//! Ops along time: short causal convolutions, rotary positions, causal masks, positions.

use super::pointwise::no_second_derivative;
use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, arity, array, count,
    distinct, elements, emit_joined, exactly, float, join_floats, lengths, need_axis, number, one,
    one_batch, ordered, product, size_of, split_last, two, with_last,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use ndarray::ArrayD;
use proc_macro2::TokenStream;
use quote::quote;

/// Each channel convolved with its own J taps, looking back only. Arguments x`[b, t, e]` and
/// w`[e, j]`; e is the channel axis and j the tap axis:
///
/// `y[b, t, e] = sum over i of w[e, i] * x[b, t - J + 1 + i, e]`, x being 0 before its start.
///
/// The last tap meets the current step.
#[derive(Clone, Debug, PartialEq)]
pub struct CausalConv {
    /// Axis t.
    pub time: String,
    /// Axis e.
    pub channel: String,
    /// Axis j.
    pub taps: String,
}

/// Cotangent of x in [`CausalConv`]. Arguments dy`[b, t, e]` and w`[e, j]`:
///
/// `dx[b, t, e] = sum over i of w[e, i] * dy[b, t + J - 1 - i, e]`, dy being 0 after its end.
#[derive(Clone, Debug, PartialEq)]
pub struct CausalConvInputGrad {
    /// Axis t.
    pub time: String,
    /// Axis e.
    pub channel: String,
    /// Axis j.
    pub taps: String,
}

/// Cotangent of w in [`CausalConv`]. Arguments x`[b, t, e]` and dy`[b, t, e]`, result `[e, j]`:
///
/// `dw[e, i] = sum over b, t of dy[b, t, e] * x[b, t - J + 1 + i, e]`
#[derive(Clone, Debug, PartialEq)]
pub struct CausalConvWeightGrad {
    /// Axis t.
    pub time: String,
    /// Axis e.
    pub channel: String,
    /// Axis j with the number of taps.
    pub taps: Axis,
}

/// Rotary position embedding of interleaved pairs. With p the index along time, K the length of
/// the pair axis (even), i a pair, and the angle `a = p * base^(-2i/K)`:
///
/// `y[2i] = x[2i] cos a - x[2i+1] sin a`, `y[2i+1] = x[2i] sin a + x[2i+1] cos a`
///
/// `inverse` turns by `-a`: the inverse of a rotation, and its derivative. The tables are
/// computed in f64 and rounded to the precision of x. Storage order: the pair axis last.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Axis whose index is the position.
    pub time: String,
    /// Axis that holds the pairs.
    pub pairs: String,
    /// Ratio of wave lengths.
    pub base: f64,
    /// Turn back.
    pub inverse: bool,
}

/// `y[t, s] = s <= t`
#[derive(Clone, Debug, PartialEq)]
pub struct Causal {
    /// Axis t.
    pub query: Axis,
    /// Axis s.
    pub key: Axis,
}

/// `y[t] = t` in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    /// Axis t.
    pub axis: Axis,
}

/// Calls `f` with flat indices (in `[b, t, e]`, the same earlier in time, in `[e, j]`) of
/// everything that [`CausalConv`] multiplies.
fn each_tap([n_b, n_t, n_e]: [usize; 3], n_j: usize, mut f: impl FnMut(usize, usize, usize)) {
    for b in 0..n_b {
        for t in 0..n_t {
            for i in 0..n_j {
                let Some(from) = (t + i + 1).checked_sub(n_j) else {
                    continue;
                };
                for e in 0..n_e {
                    f((b * n_t + t) * n_e + e, (b * n_t + from) * n_e + e, e * n_j + i);
                }
            }
        }
    }
}

/// Checks x (or dy) `[b, t, e]` and w `[e, j]`.
fn check_conv(
    op: &dyn OpDef,
    args: &[&Type],
    [time, channel, taps]: [&str; 3],
) -> Result<Vec<Type>, TypeError> {
    let what = op.mnemonic();
    let (x, w) = two(what, args)?;
    let dtype = join_floats(what, args)?;
    need_axis(what, x, time)?;
    let channel = need_axis(what, x, channel)?;
    need_axis(what, w, &channel.name)?;
    let taps = need_axis(what, w, taps)?;
    ordered(op, args)?;
    one_batch(what, x, 2)?;
    exactly(what, "its weight", w, &[channel.clone(), taps.clone()])?;
    Ok(vec![x.with_dtype(dtype)])
}

fn conv_cost(args: &[&Type], results: &[&Type], taps: &Size) -> Cost {
    let x = args.first().map(|x| count(x)).unwrap_or_default();
    Cost::streaming(product(&[&x, taps, &Size::constant(2)]), args, results)
}

impl OpDef for CausalConv {
    fn mnemonic(&self) -> &'static str {
        "causal_conv"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("time", &self.time)
            .word("channel", &self.channel)
            .word("taps", &self.taps)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        check_conv(self, args, [&self.time, &self.channel, &self.taps])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let last =
            if index == 0 { [&self.time, &self.channel] } else { [&self.channel, &self.taps] };
        with_last(args.get(index)?, &last.map(String::as_str))
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let shape = lengths::<3>(call.arg(0)?)?;
        let [_, n_j] = lengths(call.arg(1)?)?;
        let (x, w) = (elements(call.arg(0)?), elements(call.arg(1)?));
        let mut y = vec![0.0; x.len()];
        each_tap(shape, n_j, |to, from, tap| y[to] += w[tap] * x[from]);
        Ok(vec![array(&shape, y)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let mut cotangents = vec![None, None];
        if vjp.wants(0) {
            let w = vjp.arg(1)?;
            let grad = CausalConvInputGrad {
                time: self.time.clone(),
                channel: self.channel.clone(),
                taps: self.taps.clone(),
            };
            let dx = vjp.push(grad, &[dy, w])?;
            cotangents[0] = Some(vjp.reduce_to_arg(0, dx)?);
        }
        if vjp.wants(1) {
            let (x, w) = (vjp.arg(0)?, vjp.arg_type(1)?);
            let grad = CausalConvWeightGrad {
                time: self.time.clone(),
                channel: self.channel.clone(),
                taps: need_axis("causal_conv", &w, &self.taps)?.clone(),
            };
            let dw = vjp.push(grad, &[x, dy])?;
            cotangents[1] = Some(vjp.reduce_to_arg(1, dw)?);
        }
        Ok(cotangents)
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        conv_cost(args, results, &size_of(args.get(1), &self.taps))
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        emit_joined(call, "causal_conv", &[0, 1], quote!())
    }
}

impl ParseOp for CausalConv {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "causal_conv" {
            return Ok(None);
        }
        Ok(Some(CausalConv {
            time: attrs.take_word("time")?,
            channel: attrs.take_word("channel")?,
            taps: attrs.take_word("taps")?,
        }))
    }
}

impl OpDef for CausalConvInputGrad {
    fn mnemonic(&self) -> &'static str {
        "causal_conv_input_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("time", &self.time)
            .word("channel", &self.channel)
            .word("taps", &self.taps)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        check_conv(self, args, [&self.time, &self.channel, &self.taps])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let last =
            if index == 0 { [&self.time, &self.channel] } else { [&self.channel, &self.taps] };
        with_last(args.get(index)?, &last.map(String::as_str))
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let shape = lengths::<3>(call.arg(0)?)?;
        let [_, n_j] = lengths(call.arg(1)?)?;
        let (dy, w) = (elements(call.arg(0)?), elements(call.arg(1)?));
        let mut dx = vec![0.0; dy.len()];
        each_tap(shape, n_j, |to, from, tap| dx[from] += w[tap] * dy[to]);
        Ok(vec![array(&shape, dx)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("causal_conv_input_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        conv_cost(args, results, &size_of(args.get(1), &self.taps))
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        emit_joined(call, "causal_conv_input_grad", &[0, 1], quote!())
    }
}

impl ParseOp for CausalConvInputGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "causal_conv_input_grad" {
            return Ok(None);
        }
        Ok(Some(CausalConvInputGrad {
            time: attrs.take_word("time")?,
            channel: attrs.take_word("channel")?,
            taps: attrs.take_word("taps")?,
        }))
    }
}

impl OpDef for CausalConvWeightGrad {
    fn mnemonic(&self) -> &'static str {
        "causal_conv_weight_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("time", &self.time)
            .word("channel", &self.channel)
            .axes("taps", std::slice::from_ref(&self.taps))
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = self.mnemonic();
        let (x, dy) = two(what, args)?;
        let dtype = join_floats(what, args)?;
        need_axis(what, x, &self.time)?;
        let channel = need_axis(what, x, &self.channel)?.clone();
        ordered(self, args)?;
        one_batch(what, x, 2)?;
        exactly(what, "the cotangent", dy, &x.axes)?;
        let axes = vec![channel, self.taps.clone()];
        distinct(what, &axes)?;
        Ok(vec![Type::new(dtype, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        with_last(args.get(index)?, &[&self.time, &self.channel])
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let shape = lengths::<3>(call.arg(0)?)?;
        let n_j = call.size(&self.taps.size)?;
        let (x, dy) = (elements(call.arg(0)?), elements(call.arg(1)?));
        let mut dw = vec![0.0; shape[2] * n_j];
        each_tap(shape, n_j, |to, from, tap| dw[tap] += dy[to] * x[from]);
        Ok(vec![array(&[shape[2], n_j], dw)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("causal_conv_weight_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        conv_cost(args, results, &self.taps.size)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let taps = call.size(&self.taps.size);
        emit_joined(call, "causal_conv_weight_grad", &[0, 1], quote!(#taps))
    }
}

impl ParseOp for CausalConvWeightGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "causal_conv_weight_grad" {
            return Ok(None);
        }
        Ok(Some(CausalConvWeightGrad {
            time: attrs.take_word("time")?,
            channel: attrs.take_word("channel")?,
            taps: attrs.take_axis("taps")?,
        }))
    }
}

impl OpDef for Rotary {
    fn mnemonic(&self) -> &'static str {
        "rotary"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("time", &self.time)
            .word("pairs", &self.pairs)
            .float("base", self.base)
            .word("inverse", if self.inverse { "true" } else { "false" })
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("rotary", args)?;
        float("rotary", x)?;
        need_axis("rotary", x, &self.time)?;
        let pairs = need_axis("rotary", x, &self.pairs)?;
        if self.time == self.pairs {
            return Err(TypeError::new(
                "E0406",
                format!("`rotary` names axis `{}` as time and as pairs", self.time),
            ));
        }
        if pairs.size.as_constant().is_some_and(|n| n % 2 != 0) {
            return Err(TypeError::new(
                "E0402",
                format!(
                    "`rotary`: axis `{}` holds pairs, its size {} is odd",
                    pairs.name, pairs.size
                ),
            )
            .with_help("give it an even size"));
        }
        if !(self.base.is_finite() && self.base > 0.0) {
            return Err(TypeError::new(
                "E0405",
                format!("`rotary` takes a base above 0, here is {}", self.base),
            ));
        }
        ordered(self, args)?;
        Ok(vec![x.clone()])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let ty = args.get(index)?;
        if self.time == self.pairs || !ty.has(&self.time) {
            return None;
        }
        with_last(ty, &[&self.pairs])
    }

    #[allow(clippy::indexing_slicing, clippy::cast_precision_loss)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (x, ty) = (call.arg(0)?, call.arg_type(0)?);
        let (_, [n_pairs]) = split_last::<1>(x)?;
        if n_pairs % 2 != 0 {
            return Err(EvalError(format!("`rotary`: {n_pairs} elements are not pairs")));
        }
        let time = ty.position(&self.time).unwrap_or_default();
        let n_time = x.shape()[time];
        // Number of rows from one position to the next.
        let stride: usize = x.shape()[time + 1..x.ndim() - 1].iter().product();
        let mut y = elements(x);
        if y.is_empty() {
            return Ok(vec![array(x.shape(), y)?]);
        }
        for (row, values) in y.chunks_exact_mut(n_pairs).enumerate() {
            let p = (row / stride) % n_time;
            for (i, pair) in values.chunks_exact_mut(2).enumerate() {
                let angle = p as f64 * self.base.powf(-2.0 * i as f64 / n_pairs as f64);
                let (sin, cos) = if self.inverse { -angle } else { angle }.sin_cos();
                let (even, odd) = (pair[0], pair[1]);
                pair[0] = even * cos - odd * sin;
                pair[1] = even * sin + odd * cos;
            }
        }
        Ok(vec![array(x.shape(), y)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let back = Rotary { inverse: !self.inverse, ..self.clone() };
        Ok(vec![Some(vjp.push(back, &[dy])?)])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(3, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, time) = (call.arg(0), number(call.dim(0, &self.time)));
        let (base, inverse) = (self.base, self.inverse);
        quote!(ops::rotary(#x, #time, #base, #inverse)?)
    }
}

impl ParseOp for Rotary {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "rotary" {
            return Ok(None);
        }
        let (time, pairs) = (attrs.take_word("time")?, attrs.take_word("pairs")?);
        let base = attrs.take_float("base")?;
        let inverse = match attrs.take_word("inverse")?.as_str() {
            "true" => true,
            "false" => false,
            other => return Err(format!("attribute `inverse` is true or false, not {other}")),
        };
        Ok(Some(Rotary { time, pairs, base, inverse }))
    }
}

impl OpDef for Causal {
    fn mnemonic(&self) -> &'static str {
        "causal"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .axes("query", std::slice::from_ref(&self.query))
            .axes("key", std::slice::from_ref(&self.key))
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        if !args.is_empty() {
            return Err(arity("causal", 0, args.len()));
        }
        let axes = vec![self.query.clone(), self.key.clone()];
        distinct("causal", &axes)?;
        Ok(vec![Type::new(DType::Bool, axes)])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (n_t, n_s) = (call.size(&self.query.size)?, call.size(&self.key.size)?);
        let y = (0..n_t).flat_map(|t| (0..n_s).map(move |s| f64::from(s <= t))).collect();
        Ok(vec![array(&[n_t, n_s], y)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![])
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (t, s) = (call.size(&self.query.size), call.size(&self.key.size));
        let kind = call.kind();
        quote!(ops::causal(#t, #s, #kind)?)
    }
}

impl ParseOp for Causal {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "causal" {
            return Ok(None);
        }
        Ok(Some(Causal { query: attrs.take_axis("query")?, key: attrs.take_axis("key")? }))
    }
}

impl OpDef for Position {
    fn mnemonic(&self) -> &'static str {
        "position"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().axes("axis", std::slice::from_ref(&self.axis))
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        if !args.is_empty() {
            return Err(arity("position", 0, args.len()));
        }
        Ok(vec![Type::new(DType::F32, vec![self.axis.clone()])])
    }

    #[allow(clippy::cast_precision_loss)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let n = call.size(&self.axis.size)?;
        Ok(vec![ArrayD::from_shape_fn(vec![n], |index| index[0] as f64)])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![])
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (t, kind) = (call.size(&self.axis.size), call.kind());
        quote!(ops::position(#t, #kind)?)
    }
}

impl ParseOp for Position {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "position" {
            return Ok(None);
        }
        Ok(Some(Position { axis: attrs.take_axis("axis")? }))
    }
}
