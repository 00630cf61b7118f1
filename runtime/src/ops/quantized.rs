//! Weights in 8 bits, as `lightc_numerics::int8` has them: `codes[.., n]` of int8 and one f32
//! `scale[..]` per row.

use lightc_numerics::int8::{self, Format, Levels, NotFinite};
use tch::{Kind, Tensor};

use super::native::{Host, Output};
use super::support::{
    cast, ensure, ensure_kind, ensure_same_kind, ensure_shape, is_float, op_error, shape_of,
    wide_kind,
};
use super::tile;
use crate::{Error, Result};

/// The codes and scales of rows along the last dimension, on the device of `x`. `x` is rounded to
/// f32 first.
pub fn quantize(x: &Tensor, format: Format) -> Result<(Tensor, Tensor)> {
    ensure(is_float(x.kind()), "quantize", || format!("the value is {:?}", x.kind()))?;
    if format == Format::Int8 && tile::takes_quantize(x) {
        return tile::quantize(x);
    }
    on_host(x, format)
}

/// [`quantize`] into int8 on the host.
pub(super) fn quantize_host(x: &Tensor) -> Result<(Tensor, Tensor)> {
    on_host(x, Format::Int8)
}

fn on_host(x: &Tensor, format: Format) -> Result<(Tensor, Tensor)> {
    let size = x.size();
    let split = size.split_last();
    let (n, lead) = split.ok_or_else(|| op_error("quantize", "the value has no dimensions"))?;
    let host = Host::of(&cast(x, Kind::Float)?)?;
    let quantized = int8::quantize(format, host.slice::<f32>(), *n as usize)
        .map_err(|error| op_error("quantize", error.to_string()))?;
    let (mut codes, mut scales) = (Output::zeros::<i8>(&size)?, Output::zeros::<f32>(lead)?);
    codes.slice::<i8>().copy_from_slice(&quantized.codes);
    scales.slice::<f32>().copy_from_slice(&quantized.scales);
    let device = x.device();
    Ok((codes.into_tensor().f_to_device(device)?, scales.into_tensor().f_to_device(device)?))
}

/// The error of an element that no code stands for.
pub(super) fn not_finite(op: &'static str, index: i64, value: f64) -> Error {
    let index = usize::try_from(index).unwrap_or_default();
    op_error(op, NotFinite { index, value }.to_string())
}

/// `codes[e, n, k]` and `scale[e, n]` of int8, `left[e, n, r]`, `right[e, r, k]` -> codes and scales of the
/// weight with its adapter added: `scale codes + left right`, computed in f64 and rounded once to f32, then
/// quantized.
///
/// # Errors
/// Kinds or shapes that do not fit together, or a sum that is not finite.
pub fn merge_adapter(
    codes: &Tensor,
    scale: &Tensor,
    left: &Tensor,
    right: &Tensor,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "merge_adapter";
    ensure_kind(OP, "codes", codes, Kind::Int8)?;
    ensure_kind(OP, "scale", scale, Kind::Float)?;
    let _ = ensure_same_kind(OP, &[left, right])?;
    let [e, n, k] = shape_of(OP, "codes", codes)?;
    let [_, _, rank] = shape_of(OP, "left", left)?;
    ensure_shape(OP, "scale", scale, &[e, n])?;
    ensure_shape(OP, "left", left, &[e, n, rank])?;
    ensure_shape(OP, "right", right, &[e, rank, k])?;
    let inputs = [codes, scale, left, right];
    if tile::takes_merge(inputs) {
        return tile::merge(inputs);
    }
    let sum = merged(inputs)?;
    let flat = sum.f_reshape([-1i64])?;
    let finite = flat.f_isfinite()?;
    if !bool::try_from(finite.f_all()?)? {
        let index = finite.f_logical_not()?.f_to_kind(Kind::Int64)?.f_argmax(0, false)?;
        let index = index.f_int64_value(&[])?;
        return Err(not_finite(OP, index, flat.f_double_value(&[index])?));
    }
    quantize_host(&sum)
}

/// The weight with its adapter, in f32.
pub(super) fn merged([codes, scale, left, right]: [&Tensor; 4]) -> Result<Tensor> {
    let base = cast(codes, Kind::Double)?.f_mul(&cast(scale, Kind::Double)?.f_unsqueeze(-1)?)?;
    let low = cast(left, Kind::Double)?.f_matmul(&cast(right, Kind::Double)?)?;
    cast(&base.f_add(&low)?, Kind::Float)
}

/// `scale * codes`, of the kind of `like`: rounded once to f32 (or f64), then to that kind.
pub fn dequantize(codes: &Tensor, scale: &Tensor, like: &Tensor) -> Result<Tensor> {
    let _ = check("dequantize", codes, scale, like)?;
    if tile::takes_dequantize(codes, scale, like) {
        return tile::dequantize(codes, scale);
    }
    dequantize_composite(codes, scale, like.kind())
}

/// [`dequantize`] composed of libtorch calls, without its checks.
pub(super) fn dequantize_composite(codes: &Tensor, scale: &Tensor, kind: Kind) -> Result<Tensor> {
    scaled(&cast(codes, wide_kind(kind))?, scale, kind)
}

/// `scale * level[codes]` with the quantile levels of the rows' length, of the kind of `like`.
pub fn dequantize_quantiles(codes: &Tensor, scale: &Tensor, like: &Tensor) -> Result<Tensor> {
    let kind = check("dequantize_quantiles", codes, scale, like)?;
    let n = codes.size().last().map_or(1, |n| *n as usize);
    let levels = Tensor::f_from_slice(Levels::of_length(n).all())?;
    let levels = levels.f_to_device(codes.device())?.f_to_kind(kind)?;
    let index = cast(codes, Kind::Int64)?.f_add_scalar(128)?.f_reshape([-1i64])?;
    scaled(&levels.f_index_select(0, &index)?.f_reshape(codes.size())?, scale, like.kind())
}

/// The kind in which the product is taken.
fn check(op: &'static str, codes: &Tensor, scale: &Tensor, like: &Tensor) -> Result<Kind> {
    ensure_kind(op, "codes", codes, Kind::Int8)?;
    ensure_kind(op, "scale", scale, Kind::Float)?;
    ensure(is_float(like.kind()), op, || format!("{:?} is no floating kind", like.kind()))?;
    let size = codes.size();
    let split = size.split_last();
    let (_, lead) = split.ok_or_else(|| op_error(op, "the codes have no dimensions"))?;
    ensure_shape(op, "scale", scale, lead)?;
    Ok(wide_kind(like.kind()))
}

fn scaled(unit: &Tensor, scale: &Tensor, kind: Kind) -> Result<Tensor> {
    let product = unit.f_mul(&cast(scale, unit.kind())?.f_unsqueeze(-1)?)?;
    cast(&product, kind)
}
