//! The loss: cross entropy fused with the linear map that makes its logits, so that logits need
//! never exist as a whole.

use super::pointwise::no_second_derivative;
use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, arity, array, elements,
    emit_joined, exactly, float, join_floats, lengths, need_axis, need_dtype, ordered, product,
    size_of, split_last, wanted, with_last,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;
use quote::quote;

/// A target that does not count.
pub(crate) const IGNORED: f64 = -100.0;

/// Arguments h`[.., d]`, w`[v, d]` and targets`[..]` (index); result `f32[]`. With d the channel
/// axis, v the vocabulary, and c the softcap (0: none):
///
/// `z = h . w[v]`, `z = c tanh(z / c)` if `c > 0`,
/// `loss = mean over targets != -100 of (logsumexp(z) - z[target])`; 0 where no target counts.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearCrossEntropy {
    /// Axis d.
    pub channel: String,
    /// Axis v.
    pub vocab: String,
    /// c.
    pub softcap: f64,
}

/// Derivative of [`LinearCrossEntropy`]: arguments h, w, targets and the cotangent `[]` of the
/// loss; results the cotangents of h and w, each of the type of its argument. With N the number
/// of targets that count, for each of those:
///
/// `dz = dloss / N * (softmax(z) - onehot(target)) * (1 - (z / c)^2)`, the last factor only with a
/// softcap; `dh = sum over v of dz w`, `dw = sum over targets of dz h`.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearCrossEntropyGrad {
    /// Axis d.
    pub channel: String,
    /// Axis v.
    pub vocab: String,
    /// c.
    pub softcap: f64,
}

/// [`LinearCrossEntropy`] and its gradients for a cotangent of 1, from one set of logits: arguments
/// h, w and targets; results the loss `f32[]`, and dh and dw of the types of h and w. No gradient
/// passes: rewrites put it in place of a loss once a module is differentiated.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearCrossEntropyStep {
    /// Axis d.
    pub channel: String,
    /// Axis v.
    pub vocab: String,
    /// c.
    pub softcap: f64,
}

/// Checks h, w and the targets.
fn check(
    op: &dyn OpDef,
    args: &[&Type],
    channel: &str,
    vocab: &str,
    softcap: f64,
) -> Result<(), TypeError> {
    let what = op.mnemonic();
    let [h, w, targets, ..] = args else {
        return Err(arity(what, 3, args.len()));
    };
    join_floats(what, &[h, w])?;
    need_dtype(what, "its targets", targets, DType::Index)?;
    if !(softcap.is_finite() && softcap >= 0.0) {
        return Err(TypeError::new(
            "E0405",
            format!("`{what}` takes a softcap of 0 (none) or more, here is {softcap}"),
        ));
    }
    let channel = need_axis(what, h, channel)?.clone();
    need_axis(what, w, &channel.name)?;
    let vocab = need_axis(what, w, vocab)?.clone();
    if let Some(axis) = h.axis(&vocab.name) {
        return Err(TypeError::new(
            "E0406",
            format!("`{what}`: the vocabulary axis `{}` is also an axis of {h}", axis.name),
        ));
    }
    ordered(op, args)?;
    exactly(what, "its weight", w, &[vocab, channel.clone()])?;
    let rows: Vec<_> = h.axes.iter().filter(|axis| axis.name != channel.name).cloned().collect();
    exactly(what, "its targets", targets, &rows)
}

fn order(index: usize, args: &[&Type], channel: &str, vocab: &str) -> Option<Vec<String>> {
    let (h, ty) = (args.first()?, args.get(index)?);
    match index {
        0 => with_last(ty, &[channel]),
        1 => with_last(ty, &[vocab, channel]),
        2 => {
            let mut rows = h.names();
            rows.retain(|name| name != channel);
            (rows.len() == ty.axes.len() && rows.iter().all(|name| ty.has(name))).then_some(rows)
        }
        _ => None,
    }
}

/// One target that counts: its row in h, the target, and the logits after the softcap.
struct Row<'a> {
    row: usize,
    target: usize,
    h: &'a [f64],
    z: Vec<f64>,
    log_sum: f64,
}

/// Calls `f` with every target that counts; gives their number.
#[allow(clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn each_row(
    call: &EvalCall<'_>,
    softcap: f64,
    mut f: impl FnMut(&Row<'_>),
) -> Result<usize, EvalError> {
    let (_, [n_d]) = split_last::<1>(call.arg(0)?)?;
    let [n_v, _] = lengths(call.arg(1)?)?;
    let (h, w) = (elements(call.arg(0)?), elements(call.arg(1)?));
    let mut n = 0;
    for (row, target) in elements(call.arg(2)?).into_iter().enumerate() {
        if target == IGNORED {
            continue;
        }
        if !(target >= 0.0 && target < n_v as f64) {
            return Err(EvalError(format!("target {target} is not in a vocabulary of {n_v}")));
        }
        let h = &h[row * n_d..(row + 1) * n_d];
        let z: Vec<f64> = (0..n_v)
            .map(|v| {
                let z: f64 = h.iter().zip(&w[v * n_d..(v + 1) * n_d]).map(|(h, w)| h * w).sum();
                if softcap > 0.0 { softcap * (z / softcap).tanh() } else { z }
            })
            .collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        f(&Row { row, target: target as usize, h, z, log_sum });
        n += 1;
    }
    Ok(n)
}

#[allow(clippy::indexing_slicing, clippy::cast_precision_loss)]
fn loss(call: &EvalCall<'_>, softcap: f64) -> Result<Array, EvalError> {
    let mut total = 0.0;
    let n = each_row(call, softcap, |row| total += row.log_sum - row.z[row.target])?;
    array(&[], vec![total / n.max(1) as f64])
}

/// dh and dw for a cotangent.
#[allow(clippy::indexing_slicing, clippy::cast_precision_loss)]
fn gradients(call: &EvalCall<'_>, softcap: f64, cotangent: f64) -> Result<Vec<Array>, EvalError> {
    let w = elements(call.arg(1)?);
    let mut dh = vec![0.0; call.arg(0)?.len()];
    let mut dw = vec![0.0; w.len()];
    let n = each_row(call, softcap, |row| {
        let n_d = row.h.len();
        for (v, z) in row.z.iter().enumerate() {
            let mut dz = (z - row.log_sum).exp() - f64::from(v == row.target);
            if softcap > 0.0 {
                dz *= 1.0 - (z / softcap).powi(2);
            }
            for d in 0..n_d {
                dh[row.row * n_d + d] += dz * w[v * n_d + d];
                dw[v * n_d + d] += dz * row.h[d];
            }
        }
    })?;
    let scale = cotangent / n.max(1) as f64;
    let scaled = |index: usize, values: Vec<f64>| {
        let values = values.into_iter().map(|d| d * scale).collect();
        array(call.arg(index)?.shape(), values)
    };
    Ok(vec![scaled(0, dh)?, scaled(1, dw)?])
}

fn flops(args: &[&Type], vocab: &str, per_product: i64) -> Size {
    let n = args.first().map(|h| super::count(h)).unwrap_or_default();
    product(&[&n, &size_of(args.get(1), vocab), &Size::constant(per_product)])
}

impl OpDef for LinearCrossEntropy {
    fn mnemonic(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("channel", &self.channel)
            .word("vocab", &self.vocab)
            .float("softcap", self.softcap)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        if args.len() != 3 {
            return Err(arity("linear_cross_entropy", 3, args.len()));
        }
        check(self, args, &self.channel, &self.vocab, self.softcap)?;
        Ok(vec![Type::scalar(DType::F32)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        order(index, args, &self.channel, &self.vocab)
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![loss(call, self.softcap)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let args = [vjp.arg(0)?, vjp.arg(1)?, vjp.arg(2)?, vjp.dy()?];
        let grad = LinearCrossEntropyGrad {
            channel: self.channel.clone(),
            vocab: self.vocab.clone(),
            softcap: self.softcap,
        };
        let cotangents = vjp.push_many(grad, &args)?;
        let mut cotangents = wanted(vjp, cotangents);
        cotangents.push(None);
        Ok(cotangents)
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(flops(args, &self.vocab, 2), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let softcap = self.softcap;
        emit_joined(call, "linear_cross_entropy", &[0, 1], quote!(#softcap))
    }
}

impl ParseOp for LinearCrossEntropy {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "linear_cross_entropy" {
            return Ok(None);
        }
        Ok(Some(LinearCrossEntropy {
            channel: attrs.take_word("channel")?,
            vocab: attrs.take_word("vocab")?,
            softcap: attrs.take_float("softcap")?,
        }))
    }
}

impl OpDef for LinearCrossEntropyGrad {
    fn mnemonic(&self) -> &'static str {
        "linear_cross_entropy_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("channel", &self.channel)
            .word("vocab", &self.vocab)
            .float("softcap", self.softcap)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let [h, w, _, cotangent] = args else {
            return Err(arity(self.mnemonic(), 4, args.len()));
        };
        check(self, args, &self.channel, &self.vocab, self.softcap)?;
        float(self.mnemonic(), cotangent)?;
        exactly(self.mnemonic(), "the cotangent", cotangent, &[])?;
        Ok(vec![(*h).clone(), (*w).clone()])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        order(index, args, &self.channel, &self.vocab)
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let cotangent = elements(call.arg(3)?).first().copied().unwrap_or_default();
        gradients(call, self.softcap, cotangent)
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("linear_cross_entropy_grad"))
    }

    /// The logits are computed again.
    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(flops(args, &self.vocab, 6), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let softcap = self.softcap;
        emit_joined(call, "linear_cross_entropy_grad", &[0, 1], quote!(#softcap))
    }
}

impl ParseOp for LinearCrossEntropyGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "linear_cross_entropy_grad" {
            return Ok(None);
        }
        Ok(Some(LinearCrossEntropyGrad {
            channel: attrs.take_word("channel")?,
            vocab: attrs.take_word("vocab")?,
            softcap: attrs.take_float("softcap")?,
        }))
    }
}

impl OpDef for LinearCrossEntropyStep {
    fn mnemonic(&self) -> &'static str {
        "linear_cross_entropy_step"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("channel", &self.channel)
            .word("vocab", &self.vocab)
            .float("softcap", self.softcap)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let [h, w, _] = args else {
            return Err(arity(self.mnemonic(), 3, args.len()));
        };
        check(self, args, &self.channel, &self.vocab, self.softcap)?;
        Ok(vec![Type::scalar(DType::F32), (*h).clone(), (*w).clone()])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        order(index, args, &self.channel, &self.vocab)
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let mut results = vec![loss(call, self.softcap)?];
        results.extend(gradients(call, self.softcap, 1.0)?);
        Ok(results)
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("linear_cross_entropy_step"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(flops(args, &self.vocab, 6), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let softcap = self.softcap;
        emit_joined(call, "linear_cross_entropy_step", &[0, 1], quote!(#softcap))
    }
}

impl ParseOp for LinearCrossEntropyStep {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "linear_cross_entropy_step" {
            return Ok(None);
        }
        Ok(Some(LinearCrossEntropyStep {
            channel: attrs.take_word("channel")?,
            vocab: attrs.take_word("vocab")?,
            softcap: attrs.take_float("softcap")?,
        }))
    }
}
