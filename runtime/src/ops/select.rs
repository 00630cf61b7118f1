//! Positions: arithmetic that keeps none, the largest scores, counts, and values at an index.
//!
//! An index is a 64-bit integer; a negative one is none. Sums of gradients run in the order of the
//! index tensor, so they are the same on every run.

use tch::{Device, Kind, Tensor};

use super::gather::{check_index, scatter_composite, scatter_native};
use super::native::{by_kind, runs_native};
use super::support::{cast, ensure, is_float, op_error};
use super::tile::{self, Walk};
use crate::{Precision, Result};

/// `value` where `holds` is true and `value` is not negative, else -1.
fn some_or_none(value: &Tensor, holds: &Tensor) -> Result<Tensor> {
    let keep = value.f_ge(0)?.f_logical_and(holds)?;
    Ok(value.f_where_self(&keep, &value.f_full_like(-1)?)?)
}

fn ensure_index(op: &'static str, ids: &Tensor) -> Result<Tensor> {
    ensure(!is_float(ids.kind()) && ids.kind() != Kind::Bool, op, || {
        format!("the index is {:?}, an integer kind is needed", ids.kind())
    })?;
    cast(ids, Kind::Int64)
}

/// `x * mul + add`, and -1 where that or `x` is negative.
pub fn index_affine(x: &Tensor, mul: i64, add: i64) -> Result<Tensor> {
    let x = ensure_index("index_affine", x)?;
    some_or_none(&x.f_mul_scalar(mul)?.f_add_scalar(add)?, &x.f_ge(0)?)
}

macro_rules! index_binary {
    ($($(#[$doc:meta])* $name:ident => $call:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(a: &Tensor, b: &Tensor) -> Result<Tensor> {
            let op = stringify!($name);
            let (a, b) = (ensure_index(op, a)?, ensure_index(op, b)?);
            some_or_none(&a.$call(&b)?, &a.f_ge(0)?.f_logical_and(&b.f_ge(0)?)?)
        }
    )*};
}

index_binary! {
    /// `a + b`, and -1 where one of the three is negative.
    index_add => f_add;
    /// `a - b`, and -1 where one of the three is negative.
    index_sub => f_sub;
    /// `a * b`, and -1 where one of the three is negative.
    index_mul => f_mul;
}

/// `ids` where they are below `limit`, else -1; -1 where they are negative.
pub fn below(ids: &Tensor, limit: i64) -> Result<Tensor> {
    let ids = ensure_index("below", ids)?;
    some_or_none(&ids, &ids.f_lt(limit)?)
}

/// Whole numbers as positions.
pub fn to_index(x: &Tensor) -> Result<Tensor> {
    ensure(is_float(x.kind()), "index", || {
        format!("the value is {:?}, whole numbers in f32 are needed", x.kind())
    })?;
    let whole = x.f_floor()?.f_eq_tensor(x)?.f_logical_and(&x.f_isfinite()?)?;
    let all = whole.f_all()?.f_int64_value(&[])? != 0;
    ensure(all, "index", || "a value is not a whole number".into())?;
    cast(x, Kind::Int64)
}

/// A single position on the device of `like`.
pub fn constant_index(value: f64, like: &Tensor) -> Result<Tensor> {
    ensure(value.fract() == 0.0, "index", || format!("{value} is not a whole number"))?;
    Ok(Tensor::f_full([0i64; 0], value as i64, (Kind::Int64, like.device()))?)
}

/// `score[.., e]` -> `[.., slots]`: the positions of the largest, the largest first; of equal
/// scores the smaller position. (libtorch's `topk` does not say which of equal ones it takes.)
pub fn top(score: &Tensor, slots: i64) -> Result<Tensor> {
    let n = score.size().last().copied().unwrap_or(0);
    ensure(is_float(score.kind()), "top", || format!("the score is {:?}", score.kind()))?;
    ensure((0..=n).contains(&slots), "top", || {
        format!("{slots} positions of {n} are asked for, score has shape {:?}", score.size())
    })?;
    if tile::takes_top(score, slots) {
        return tile::top(score, slots);
    }
    top_composite(score, slots)
}

/// [`top`] composed of libtorch calls, without its checks.
pub(super) fn top_composite(score: &Tensor, slots: i64) -> Result<Tensor> {
    let (_, order) = score.f_sort_stable(true, -1, true)?;
    Ok(order.f_narrow(-1, 0, slots)?.f_contiguous()?)
}

/// How often each of `size` positions occurs in `ids`, negative ones left out; as f32, or as f64
/// in an f64 run. `like` is any tensor of the run's activation kind.
pub fn count(ids: &Tensor, size: i64, like: &Tensor) -> Result<Tensor> {
    let (ids, kind) = (ensure_index("count", ids)?, Precision::F32.kind(like.kind()));
    if kind == Kind::Float && tile::takes_order(&ids, size) {
        return tile::count(&ids, size);
    }
    count_composite(&ids, size, kind)
}

/// [`count`] composed of libtorch calls, which on a GPU wait for the device.
pub(super) fn count_composite(ids: &Tensor, size: i64, kind: Kind) -> Result<Tensor> {
    let counts = counted("count", &ids.f_reshape([-1i64])?, size)?;
    cast(&counts.f_narrow(0, 1, size)?, kind)
}

/// How often none occurs, then each of `size` positions, for flat `ids`.
pub(super) fn counted(op: &'static str, ids: &Tensor, size: i64) -> Result<Tensor> {
    let from_one = ids.f_clamp_min(-1)?.f_add_scalar(1)?;
    let counts = from_one.f_bincount(None::<&Tensor>, size + 1)?;
    let found = counts.numel() as i64;
    ensure(found == size + 1, op, || format!("index {} is outside {size} positions", found - 2))?;
    Ok(counts)
}

/// Lengths of what an index walks: batches, and indices in each.
fn batches(op: &'static str, ids: &Tensor, batch: i64) -> Result<(Vec<i64>, i64, i64)> {
    let size = ids.size();
    let split = usize::try_from(batch).ok().and_then(|n| size.split_at_checked(n));
    let (front, free) = split
        .ok_or_else(|| op_error(op, format!("ids of shape {size:?} have no {batch} batch axes")))?;
    Ok((front.to_vec(), front.iter().product(), free.iter().product()))
}

/// Positions of batch b moved by b times the number of `rows`, flat; none stays negative.
fn flat_index(ids: &Tensor, n_batch: i64, n_free: i64, rows: i64) -> Result<Tensor> {
    let ids = ids.f_reshape([n_batch, n_free])?;
    if n_batch <= 1 {
        return Ok(ids.f_reshape([-1i64])?);
    }
    let first = Tensor::f_arange(n_batch, (Kind::Int64, ids.device()))?.f_mul_scalar(rows)?;
    let moved = ids.f_add(&first.f_unsqueeze(-1)?)?;
    Ok(ids.f_where_self(&ids.f_lt(0)?, &moved)?.f_reshape([-1i64])?)
}

/// `x[batch.., e, rest..]`, `ids[batch.., free..]` -> `[batch.., free.., rest..]`: `x` at the
/// index, 0 for none. The first `batch` axes of both meet.
pub fn take(x: &Tensor, ids: &Tensor, batch: i64) -> Result<Tensor> {
    let ids = ensure_index("take", ids)?;
    let (front, n_batch, n_free) = batches("take", &ids, batch)?;
    let size = x.size();
    ensure(size.len() > front.len() && size.starts_with(&front), "take", || {
        format!("x has shape {size:?}, ids {:?}, of which {batch} axes meet", ids.size())
    })?;
    let (rows, rest) = (size[front.len()], &size[front.len() + 1..]);
    check_index("take", &ids, rows, true)?;
    let width: i64 = rest.iter().product();
    let walk = Walk { batches: n_batch, rows, free: n_free, width };
    let shape = [&ids.size(), rest].concat();
    if walk.takes(x, &ids, false) {
        return tile::take_rows(x, &ids, walk, &shape);
    }
    Ok(take_composite(x, &ids, walk)?.f_reshape(&shape)?)
}

/// [`take`] composed of libtorch calls, as `[batches free, width]`.
pub(super) fn take_composite(x: &Tensor, ids: &Tensor, walk: Walk) -> Result<Tensor> {
    let Walk { batches, rows, free, width } = walk;
    let index = flat_index(ids, batches, free, rows)?;
    let flat = x.f_reshape([batches * rows, width])?;
    let taken = flat.f_index_select(0, &index.f_clamp_min(0)?)?;
    let zero = Tensor::f_zeros([0i64; 0], (x.kind(), x.device()))?;
    Ok(taken.f_where_self(&index.f_ge(0)?.f_unsqueeze(-1)?, &zero)?)
}

/// The gradient of [`take`] for `rows` positions: `ids[batch.., free..]`,
/// `dy[batch.., free.., rest..]` -> `[batch.., rows, rest..]`.
pub fn take_grad(ids: &Tensor, dy: &Tensor, batch: i64, rows: i64) -> Result<Tensor> {
    let ids = ensure_index("take_grad", ids)?;
    let (front, n_batch, n_free) = batches("take_grad", &ids, batch)?;
    let (ids_size, dy_size) = (ids.size(), dy.size());
    ensure(dy_size.starts_with(&ids_size), "take_grad", || {
        format!("dy has shape {dy_size:?}, which does not begin with that of ids, {ids_size:?}")
    })?;
    check_index("take_grad", &ids, rows, true)?;
    let rest = &dy_size[ids_size.len()..];
    let width: i64 = rest.iter().product();
    let walk = Walk { batches: n_batch, rows, free: n_free, width };
    let shape = [&front[..], &[rows], rest].concat();
    if walk.takes(dy, &ids, true) {
        return tile::take_rows_grad(&ids, dy, walk, &shape);
    }
    let sums = if runs_native(&[dy]) {
        let index = flat_index(&ids, n_batch, n_free, rows)?;
        by_kind!(dy.kind(), scatter_native(&index, 1, dy, &[n_batch * rows, width]))?
    } else {
        take_grad_composite(&ids, dy, walk)?
    };
    Ok(sums.f_reshape(&shape)?)
}

/// [`take_grad`] composed of libtorch calls, as `[batches rows, width]`.
pub(super) fn take_grad_composite(ids: &Tensor, dy: &Tensor, walk: Walk) -> Result<Tensor> {
    let Walk { batches, rows, free, width } = walk;
    let index = flat_index(ids, batches, free, rows)?;
    scatter_composite(&index, &dy.f_reshape([batches * free, width])?, &[batches * rows, width])
}

/// Where the index lies, on the host: for loops over what is present.
pub(super) fn to_host(x: &Tensor) -> Result<Vec<i64>> {
    let flat = x.f_to_device(Device::Cpu)?.f_reshape([-1i64])?;
    Ok(Vec::<i64>::try_from(&flat)?)
}
