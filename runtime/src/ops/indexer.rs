//! The indexer of sparse attention in one call: scores, their variance, the budget and the selection.

use tch::{Kind, Tensor};

use super::attention::select_top;
use super::support::{cast, ensure_shape, scalar, shape_of, wide_kind};
use super::tile;
use crate::Result;

/// The numbers of an indexer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IndexerNumbers {
    /// The budget of a row whose variance is the running mean.
    pub base: f64,
    /// The smallest budget.
    pub low: f64,
    /// The largest budget.
    pub high: f64,
    /// Keys that are always chosen first.
    pub sinks: i64,
    /// The most keys that one query takes.
    pub limit: i64,
}

/// `q[b, t, i, c]`, `k[b, t, c]`, `heed[b, t, i]`, `bias[i]`, `ema[]` -> bool `[b, t, t]` and `[b, t]`:
///
/// - `score[t, s] = sum over i of heed[t, i] sigmoid(q[t, i] . k[s] / sqrt(c) + bias[i])`, at least f32
/// - variance: of each row over all columns, where one of a later key counts as 0
/// - budget: `clamp(floor(base variance / max(ema, 1e-6)), low, high)`
/// - the selection is that of [`select_top`] with `sinks` and `limit`
pub fn indexer(
    q: &Tensor,
    k: &Tensor,
    heed: &Tensor,
    bias: &Tensor,
    ema: &Tensor,
    numbers: IndexerNumbers,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "indexer";
    let [b, t, i, c] = shape_of(OP, "q", q)?;
    ensure_shape(OP, "k", k, &[b, t, c])?;
    ensure_shape(OP, "heed", heed, &[b, t, i])?;
    ensure_shape(OP, "bias", bias, &[i])?;
    ensure_shape(OP, "ema", ema, &[])?;
    let inputs = [q, k, heed, bias, ema].map(Tensor::detach);
    let inputs = inputs.each_ref();
    if tile::takes_index(q) {
        tile::index(inputs, numbers)
    } else {
        indexer_composite(inputs, numbers)
    }
}

/// [`indexer`] composed of libtorch calls.
pub fn indexer_composite(
    [q, k, heed, bias, ema]: [&Tensor; 5],
    numbers: IndexerNumbers,
) -> Result<(Tensor, Tensor)> {
    let [_, t, _, c] = shape_of("indexer", "q", q)?;
    let kind = wide_kind(q.kind());
    let (q, k) = (cast(q, kind)?.f_transpose(1, 2)?, cast(k, kind)?.f_unsqueeze(1)?);
    let heed = cast(heed, kind)?.f_transpose(1, 2)?.f_unsqueeze(-1)?;
    let bias = cast(bias, kind)?.f_reshape([1, -1, 1, 1])?;
    let matched = q.f_matmul(&k.f_transpose(-2, -1)?)?.f_mul_scalar(1.0 / (c as f64).sqrt())?;
    let score = matched.f_add(&bias)?.f_sigmoid()?.f_mul(&heed)?;
    let score = score.f_sum_dim_intlist(&[1i64][..], false, None::<Kind>)?;
    let past = score.f_tril(0)?;
    let mean = past.f_mean_dim(&[-1i64][..], true, None::<Kind>)?;
    let variance = past.f_sub(&mean)?.f_square()?.f_mean_dim(&[-1i64][..], false, None::<Kind>)?;
    let ema = cast(ema, kind)?.f_maximum(&scalar(1e-6, &variance)?)?;
    let wanted = variance.f_mul_scalar(numbers.base)?.f_div(&ema)?.f_floor()?;
    let budget = wanted.f_clamp(numbers.low, numbers.high)?;
    debug_assert_eq!(score.size().last(), Some(&t));
    Ok((select_top(&score, &budget, numbers.sinks, numbers.limit)?, variance))
}
