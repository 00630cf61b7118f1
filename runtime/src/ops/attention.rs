//! Attention under a mask, and the selection that makes the mask.

use lightc_numerics::attention::{AttentionForm, MaskBound};
use tch::{Kind, Tensor};

use super::native::{Host, Output, Real, by_kind, parallel_fill, runs_native};
use super::support::{
    cast, ensure, ensure_kind, ensure_same_kind, ensure_shape, is_float, scalar, shape_of, watched,
    wide_kind,
};
use super::tile;
use crate::Result;

/// `q[b, t, h, k]`, `k[b, s, h, k]`, `v[b, s, h, m]`, `mask[b, t, s]` bool ->
/// `[b, t, h, m]`: softmax of `q.k` (no scale) over the allowed s. A query
/// that may see nothing gives 0.
///
/// # Errors
/// Shapes, kinds or devices that do not fit, and those of libtorch and the GPU.
pub fn masked_attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    masked_attention_within(q, k, v, mask, MaskBound::default())
}

/// [`masked_attention`] under a mask of which something is known. The result is the same; on a GPU the
/// kernel is chosen by it, by the rule of [`lightc_numerics::attention`], and a mask that breaks it stops the
/// program where memory would else be overrun or confused.
///
/// # Errors
/// As [`masked_attention`].
pub fn masked_attention_within(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
    bound: MaskBound,
) -> Result<Tensor> {
    masked_attention_by(tile::form_of(q, bound), q, k, v, mask, bound)
}

/// [`masked_attention_within`] in a form that is named and not chosen, for comparisons of both.
///
/// # Errors
/// As there, and where keys are to be gathered and nothing bounds their number.
pub fn masked_attention_by(
    form: AttentionForm,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
    bound: MaskBound,
) -> Result<Tensor> {
    watched("masked_attention", &[q, k, v], || {
        check("masked_attention", q, k, v, mask)?;
        if tile::takes_attention(q, k, v) {
            return tile::attention(form, [q, k, v, mask], bound);
        }
        masked_attention_composite(q, k, v, mask)
    })
}

/// [`masked_attention`] composed of libtorch calls.
pub fn masked_attention_composite(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
) -> Result<Tensor> {
    check("masked_attention", q, k, v, mask)?;
    let (q, k, v) = (heads_first(q)?, heads_first(k)?, heads_first(v)?);
    heads_last(&probabilities(&q, &k, mask)?.f_matmul(&v)?)
}

/// The gradients of [`masked_attention`] for q, k and v; `dout[b, t, h, m]`.
pub fn masked_attention_grad(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
    dout: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    masked_attention_grad_within(q, k, v, mask, dout, MaskBound::default())
}

/// The gradients of [`masked_attention_within`].
///
/// # Errors
/// As there.
pub fn masked_attention_grad_within(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
    dout: &Tensor,
    bound: MaskBound,
) -> Result<(Tensor, Tensor, Tensor)> {
    masked_attention_grad_by(tile::form_of(q, bound), [q, k, v, mask, dout], bound)
}

/// [`masked_attention_grad_within`] in a form that is named and not chosen, of `[q, k, v, mask, dout]`.
///
/// # Errors
/// As there, and where keys are to be gathered and nothing bounds their number.
pub fn masked_attention_grad_by(
    form: AttentionForm,
    [q, k, v, mask, dout]: [&Tensor; 5],
    bound: MaskBound,
) -> Result<(Tensor, Tensor, Tensor)> {
    check_grad(q, k, v, mask, dout)?;
    if tile::takes_attention(q, k, v) {
        return tile::attention_grad(form, [q, k, v, mask, dout], bound);
    }
    masked_attention_grad_composite(q, k, v, mask, dout)
}

/// [`masked_attention_grad`] composed of libtorch calls.
pub fn masked_attention_grad_composite(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
    dout: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    check_grad(q, k, v, mask, dout)?;
    let (q, k, v) = (heads_first(q)?, heads_first(k)?, heads_first(v)?);
    let dout = heads_first(dout)?;
    let p = probabilities(&q, &k, mask)?;
    let dv = p.f_transpose(-2, -1)?.f_matmul(&dout)?;
    let dp = dout.f_matmul(&v.f_transpose(-2, -1)?)?;
    // Zero where p is: a row that sees nothing has no gradient.
    let ds = Tensor::f_internal_softmax_backward_data(&dp, &p, -1, p.kind())?;
    let dq = ds.f_matmul(&k)?;
    let dk = ds.f_transpose(-2, -1)?.f_matmul(&q)?;
    Ok((heads_last(&dq)?, heads_last(&dk)?, heads_last(&dv)?))
}

fn check(op: &'static str, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<()> {
    let _ = ensure_same_kind(op, &[q, k, v])?;
    let [b, t, h, c] = shape_of(op, "q", q)?;
    let [_, s, _, _] = shape_of(op, "k", k)?;
    let [_, _, _, m] = shape_of(op, "v", v)?;
    ensure_shape(op, "k", k, &[b, s, h, c])?;
    ensure_shape(op, "v", v, &[b, s, h, m])?;
    ensure_shape(op, "mask", mask, &[b, t, s])?;
    ensure_kind(op, "mask", mask, Kind::Bool)
}

fn check_grad(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor, dout: &Tensor) -> Result<()> {
    const OP: &str = "masked_attention_grad";
    check(OP, q, k, v, mask)?;
    let [b, t, h, _] = shape_of(OP, "q", q)?;
    let [_, _, _, m] = shape_of(OP, "v", v)?;
    ensure_shape(OP, "dout", dout, &[b, t, h, m])?;
    let _ = ensure_same_kind(OP, &[q, dout])?;
    Ok(())
}

fn heads_first(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_permute([0i64, 2, 1, 3])?.f_contiguous()?)
}

fn heads_last(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_permute([0i64, 2, 1, 3])?)
}

/// `[b, h, t, s]` of the kind of q, 0 where the mask forbids. The softmax is
/// taken in at least f32. Both selections matter: the first keeps forbidden
/// scores out of the softmax, the second replaces the NaN of an empty row.
fn probabilities(q: &Tensor, k: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let scores = q.f_matmul(&k.f_transpose(-2, -1)?)?;
    let scores = cast(&scores, wide_kind(scores.kind()))?;
    let allowed = mask.f_unsqueeze(1)?;
    let held = scores.f_where_self(&allowed, &scalar(f64::NEG_INFINITY, &scores)?)?;
    let p = held.f_softmax(-1, None::<Kind>)?;
    let p = p.f_where_self(&allowed, &scalar(0.0, &p)?)?;
    cast(&p, q.kind())
}

/// `score[b, t, s]`, `budget[b, t]` -> bool `[b, t, s]`, t and s of one
/// length. In row t the candidates are `s <= t`; `n = min(max(1,
/// floor(budget)), limit, t + 1)` of them are chosen: first the candidates
/// `s < sinks`, then those of the highest score, equal scores going to the
/// smaller s. A NaN score ranks highest; -0 equals 0.
pub fn select_top(score: &Tensor, budget: &Tensor, sinks: i64, limit: i64) -> Result<Tensor> {
    const OP: &str = "select_top";
    let [b, t, s] = shape_of(OP, "score", score)?;
    ensure(t == s, OP, || format!("{t} queries but {s} keys in score [{b}, {t}, {s}]"))?;
    ensure_shape(OP, "budget", budget, &[b, t])?;
    ensure(is_float(score.kind()) && is_float(budget.kind()), OP, || {
        format!("score is {:?}, budget {:?}: floats needed", score.kind(), budget.kind())
    })?;
    ensure(sinks >= 0 && limit >= 0, OP, || format!("negative sinks {sinks} or limit {limit}"))?;
    let (score, budget) = (score.f_detach()?, budget.f_detach()?);
    if tile::takes_select(&score) {
        return tile::select(&score, &budget, sinks, limit);
    }
    if runs_native(&[&score]) {
        return by_kind!(score.kind(), select_top_native(&score, &budget, sinks, limit));
    }
    select_top_composite(&score, &budget, sinks, limit)
}

/// [`select_top`] by a stable descending sort: equal scores stay in the order
/// of s, and what is no candidate (score -inf) stands after every candidate
/// because its s is larger.
pub fn select_top_composite(
    score: &Tensor,
    budget: &Tensor,
    sinks: i64,
    limit: i64,
) -> Result<Tensor> {
    let [b, t, s] = shape_of("select_top", "score", score)?;
    let at = Tensor::f_arange(s, (Kind::Int64, score.device()))?;
    let queries = at.f_unsqueeze(1)?;
    let never = scalar(f64::NEG_INFINITY, score)?;
    let key = scalar(f64::INFINITY, score)?.f_where_self(&at.f_lt(sinks)?, score)?;
    let key = key.f_where_self(&at.f_le_tensor(&queries)?, &never)?;
    let (_, order) = key.f_sort_stable(true, -1, true)?;
    let n = budget.f_floor()?.f_clamp(1.0, limit.max(1) as f64)?.f_clamp_max(limit as f64)?;
    let n = n.f_unsqueeze(-1)?.f_minimum(&queries.f_add_scalar(1)?.f_to_kind(n.kind())?)?;
    let chosen = at.f_lt_tensor(&n)?.f_expand([b, t, s], false)?;
    let none = Tensor::f_zeros([b, t, s], (Kind::Bool, score.device()))?;
    Ok(none.f_scatter(-1, &order, &chosen)?)
}

fn select_top_native<T: Real>(
    score: &Tensor,
    budget: &Tensor,
    sinks: i64,
    limit: i64,
) -> Result<Tensor> {
    let shape = score.size();
    let s = shape.last().copied().unwrap_or(0) as usize;
    let score = Host::of(score)?;
    let budget = Host::of(&cast(budget, Kind::Double)?)?;
    let (score, budget) = (score.slice::<T>(), budget.slice::<f64>());
    let (sinks, limit) = (sinks as usize, limit as usize);
    let mut out = Output::zeros::<bool>(&shape)?;
    parallel_fill(out.slice::<bool>(), s, score.len() * 16, |row, chosen| {
        let t = row % s;
        // A NaN budget counts as 1, and a float beyond usize saturates.
        let n = (budget[row].floor().max(1.0) as usize).min(limit).min(t + 1);
        choose(&score[row * s..][..=t], n, sinks, &mut chosen[..=t]);
    });
    Ok(out.into_tensor())
}

/// Marks the `n` best candidates of one row.
fn choose<T: Real>(score: &[T], n: usize, sinks: usize, chosen: &mut [bool]) {
    let n_sinks = sinks.min(score.len()).min(n);
    chosen[..n_sinks].fill(true);
    let n_scored = n - n_sinks;
    if n_scored == 0 {
        return;
    }
    let mut order: Vec<u32> = (n_sinks as u32..score.len() as u32).collect();
    if n_scored < order.len() {
        // A total order, so the set of the first n does not depend on how it
        // is found: NaN first, then by score, then by place.
        let _ = order.select_nth_unstable_by(n_scored - 1, |&a, &b| {
            let (x, y) = (score[a as usize], score[b as usize]);
            let by_score = y.partial_cmp(&x).unwrap_or_else(|| is_nan(y).cmp(&is_nan(x)));
            by_score.then(a.cmp(&b))
        });
    }
    for &place in &order[..n_scored] {
        chosen[place as usize] = true;
    }
}

fn is_nan<T: Real>(x: T) -> bool {
    x.partial_cmp(&x).is_none()
}
