//! Pointwise ops and their gradients.
//!
//! Operands broadcast by libtorch's rule; generated code aligns them first
//! (see [`super::align`]), so a broadcast by position never decides a meaning.

use tch::{Kind, Tensor};

use super::support::{Named, describe, ensure, ensure_kind, is_float, scalar};
use crate::Result;

/// `x * mul + add`.
pub fn affine(x: &Tensor, mul: f64, add: f64) -> Result<Tensor> {
    let scaled = if mul == 1.0 { x.shallow_clone() } else { x.f_mul_scalar(mul)? };
    Ok(if add == 0.0 { scaled } else { scaled.f_add_scalar(add)? })
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident => $call:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            x.$call().named(stringify!($name), &[x])
        }
    )*};
}

unary! {
    /// e to the power `x`.
    exp => f_exp;
    /// Natural logarithm.
    ln => f_log;
    /// Square root.
    sqrt => f_sqrt;
    /// `1 / sqrt(x)`.
    rsqrt => f_rsqrt;
    /// `1 / x`.
    recip => f_reciprocal;
    /// `1 / (1 + e^-x)`.
    sigmoid => f_sigmoid;
    /// `x * sigmoid(x)`.
    silu => f_silu;
    /// Hyperbolic tangent.
    tanh => f_tanh;
    /// `x * x`.
    square => f_square;
    /// The largest integer not above `x`; it has no gradient.
    floor => f_floor;
    /// Absolute value.
    abs => f_abs;
}

/// `ln(1 + e^x)`, stable for any `x` and without libtorch's switch to `x`
/// above 20, which is off by 2e-9 in f64.
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    x.f_logaddexp(&scalar(0.0, x)?).named("softplus", &[x])
}

macro_rules! unary_grad {
    ($($(#[$doc:meta])* $name:ident = |$x:ident, $dy:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name($x: &Tensor, $dy: &Tensor) -> Result<Tensor> {
            let run = || -> std::result::Result<Tensor, tch::TchError> { $body };
            run().named(stringify!($name), &[$x, $dy])
        }
    )*};
}

unary_grad! {
    /// `dy * e^x`.
    exp_grad = |x, dy| dy.f_mul(&x.f_exp()?);
    /// `dy / x`.
    ln_grad = |x, dy| dy.f_div(x);
    /// `dy / (2 sqrt(x))`.
    sqrt_grad = |x, dy| dy.f_div(&x.f_sqrt()?)?.f_mul_scalar(0.5);
    /// `-dy / (2 x sqrt(x))`.
    rsqrt_grad = |x, dy| dy.f_mul(&x.f_rsqrt()?)?.f_div(x)?.f_mul_scalar(-0.5);
    /// `-dy / x^2`.
    recip_grad = |x, dy| dy.f_div(&x.f_square()?)?.f_neg();
    /// `dy * s (1 - s)`, s the sigmoid of `x`.
    sigmoid_grad = |x, dy| Tensor::f_sigmoid_backward(dy, &x.f_sigmoid()?);
    /// `dy * s (1 + x (1 - s))`, s the sigmoid of `x`.
    silu_grad = |x, dy| x.f_silu_backward(dy);
    /// `dy * sigmoid(x)`.
    softplus_grad = |x, dy| dy.f_mul(&x.f_sigmoid()?);
    /// `dy * (1 - tanh(x)^2)`.
    tanh_grad = |x, dy| Tensor::f_tanh_backward(dy, &x.f_tanh()?);
    /// `2 x dy`.
    square_grad = |x, dy| dy.f_mul(x)?.f_mul_scalar(2.0);
    /// 0: [`floor`] is constant between its steps.
    floor_grad = |_x, dy| dy.f_mul_scalar(0.0);
    /// `dy * sign(x)`, 0 at 0.
    abs_grad = |x, dy| dy.f_mul(&x.f_sign()?);
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident => $call:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(a: &Tensor, b: &Tensor) -> Result<Tensor> {
            a.$call(b).named(stringify!($name), &[a, b])
        }
    )*};
}

binary! {
    /// `a + b`.
    add => f_add;
    /// `a - b`.
    sub => f_sub;
    /// `a * b`.
    mul => f_mul;
    /// `a / b`.
    div => f_div;
    /// The smaller of both.
    min => f_minimum;
    /// The larger of both.
    max => f_maximum;
    /// `a < b`, a bool tensor.
    lt => f_lt_tensor;
    /// `a <= b`, a bool tensor.
    le => f_le_tensor;
    /// `a > b`, a bool tensor.
    gt => f_gt_tensor;
    /// `a >= b`, a bool tensor.
    ge => f_ge_tensor;
}

/// `x` held between `lo` and `hi`.
pub fn clamp(x: &Tensor, lo: f64, hi: f64) -> Result<Tensor> {
    ensure(lo <= hi, "clamp", || format!("lower bound {lo} above upper bound {hi}"))?;
    x.f_clamp(lo, hi).named("clamp", &[x])
}

/// `dy` where `lo <= x <= hi`, else 0.
pub fn clamp_grad(x: &Tensor, dy: &Tensor, lo: f64, hi: f64) -> Result<Tensor> {
    let run = || {
        let inside = x.f_ge(lo)?.f_logical_and(&x.f_le(hi)?)?;
        dy.f_where_self(&inside, &dy.f_new_zeros([0i64; 0], (dy.kind(), dy.device()))?)
    };
    run().named("clamp_grad", &[x, dy])
}

/// `a` where the bool tensor `c` holds, else `b`.
pub fn where_(c: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    ensure_kind("where", "condition", c, Kind::Bool)?;
    a.f_where_self(c, b).named("where", &[c, a, b])
}

/// `x` as f32, or as f64 in an f64 run; `like` is any tensor of the run's
/// activation kind.
pub fn to_f32(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    super::support::cast(x, crate::Precision::F32.kind(like.kind()))
}

/// `x` in the activations' kind.
pub fn to_act(x: &Tensor, like: Kind) -> Result<Tensor> {
    ensure(is_float(like), "to_act", || format!("{like:?} is no floating kind"))?;
    super::support::cast(x, like)
}

/// A scalar of the kind and device of `like`.
pub fn constant(value: f64, like: &Tensor) -> Result<Tensor> {
    scalar(value, like)
}

/// [`constant`] as f32, or as f64 in an f64 run.
pub fn constant_f32(value: f64, like: &Tensor) -> Result<Tensor> {
    let kind = crate::Precision::F32.kind(like.kind());
    Ok(Tensor::f_full([0i64; 0], value, (kind, like.device()))?)
}

/// A tensor of `shape` filled with `value`, of the kind and device of `like`.
pub fn full(value: f64, shape: &[i64], like: &Tensor) -> Result<Tensor> {
    ensure(shape.iter().all(|&n| n >= 0), "full", || {
        format!("negative size in {shape:?} (like {})", describe(&[like]))
    })?;
    Ok(Tensor::f_full(shape, value, (like.kind(), like.device()))?)
}
