//! The gated delta rule: a recurrence over time on one matrix per head.
//!
//! Per head, with state `S[k, m]` starting at 0:
//! `S <- exp(g_t) S; e = beta_t (v_t - S^T k_t); S <- S + k_t e^T; o_t = S^T q_t`.
//!
//! On the CPU the recurrence itself runs (module `native`): at the sizes of the
//! tiny stage it is faster than the chunked form, whose dozens of small
//! libtorch calls cost more than its matrix products save. On a GPU the tile
//! kernel runs where it can. Elsewhere, and under autograd, the chunked form
//! runs (module `chunked`). All exponentiate log decays, or differences of
//! their sums within a chunk, and nothing else.
//!
//! q, k and v have one kind; the decay and the write strength can have 32 bits
//! beside narrow heads. Then everything is computed in 32 bits, and each result
//! has the kind of its input (the output that of v).

mod chunked;
mod native;

use tch::{Kind, Tensor};

use super::native::{by_kind, runs_native};
use super::support::{cast, ensure, ensure_same_kind, ensure_shape, shape_of, wide_kind};
use super::tile;
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
    let _ = inputs.check_kinds("gated_delta_rule")?;
    let _ = inputs.sizes("gated_delta_rule")?;
    if tile::takes_delta_rule(q, v) {
        return tile::delta_rule(q, k, v, g, beta);
    }
    plain(q, k, v, g, beta)
}

/// [`gated_delta_rule`] without the tile kernel.
pub(super) fn plain(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    g: &Tensor,
    beta: &Tensor,
) -> Result<Tensor> {
    let given = Inputs { q, k, v, g, beta };
    let kind = given.check_kinds("gated_delta_rule")?;
    let sizes = given.sizes("gated_delta_rule")?;
    let [q, k, v, g, beta] = given.cast_to(kind)?;
    let inputs = Inputs { q: &q, k: &k, v: &v, g: &g, beta: &beta };
    let o = if runs_native(&[&q, &k, &v, &g, &beta]) {
        by_kind!(kind, forward_native(inputs, sizes))?
    } else {
        chunked::forward(inputs, sizes)?
    };
    cast(&o, given.v.kind())
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
    let _ = ensure_same_kind("gated_delta_rule", &[q, k, v, g, beta])?;
    let sizes = inputs.sizes("gated_delta_rule")?;
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
    let _ = inputs.check_grad(dout)?;
    if tile::takes_delta_rule(q, v) {
        return tile::delta_rule_grad(q, k, v, g, beta, dout);
    }
    plain_grad(q, k, v, g, beta, dout)
}

/// [`gated_delta_rule_grad`] without the tile kernel.
pub(super) fn plain_grad(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    g: &Tensor,
    beta: &Tensor,
    dout: &Tensor,
) -> Result<DeltaGradients> {
    let given = Inputs { q, k, v, g, beta };
    let (kind, sizes) = given.check_grad(dout)?;
    let ([q, k, v, g, beta], dout) = (given.cast_to(kind)?, cast(dout, kind)?);
    let inputs = Inputs { q: &q, k: &k, v: &v, g: &g, beta: &beta };
    let (dq, dk, dv, dg, dbeta) = if runs_native(&[&q, &k, &v, &g, &beta, &dout]) {
        by_kind!(kind, backward_native(inputs, &dout, sizes))?
    } else {
        chunked::backward(inputs, &dout, sizes)?
    };
    Ok((
        cast(&dq, given.q.kind())?,
        cast(&dk, given.k.kind())?,
        cast(&dv, given.v.kind())?,
        cast(&dg, given.g.kind())?,
        cast(&dbeta, given.beta.kind())?,
    ))
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
    let _ = ensure_same_kind("gated_delta_rule_grad", &[q, k, v, g, beta, dout])?;
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
    fn cast_to(&self, kind: Kind) -> Result<[Tensor; 5]> {
        let (q, k, v) = (cast(self.q, kind)?, cast(self.k, kind)?, cast(self.v, kind)?);
        Ok([q, k, v, cast(self.g, kind)?, cast(self.beta, kind)?])
    }

    /// The kind to compute in: at least f32, since libtorch solves no triangular systems in less. q, k
    /// and v have one kind, g and beta that one or the kind to compute in.
    fn check_kinds(&self, op: &'static str) -> Result<Kind> {
        let kind = ensure_same_kind(op, &[self.q, self.k, self.v])?;
        let wide = wide_kind(kind);
        for (name, x) in [("g", self.g), ("beta", self.beta)] {
            let (found, device) = (x.kind(), x.device());
            let fits = (found == kind || found == wide) && device == self.q.device();
            ensure(fits, op, || {
                let wanted = self.q.device();
                format!(
                    "{name} is {found:?} on {device:?}, {kind:?} or {wide:?} on {wanted:?} needed"
                )
            })?;
        }
        Ok(wide)
    }

    fn sizes(&self, op: &'static str) -> Result<Sizes> {
        let [b, t, h, k] = shape_of(op, "q", self.q)?;
        let [_, _, _, m] = shape_of(op, "v", self.v)?;
        ensure_shape(op, "k", self.k, &[b, t, h, k])?;
        ensure_shape(op, "v", self.v, &[b, t, h, m])?;
        ensure_shape(op, "g", self.g, &[b, t, h])?;
        ensure_shape(op, "beta", self.beta, &[b, t, h])?;
        Ok(Sizes { b, t, h, k, m })
    }

    fn check_grad(&self, dout: &Tensor) -> Result<(Kind, Sizes)> {
        const OP: &str = "gated_delta_rule_grad";
        let (kind, sizes) = (self.check_kinds(OP)?, self.sizes(OP)?);
        let _ = ensure_same_kind(OP, &[self.q, dout])?;
        ensure_shape(OP, "dout", dout, &[sizes.b, sizes.t, sizes.h, sizes.m])?;
        Ok((kind, sizes))
    }
}
