//! Random signs and the Walsh-Hadamard transform, as `lightc_numerics::hadamard` has them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use lightc_numerics::hadamard::{Element, Hadamard};
use tch::{Kind, Tensor};

use super::native::{Host, Output, Real, by_kind, parallel_fill, runs_native};
use super::support::{cast, ensure, is_float, op_error, wide_kind};
use super::tile;
use crate::Result;

/// The turns that were asked for, by seed and length: a few per stage.
static TURNS: Mutex<BTreeMap<(i64, usize), Arc<Hadamard>>> = Mutex::new(BTreeMap::new());

fn turn(seed: i64, n: i64) -> Result<Arc<Hadamard>> {
    let length = usize::try_from(n).unwrap_or(0);
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = turns.get(&(seed, length)) {
        return Ok(Arc::clone(known));
    }
    let turn = Hadamard::new(seed, length)
        .ok_or_else(|| op_error("hadamard", format!("the length {n} is not a power of two")))?;
    let turn = Arc::new(turn);
    let _ = turns.insert((seed, length), Arc::clone(&turn));
    Ok(turn)
}

fn length_of(x: &Tensor) -> Result<i64> {
    ensure(is_float(x.kind()), "hadamard", || format!("the value is {:?}", x.kind()))?;
    x.size().last().copied().ok_or_else(|| op_error("hadamard", "the value has no dimensions"))
}

/// `H diag(signs) x / sqrt(n)` along the last dimension; `inverse` is its transpose. Computed in
/// 32 bits or more and rounded once.
pub fn hadamard(x: &Tensor, seed: i64, inverse: bool) -> Result<Tensor> {
    let turn = turn(seed, length_of(x)?)?;
    if tile::takes_hadamard(x) {
        return tile::hadamard(x, seed, &turn, inverse);
    }
    let wide = cast(x, wide_kind(x.kind()))?;
    if runs_native(&[&wide]) {
        let y = by_kind!(wide.kind(), native(&wide, &turn, inverse))?;
        return cast(&y, x.kind());
    }
    cast(&composite(&wide, &turn, inverse)?, x.kind())
}

/// [`hadamard`] composed of libtorch calls.
pub fn hadamard_composite(x: &Tensor, seed: i64, inverse: bool) -> Result<Tensor> {
    let turn = turn(seed, length_of(x)?)?;
    let wide = cast(x, wide_kind(x.kind()))?;
    cast(&composite(&wide, &turn, inverse)?, x.kind())
}

fn native<T: Real + Element>(x: &Tensor, turn: &Hadamard, inverse: bool) -> Result<Tensor> {
    let n = x.size().last().map_or(1, |n| *n as usize);
    let (host, mut out) = (Host::of(x)?, Output::zeros::<T>(&x.size())?);
    let source = host.slice::<T>();
    let work = source.len() * (n.ilog2() as usize + 2);
    parallel_fill(out.slice::<T>(), n, work, |row, to| {
        to.copy_from_slice(&source[row * n..][..n]);
        if inverse { turn.undo(to) } else { turn.apply(to) }
    });
    Ok(out.into_tensor())
}

fn composite(x: &Tensor, turn: &Hadamard, inverse: bool) -> Result<Tensor> {
    let size = x.size();
    let n = size.last().copied().unwrap_or(1);
    let signs: Vec<f64> = turn.signs().collect();
    let signs = Tensor::f_from_slice(&signs)?.f_to_device(x.device())?.f_to_kind(x.kind())?;
    let rows = x.numel() as i64 / n;
    let mut y = x.f_reshape([rows, n])?;
    if !inverse {
        y = y.f_mul(&signs)?;
    }
    let mut stride = 1;
    while stride < n {
        let pairs = y.f_reshape([rows, n / (2 * stride), 2, stride])?;
        let (a, b) = (pairs.f_select(2, 0)?, pairs.f_select(2, 1)?);
        y = Tensor::f_stack(&[a.f_add(&b)?, a.f_sub(&b)?], 2)?.f_reshape([rows, n])?;
        stride *= 2;
    }
    y = y.f_mul_scalar(1.0 / libm::sqrt(n as f64))?;
    if inverse {
        y = y.f_mul(&signs)?;
    }
    debug_assert!(matches!(y.kind(), Kind::Float | Kind::Double));
    Ok(y.f_reshape(&size)?)
}
