//! Ops that move elements without arithmetic. All give views where libtorch
//! can.

use tch::Tensor;

use super::support::{Named, describe, ensure, ensure_dim, op_error};
use crate::Result;

/// Length of a dimension.
pub fn length(x: &Tensor, dim: i64) -> Result<i64> {
    ensure_dim("length", x, dim)
}

/// A view of `x` ready to broadcast: entry `i >= 0` of `dims` takes dimension
/// `i` of `x`, entry `-1` inserts one of size 1. Every dimension of `x` is
/// taken once.
pub fn align(x: &Tensor, dims: &[i64]) -> Result<Tensor> {
    let taken: Vec<i64> = dims.iter().copied().filter(|&dim| dim >= 0).collect();
    let permuted = permuted("align", x, &taken, dims)?;
    if taken.len() == dims.len() {
        return Ok(permuted);
    }
    let size = x.size();
    let shape: Vec<i64> =
        dims.iter().map(|&dim| if dim < 0 { 1 } else { size[dim as usize] }).collect();
    permuted.f_reshape(&shape).named("align", &[x])
}

/// [`align`], then every size-1 dimension expanded to `sizes` (a view).
pub fn broadcast(x: &Tensor, dims: &[i64], sizes: &[i64]) -> Result<Tensor> {
    ensure(dims.len() == sizes.len(), "broadcast", || {
        format!("{} dimensions {dims:?} but {} sizes {sizes:?}", dims.len(), sizes.len())
    })?;
    let aligned = align(x, dims)?;
    let fits = aligned.size().iter().zip(sizes).all(|(&have, &want)| have == want || have == 1);
    ensure(fits, "broadcast", || {
        format!("shape {:?} does not broadcast to {sizes:?}", aligned.size())
    })?;
    aligned.f_expand(sizes, false).named("broadcast", &[x])
}

/// The dimensions of `x` in the order `dims`.
pub fn permute(x: &Tensor, dims: &[i64]) -> Result<Tensor> {
    permuted("permute", x, dims, dims)
}

fn permuted(op: &'static str, x: &Tensor, order: &[i64], shown: &[i64]) -> Result<Tensor> {
    let rank = x.dim();
    let mut seen = vec![false; rank];
    let mut fits = order.len() == rank;
    for &dim in order {
        match usize::try_from(dim).ok().and_then(|dim| seen.get_mut(dim)) {
            Some(slot) if !*slot => *slot = true,
            _ => fits = false,
        }
    }
    ensure(fits, op, || {
        format!("{shown:?} does not take every dimension of shape {:?} once", x.size())
    })?;
    if order.iter().zip(0..).all(|(&dim, place)| dim == place) {
        return Ok(x.shallow_clone());
    }
    Ok(x.f_permute(order)?)
}

/// Dimension `dim` split into `sizes`, whose product it must be.
pub fn split(x: &Tensor, dim: i64, sizes: &[i64]) -> Result<Tensor> {
    let have = ensure_dim("split", x, dim)?;
    ensure(
        sizes.iter().all(|&n| n >= 0) && sizes.iter().product::<i64>() == have,
        "split",
        || format!("dimension {dim} of shape {:?} is not the product of {sizes:?}", x.size()),
    )?;
    let mut shape = x.size();
    shape.splice(dim as usize..=dim as usize, sizes.iter().copied());
    x.f_reshape(&shape).named("split", &[x])
}

/// `n_dims` adjacent dimensions from `first_dim` on made into one.
pub fn merge(x: &Tensor, first_dim: i64, n_dims: i64) -> Result<Tensor> {
    let mut shape = x.size();
    let end = first_dim.saturating_add(n_dims);
    ensure(first_dim >= 0 && n_dims >= 1 && end <= shape.len() as i64, "merge", || {
        format!("no {n_dims} dimensions from {first_dim} on in shape {:?}", x.size())
    })?;
    let range = first_dim as usize..end as usize;
    let size = shape[range.clone()].iter().product();
    shape.splice(range, [size]);
    x.f_reshape(&shape).named("merge", &[x])
}

/// Elements `start .. end` of `dim`.
pub fn slice(x: &Tensor, dim: i64, start: i64, end: i64) -> Result<Tensor> {
    let size = ensure_dim("slice", x, dim)?;
    ensure(0 <= start && start <= end && end <= size, "slice", || {
        format!("{start} .. {end} is not within dimension {dim} of shape {:?}", x.size())
    })?;
    Ok(x.f_narrow(dim, start, end - start)?)
}

/// `before` and `after` zeros around `dim`.
pub fn pad(x: &Tensor, dim: i64, before: i64, after: i64) -> Result<Tensor> {
    let _ = ensure_dim("pad", x, dim)?;
    ensure(before >= 0 && after >= 0, "pad", || {
        format!("negative padding {before}, {after} of shape {:?}", x.size())
    })?;
    zeros_around("pad", x, dim, before, after)
}

fn zeros_around(op: &'static str, x: &Tensor, dim: i64, before: i64, after: i64) -> Result<Tensor> {
    if before == 0 && after == 0 {
        return Ok(x.shallow_clone());
    }
    // libtorch lists pairs from the last dimension backwards.
    let mut pads = vec![0i64; 2 * (x.dim() - dim as usize)];
    let at = pads.len() - 2;
    pads[at] = before;
    pads[at + 1] = after;
    x.f_constant_pad_nd(&pads).named(op, &[x])
}

/// The tensors joined along `dim`.
pub fn concat(xs: &[&Tensor], dim: i64) -> Result<Tensor> {
    let Some(first) = xs.first() else {
        return Err(op_error("concat", "no tensors"));
    };
    let _ = ensure_dim("concat", first, dim)?;
    let kind = first.kind();
    ensure(xs.iter().all(|x| x.kind() == kind), "concat", || {
        format!("kinds differ: {}", describe(xs))
    })?;
    Tensor::f_cat(xs, dim).named("concat", xs)
}

/// A new dimension at `dim`, of `size`, with `x` at `index` and zeros
/// elsewhere.
pub fn place(x: &Tensor, dim: i64, index: i64, size: i64) -> Result<Tensor> {
    ensure(0 <= dim && dim <= x.dim() as i64 && 0 <= index && index < size, "place", || {
        format!("index {index} of size {size} at dimension {dim} of shape {:?}", x.size())
    })?;
    zeros_around("place", &x.f_unsqueeze(dim)?, dim, index, size - 1 - index)
}

/// Element `index` of `dim`, which is dropped.
pub fn pick(x: &Tensor, dim: i64, index: i64) -> Result<Tensor> {
    let size = ensure_dim("pick", x, dim)?;
    ensure(0 <= index && index < size, "pick", || {
        format!("no index {index} in dimension {dim} of shape {:?}", x.size())
    })?;
    Ok(x.f_select(dim, index)?)
}
