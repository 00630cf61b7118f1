//! States of reversible stacks in fixed point: steps, their inverses, packed bits.
//!
//! [`lightc_numerics::fixed`] defines each element; here are whole tensors. States are i32, kept
//! bits u8 with several elements to a byte. Whatever the kind of the values, a force is taken in
//! f64. On the CPU a native loop shared by threads does it, elsewhere libtorch in f64 and i64, or, as
//! `states` says, a kernel; all give the same bits.

use lightc_numerics::fixed::{self, HALF_RANGE, Step};
use tch::{Device, Kind, Tensor};

use super::native::{Host, Kernel, Output, Real, by_kind, parallel_each, vectorized};
use super::support::{cast, ensure, ensure_kind, is_float};
use super::tile;
use crate::Result;

/// Elements that one thread does at a time: a multiple of what a byte holds.
const CHUNK: usize = 1 << 15;
/// About how many operations an element costs.
const WORK: usize = 12;

/// What a layer did: the value that it read, what it made of it, and the gate on the difference.
#[derive(Clone, Copy)]
pub struct Force<'a> {
    /// The value of the state, as the layer read it.
    pub p: &'a Tensor,
    /// What the layer gave.
    pub y: &'a Tensor,
    /// Multiplies `y - p`.
    pub gate: f64,
}

/// What [`fixed_step`] gives.
pub struct Stepped {
    /// The next state.
    pub next: Tensor,
    /// The bits that were shifted out, packed; nothing where the step shifts none.
    pub kept: Option<Tensor>,
    /// Elements beyond half of the range.
    pub beyond: i64,
}

/// The state of a tensor, and the number of its elements beyond half of the range.
pub fn fixed_quantize(x: &Tensor, bits: u32) -> Result<(Tensor, i64)> {
    ensure(is_float(x.kind()), "fixed_quantize", || format!("x is {:?}", x.kind()))?;
    if x.device() != Device::Cpu {
        let scaled = x.f_to_kind(Kind::Double)?.f_mul_scalar((1_u64 << bits) as f64)?.f_round()?;
        let small = scaled.f_abs()?.f_le(HALF_RANGE as f64)?;
        let beyond = x.numel() as i64 - small.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        return Ok((wrapped(&saturated(&scaled)?)?, beyond));
    }
    let x = native_kind(x)?;
    by_kind!(x.kind(), quantize_native(&x, bits))
}

fn quantize_native<T: Real + Into<f64>>(x: &Tensor, bits: u32) -> Result<(Tensor, i64)> {
    let host = Host::of(x)?;
    let mut out = Output::zeros::<i32>(&x.size())?;
    let parts = host.slice::<T>().chunks(CHUNK).zip(out.slice::<i32>().chunks_mut(CHUNK)).collect();
    let beyond = parallel_each(parts, x.numel() * WORK, |(x, out): (&[T], &mut [i32])| {
        let mut beyond = 0;
        for (out, x) in out.iter_mut().zip(x) {
            let (state, in_range) = fixed::quantize((*x).into(), bits);
            *out = state;
            beyond += i64::from(!in_range);
        }
        beyond
    });
    Ok((out.into_tensor(), beyond.iter().sum()))
}

/// The values of a state in a floating kind.
pub fn fixed_value(state: &Tensor, bits: u32, kind: Kind) -> Result<Tensor> {
    ensure_kind("fixed_value", "the state", state, Kind::Int)?;
    if state.device() != Device::Cpu || !matches!(kind, Kind::Float | Kind::Double) {
        let wide = state.f_to_kind(Kind::Double)?;
        return Ok(wide.f_mul_scalar(1.0 / (1_u64 << bits) as f64)?.f_to_kind(kind)?);
    }
    by_kind!(kind, value_native(state, bits))
}

fn value_native<T: Real>(state: &Tensor, bits: u32) -> Result<Tensor> {
    let host = Host::of(state)?;
    let mut out = Output::zeros::<T>(&state.size())?;
    let parts = host.slice::<i32>().chunks(CHUNK).zip(out.slice::<T>().chunks_mut(CHUNK)).collect();
    let _ = parallel_each(parts, state.numel() * 2, |(state, out): (&[i32], &mut [T])| {
        for (out, state) in out.iter_mut().zip(state) {
            *out = T::of(fixed::value(*state, bits));
        }
    });
    Ok(out.into_tensor())
}

/// The state after `now`, which comes after `before`.
pub fn fixed_step(
    step: &Step,
    before: &Tensor,
    now: &Tensor,
    force: &Force<'_>,
) -> Result<Stepped> {
    check("fixed_step", &[before, now], force)?;
    if now.device() != Device::Cpu {
        return step_composite(step, before, now, force);
    }
    let (p, y) = (native_kind(force.p)?, native_kind(force.y)?);
    let force = Force { p: &p, y: &y, gate: force.gate };
    by_kind!(p.kind(), step_native(step, before, now, &force))
}

fn step_native<T: Real + Into<f64>>(
    step: &Step,
    before: &Tensor,
    now: &Tensor,
    force: &Force<'_>,
) -> Result<Stepped> {
    let n = now.numel();
    let (before, shape) = (Host::of(before)?, now.size());
    let (now, p, y) = (Host::of(now)?, Host::of(force.p)?, Host::of(force.y)?);
    let mut next = Output::zeros::<i32>(&shape)?;
    let mut kept = Output::zeros::<u8>(&[fixed::packed_len(n, step.bits) as i64])?;
    let per_chunk = fixed::packed_len(CHUNK, step.bits).max(1);
    let mut kept_chunks = kept.slice::<u8>().chunks_mut(per_chunk);
    let reads = before.slice::<i32>().chunks(CHUNK).zip(now.slice::<i32>().chunks(CHUNK));
    let forces = p.slice::<T>().chunks(CHUNK).zip(y.slice::<T>().chunks(CHUNK));
    let mut parts = Vec::new();
    for ((next, (before, now)), (p, y)) in
        next.slice::<i32>().chunks_mut(CHUNK).zip(reads).zip(forces)
    {
        let kept = kept_chunks.next().unwrap_or_default();
        parts.push(StepPart { step: *step, gate: force.gate, before, now, p, y, next, kept });
    }
    let beyond = parallel_each(parts, n * WORK, vectorized);
    let kept = (step.bits > 0).then(|| kept.into_tensor());
    Ok(Stepped { next: next.into_tensor(), kept, beyond: beyond.iter().sum() })
}

struct StepPart<'a, T> {
    step: Step,
    gate: f64,
    before: &'a [i32],
    now: &'a [i32],
    p: &'a [T],
    y: &'a [T],
    next: &'a mut [i32],
    kept: &'a mut [u8],
}

impl<T: Real + Into<f64>> Kernel for StepPart<'_, T> {
    type Out = i64;

    #[inline(always)]
    fn run(self) -> i64 {
        let width = fixed::packed_width(self.step.bits).max(1) as usize;
        let per_byte = 8 / width;
        let mut beyond = 0;
        let states = self.before.iter().zip(self.now);
        let forces = self.p.iter().zip(self.y);
        for (index, ((next, (before, now)), (p, y))) in
            self.next.iter_mut().zip(states).zip(forces).enumerate()
        {
            let (p, y): (f64, f64) = ((*p).into(), (*y).into());
            let stepped = self.step.forward(*before, *now, self.gate * (y - p));
            *next = stepped.next;
            beyond += i64::from(!stepped.in_range);
            if let Some(byte) = self.kept.get_mut(index / per_byte) {
                *byte |= stepped.kept << (index % per_byte * width);
            }
        }
        beyond
    }
}

/// The state before `now`, given what [`fixed_step`] made of both.
pub fn fixed_inverse(
    step: &Step,
    next: &Tensor,
    kept: Option<&Tensor>,
    now: &Tensor,
    force: &Force<'_>,
) -> Result<Tensor> {
    check("fixed_inverse", &[next, now], force)?;
    let bytes = fixed::packed_len(now.numel(), step.bits) as i64;
    let has = kept.map_or(0, |kept| kept.numel() as i64);
    ensure(has == bytes && (step.bits == 0 || kept.is_some()), "fixed_inverse", || {
        format!("{has} bytes of kept bits, {bytes} needed for {:?}", now.size())
    })?;
    if now.device() != Device::Cpu {
        return inverse_composite(step, next, kept, now, force);
    }
    let (p, y) = (native_kind(force.p)?, native_kind(force.y)?);
    let force = Force { p: &p, y: &y, gate: force.gate };
    by_kind!(p.kind(), inverse_native(step, next, kept, now, &force))
}

fn inverse_native<T: Real + Into<f64>>(
    step: &Step,
    next: &Tensor,
    kept: Option<&Tensor>,
    now: &Tensor,
    force: &Force<'_>,
) -> Result<Tensor> {
    let (n, shape) = (now.numel(), now.size());
    let (next, now) = (Host::of(next)?, Host::of(now)?);
    let (p, y) = (Host::of(force.p)?, Host::of(force.y)?);
    let kept = kept.map(Host::of).transpose()?;
    let packed = kept.as_ref().map_or(&[][..], |kept| kept.slice::<u8>());
    let mut kept_chunks = packed.chunks(fixed::packed_len(CHUNK, step.bits).max(1));
    let mut before = Output::zeros::<i32>(&shape)?;
    let reads = next.slice::<i32>().chunks(CHUNK).zip(now.slice::<i32>().chunks(CHUNK));
    let forces = p.slice::<T>().chunks(CHUNK).zip(y.slice::<T>().chunks(CHUNK));
    let mut parts = Vec::new();
    for ((before, (next, now)), (p, y)) in
        before.slice::<i32>().chunks_mut(CHUNK).zip(reads).zip(forces)
    {
        let kept = kept_chunks.next().unwrap_or_default();
        parts.push(InversePart { step: *step, gate: force.gate, before, now, p, y, next, kept });
    }
    let _ = parallel_each(parts, n * WORK, vectorized);
    Ok(before.into_tensor())
}

struct InversePart<'a, T> {
    step: Step,
    gate: f64,
    before: &'a mut [i32],
    now: &'a [i32],
    p: &'a [T],
    y: &'a [T],
    next: &'a [i32],
    kept: &'a [u8],
}

impl<T: Real + Into<f64>> Kernel for InversePart<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run(self) {
        let states = self.next.iter().zip(self.now);
        let forces = self.p.iter().zip(self.y);
        for (index, ((before, (next, now)), (p, y))) in
            self.before.iter_mut().zip(states).zip(forces).enumerate()
        {
            let (p, y): (f64, f64) = ((*p).into(), (*y).into());
            let kept = fixed::unpack(self.kept, index, self.step.bits);
            *before = self.step.inverse(*next, kept, *now, self.gate * (y - p));
        }
    }
}

fn check(op: &'static str, states: &[&Tensor], force: &Force<'_>) -> Result<()> {
    let shape = force.p.size();
    let same = states.iter().all(|state| state.size() == shape) && force.y.size() == shape;
    ensure(same, op, || {
        let shapes: Vec<_> = states.iter().map(|state| state.size()).collect();
        format!("states {shapes:?}, p {shape:?}, y {:?}: one shape needed", force.y.size())
    })?;
    states.iter().try_for_each(|state| ensure_kind(op, "a state", state, Kind::Int))?;
    ensure(is_float(force.p.kind()) && force.p.kind() == force.y.kind(), op, || {
        format!("p is {:?} and y {:?}, one floating kind needed", force.p.kind(), force.y.kind())
    })
}

/// f32 or f64: narrower kinds fit in f32.
fn native_kind(x: &Tensor) -> Result<Tensor> {
    if x.kind() == Kind::Double { Ok(x.shallow_clone()) } else { cast(x, Kind::Float) }
}

// By libtorch ------------------------------------------------------------------------------------

/// [`fixed_step`] composed of libtorch calls.
pub fn step_composite(
    step: &Step,
    before: &Tensor,
    now: &Tensor,
    force: &Force<'_>,
) -> Result<Stepped> {
    let (rounded, small) = rounded_force(step, force)?;
    let rest = (1_i64 << step.bits) - step.numerator;
    let sum = before.f_to_kind(Kind::Int64)?.f_mul_scalar(step.numerator)?;
    let sum = sum.f_add(&now.f_to_kind(Kind::Int64)?.f_mul_scalar(rest)?)?.f_add(&rounded)?;
    let shift = Tensor::f_full([0i64; 0], i64::from(step.bits), (Kind::Int64, sum.device()))?;
    let next = sum.f_bitwise_right_shift(&shift)?;
    let in_range = next.f_le(HALF_RANGE)?.f_logical_and(&next.f_ge(-HALF_RANGE)?)?;
    let in_range = in_range.f_logical_and(&small)?;
    let beyond = next.numel() as i64 - in_range.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    let low = sum.f_bitwise_and((1_i64 << step.bits) - 1)?;
    let kept = if step.bits > 0 { Some(pack(&low, step.bits)?) } else { None };
    Ok(Stepped { next: wrapped(&next)?, kept, beyond })
}

/// [`fixed_inverse`] composed of libtorch calls.
pub fn inverse_composite(
    step: &Step,
    next: &Tensor,
    kept: Option<&Tensor>,
    now: &Tensor,
    force: &Force<'_>,
) -> Result<Tensor> {
    let (rounded, _) = rounded_force(step, force)?;
    let rest = (1_i64 << step.bits) - step.numerator;
    let mut sum = next.f_to_kind(Kind::Int64)?.f_mul_scalar(1_i64 << step.bits)?;
    if let Some(kept) = kept {
        let low = unpack(kept, now.numel() as i64, step.bits)?;
        sum = sum.f_add(&low.f_reshape(now.size())?)?;
    }
    let share = sum.f_sub(&now.f_to_kind(Kind::Int64)?.f_mul_scalar(rest)?)?.f_sub(&rounded)?;
    wrapped(&share.f_mul_scalar(step.inverse_numerator())?)
}

fn rounded_force(step: &Step, force: &Force<'_>) -> Result<(Tensor, Tensor)> {
    let (p, y) = (force.p.f_to_kind(Kind::Double)?, force.y.f_to_kind(Kind::Double)?);
    let push = y.f_sub(&p)?.f_mul_scalar(force.gate)?.f_mul_scalar(step.scale)?.f_round()?;
    let small = push.f_abs()?.f_lt(9e15)?;
    Ok((saturated(&push)?, small))
}

/// As a cast of Rust: what is not a number is 0, and what is too large the largest.
fn saturated(push: &Tensor) -> Result<Tensor> {
    let inside = push.f_nan_to_num(0.0, 0.0, 0.0)?.f_clamp(-9e18, 9e18)?.f_to_kind(Kind::Int64)?;
    let extreme = |value: i64| Tensor::f_full_like(&inside, value);
    let high =
        inside.f_where_self(&push.f_lt(9_223_372_036_854_775_808.0)?, &extreme(i64::MAX)?)?;
    let both = high.f_where_self(&push.f_gt(-9_223_372_036_854_775_808.0)?, &extreme(i64::MIN)?)?;
    Ok(both.f_where_self(&push.f_isnan()?.f_logical_not()?, &extreme(0)?)?)
}

/// The low 32 bits of an i64.
fn wrapped(x: &Tensor) -> Result<Tensor> {
    let low = x.f_bitwise_and(0xFFFF_FFFF_i64)?;
    let negative = low.f_ge(1_i64 << 31)?.f_to_kind(Kind::Int64)?.f_mul_scalar(1_i64 << 32)?;
    Ok(low.f_sub(&negative)?.f_to_kind(Kind::Int)?)
}

/// What each element of a byte is multiplied by.
fn places(bits: u32, device: Device) -> Result<Tensor> {
    let width = fixed::packed_width(bits);
    let places: Vec<i64> = (0..8 / width).map(|i| 1 << (i * width)).collect();
    Ok(Tensor::f_from_slice(&places)?.f_to_device(device)?)
}

fn pack(low: &Tensor, bits: u32) -> Result<Tensor> {
    let places = places(bits, low.device())?;
    let per_byte = places.numel() as i64;
    let n = low.numel() as i64;
    let bytes = (n + per_byte - 1) / per_byte;
    let flat = low.f_reshape([n])?.f_constant_pad_nd([0, bytes * per_byte - n])?;
    let rows = flat.f_reshape([bytes, per_byte])?.f_mul(&places)?;
    Ok(rows.f_sum_dim_intlist(1, false, Kind::Int64)?.f_to_kind(Kind::Uint8)?)
}

fn unpack(packed: &Tensor, n: i64, bits: u32) -> Result<Tensor> {
    let places = places(bits, packed.device())?;
    let rows = packed.f_to_kind(Kind::Int64)?.f_unsqueeze(1)?;
    let rows = rows.f_div_tensor_mode(&places, "floor")?.f_bitwise_and((1_i64 << bits) - 1)?;
    Ok(rows.f_reshape([-1i64])?.f_narrow(0, 0, n)?)
}

/// Truth values, eight to a byte.
pub fn pack_bools(x: &Tensor) -> Result<Tensor> {
    ensure_kind("pack_bools", "x", x, Kind::Bool)?;
    if tile::takes_bits(x) {
        return tile::pack_bools(x);
    }
    let host = Host::of(x)?;
    let mut out = Output::zeros::<u8>(&[fixed::packed_len(x.numel(), 1) as i64])?;
    let bits = host.slice::<bool>();
    for (byte, bits) in out.slice::<u8>().iter_mut().zip(bits.chunks(8)) {
        *byte = bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    }
    Ok(out.into_tensor())
}

/// The truth values of a shape that [`pack_bools`] packed.
pub fn unpack_bools(packed: &Tensor, shape: &[i64]) -> Result<Tensor> {
    if tile::takes_bits(packed) {
        return tile::unpack_bools(packed, shape);
    }
    let host = Host::of(packed)?;
    let mut out = Output::zeros::<bool>(shape)?;
    for (bits, byte) in out.slice::<bool>().chunks_mut(8).zip(host.slice::<u8>()) {
        for (place, bit) in bits.iter_mut().enumerate() {
            *bit = byte >> place & 1 == 1;
        }
    }
    Ok(out.into_tensor())
}

/// [`pack_bools`] composed of libtorch calls.
pub(crate) fn pack_composite(x: &Tensor) -> Result<Tensor> {
    pack(&x.f_to_kind(Kind::Int64)?, 1)
}

/// [`unpack_bools`] composed of libtorch calls.
pub(crate) fn unpack_composite(packed: &Tensor, shape: &[i64]) -> Result<Tensor> {
    let n: i64 = shape.iter().product();
    Ok(unpack(packed, n, 1)?.f_to_kind(Kind::Bool)?.f_reshape(shape)?)
}

/// Flips one bit of a packed tensor in place: for tests of what a wrong bit does.
pub(crate) fn flip_bit(packed: &mut Tensor, index: i64) -> Result<()> {
    let byte = packed.f_int64_value(&[index])?;
    let mut place = packed.f_narrow(0, index, 1)?;
    let _ = place.f_fill_(byte ^ 1)?;
    Ok(())
}
