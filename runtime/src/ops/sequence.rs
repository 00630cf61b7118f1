//! Ops along time: causal convolution, rotary positions, masks.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::native::{Host, Kernel, Output, Real, by_kind, parallel_fill, runs_native, vectorized};
use super::support::{
    ensure, ensure_dim, ensure_same_kind, ensure_shape, op_error, shape_of, watched, wide_kind,
};
use crate::Result;

/// bool `[t, s]`: `s <= t`, on the device of `like`.
pub fn causal(t: i64, s: i64, like: &Tensor) -> Result<Tensor> {
    ensure(t >= 0 && s >= 0, "causal", || format!("negative size {t} or {s}"))?;
    Ok(Tensor::f_ones([t, s], (Kind::Bool, like.device()))?.f_tril(0)?)
}

/// `[t]`: 0, 1, 2, .. as f32 (f64 where `like` is), on the device of `like`.
pub fn position(t: i64, like: &Tensor) -> Result<Tensor> {
    ensure(t >= 0, "position", || format!("negative size {t}"))?;
    Ok(Tensor::f_arange(t, (wide_kind(like.kind()), like.device()))?)
}

/// `x[b, t, e]`, `w[e, j]` -> `[b, t, e]`: the sum over taps i of
/// `w[e, i] x[t - J + 1 + i, e]`; before the start there are zeros.
pub fn causal_conv(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    watched("causal_conv", &[x, w], || {
        let (shape, taps) = conv_shape("causal_conv", x, w)?;
        if runs_native(&[x, w]) {
            return by_kind!(x.kind(), conv_native(x, w, shape, taps, false));
        }
        causal_conv_composite(x, w)
    })
}

/// [`causal_conv`] composed of libtorch calls.
pub fn causal_conv_composite(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let ([_, t, _], taps) = conv_shape("causal_conv", x, w)?;
    let padded = super::pad(x, 1, (taps - 1).max(0), 0)?;
    weighted_sum(&padded, w, t, (0..taps).map(|i| (i, i)), x)
}

/// The gradient of [`causal_conv`] for x: `dy[b, t, e]`, `w[e, j]` ->
/// `[b, t, e]`.
pub fn causal_conv_input_grad(dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    watched("causal_conv_input_grad", &[dy, w], || {
        let (shape, taps) = conv_shape("causal_conv_input_grad", dy, w)?;
        if runs_native(&[dy, w]) {
            return by_kind!(dy.kind(), conv_native(dy, w, shape, taps, true));
        }
        let padded = super::pad(dy, 1, 0, (taps - 1).max(0))?;
        weighted_sum(&padded, w, shape[1], (0..taps).map(|i| (taps - 1 - i, i)), dy)
    })
}

/// The sum over `(start, tap)` of the `t` steps from `start`, times the tap.
fn weighted_sum(
    padded: &Tensor,
    w: &Tensor,
    t: i64,
    terms: impl Iterator<Item = (i64, i64)>,
    like: &Tensor,
) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (start, tap) in terms {
        let (steps, tap) = (padded.f_narrow(1, start, t)?, w.f_select(1, tap)?);
        sum = Some(match sum {
            None => steps.f_mul(&tap)?,
            Some(sum) => sum.f_addcmul(&steps, &tap)?,
        });
    }
    sum.map_or_else(|| Ok(like.f_zeros_like()?), Ok)
}

/// The gradient of [`causal_conv`] for w: `x`, `dy[b, t, e]` -> `[e, taps]`.
pub fn causal_conv_weight_grad(x: &Tensor, dy: &Tensor, taps: i64) -> Result<Tensor> {
    watched("causal_conv_weight_grad", &[x, dy], || {
        const OP: &str = "causal_conv_weight_grad";
        let _ = ensure_same_kind(OP, &[x, dy])?;
        let shape: [i64; 3] = shape_of(OP, "x", x)?;
        ensure_shape(OP, "dy", dy, &shape)?;
        ensure(taps >= 0, OP, || format!("{taps} taps"))?;
        if runs_native(&[x, dy]) {
            return by_kind!(x.kind(), conv_weight_native(x, dy, shape, taps));
        }
        let [_, t, e] = shape;
        let padded = super::pad(x, 1, (taps - 1).max(0), 0)?;
        let mut columns = Vec::new();
        for i in 0..taps {
            let product = padded.f_narrow(1, i, t)?.f_mul(dy)?;
            columns.push(product.f_sum_dim_intlist(&[0i64, 1][..], false, None::<Kind>)?);
        }
        if columns.is_empty() {
            return Ok(Tensor::f_zeros([e, 0], (x.kind(), x.device()))?);
        }
        Ok(Tensor::f_stack(&columns, 1)?)
    })
}

fn conv_shape(op: &'static str, x: &Tensor, w: &Tensor) -> Result<([i64; 3], i64)> {
    let _ = ensure_same_kind(op, &[x, w])?;
    let [b, t, e] = shape_of(op, "the sequence", x)?;
    let [channels, taps] = shape_of(op, "w", w)?;
    ensure(channels == e, op, || {
        format!("{e} channels in {:?} but {channels} in w {:?}", x.size(), w.size())
    })?;
    Ok(([b, t, e], taps))
}

/// Tap-major copy of `w[e, j]`, so that one tap's channels are adjacent.
fn taps_first<T: Real>(w: &Tensor) -> Result<Vec<T>> {
    Ok(Host::of(&w.f_transpose(0, 1)?)?.slice::<T>().to_vec())
}

fn conv_native<T: Real>(
    x: &Tensor,
    w: &Tensor,
    [b, t, e]: [i64; 3],
    taps: i64,
    backward: bool,
) -> Result<Tensor> {
    let (x, w) = (Host::of(x)?, taps_first::<T>(w)?);
    let x = x.slice::<T>();
    let (t, e, taps) = (t as usize, e as usize, taps as usize);
    let mut out = Output::zeros::<T>(&[b, t as i64, e as i64])?;
    parallel_fill(out.slice::<T>(), e, 2 * x.len() * taps, |row, y| {
        let (batch, step) = (row / t, row % t);
        for i in 0..taps {
            // Forward: step - (J-1-i). Backward: the output that read this
            // step by tap i, which is step + (J-1-i).
            let back = taps - 1 - i;
            let source = if backward { step + back } else { step.wrapping_sub(back) };
            if source < t {
                let x = &x[(batch * t + source) * e..][..e];
                vectorized(MultiplyAdd { to: y, a: x, b: &w[i * e..][..e] });
            }
        }
    });
    Ok(out.into_tensor())
}

/// `to += a * b`, element by element.
struct MultiplyAdd<'a, T> {
    to: &'a mut [T],
    a: &'a [T],
    b: &'a [T],
}

impl<T: Real> Kernel for MultiplyAdd<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        for ((to, a), b) in self.to.iter_mut().zip(self.a).zip(self.b) {
            *to += *a * *b;
        }
    }
}

/// One task per tap, so each sum has the order of the steps.
fn conv_weight_native<T: Real>(
    x: &Tensor,
    dy: &Tensor,
    [_, t, e]: [i64; 3],
    taps: i64,
) -> Result<Tensor> {
    let (x, dy) = (Host::of(x)?, Host::of(dy)?);
    let (x, dy) = (x.slice::<T>(), dy.slice::<T>());
    let (t, e, taps) = (t as usize, e as usize, taps as usize);
    let mut out = Output::zeros::<T>(&[taps as i64, e as i64])?;
    parallel_fill(out.slice::<T>(), e, 2 * x.len() * taps, |i, to| {
        let back = taps - 1 - i;
        for (row, dy) in dy.chunks(e).enumerate() {
            if row % t >= back {
                vectorized(MultiplyAdd { to, a: &x[(row - back) * e..][..e], b: dy });
            }
        }
    });
    Ok(out.into_tensor().f_transpose(0, 1)?.f_contiguous()?)
}

/// Rotates the pairs `(2i, 2i+1)` of the last dimension of `x` by the angle
/// `p base^(-2i/K)`, p the place along `time_dim` and K the size of the last
/// dimension: `e' = e cos - o sin`, `o' = e sin + o cos`; `inverse` rotates
/// back (which is also the gradient). Angles are taken in f64.
pub fn rotary(x: &Tensor, time_dim: i64, base: f64, inverse: bool) -> Result<Tensor> {
    watched("rotary", &[x], || {
        let shape = rotary_shape(x, time_dim)?;
        let table = rotary_table(shape, base, x)?;
        if runs_native(&[x]) {
            return by_kind!(x.kind(), rotary_native(x, &table, shape, inverse));
        }
        rotate(x, &table, time_dim, inverse)
    })
}

/// [`rotary`] composed of libtorch calls.
pub fn rotary_composite(x: &Tensor, time_dim: i64, base: f64, inverse: bool) -> Result<Tensor> {
    let table = rotary_table(rotary_shape(x, time_dim)?, base, x)?;
    rotate(x, &table, time_dim, inverse)
}

/// Sizes around the time: `time`, `middle` (between time and pairs), `width`.
#[derive(Clone, Copy)]
struct RotaryShape {
    time: usize,
    middle: usize,
    width: usize,
}

fn rotary_shape(x: &Tensor, time_dim: i64) -> Result<RotaryShape> {
    let _ = ensure_same_kind("rotary", &[x])?;
    let time = ensure_dim("rotary", x, time_dim)?;
    let size = x.size();
    let (at, last) = (time_dim as usize, size.len() - 1);
    let width = size[last];
    ensure(at < last && width % 2 == 0, "rotary", || {
        format!("time {time_dim} must precede an even last dimension in shape {size:?}")
    })?;
    let middle = size[at + 1..last].iter().product::<i64>();
    Ok(RotaryShape { time: time as usize, middle: middle as usize, width: width as usize })
}

/// Key of a table: steps, width, bits of the base, kind, device.
type TableKey = (usize, usize, u64, Kind, Device);

/// How many tables a thread keeps: a model has few kinds of attention.
const TABLES_KEPT: usize = 8;

thread_local! {
    static TABLES: RefCell<Vec<(TableKey, Tensor)>> = const { RefCell::new(Vec::new()) };
}

/// `[time, 2, width / 2]`: cosines, then sines, of the kind of `like`. Tables
/// are kept, since every layer asks for the same one or two.
fn rotary_table(shape: RotaryShape, base: f64, like: &Tensor) -> Result<Tensor> {
    ensure(base > 0.0, "rotary", || format!("base {base} is not positive"))?;
    let key = (shape.time, shape.width, base.to_bits(), like.kind(), like.device());
    TABLES.with_borrow_mut(|tables| {
        if let Some((_, table)) = tables.iter().find(|(known, _)| *known == key) {
            return Ok(table.shallow_clone());
        }
        let half = shape.width / 2;
        let mut values = Vec::with_capacity(shape.time * shape.width);
        for p in 0..shape.time {
            let angle = |i: usize| p as f64 * base.powf(-2.0 * i as f64 / shape.width as f64);
            values.extend((0..half).map(|i| angle(i).cos()));
            values.extend((0..half).map(|i| angle(i).sin()));
        }
        let table = Tensor::f_from_slice(&values)?
            .f_reshape([shape.time as i64, 2, half as i64])?
            .f_to_kind(like.kind())?
            .f_to_device(like.device())?;
        if tables.len() == TABLES_KEPT {
            let _ = tables.remove(0);
        }
        tables.push((key, table.shallow_clone()));
        Ok(table)
    })
}

/// `[steps, width / 2, 2]` in f32: cosine and sine of the angle of each pair at each step, for kernels
/// that turn pairs themselves; on the device of `like`. Tables are kept.
pub fn rotary_angles(steps: i64, width: i64, base: f64, like: &Tensor) -> Result<Tensor> {
    ensure(base > 0.0 && steps >= 0 && width > 0 && width % 2 == 0, "rotary_angles", || {
        format!("{steps} steps, {width} channels, base {base}")
    })?;
    let key = (steps, width, base.to_bits(), like.device());
    ANGLES.with_borrow_mut(|tables| {
        if let Some((_, table)) = tables.iter().find(|(known, _)| *known == key) {
            return Ok(table.shallow_clone());
        }
        let mut values = Vec::with_capacity((steps * width) as usize);
        for p in 0..steps {
            for i in 0..width / 2 {
                let angle = p as f64 * base.powf(-2.0 * i as f64 / width as f64);
                values.extend([angle.cos(), angle.sin()]);
            }
        }
        let table = Tensor::f_from_slice(&values)?
            .f_reshape([steps, width / 2, 2])?
            .f_to_kind(Kind::Float)?
            .f_to_device(like.device())?;
        if tables.len() == TABLES_KEPT {
            let _ = tables.remove(0);
        }
        tables.push((key, table.shallow_clone()));
        Ok(table)
    })
}

/// Key of a table for kernels: steps, width, bits of the base, device.
type AnglesKey = (i64, i64, u64, Device);

thread_local! {
    static ANGLES: RefCell<Vec<(AnglesKey, Tensor)>> = const { RefCell::new(Vec::new()) };
}

fn rotate(x: &Tensor, table: &Tensor, time_dim: i64, inverse: bool) -> Result<Tensor> {
    let size = x.size();
    let Some((&width, lead)) = size.split_last() else {
        return Err(op_error("rotary", "x has no dimensions"));
    };
    let mut aligned = vec![1i64; lead.len()];
    aligned[time_dim as usize] = lead[time_dim as usize];
    aligned.push(width / 2);
    let cos = table.f_select(1, 0)?.f_reshape(&aligned)?;
    let sin = table.f_select(1, 1)?.f_reshape(&aligned)?;
    let sin = if inverse { sin.f_neg()? } else { sin };
    let pairs = x.f_reshape([lead, &[width / 2, 2]].concat())?;
    let (even, odd) = (pairs.f_select(-1, 0)?, pairs.f_select(-1, 1)?);
    let first = even.f_mul(&cos)?.f_sub(&odd.f_mul(&sin)?)?;
    let second = even.f_mul(&sin)?.f_add(&odd.f_mul(&cos)?)?;
    Ok(Tensor::f_stack(&[first, second], -1)?.f_reshape(&size)?)
}

fn rotary_native<T: Real>(
    x: &Tensor,
    table: &Tensor,
    shape: RotaryShape,
    inverse: bool,
) -> Result<Tensor> {
    let mut out = Output::zeros::<T>(&x.size())?;
    let (x, table) = (Host::of(x)?, Host::of(table)?);
    let (x, table) = (x.slice::<T>(), table.slice::<T>());
    let RotaryShape { time, middle, width } = shape;
    let step = (middle * width).max(1);
    parallel_fill(out.slice::<T>(), step, 4 * x.len(), |row, out| {
        let (cos, sin) = table[(row % time) * width..][..width].split_at(width / 2);
        let x = &x[row * step..][..step];
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            vectorized(RotateRow { out, x, cos, sin, inverse });
        }
    });
    Ok(out.into_tensor())
}

struct RotateRow<'a, T> {
    out: &'a mut [T],
    x: &'a [T],
    cos: &'a [T],
    sin: &'a [T],
    inverse: bool,
}

impl<T: Real> Kernel for RotateRow<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let pairs = self.out.chunks_exact_mut(2).zip(self.x.chunks_exact(2));
        for ((out, x), (&cos, &sin)) in pairs.zip(self.cos.iter().zip(self.sin)) {
            let sin = if self.inverse { -sin } else { sin };
            out[0] = x[0] * cos - x[1] * sin;
            out[1] = x[0] * sin + x[1] * cos;
        }
    }
}
