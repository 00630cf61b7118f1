//! Attention over selected keys: the selection, and softmax attention under its mask.

use super::pointwise::no_second_derivative;
use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, arity, array, count,
    distinct, elements, emit_joined, exactly, float, join_floats, lengths, need_axis, need_dtype,
    number, one_batch, ordered, product, same_size, size_of, two, wanted, with_last,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use lightc_numerics::attention::MaskBound;
use proc_macro2::TokenStream;
use quote::quote;

/// Which keys each query attends to. Arguments score`[b, t, s]` and budget`[b, t]`; result a truth
/// value for every `[b, t, s]`. For query t, with as many keys as queries:
///
/// - candidates are the keys `s <= t`; those with `s < sinks` rank first
/// - `n = min(max(1, floor(budget)), limit, t + 1)`
/// - the n candidates with the largest scores are taken; of equal scores the smaller s. A score
///   that is not a number ranks before all others.
///
/// No gradient: a selection is piecewise constant.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectTop {
    /// Axis t.
    pub query: String,
    /// Axis s.
    pub key: String,
    /// Number of first keys that rank before all others.
    pub sinks: i64,
    /// The most keys that one query takes.
    pub limit: i64,
}

/// Arguments q`[b, t, h, k]`, k`[b, s, h, k]`, v`[b, s, h, m]`, mask`[b, t, s]`; result
/// o`[b, t, h, m]`:
///
/// `o[t] = sum over allowed s of p[s] v[s]`, `p = softmax over allowed s of (q[t] . k[s])`
///
/// No scale: q comes scaled. A row in which nothing is allowed gives 0. The one axis of v that is
/// neither batch nor key nor head is m; it can have the name of the channel axis.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedAttention {
    /// Axis t.
    pub query: String,
    /// Axis s.
    pub key: String,
    /// Axis h.
    pub head: String,
    /// Axis k of q and k.
    pub channel: String,
    /// What a rewrite has found of the mask. It is no part of the meaning: a mask that breaks it is an error.
    pub bound: MaskBound,
}

/// Derivative of [`MaskedAttention`]: arguments q, k, v, mask and the cotangent of o; results the
/// cotangents of q, k and v, each of the type of its argument. With `dp[s] = do . v[s]`:
///
/// `ds[s] = p[s] (dp[s] - sum over s of p dp)`, `dq = sum ds[s] k[s]`, `dk[s] = sum over t of
/// ds[s] q`, `dv[s] = sum over t of p[s] do`
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedAttentionGrad {
    /// Axis t.
    pub query: String,
    /// Axis s.
    pub key: String,
    /// Axis h.
    pub head: String,
    /// Axis k.
    pub channel: String,
    /// As in [`MaskedAttention`].
    pub bound: MaskBound,
}

impl OpDef for SelectTop {
    fn mnemonic(&self) -> &'static str {
        "select_top"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("query", &self.query)
            .word("key", &self.key)
            .int("sinks", self.sinks)
            .int("limit", self.limit)
    }

    fn is_replayed(&self) -> bool {
        true
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "select_top";
        let (score, budget) = two(what, args)?;
        float(what, score)?;
        float(what, budget)?;
        if self.sinks < 0 || self.limit < 1 {
            return Err(TypeError::new(
                "E0405",
                format!(
                    "`select_top` takes 0 or more sinks and a limit of at least 1, here are {} and {}",
                    self.sinks, self.limit
                ),
            ));
        }
        let query = need_axis(what, score, &self.query)?;
        let key = need_axis(what, score, &self.key)?;
        need_axis(what, budget, &self.query)?;
        distinct(what, &[query.clone(), key.clone()])?;
        same_size(what, query, key)?;
        ordered(self, args)?;
        let batch = one_batch(what, score, 2)?;
        exactly(what, "its budget", budget, &[batch.clone(), query.clone()])?;
        Ok(vec![score.with_dtype(DType::Bool)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let ty = args.get(index)?;
        match index {
            0 => with_last(ty, &[&self.query, &self.key]),
            _ => with_last(ty, &[&self.query]),
        }
    }

    #[allow(clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let shape: [usize; 3] = lengths(call.arg(0)?)?;
        let [n_b, n_t, n_s] = shape;
        let (score, budget) = (elements(call.arg(0)?), elements(call.arg(1)?));
        let limit = usize::try_from(self.limit).unwrap_or(0);
        let sinks = usize::try_from(self.sinks).unwrap_or(0);
        let mut chosen = vec![0.0; score.len()];
        for row in 0..n_b * n_t {
            let t = row % n_t;
            let candidates = (t + 1).min(n_s);
            let n = (budget[row].floor().max(1.0) as usize).min(limit).min(candidates);
            let rank = |s: usize| match score[row * n_s + s] {
                _ if s < sinks => f64::INFINITY,
                score if score.is_nan() => f64::NAN,
                // Makes -0 equal to 0, which the total order tells apart.
                score => score + 0.0,
            };
            let mut order: Vec<usize> = (0..candidates).collect();
            // A stable sort: of equal scores the smaller s stays first.
            order.sort_by(|a, b| rank(*b).total_cmp(&rank(*a)));
            for s in order.into_iter().take(n) {
                chosen[row * n_s + s] = 1.0;
            }
        }
        Ok(vec![array(&shape, chosen)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None, None])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(4, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (score, budget) = (call.arg(0), call.arg(1));
        let (sinks, limit) = (number(self.sinks), number(self.limit));
        quote!(ops::select_top(#score, #budget, #sinks, #limit)?)
    }
}

impl ParseOp for SelectTop {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "select_top" {
            return Ok(None);
        }
        Ok(Some(SelectTop {
            query: attrs.take_word("query")?,
            key: attrs.take_word("key")?,
            sinks: attrs.take_int("sinks")?,
            limit: attrs.take_int("limit")?,
        }))
    }
}

/// The attributes of both ops.
struct Names<'a> {
    query: &'a str,
    key: &'a str,
    head: &'a str,
    channel: &'a str,
    bound: MaskBound,
}

impl Names<'_> {
    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let ty = args.get(index)?;
        match index {
            0 => with_last(ty, &[self.query, self.head, self.channel]),
            1 => with_last(ty, &[self.key, self.head, self.channel]),
            2 => with_last(ty, &[self.key, self.head, &self.value(args)?.name]),
            3 => with_last(ty, &[self.query, self.key]),
            _ => with_last(ty, &[self.query, self.head, &self.value(args)?.name]),
        }
    }

    /// Axis m: what v has beside the batch axis of q, key and head.
    fn value<'a>(&self, args: &[&'a Type]) -> Option<&'a Axis> {
        let (q, v) = (args.first()?, args.get(2)?);
        let of_q = [self.query, self.head, self.channel];
        let batch = q.axes.iter().find(|axis| !of_q.contains(&axis.name.as_str()))?;
        let of_v = [batch.name.as_str(), self.key, self.head];
        v.axes.iter().find(|axis| !of_v.contains(&axis.name.as_str()))
    }

    fn attrs(&self) -> Attrs {
        let mut attrs = Attrs::default()
            .word("query", self.query)
            .word("key", self.key)
            .word("head", self.head)
            .word("channel", self.channel);
        if self.bound.causal {
            attrs = attrs.word("mask", CAUSAL);
        }
        match self.bound.most_keys {
            Some(most) => attrs.int("limit", most.into()),
            None => attrs,
        }
    }

    /// The call `function(.., dout)`, or `function_within(.., dout, bound)` where there is a bound.
    fn emit(&self, call: &EmitCall<'_>, function: &str, joined: &[usize]) -> TokenStream {
        let MaskBound { causal, most_keys } = self.bound;
        if self.bound == MaskBound::default() {
            return emit_joined(call, function, joined, quote!());
        }
        let most = most_keys.map_or_else(
            || quote!(None),
            |most| {
                let most = number(most.into());
                quote!(Some(#most))
            },
        );
        let bound = quote!(ops::MaskBound { causal: #causal, most_keys: #most });
        emit_joined(call, &format!("{function}_within"), joined, bound)
    }

    /// Checks the four arguments; gives the type of the result.
    fn check(&self, op: &dyn OpDef, args: &[&Type]) -> Result<Type, TypeError> {
        let what = op.mnemonic();
        let [q, k, v, mask, ..] = args else {
            return Err(arity(what, 4, args.len()));
        };
        let dtype = join_floats(what, &[q, k, v])?;
        need_dtype(what, "its mask", mask, DType::Bool)?;
        let query = need_axis(what, q, self.query)?.clone();
        let head = need_axis(what, q, self.head)?.clone();
        let channel = need_axis(what, q, self.channel)?.clone();
        let key = need_axis(what, k, self.key)?.clone();
        need_axis(what, v, self.key)?;
        need_axis(what, v, self.head)?;
        ordered(op, args)?;
        let batch = one_batch(what, q, 3)?.clone();
        let Some(value) = self.value(args).cloned() else {
            return Err(TypeError::new(
                "E0401",
                format!("`{what}` takes values with one axis beside batch, key and head, not {v}"),
            ));
        };
        let keys = [batch.clone(), key.clone(), head.clone(), channel];
        distinct(what, &keys)?;
        exactly(what, "its keys", k, &keys)?;
        let values = [batch.clone(), key.clone(), head.clone(), value.clone()];
        exactly(what, "its values", v, &values)?;
        let allowed = [batch.clone(), query.clone(), key];
        distinct(what, &allowed)?;
        exactly(what, "its mask", mask, &allowed)?;
        let result = vec![batch, query, head, value];
        distinct(what, &result)?;
        Ok(Type::new(dtype, result))
    }

    /// Floating-point operations if every query meets every key: `per_key_channel` for each
    /// element of q or k, `per_value_channel` for each of v.
    fn flops(&self, args: &[&Type], per_key_channel: i64, per_value_channel: i64) -> Size {
        let pairs = args.get(3).map(|mask| count(mask)).unwrap_or_default();
        let heads = size_of(args.first(), self.head);
        let channels =
            product(&[&size_of(args.first(), self.channel), &Size::constant(per_key_channel)]);
        let values = self.value(args).map(|axis| axis.size.clone()).unwrap_or_default();
        let values = product(&[&values, &Size::constant(per_value_channel)]);
        let per_pair = channels.checked_add(&values).unwrap_or_default();
        product(&[&pairs, &heads, &per_pair])
    }
}

/// Sizes of one application, in the order b, t, s, h, k, m.
#[derive(Clone, Copy)]
struct Lengths {
    b: usize,
    t: usize,
    s: usize,
    h: usize,
    k: usize,
    m: usize,
}

/// One row of the softmax: where it stands, and its keys with their weights.
struct Row {
    /// First element of `q[b, t, h]`.
    q: usize,
    /// First element of `o[b, t, h]`.
    o: usize,
    /// For every allowed key: first element of `k[b, s, h]` and of `v[b, s, h]`, and p.
    keys: Vec<(usize, usize, f64)>,
}

/// Refuses a mask that breaks what is claimed of it.
fn within(call: &EvalCall<'_>, bound: MaskBound) -> Result<(), EvalError> {
    let [_, n_t, n_s] = lengths(call.arg(3)?)?;
    for (row, allowed) in elements(call.arg(3)?).chunks(n_s.max(1)).enumerate() {
        let t = row % n_t.max(1);
        let keys = allowed.iter().filter(|seen| **seen != 0.0).count();
        if bound.most_keys.is_some_and(|most| keys > most as usize) {
            return Err(EvalError(format!("query {t} sees {keys} keys, beyond the mask's bound")));
        }
        if bound.causal && allowed.iter().skip(t + 1).any(|seen| *seen != 0.0) {
            return Err(EvalError(format!("query {t} sees a later key under a causal mask")));
        }
    }
    Ok(())
}

/// Calls `f` with every row of the softmax.
#[allow(clippy::indexing_slicing)]
fn each_row(
    call: &EvalCall<'_>,
    bound: MaskBound,
    q: &[f64],
    k: &[f64],
    mut f: impl FnMut(Lengths, &Row),
) -> Result<(), EvalError> {
    within(call, bound)?;
    let [n_b, n_t, n_h, n_k] = lengths(call.arg(0)?)?;
    let [_, n_s, _, n_m] = lengths(call.arg(2)?)?;
    let n = Lengths { b: n_b, t: n_t, s: n_s, h: n_h, k: n_k, m: n_m };
    let mask = elements(call.arg(3)?);
    for b in 0..n.b {
        for t in 0..n.t {
            for h in 0..n.h {
                let query = (b * n.t + t) * n.h + h;
                let mut keys = Vec::new();
                for s in (0..n.s).filter(|s| mask[(b * n.t + t) * n.s + s] != 0.0) {
                    let key = (b * n.s + s) * n.h + h;
                    let logit: f64 = (0..n.k).map(|c| q[query * n.k + c] * k[key * n.k + c]).sum();
                    keys.push((key * n.k, key * n.m, logit));
                }
                let max = keys.iter().map(|key| key.2).fold(f64::NEG_INFINITY, f64::max);
                for key in &mut keys {
                    key.2 = (key.2 - max).exp();
                }
                let total: f64 = keys.iter().map(|key| key.2).sum();
                for key in &mut keys {
                    key.2 /= total;
                }
                f(n, &Row { q: query * n.k, o: query * n.m, keys });
            }
        }
    }
    Ok(())
}

/// How a causal mask is written.
const CAUSAL: &str = "causal";

fn parse_bound(attrs: &mut Attrs) -> Result<MaskBound, String> {
    let causal = if attrs.has("mask") {
        match attrs.take_word("mask")?.as_str() {
            CAUSAL => true,
            other => return Err(format!("attribute `mask` is `{CAUSAL}`, not `{other}`")),
        }
    } else {
        false
    };
    let most_keys = attrs.has("limit").then(|| attrs.take_index("limit")).transpose()?;
    Ok(MaskBound { causal, most_keys })
}

impl MaskedAttention {
    fn names(&self) -> Names<'_> {
        Names {
            query: &self.query,
            key: &self.key,
            head: &self.head,
            channel: &self.channel,
            bound: self.bound,
        }
    }
}

impl OpDef for MaskedAttention {
    fn mnemonic(&self) -> &'static str {
        "masked_attention"
    }

    fn attrs(&self) -> Attrs {
        self.names().attrs()
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        if args.len() != 4 {
            return Err(arity("masked_attention", 4, args.len()));
        }
        Ok(vec![self.names().check(self, args)?])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        self.names().arg_order(index, args)
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (q, k, v) = (elements(call.arg(0)?), elements(call.arg(1)?), elements(call.arg(2)?));
        let shape = call.result_shape(0)?;
        let mut o = vec![0.0; shape.iter().product()];
        each_row(call, self.bound, &q, &k, |n, row| {
            for (_, value, p) in &row.keys {
                for m in 0..n.m {
                    o[row.o + m] += p * v[value + m];
                }
            }
        })?;
        Ok(vec![array(&shape, o)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let mut args = (0..4).map(|i| vjp.arg(i)).collect::<Result<Vec<_>, _>>()?;
        args.push(vjp.dy()?);
        let grad = MaskedAttentionGrad {
            query: self.query.clone(),
            key: self.key.clone(),
            head: self.head.clone(),
            channel: self.channel.clone(),
            bound: self.bound,
        };
        let cotangents = vjp.push_many(grad, &args)?;
        let mut cotangents = wanted(vjp, cotangents);
        cotangents.push(None);
        Ok(cotangents)
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(self.names().flops(args, 2, 2), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        self.names().emit(call, "masked_attention", &[0, 1, 2])
    }
}

impl ParseOp for MaskedAttention {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "masked_attention" {
            return Ok(None);
        }
        Ok(Some(MaskedAttention {
            query: attrs.take_word("query")?,
            key: attrs.take_word("key")?,
            head: attrs.take_word("head")?,
            channel: attrs.take_word("channel")?,
            bound: parse_bound(attrs)?,
        }))
    }
}

impl MaskedAttentionGrad {
    fn names(&self) -> Names<'_> {
        Names {
            query: &self.query,
            key: &self.key,
            head: &self.head,
            channel: &self.channel,
            bound: self.bound,
        }
    }
}

impl OpDef for MaskedAttentionGrad {
    fn mnemonic(&self) -> &'static str {
        "masked_attention_grad"
    }

    fn attrs(&self) -> Attrs {
        self.names().attrs()
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let [q, k, v, _, cotangent] = args else {
            return Err(arity(self.mnemonic(), 5, args.len()));
        };
        let result = self.names().check(self, args)?;
        float(self.mnemonic(), cotangent)?;
        exactly(self.mnemonic(), "the cotangent", cotangent, &result.axes)?;
        Ok([q, k, v].into_iter().map(|ty| (*ty).clone()).collect())
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        self.names().arg_order(index, args)
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (q, k, v) = (elements(call.arg(0)?), elements(call.arg(1)?), elements(call.arg(2)?));
        let d_o = elements(call.arg(4)?);
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        each_row(call, self.bound, &q, &k, |n, row| {
            let dp: Vec<f64> = row
                .keys
                .iter()
                .map(|(_, value, _)| (0..n.m).map(|m| d_o[row.o + m] * v[value + m]).sum())
                .collect();
            let mean: f64 = row.keys.iter().zip(&dp).map(|((_, _, p), dp)| p * dp).sum();
            for ((key, value, p), dp) in row.keys.iter().zip(&dp) {
                let d_logit = p * (dp - mean);
                for c in 0..n.k {
                    dq[row.q + c] += d_logit * k[key + c];
                    dk[key + c] += d_logit * q[row.q + c];
                }
                for m in 0..n.m {
                    dv[value + m] += p * d_o[row.o + m];
                }
            }
        })?;
        Ok(vec![
            array(call.arg(0)?.shape(), dq)?,
            array(call.arg(1)?.shape(), dk)?,
            array(call.arg(2)?.shape(), dv)?,
        ])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("masked_attention_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(self.names().flops(args, 6, 4), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        self.names().emit(call, "masked_attention_grad", &[0, 1, 2, 4])
    }
}

impl ParseOp for MaskedAttentionGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "masked_attention_grad" {
            return Ok(None);
        }
        Ok(Some(MaskedAttentionGrad {
            query: attrs.take_word("query")?,
            key: attrs.take_word("key")?,
            head: attrs.take_word("head")?,
            channel: attrs.take_word("channel")?,
            bound: parse_bound(attrs)?,
        }))
    }
}
