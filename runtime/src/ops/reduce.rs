//! Sums, means, and what the ranks add up.

use tch::{Kind, Tensor};

use super::support::{Named, ensure, ensure_dim};
use crate::Result;

/// The sum over `dims`, which are dropped. No dims: `x` itself.
pub fn sum(x: &Tensor, dims: &[i64]) -> Result<Tensor> {
    check("sum", x, dims)?;
    if dims.is_empty() {
        return Ok(x.shallow_clone());
    }
    x.f_sum_dim_intlist(dims, false, None::<Kind>).named("sum", &[x])
}

/// The mean over `dims`, which are dropped. No dims: `x` itself.
pub fn mean(x: &Tensor, dims: &[i64]) -> Result<Tensor> {
    check("mean", x, dims)?;
    if dims.is_empty() {
        return Ok(x.shallow_clone());
    }
    x.f_mean_dim(dims, false, None::<Kind>).named("mean", &[x])
}

/// `ln(sum of e^x)` over `dims`, which are dropped, without overflow. No dims: `x` itself.
pub fn logsumexp(x: &Tensor, dims: &[i64]) -> Result<Tensor> {
    check("logsumexp", x, dims)?;
    if dims.is_empty() {
        return Ok(x.shallow_clone());
    }
    x.f_logsumexp(dims, false).named("logsumexp", &[x])
}

/// The sum of `x` over the data-parallel ranks, in their order; see [`crate::ranks`].
pub fn sum_ranks(x: &Tensor) -> Result<Tensor> {
    crate::ranks::current().sum(x)
}

fn check(op: &'static str, x: &Tensor, dims: &[i64]) -> Result<()> {
    for (place, &dim) in dims.iter().enumerate() {
        let _ = ensure_dim(op, x, dim)?;
        ensure(!dims[..place].contains(&dim), op, || format!("dimension {dim} twice in {dims:?}"))?;
    }
    Ok(())
}
