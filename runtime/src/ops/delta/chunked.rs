//! The chunked form, composed of libtorch calls over `[b * h, chunks, C, ..]`.
//!
//! With G the sum of g inside a chunk and `D_ij = exp(G_i - G_j)` for
//! `i >= j`: `L = strict_tril(beta_i D_ij k_i.k_j)`,
//! `U = (I + L)^-1 diag(beta) V`, `W = (I + L)^-1 diag(beta e^G) K`; then chunk
//! by chunk `N = U - W S`, `O = diag(e^G) Q S + (D o Q K^T) N`,
//! `S <- e^(G_C) S + K^T diag(e^(G_C - G)) N`. The upper half of D may
//! overflow, so it is left out by selection before the exponential.
//! The backward formulas are those of the same form, chunks last to first.

use tch::{Kind, Tensor};

use super::{DeltaGradients, Inputs, Sizes};
use crate::Result;
use crate::ops::support::{cast, scalar};

/// Steps per chunk.
const CHUNK: i64 = 64;

/// Forward pass, differentiable by libtorch.
pub(super) fn forward(inputs: Inputs<'_>, sizes: Sizes) -> Result<Tensor> {
    if sizes.t == 0 {
        return Ok(inputs.v.f_zeros_like()?);
    }
    let layout = Layout::of(sizes);
    let chunks = Chunks::new(inputs, layout)?;
    let (u, w) = chunks.solve()?;
    let reads = chunks.reads()?;
    let mut state = layout.no_state(inputs.v)?;
    let mut outs = Vec::new();
    for c in 0..layout.n_chunks {
        let new = at(&u, c)?.f_sub(&at(&w, c)?.f_bmm(&state)?)?;
        let old = at(&chunks.q_decayed, c)?.f_bmm(&state)?;
        outs.push(old.f_baddbmm(&at(&reads, c)?, &new, 1.0, 1.0)?);
        state = chunks.advance(c, &state, &new)?;
    }
    layout.heads_last(&Tensor::f_stack(&outs, 1)?, Some(sizes.m))
}

/// Backward pass.
pub(super) fn backward(inputs: Inputs<'_>, dout: &Tensor, sizes: Sizes) -> Result<DeltaGradients> {
    if sizes.t == 0 {
        let [dq, dk, dv, dg, dbeta] =
            [inputs.q, inputs.k, inputs.v, inputs.g, inputs.beta].map(|x| x.f_zeros_like());
        return Ok((dq?, dk?, dv?, dg?, dbeta?));
    }
    let layout = Layout::of(sizes);
    let chunks = Chunks::new(inputs, layout)?;
    let dout = layout.heads_first(dout)?;
    let (u, w) = chunks.solve()?;
    let sweep = chunks.sweep(&u, &w, &dout, layout.no_state(inputs.v)?)?;
    let parts = chunks.gradients(&u, &w, &dout, &sweep)?;
    Ok((
        layout.heads_last(&parts.dq, Some(sizes.k))?,
        layout.heads_last(&parts.dk, Some(sizes.k))?,
        layout.heads_last(&parts.dv, Some(sizes.m))?,
        layout.heads_last(&parts.dg, None)?,
        layout.heads_last(&parts.dbeta, None)?,
    ))
}

/// How time is cut.
#[derive(Clone, Copy)]
struct Layout {
    sizes: Sizes,
    n_chunks: i64,
    chunk: i64,
}

impl Layout {
    fn of(sizes: Sizes) -> Layout {
        let chunk = CHUNK.min(sizes.t);
        Layout { sizes, n_chunks: (sizes.t + chunk - 1) / chunk, chunk }
    }

    /// `[b, t, h, ..]` -> `[b * h, chunks, C, ..]`, padded with zeros: a step
    /// with beta 0 and g 0 does nothing.
    fn heads_first(self, x: &Tensor) -> Result<Tensor> {
        let Sizes { b, t, h, .. } = self.sizes;
        let width = x.size().get(3).copied();
        let moved = x.f_transpose(1, 2)?;
        let padded = crate::ops::pad(&moved, 2, 0, self.n_chunks * self.chunk - t)?;
        let mut shape = vec![b * h, self.n_chunks, self.chunk];
        shape.extend(width);
        Ok(padded.f_reshape(&shape)?)
    }

    /// The inverse; no `width`, no last dimension.
    fn heads_last(self, x: &Tensor, width: Option<i64>) -> Result<Tensor> {
        let Sizes { b, t, h, .. } = self.sizes;
        let mut shape = vec![b, h, self.n_chunks * self.chunk];
        shape.extend(width);
        Ok(x.f_reshape(&shape)?.f_narrow(2, 0, t)?.f_transpose(1, 2)?)
    }

    fn no_state(self, like: &Tensor) -> Result<Tensor> {
        let Sizes { b, h, k, m, .. } = self.sizes;
        Ok(Tensor::f_zeros([b * h, k, m], (like.kind(), like.device()))?)
    }
}

/// Chunk `c`.
fn at(x: &Tensor, c: i64) -> Result<Tensor> {
    Ok(x.f_select(1, c)?)
}

fn transposed(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_transpose(-2, -1)?)
}

/// Sum over the last dimension.
fn row_sum(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_sum_dim_intlist(&[-1i64][..], false, None::<Kind>)?)
}

/// Sum over the last dimension of `a * b`.
fn row_dot(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    row_sum(&a.f_mul(b)?)
}

/// Row sums less column sums: the gradient of G from that of `G_i - G_j`.
fn row_less_column(x: &Tensor) -> Result<Tensor> {
    Ok(row_sum(x)?.f_sub(&row_sum(&transposed(x)?)?)?)
}

/// What depends on the inputs alone. Vectors over steps end in a dimension
/// of 1.
struct Chunks {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// `[.., C, 1]`.
    beta: Tensor,
    /// `e^G`, `[.., C, 1]`.
    decay: Tensor,
    /// `e^(G_C)`, `[.., 1, 1]`.
    last_decay: Tensor,
    /// `e^(G_C - G)`, `[.., C, 1]`.
    rest_decay: Tensor,
    /// `D`, 0 above the diagonal.
    between: Tensor,
    /// `K K^T`.
    kk: Tensor,
    /// `diag(e^G) Q`.
    q_decayed: Tensor,
}

/// What the two sweeps over chunks leave: the state entering each chunk, the
/// new values, and the gradients of the new values and of the state leaving.
struct Sweep {
    state: Tensor,
    new: Tensor,
    dnew: Tensor,
    dleaving: Tensor,
}

struct Parts {
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dg: Tensor,
    dbeta: Tensor,
}

impl Chunks {
    fn new(inputs: Inputs<'_>, layout: Layout) -> Result<Chunks> {
        let q = layout.heads_first(inputs.q)?;
        let k = layout.heads_first(inputs.k)?;
        let v = layout.heads_first(inputs.v)?;
        let beta = layout.heads_first(inputs.beta)?.f_unsqueeze(-1)?;
        // Sums of a strong decay reach into the hundreds, where f32 holds their
        // differences to 1e-4 only: they are taken in f64.
        let g = layout.heads_first(inputs.g)?;
        let sums = g.f_cumsum(-1, Kind::Double)?.f_unsqueeze(-1)?;
        let last = sums.f_narrow(-2, layout.chunk - 1, 1)?;
        let exp = |x: &Tensor| -> Result<Tensor> { Ok(cast(x, inputs.q.kind())?.f_exp()?) };
        let chunk = [layout.chunk, layout.chunk];
        let past = Tensor::f_ones(chunk, (Kind::Bool, q.device()))?.f_tril(0)?;
        let never = scalar(f64::NEG_INFINITY, &sums)?;
        let apart = sums.f_sub(&transposed(&sums)?)?.f_where_self(&past, &never)?;
        let (between, decay) = (exp(&apart)?, exp(&sums)?);
        Ok(Chunks {
            q_decayed: q.f_mul(&decay)?,
            kk: k.f_matmul(&transposed(&k)?)?,
            rest_decay: exp(&last.f_sub(&sums)?)?,
            last_decay: exp(&last)?,
            q,
            k,
            v,
            beta,
            decay,
            between,
        })
    }

    /// `L`, 0 on and above the diagonal.
    fn lower(&self) -> Result<Tensor> {
        Ok(self.kk.f_mul(&self.between)?.f_mul(&self.beta)?.f_tril(-1)?)
    }

    /// `U` and `W`.
    fn solve(&self) -> Result<(Tensor, Tensor)> {
        let right = Tensor::f_cat(&[self.v.f_mul(&self.beta)?, self.k_written()?], -1)?;
        let solved = self.lower()?.f_linalg_solve_triangular(&right, false, true, true)?;
        let (m, k) = (width(&self.v), width(&self.k));
        Ok((solved.f_narrow(-1, 0, m)?, solved.f_narrow(-1, m, k)?))
    }

    /// `diag(beta e^G) K`.
    fn k_written(&self) -> Result<Tensor> {
        Ok(self.k.f_mul(&self.beta.f_mul(&self.decay)?)?)
    }

    /// `D o Q K^T`.
    fn reads(&self) -> Result<Tensor> {
        Ok(self.q.f_matmul(&transposed(&self.k)?)?.f_mul(&self.between)?)
    }

    /// The state after chunk `c`.
    fn advance(&self, c: i64, state: &Tensor, new: &Tensor) -> Result<Tensor> {
        let written = at(&self.k, c)?.f_mul(&at(&self.rest_decay, c)?)?;
        let kept = state.f_mul(&at(&self.last_decay, c)?)?;
        Ok(kept.f_baddbmm(&transposed(&written)?, new, 1.0, 1.0)?)
    }

    /// Chunks first to last for the states, last to first for the gradients.
    fn sweep(&self, u: &Tensor, w: &Tensor, dout: &Tensor, start: Tensor) -> Result<Sweep> {
        let n_chunks = u.size().get(1).copied().unwrap_or(0);
        let (mut states, mut news) = (Vec::new(), Vec::new());
        let mut dstate = start.f_zeros_like()?;
        let mut state = start;
        for c in 0..n_chunks {
            let new = at(u, c)?.f_sub(&at(w, c)?.f_bmm(&state)?)?;
            let next = self.advance(c, &state, &new)?;
            states.push(std::mem::replace(&mut state, next));
            news.push(new);
        }
        let from_reads = transposed(&self.reads()?)?.f_matmul(dout)?;
        let from_state = transposed(&self.q_decayed)?.f_matmul(dout)?;
        let (mut dnews, mut dleavings) = (Vec::new(), Vec::new());
        for c in (0..n_chunks).rev() {
            let written = at(&self.k, c)?.f_mul(&at(&self.rest_decay, c)?)?;
            let dnew = at(&from_reads, c)?.f_baddbmm(&written, &dstate, 1.0, 1.0)?;
            let kept = dstate.f_mul(&at(&self.last_decay, c)?)?.f_add(&at(&from_state, c)?)?;
            let entering = kept.f_baddbmm(&transposed(&at(w, c)?)?, &dnew, 1.0, -1.0)?;
            dleavings.push(std::mem::replace(&mut dstate, entering));
            dnews.push(dnew);
        }
        dnews.reverse();
        dleavings.reverse();
        Ok(Sweep {
            state: Tensor::f_stack(&states, 1)?,
            new: Tensor::f_stack(&news, 1)?,
            dnew: Tensor::f_stack(&dnews, 1)?,
            dleaving: Tensor::f_stack(&dleavings, 1)?,
        })
    }

    /// All that is not sequential.
    fn gradients(&self, u: &Tensor, w: &Tensor, dout: &Tensor, sweep: &Sweep) -> Result<Parts> {
        let outer = self.outer_gradients(dout, sweep)?;
        let dw = sweep.dnew.f_matmul(&transposed(&sweep.state)?)?.f_neg()?;
        let right = Tensor::f_cat(&[&sweep.dnew, &dw], -1)?;
        let upper = transposed(&self.lower()?)?;
        let solved = upper.f_linalg_solve_triangular(&right, true, true, true)?;
        let (m, k) = (width(&self.v), width(&self.k));
        let (y, x) = (solved.f_narrow(-1, 0, m)?, solved.f_narrow(-1, m, k)?);
        let dlower = x.f_matmul(&transposed(w)?)?.f_add(&y.f_matmul(&transposed(u)?)?)?;
        let z = dlower.f_tril(-1)?.f_neg()?.f_mul(&self.between)?;
        let zk = z.f_matmul(&self.k)?;
        let written = self.beta.f_mul(&self.decay)?;

        let dk = outer
            .dk
            .f_add(&x.f_mul(&written)?)?
            .f_add(&zk.f_mul(&self.beta)?)?
            .f_add(&transposed(&z)?.f_matmul(&self.k.f_mul(&self.beta)?)?)?;
        let dbeta = row_dot(&x, &self.k.f_mul(&self.decay)?)?
            .f_add(&row_dot(&y, &self.v)?)?
            .f_add(&row_dot(&zk, &self.k)?)?;
        let dsums = outer
            .dsums
            .f_add(&row_dot(&x, &self.k_written()?)?)?
            .f_add(&row_less_column(&z.f_mul(&self.kk)?.f_mul(&self.beta)?)?)?;
        // G is a running sum, so g gets the sum from its step on.
        let dg = dsums.f_flip([-1i64])?.f_cumsum(-1, None::<Kind>)?.f_flip([-1i64])?;
        Ok(Parts { dq: outer.dq, dk, dv: y.f_mul(&self.beta)?, dg, dbeta })
    }

    /// The part that does not pass through `U` and `W`.
    fn outer_gradients(&self, dout: &Tensor, sweep: &Sweep) -> Result<Outer> {
        let qk = self.q.f_matmul(&transposed(&self.k)?)?;
        let dp = dout.f_matmul(&transposed(&sweep.new)?)?.f_mul(&self.between)?;
        let dq_state = dout.f_matmul(&transposed(&sweep.state)?)?.f_mul(&self.decay)?;
        let dk_state =
            sweep.new.f_matmul(&transposed(&sweep.dleaving)?)?.f_mul(&self.rest_decay)?;
        let dk_dot = row_dot(&dk_state, &self.k)?;
        let kept = sweep.state.f_mul(&sweep.dleaving)?.f_mul(&self.last_decay)?;
        let kept = kept.f_sum_dim_intlist(&[-2i64, -1][..], false, None::<Kind>)?;
        let total = dk_dot.f_sum_dim_intlist(&[-1i64][..], false, None::<Kind>)?.f_add(&kept)?;
        let steps = width(&dk_dot);
        let at_last = crate::ops::pad(&total.f_unsqueeze(-1)?, 2, steps - 1, 0)?;
        let dsums = row_dot(&dq_state, &self.q)?
            .f_sub(&dk_dot)?
            .f_add(&row_less_column(&dp.f_mul(&qk)?)?)?
            .f_add(&at_last)?;
        Ok(Outer {
            dq: dq_state.f_add(&dp.f_matmul(&self.k)?)?,
            dk: dk_state.f_add(&transposed(&dp)?.f_matmul(&self.q)?)?,
            dsums,
        })
    }
}

struct Outer {
    dq: Tensor,
    dk: Tensor,
    dsums: Tensor,
}

/// Size of the last dimension.
fn width(x: &Tensor) -> i64 {
    x.size().last().copied().unwrap_or(0)
}
