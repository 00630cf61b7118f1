//! The gated delta rule: a recurrence over time on one matrix per head.
//!
//! Per head, with state `S[k, m]` starting at 0:
//! `S <- exp(g_t) S; e = beta_t (v_t - S^T k_t); S <- S + k_t e^T; o_t = S^T q_t`.
//!
//! On the CPU the recurrence itself runs (module `native`): at the sizes of the
//! tiny stage it is faster than the chunked form, whose dozens of small
//! libtorch calls cost more than its matrix products save. Elsewhere, and
//! under autograd, the chunked form runs (module `chunked`). Both exponentiate
//! log decays, or differences of their sums within a chunk, and nothing else.

mod chunked;
mod native;

use tch::{Kind, Tensor};

use super::native::{by_kind, runs_native};
use super::support::{cast, ensure_same_kind, ensure_shape, shape_of, wide_kind};
use crate::Result;
use native::{backward_native, forward_native};

/// `(dq, dk, dv, dg, dbeta)`, each of its input's shape.
pub type DeltaGradients = (Tensor, Tensor, Tensor, Tensor, Tensor);

/// `q[b, t, h, k]`, `k[b, t, h, k]`, `v[b, t, h, m]`, log decay `g[b, t, h]`,
/// `beta[b, t, h]` -> `o[b, t, h, m]`:
/// `S <- exp(g_t) S; e = beta_t (v_t - S^T k_t); S <- S + k_t e^T; o_t = S^T q_t`
/// with the state `S[k, m]` of each head starting at 0.
pub fn gated_delta_rule(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    g: &Tensor,
    beta: &Tensor,
) -> Result<Tensor> {
    let inputs = Inputs { q, k, v, g, beta };
    let (kind, sizes) = inputs.check("gated_delta_rule")?;
    if kind != wide_kind(kind) {
        let [q, k, v, g, beta] = inputs.wide(kind)?;
        return cast(&gated_delta_rule(&q, &k, &v, &g, &beta)?, kind);
    }
    if runs_native(&[q, k, v, g, beta]) {
        return by_kind!(kind, forward_native(inputs, sizes));
    }
    chunked::forward(inputs, sizes)
}

/// [`gated_delta_rule`] composed of libtorch calls, in chunks of time.
pub fn gated_delta_rule_composite(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    g: &Tensor,
    beta: &Tensor,
) -> Result<Tensor> {
    let inputs = Inputs { q, k, v, g, beta };
    let (_, sizes) = inputs.check("gated_delta_rule")?;
    chunked::forward(inputs, sizes)
}

/// The gradients of [`gated_delta_rule`] for its inputs; `dout[b, t, h, m]`.
pub fn gated_delta_rule_grad(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    g: &Tensor,
    beta: &Tensor,
    dout: &Tensor,
) -> Result<DeltaGradients> {
    let inputs = Inputs { q, k, v, g, beta };
    let (kind, sizes) = inputs.check_grad(dout)?;
    if kind != wide_kind(kind) {
        let ([q, k, v, g, beta], dout) = (inputs.wide(kind)?, cast(dout, wide_kind(kind))?);
        let (dq, dk, dv, dg, dbeta) = gated_delta_rule_grad(&q, &k, &v, &g, &beta, &dout)?;
        let narrow = |d: Tensor| cast(&d, kind);
        return Ok((narrow(dq)?, narrow(dk)?, narrow(dv)?, narrow(dg)?, narrow(dbeta)?));
    }
    if runs_native(&[q, k, v, g, beta, dout]) {
        return by_kind!(kind, backward_native(inputs, dout, sizes));
    }
    chunked::backward(inputs, dout, sizes)
}

/// [`gated_delta_rule_grad`] composed of libtorch calls, in chunks of time.
pub fn gated_delta_rule_grad_composite(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    g: &Tensor,
    beta: &Tensor,
    dout: &Tensor,
) -> Result<DeltaGradients> {
    let inputs = Inputs { q, k, v, g, beta };
    let (_, sizes) = inputs.check_grad(dout)?;
    chunked::backward(inputs, dout, sizes)
}

/// The inputs of the rule.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    g: &'a Tensor,
    beta: &'a Tensor,
}

/// Batch, time, heads, keys and values.
#[derive(Clone, Copy)]
struct Sizes {
    b: i64,
    t: i64,
    h: i64,
    k: i64,
    m: i64,
}

impl Inputs<'_> {
    /// Below f32 the rule is computed in f32: libtorch solves no triangular systems in less.
    fn wide(&self, kind: Kind) -> Result<[Tensor; 5]> {
        let widen = |x: &Tensor| cast(x, wide_kind(kind));
        let (q, k, v) = (widen(self.q)?, widen(self.k)?, widen(self.v)?);
        Ok([q, k, v, widen(self.g)?, widen(self.beta)?])
    }

    fn check(&self, op: &'static str) -> Result<(Kind, Sizes)> {
        let kind = ensure_same_kind(op, &[self.q, self.k, self.v, self.g, self.beta])?;
        let [b, t, h, k] = shape_of(op, "q", self.q)?;
        let [_, _, _, m] = shape_of(op, "v", self.v)?;
        ensure_shape(op, "k", self.k, &[b, t, h, k])?;
        ensure_shape(op, "v", self.v, &[b, t, h, m])?;
        ensure_shape(op, "g", self.g, &[b, t, h])?;
        ensure_shape(op, "beta", self.beta, &[b, t, h])?;
        Ok((kind, Sizes { b, t, h, k, m }))
    }

    fn check_grad(&self, dout: &Tensor) -> Result<(Kind, Sizes)> {
        const OP: &str = "gated_delta_rule_grad";
        let (kind, sizes) = self.check(OP)?;
        let _ = ensure_same_kind(OP, &[self.q, dout])?;
        ensure_shape(OP, "dout", dout, &[sizes.b, sizes.t, sizes.h, sizes.m])?;
        Ok((kind, sizes))
    }
}
