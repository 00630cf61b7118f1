//! The indexer of sparse attention as one op: what a rewrite puts in place of the ops that a block
//! writes it with, for targets that have a kernel for the whole of it.

use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, SelectTop, TypeError, arity, array,
    count, distinct, elements, exactly, float, lengths, need_axis, number, one_batch, ordered,
    product, same_size, size_of, with_last,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use proc_macro2::{Literal, TokenStream};
use quote::quote;

/// The running mean is taken as at least this.
pub(crate) const LEAST_MEAN: f64 = 1e-6;

/// Arguments q`[b, t, i, c]`, k`[b, s, c]`, heed`[b, t, i]`, bias`[i]` and the running mean ema`[]`;
/// results the selection, a truth value for every `[b, t, s]`, and the variance `f32[b, t]`. There
/// are as many keys as queries. With n the number of keys:
///
/// - `score_ts = sum over i of heed_ti sigmoid(q_ti . k_s / sqrt(c) + bias_i)`
/// - `past_ts = score_ts` for `s <= t`, else 0; the variance of row t is
///   `mean over s of (past_ts - mean over s of past_ts)^2`
/// - `budget_t = clamp(floor(base variance_t / max(ema, 1e-6)), low, high)`
/// - the selection is that of [`SelectTop`]
///
/// No gradient to any argument. So a rewrite may put it only where the composition has none: where
/// nothing reads the variance but what ends in states.
#[derive(Clone, Debug, PartialEq)]
pub struct Indexer {
    /// Axis t.
    pub query: String,
    /// Axis s.
    pub key: String,
    /// Axis i.
    pub head: String,
    /// Axis c, of known size.
    pub channel: String,
    /// The budget of a row whose variance is the running mean.
    pub base: f64,
    /// The smallest budget.
    pub low: f64,
    /// The largest budget.
    pub high: f64,
    /// Number of first keys that rank before all others.
    pub sinks: i64,
    /// The most keys that one query takes.
    pub limit: i64,
}

impl Indexer {
    fn selection(&self) -> SelectTop {
        SelectTop {
            query: self.query.clone(),
            key: self.key.clone(),
            sinks: self.sinks,
            limit: self.limit,
        }
    }

    fn check_numbers(&self) -> Result<(), TypeError> {
        let numbers = [self.base, self.low, self.high];
        if numbers.iter().all(|x| x.is_finite()) && self.low <= self.high {
            return Ok(());
        }
        Err(TypeError::new(
            "E0405",
            format!(
                "`indexer` takes a base and a range of budgets, here are {}, {} and {}",
                self.base, self.low, self.high
            ),
        ))
    }
}

impl OpDef for Indexer {
    fn mnemonic(&self) -> &'static str {
        "indexer"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("query", &self.query)
            .word("key", &self.key)
            .word("head", &self.head)
            .word("channel", &self.channel)
            .float("base", self.base)
            .float("low", self.low)
            .float("high", self.high)
            .int("sinks", self.sinks)
            .int("limit", self.limit)
    }

    fn is_replayed(&self) -> bool {
        true
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "indexer";
        let [q, k, heed, bias, ema] = args else {
            return Err(arity(what, 5, args.len()));
        };
        args.iter().try_for_each(|ty| float(what, ty))?;
        self.check_numbers()?;
        let query = need_axis(what, q, &self.query)?.clone();
        let head = need_axis(what, q, &self.head)?.clone();
        let channel = need_axis(what, q, &self.channel)?.clone();
        let key = need_axis(what, k, &self.key)?.clone();
        need_axis(what, heed, &self.query)?;
        need_axis(what, heed, &self.head)?;
        same_size(what, &query, &key)?;
        ordered(self, args)?;
        let batch = one_batch(what, q, 3)?.clone();
        let pairs = vec![batch.clone(), query.clone(), key.clone()];
        distinct(what, &[&pairs[..], &[head.clone(), channel.clone()]].concat())?;
        exactly(what, "its keys", k, &[batch.clone(), key, channel])?;
        exactly(what, "its weights of heads", heed, &[batch.clone(), query.clone(), head.clone()])?;
        exactly(what, "its bias", bias, &[head])?;
        exactly(what, "its running mean", ema, &[])?;
        // The rest is what the selection asks of its arguments.
        let score = Type::new(DType::F32, pairs);
        let variance = Type::new(DType::F32, vec![batch, query]);
        let mut results = self.selection().infer(&[&score, &variance])?;
        results.push(variance);
        Ok(results)
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let ty = args.get(index)?;
        match index {
            0 => with_last(ty, &[&self.query, &self.head, &self.channel]),
            1 => with_last(ty, &[&self.key, &self.channel]),
            2 => with_last(ty, &[&self.query, &self.head]),
            _ => None,
        }
    }

    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let [n_b, n_t, n_i, n_c] = lengths(call.arg(0)?)?;
        let [q, k, heed, bias, ema] =
            [0, 1, 2, 3, 4].map(|index| call.arg(index).map(elements).unwrap_or_default());
        let scale = 1.0 / (n_c as f64).sqrt();
        let ema = ema.first().copied().unwrap_or_default().max(LEAST_MEAN);
        let mut scores = Vec::with_capacity(n_b * n_t * n_t);
        let (mut variances, mut budgets) = (Vec::new(), Vec::new());
        for query in 0..n_b * n_t {
            let (b, t) = (query / n_t, query % n_t);
            let score = |s: usize| -> f64 {
                let k = &k[(b * n_t + s) * n_c..][..n_c];
                let of_head = |i: usize| {
                    let q = &q[(query * n_i + i) * n_c..][..n_c];
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                    heed[query * n_i + i] / (1.0 + (-(dot * scale + bias[i])).exp())
                };
                (0..n_i).map(of_head).sum()
            };
            let row: Vec<f64> = (0..n_t).map(score).collect();
            let past = |s: usize| if s <= t { row[s] } else { 0.0 };
            let mean = (0..n_t).map(past).sum::<f64>() / n_t as f64;
            let variance = (0..n_t).map(|s| (past(s) - mean).powi(2)).sum::<f64>() / n_t as f64;
            variances.push(variance);
            budgets.push((self.base * variance / ema).floor().clamp(self.low, self.high));
            scores.extend(row);
        }
        let (score, budget) = (array(&[n_b, n_t, n_t], scores)?, array(&[n_b, n_t], budgets)?);
        let args = [&score, &budget];
        let mut results = self.selection().eval(&EvalCall { args: &args, ..*call })?;
        results.push(array(&[n_b, n_t], variances)?);
        Ok(results)
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None; 5])
    }

    /// The product, and ten operations for each head's part of a score.
    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let pairs = results.first().map(|selected| count(selected)).unwrap_or_default();
        let channels = size_of(args.first(), &self.channel);
        let per_head = product(&[&channels, &Size::constant(2)]).checked_add(&Size::constant(10));
        let heads = size_of(args.first(), &self.head);
        let flops = product(&[&pairs, &heads, &per_head.unwrap_or_default()]);
        Cost::streaming(flops, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let args = (0..5).map(|index| call.arg(index));
        let [base, low, high] = [self.base, self.low, self.high].map(Literal::f64_suffixed);
        let (sinks, limit) = (number(self.sinks), number(self.limit));
        quote! {
            ops::indexer(#(#args,)* ops::IndexerNumbers {
                base: #base, low: #low, high: #high, sinks: #sinks, limit: #limit
            })?
        }
    }
}

impl ParseOp for Indexer {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "indexer" {
            return Ok(None);
        }
        Ok(Some(Indexer {
            query: attrs.take_word("query")?,
            key: attrs.take_word("key")?,
            head: attrs.take_word("head")?,
            channel: attrs.take_word("channel")?,
            base: attrs.take_float("base")?,
            low: attrs.take_float("low")?,
            high: attrs.take_float("high")?,
            sinks: attrs.take_int("sinks")?,
            limit: attrs.take_int("limit")?,
        }))
    }
}
