//! Rows gathered by index, and the sums that carry their gradients back.
//!
//! Gradients accumulate in the order of the index tensor: natively on the CPU, by a kernel of
//! `kernels/gather.cu` on a GPU, by libtorch's sorted `index_put` elsewhere; all are deterministic.
//! An index beyond the table is an error. It is found by reading the indices,
//! which on a GPU would wait for the device: there libtorch's device-side
//! assertion reports it.

use tch::{Device, Kind, Tensor};

use super::native::{Host, Output, Real, by_kind, parallel_fill, runs_native};
use super::support::{
    cast, ensure, ensure_dim, ensure_kind, ensure_shape, is_float, op_error, scalar, shape_of,
    watched,
};
use super::tile;
use crate::Result;

/// `w[j, d]`, `index[.., p]` -> `[.., d]`: the sum over p of the rows
/// `w[index]`; a negative index stands for no row.
pub fn gather_sum(w: &Tensor, index: &Tensor) -> Result<Tensor> {
    watched("gather_sum", &[w], || {
        let [rows, d] = shape_of("gather_sum", "w", w)?;
        let (lead, p) = slots_of("gather_sum", index)?;
        check_index("gather_sum", index, rows, true)?;
        if tile::takes_gather(w, index) {
            return tile::gather(w, index);
        }
        if runs_native(&[w]) {
            return by_kind!(w.kind(), gather_sum_native(w, index, p, &[lead, vec![d]].concat()));
        }
        gather_sum_composite(w, index)
    })
}

/// [`gather_sum`] composed of libtorch calls.
pub fn gather_sum_composite(w: &Tensor, index: &Tensor) -> Result<Tensor> {
    let [rows, d] = shape_of("gather_sum", "w", w)?;
    let (lead, p) = slots_of("gather_sum", index)?;
    check_index("gather_sum", index, rows, true)?;
    let flat = cast(index, Kind::Int64)?.f_clamp_min(0)?.f_reshape([-1i64])?;
    let all = w.f_index_select(0, &flat)?.f_reshape([lead, vec![p, d]].concat())?;
    let held = all.f_where_self(&index.f_ge(0)?.f_unsqueeze(-1)?, &scalar(0.0, w)?)?;
    Ok(held.f_sum_dim_intlist(&[-2i64][..], false, None::<Kind>)?)
}

/// The leading dimensions of an index, and its number of slots.
fn slots_of(op: &'static str, index: &Tensor) -> Result<(Vec<i64>, i64)> {
    let size = index.size();
    let split = size.split_last().map(|(p, lead)| (lead.to_vec(), *p));
    split.ok_or_else(|| op_error(op, "the index has no dimensions"))
}

/// `shape` is that of the result.
fn gather_sum_native<T: Real>(w: &Tensor, index: &Tensor, p: i64, shape: &[i64]) -> Result<Tensor> {
    let (w, index) = (Host::of(w)?, Host::of(&cast(index, Kind::Int64)?)?);
    let (w, index) = (w.slice::<T>(), index.slice::<i64>());
    let (p, d) = (p as usize, shape.last().map_or(0, |d| *d as usize));
    let mut out = Output::zeros::<T>(shape)?;
    if p > 0 {
        parallel_fill(out.slice::<T>(), d, index.len() * d, |token, row| {
            let slots = &index[token * p..(token + 1) * p];
            for &source in slots.iter().filter(|&&source| source >= 0) {
                add_row(row, &w[source as usize * d..][..d]);
            }
        });
    }
    Ok(out.into_tensor())
}

#[inline]
fn add_row<T: Real>(to: &mut [T], from: &[T]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += *from;
    }
}

/// The gradient of [`gather_sum`] for `w` of `rows` rows: `index[.., p]`,
/// `dy[.., d]` -> `[rows, d]`.
pub fn gather_sum_grad(index: &Tensor, dy: &Tensor, rows: i64) -> Result<Tensor> {
    watched("gather_sum_grad", &[dy], || {
        let (lead, p) = slots_of("gather_sum_grad", index)?;
        let d = dy.size().last().copied().unwrap_or(0);
        ensure_shape("gather_sum_grad", "dy", dy, &[&lead[..], &[d]].concat())?;
        check_index("gather_sum_grad", index, rows, true)?;
        if tile::takes_gather(dy, index) && rows > 0 {
            return tile::gather_grad(index, dy, rows);
        }
        if runs_native(&[dy]) {
            return by_kind!(dy.kind(), scatter_native(index, p, dy, &[rows, d]));
        }
        gather_sum_grad_composite(index, dy, rows)
    })
}

/// [`gather_sum_grad`] composed of libtorch calls.
pub fn gather_sum_grad_composite(index: &Tensor, dy: &Tensor, rows: i64) -> Result<Tensor> {
    let (lead, p) = slots_of("gather_sum_grad", index)?;
    let d = dy.size().last().copied().unwrap_or(0);
    let spread = dy.f_unsqueeze(-2)?.f_expand([lead, vec![p, d]].concat(), false)?;
    scatter_composite(index, &spread.f_reshape([-1, d])?, &[rows, d])
}

/// `table[v, ..]`, `ids[..]` -> `[ids.., ..]`: row `ids` of the table, which
/// holds floats or indices.
pub fn lookup(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let rows = ensure_dim("lookup", table, 0)?;
    check_index("lookup", ids, rows, false)?;
    let flat = cast(ids, Kind::Int64)?.f_reshape([-1i64])?;
    let shape = [ids.size(), table.size()[1..].to_vec()].concat();
    Ok(table.f_index_select(0, &flat)?.f_reshape(&shape)?)
}

/// The gradient of [`lookup`] for a table of `rows` rows: `ids[..]`,
/// `dy[ids.., ..]` -> `[rows, ..]`.
pub fn lookup_grad(ids: &Tensor, dy: &Tensor, rows: i64) -> Result<Tensor> {
    watched("lookup_grad", &[dy], || {
        let (ids_size, dy_size) = (ids.size(), dy.size());
        ensure(dy_size.starts_with(&ids_size), "lookup_grad", || {
            format!("dy has shape {dy_size:?}, which does not begin with that of ids, {ids_size:?}")
        })?;
        check_index("lookup_grad", ids, rows, false)?;
        let shape = [&[rows][..], &dy_size[ids_size.len()..]].concat();
        if runs_native(&[dy]) {
            return by_kind!(dy.kind(), scatter_native(ids, 1, dy, &shape));
        }
        let width: i64 = shape[1..].iter().product();
        scatter_composite(ids, &dy.f_reshape([ids.numel() as i64, width])?, &shape)
    })
}

/// Adds row i of `dy` to the rows that slots `i*p .. (i+1)*p` of `index` name.
pub(super) fn scatter_native<T: Real>(
    index: &Tensor,
    p: i64,
    dy: &Tensor,
    shape: &[i64],
) -> Result<Tensor> {
    let (index, dy) = (Host::of(&cast(index, Kind::Int64)?)?, Host::of(dy)?);
    let (index, dy) = (index.slice::<i64>(), dy.slice::<T>());
    let width = shape[1..].iter().product::<i64>() as usize;
    let mut out = Output::zeros::<T>(shape)?;
    let to = out.slice::<T>();
    if p > 0 && width > 0 {
        for (slots, row) in index.chunks(p as usize).zip(dy.chunks(width)) {
            for &target in slots.iter().filter(|&&target| target >= 0) {
                add_row(&mut to[target as usize * width..][..width], row);
            }
        }
    }
    Ok(out.into_tensor())
}

/// The same by libtorch: a row beyond the last takes what has no target.
pub(super) fn scatter_composite(index: &Tensor, dy: &Tensor, shape: &[i64]) -> Result<Tensor> {
    let rows = shape.first().copied().unwrap_or(0);
    let flat = cast(index, Kind::Int64)?.f_reshape([-1i64])?;
    let target = flat.f_where_self(&flat.f_ge(0)?, &flat.f_full_like(rows)?)?;
    let width = dy.size().get(1).copied().unwrap_or(1);
    let mut sums = Tensor::f_zeros([rows + 1, width], (dy.kind(), dy.device()))?;
    let _ = sums.f_index_put_(&[Some(&target)], dy, true)?;
    Ok(sums.f_narrow(0, 0, rows)?.f_reshape(shape)?)
}

/// Indices must be integers below `rows`, and not negative unless `none` is
/// allowed.
pub(super) fn check_index(op: &'static str, index: &Tensor, rows: i64, none: bool) -> Result<()> {
    ensure(!is_float(index.kind()) && index.kind() != Kind::Bool, op, || {
        format!("the index is {:?}, an integer kind is needed", index.kind())
    })?;
    if index.device() != Device::Cpu {
        return Ok(());
    }
    let host = Host::of(&cast(index, Kind::Int64)?)?;
    let bad = |&&i: &&i64| i >= rows || (i < 0 && !none);
    match host.slice::<i64>().iter().find(bad) {
        Some(i) => Err(op_error(op, format!("index {i} is outside a table of {rows} rows"))),
        None => Ok(()),
    }
}

/// The class indices of a loss: i64 of `[rows]`, each below `classes` or equal
/// to `ignore`.
pub(crate) fn check_targets(
    op: &'static str,
    targets: &Tensor,
    classes: i64,
    ignore: i64,
) -> Result<()> {
    ensure_kind(op, "targets", targets, Kind::Int64)?;
    if targets.device() != Device::Cpu {
        return Ok(());
    }
    let host = Host::of(targets)?;
    let bad = |&&i: &&i64| i != ignore && !(0..classes).contains(&i);
    match host.slice::<i64>().iter().find(bad) {
        Some(i) => Err(op_error(op, format!("target {i} is outside {classes} classes"))),
        None => Ok(()),
    }
}
