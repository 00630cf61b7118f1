//! The gated delta rule: a linear recurrence whose state is a matrix.

use super::pointwise::no_second_derivative;
use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, arity, array, elements,
    emit_joined, exactly, float, join_floats, lengths, need_axis, one_batch, ordered, product,
    size_of, wanted, with_last,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;
use quote::quote;

/// Arguments q`[b, t, h, k]`, k`[b, t, h, k]`, v`[b, t, h, m]`, g`[b, t, h]` (natural logarithm of
/// the decay), beta`[b, t, h]`; result o`[b, t, h, m]`. For every b and h a state S`[k, m]` starts
/// at 0 and, for t = 0, 1, ...:
///
/// - `S = exp(g[t]) * S`
/// - `e = beta[t] * (v[t] - S^T k[t])`
/// - `S = S + k[t] e^T`
/// - `o[t] = S^T q[t]`
///
/// No scale: q and k come as wanted. The result is of the class that q, k and v have together; g
/// and beta do not widen it, because a log decay needs f32 where the tensors around it do not.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedDeltaRule {
    /// Axis t.
    pub time: String,
    /// Axis h.
    pub head: String,
    /// Axis k of q and k.
    pub key: String,
    /// Axis m of v; can have the name of the key axis.
    pub value: String,
}

/// Derivative of [`GatedDeltaRule`]: arguments q, k, v, g, beta and the cotangent of o; results
/// the cotangents of q, k, v, g and beta, each of the type of its argument.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedDeltaRuleGrad {
    /// Axis t.
    pub time: String,
    /// Axis h.
    pub head: String,
    /// Axis k.
    pub key: String,
    /// Axis m.
    pub value: String,
}

/// The axis names of both ops.
struct Names<'a> {
    time: &'a str,
    head: &'a str,
    key: &'a str,
    value: &'a str,
}

impl Names<'_> {
    /// Batch first, then as the equation has them.
    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let ty = args.get(index)?;
        match index {
            0 | 1 => with_last(ty, &[self.time, self.head, self.key]),
            2 | 5 => with_last(ty, &[self.time, self.head, self.value]),
            _ => with_last(ty, &[self.time, self.head]),
        }
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("time", self.time)
            .word("head", self.head)
            .word("key", self.key)
            .word("value", self.value)
    }

    /// Checks the five arguments of the rule; gives the type of its result.
    fn check(&self, op: &dyn OpDef, args: &[&Type]) -> Result<Type, TypeError> {
        let what = op.mnemonic();
        let [q, k, v, g, beta, ..] = args else {
            return Err(arity(what, 5, args.len()));
        };
        for ty in [q, k, v, g, beta] {
            float(what, ty)?;
            need_axis(what, ty, self.time)?;
            need_axis(what, ty, self.head)?;
        }
        need_axis(what, q, self.key)?;
        need_axis(what, k, self.key)?;
        let value = need_axis(what, v, self.value)?.clone();
        ordered(op, args)?;
        let batch = one_batch(what, q, 3)?.clone();
        let time = need_axis(what, q, self.time)?.clone();
        let head = need_axis(what, q, self.head)?.clone();
        let row = vec![batch, time, head];
        exactly(what, "its keys", k, &q.axes)?;
        let values = [row.clone(), vec![value]].concat();
        super::distinct(what, &values)?;
        exactly(what, "its values", v, &values)?;
        exactly(what, "its log decay", g, &row)?;
        exactly(what, "its write strength", beta, &row)?;
        Ok(Type::new(join_floats(what, &[q, k, v])?, values))
    }

    /// Floating-point operations for each element of all states.
    fn flops(&self, args: &[&Type], per_element: i64) -> Size {
        let rows = args.get(3).map(|g| super::count(g)).unwrap_or_default();
        let (k, m) = (size_of(args.first(), self.key), size_of(args.get(2), self.value));
        product(&[&rows, &k, &m, &Size::constant(per_element)])
    }
}

/// One sequence of one head: rows of q, k, v by time, and the state before every step.
struct Sequence {
    n_k: usize,
    n_m: usize,
    q: Vec<Vec<f64>>,
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
    g: Vec<f64>,
    beta: Vec<f64>,
}

/// What one step computes.
struct Step {
    /// The state after decay, `[k, m]`.
    decayed: Vec<f64>,
    /// `v - S^T k` with the decayed state.
    error: Vec<f64>,
    /// The state after the write.
    state: Vec<f64>,
    /// The output.
    o: Vec<f64>,
}

#[allow(clippy::indexing_slicing)]
impl Sequence {
    fn step(&self, before: &[f64], t: usize) -> Step {
        let (n_k, n_m) = (self.n_k, self.n_m);
        let decay = self.g[t].exp();
        let decayed: Vec<f64> = before.iter().map(|s| decay * s).collect();
        let read = |state: &[f64], by: &[f64], m: usize| -> f64 {
            (0..n_k).map(|k| state[k * n_m + m] * by[k]).sum()
        };
        let error: Vec<f64> =
            (0..n_m).map(|m| self.v[t][m] - read(&decayed, &self.k[t], m)).collect();
        let mut state = decayed.clone();
        for k in 0..n_k {
            for m in 0..n_m {
                state[k * n_m + m] += self.k[t][k] * self.beta[t] * error[m];
            }
        }
        let o = (0..n_m).map(|m| read(&state, &self.q[t], m)).collect();
        Step { decayed, error, state, o }
    }
}

/// Takes the arguments apart by batch and head and calls `f` with each sequence and the flat index
/// of its first row in `[b, t, h]`; rows of one sequence are `n_heads` apart.
#[allow(clippy::indexing_slicing)]
fn each_sequence(
    call: &EvalCall<'_>,
    mut f: impl FnMut(&Sequence, &[usize]),
) -> Result<(), EvalError> {
    let [n_b, n_t, n_h, n_k] = lengths(call.arg(0)?)?;
    let [_, _, _, n_m] = lengths(call.arg(2)?)?;
    let (q, k, v) = (elements(call.arg(0)?), elements(call.arg(1)?), elements(call.arg(2)?));
    let (g, beta) = (elements(call.arg(3)?), elements(call.arg(4)?));
    for b in 0..n_b {
        for h in 0..n_h {
            let rows: Vec<usize> = (0..n_t).map(|t| (b * n_t + t) * n_h + h).collect();
            let cut = |values: &[f64], n: usize| -> Vec<Vec<f64>> {
                rows.iter().map(|row| values[row * n..(row + 1) * n].to_vec()).collect()
            };
            let sequence = Sequence {
                n_k,
                n_m,
                q: cut(&q, n_k),
                k: cut(&k, n_k),
                v: cut(&v, n_m),
                g: rows.iter().map(|row| g[*row]).collect(),
                beta: rows.iter().map(|row| beta[*row]).collect(),
            };
            f(&sequence, &rows);
        }
    }
    Ok(())
}

impl GatedDeltaRule {
    fn names(&self) -> Names<'_> {
        Names { time: &self.time, head: &self.head, key: &self.key, value: &self.value }
    }
}

/// The runtime takes a decay and a write strength of 32 bits beside narrow heads, so nothing is widened
/// where all heads are narrow; else all arguments join.
fn emit_call(call: &EmitCall<'_>, name: &str, heads: &[usize], all: &[usize]) -> TokenStream {
    let is_act =
        |index: &usize| call.arg_types.get(*index).is_some_and(|ty| ty.dtype == DType::Act);
    let joined = if heads.iter().all(is_act) { &[] } else { all };
    emit_joined(call, name, joined, quote!())
}

impl OpDef for GatedDeltaRule {
    fn mnemonic(&self) -> &'static str {
        "gated_delta_rule"
    }

    fn attrs(&self) -> Attrs {
        self.names().attrs()
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        if args.len() != 5 {
            return Err(arity("gated_delta_rule", 5, args.len()));
        }
        Ok(vec![self.names().check(self, args)?])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        self.names().arg_order(index, args)
    }

    /// The plain recurrence, one step after the other.
    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let v = call.arg(2)?;
        let mut o = vec![0.0; v.len()];
        each_sequence(call, |sequence, rows| {
            let n_m = sequence.n_m;
            let mut state = vec![0.0; sequence.n_k * n_m];
            for (t, row) in rows.iter().enumerate() {
                let step = sequence.step(&state, t);
                o[row * n_m..(row + 1) * n_m].copy_from_slice(&step.o);
                state = step.state;
            }
        })?;
        Ok(vec![array(v.shape(), o)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let mut args = (0..5).map(|i| vjp.arg(i)).collect::<Result<Vec<_>, _>>()?;
        args.push(vjp.dy()?);
        let grad = GatedDeltaRuleGrad {
            time: self.time.clone(),
            head: self.head.clone(),
            key: self.key.clone(),
            value: self.value.clone(),
        };
        let cotangents = vjp.push_many(grad, &args)?;
        Ok(wanted(vjp, cotangents))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(self.names().flops(args, 7), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        emit_call(call, "gated_delta_rule", &[0, 1, 2], &[0, 1, 2, 3, 4])
    }
}

impl ParseOp for GatedDeltaRule {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "gated_delta_rule" {
            return Ok(None);
        }
        Ok(Some(GatedDeltaRule {
            time: attrs.take_word("time")?,
            head: attrs.take_word("head")?,
            key: attrs.take_word("key")?,
            value: attrs.take_word("value")?,
        }))
    }
}

impl GatedDeltaRuleGrad {
    fn names(&self) -> Names<'_> {
        Names { time: &self.time, head: &self.head, key: &self.key, value: &self.value }
    }
}

impl OpDef for GatedDeltaRuleGrad {
    fn mnemonic(&self) -> &'static str {
        "gated_delta_rule_grad"
    }

    fn attrs(&self) -> Attrs {
        self.names().attrs()
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let [arguments @ .., cotangent] = args else {
            return Err(arity(self.mnemonic(), 6, args.len()));
        };
        if arguments.len() != 5 {
            return Err(arity(self.mnemonic(), 6, args.len()));
        }
        let result = self.names().check(self, args)?;
        float(self.mnemonic(), cotangent)?;
        exactly(self.mnemonic(), "the cotangent", cotangent, &result.axes)?;
        Ok(arguments.iter().map(|ty| (*ty).clone()).collect())
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        self.names().arg_order(index, args)
    }

    /// The steps backwards. With dS the cotangent of the state, and S' the decayed state:
    ///
    /// - `dq = S do`, `dS += q do^T`
    /// - `e = beta r` with `r = v - S'^T k`: `de = dS^T k`, `dk = dS e - S' (beta de)`,
    ///   `dbeta = de . r`, `dv = beta de`
    /// - `dS' = dS - k dv^T`, `dg = <dS', S'>`, and `exp(g) dS'` goes to the step before
    #[allow(clippy::indexing_slicing)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let cotangent = elements(call.arg(5)?);
        let mut results = Vec::new();
        for index in 0..5 {
            results.push(vec![0.0; call.arg(index)?.len()]);
        }
        each_sequence(call, |sequence, rows| {
            let (n_k, n_m) = (sequence.n_k, sequence.n_m);
            let mut steps: Vec<Step> = Vec::with_capacity(rows.len());
            for t in 0..rows.len() {
                let start = vec![0.0; n_k * n_m];
                let before = steps.last().map_or(&start, |step| &step.state);
                let step = sequence.step(before, t);
                steps.push(step);
            }
            let mut ds = vec![0.0; n_k * n_m];
            for (t, row) in rows.iter().enumerate().rev() {
                let (step, beta) = (&steps[t], sequence.beta[t]);
                let (q, k) = (&sequence.q[t], &sequence.k[t]);
                let d_o = &cotangent[row * n_m..(row + 1) * n_m];
                for i in 0..n_k {
                    for m in 0..n_m {
                        results[0][row * n_k + i] += step.state[i * n_m + m] * d_o[m];
                        ds[i * n_m + m] += q[i] * d_o[m];
                    }
                }
                for m in 0..n_m {
                    let de: f64 = (0..n_k).map(|i| ds[i * n_m + m] * k[i]).sum();
                    let dv = beta * de;
                    results[2][row * n_m + m] = dv;
                    results[4][*row] += de * step.error[m];
                    for i in 0..n_k {
                        let at = i * n_m + m;
                        results[1][row * n_k + i] +=
                            ds[at] * beta * step.error[m] - step.decayed[at] * dv;
                        ds[at] -= k[i] * dv;
                    }
                }
                let decay = sequence.g[t].exp();
                for (d, decayed) in ds.iter_mut().zip(&step.decayed) {
                    results[3][*row] += *d * decayed;
                    *d *= decay;
                }
            }
        })?;
        results
            .into_iter()
            .enumerate()
            .map(|(index, values)| array(call.arg(index)?.shape(), values))
            .collect()
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("gated_delta_rule_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(self.names().flops(args, 21), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        emit_call(call, "gated_delta_rule_grad", &[0, 1, 2, 5], &[0, 1, 2, 3, 4, 5])
    }
}

impl ParseOp for GatedDeltaRuleGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "gated_delta_rule_grad" {
            return Ok(None);
        }
        Ok(Some(GatedDeltaRuleGrad {
            time: attrs.take_word("time")?,
            head: attrs.take_word("head")?,
            key: attrs.take_word("key")?,
            value: attrs.take_word("value")?,
        }))
    }
}
