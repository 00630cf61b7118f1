//! States of reversible stacks on `fixed.cu`.

use lightc_numerics::fixed::Step;

use super::{at, ceil, int, take};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::{Error, Result};
use crate::ops::fixed::{fixed_quantize, pack_composite, unpack_composite};
use crate::ops::states::{
    Cotangents, Count, Made, Push, Room, StepArgs, bits_of, cotangent_composite, counted,
    gate_value, read_as, unit, zero_count,
};
use crate::{Kind, Tensor};

static MODULE: Module = Module { name: "fixed.cu", source: lightc_kernels::FIXED };

const fn kernel(entry: &'static str) -> Kernel {
    let origin = "states of a reversible stack, kernels/fixed.cu";
    Kernel { module: &MODULE, entry, origin, threads: 256, shared_bytes: 0 }
}

static START: Kernel = kernel("fixed_quantize");
static VALUE: Kernel = kernel("fixed_value");
static STEP: Kernel = kernel("fixed_step");
static INVERSE: Kernel = kernel("fixed_inverse");
static SEED: Kernel = kernel("fixed_seed");
static BACK: Kernel = kernel("fixed_back");
static PACK: Kernel = kernel("pack_bits");
static UNPACK: Kernel = kernel("unpack_bits");

const OP: &str = "reversible state";
/// Elements of a block.
const BLOCK: i64 = 256 * 8;

/// Values or cotangents of bf16 on a GPU.
pub(crate) fn takes_states(x: &Tensor) -> bool {
    cuda::runs_on(x.device()) && x.kind() == Kind::BFloat16
}

/// A state on a GPU whose value is wanted in bf16.
pub(crate) fn takes_value(state: &Tensor, kind: Kind) -> bool {
    cuda::runs_on(state.device()) && state.kind() == Kind::Int && kind == Kind::BFloat16
}

/// Whatever is on a GPU.
pub(crate) fn takes_bits(x: &Tensor) -> bool {
    cuda::runs_on(x.device())
}

fn grid(n: i64) -> Result<[u32; 3]> {
    Ok([int(OP, ceil(n, BLOCK))?, 1, 1])
}

fn elements(x: &Tensor) -> i64 {
    x.numel() as i64
}

/// The address of a tensor, or null.
fn optional(x: Option<&Tensor>) -> Arg<'_> {
    x.map_or(Arg::I64(0), Arg::Tensor)
}

/// Stands for the activation kind where no input has it.
fn like(x: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_empty([0i64], (Kind::BFloat16, x.device()))?)
}

/// A gate as kernels read it. Nothing waits for it.
fn wide(gate: Option<&Tensor>) -> Result<Option<Tensor>> {
    Ok(gate.map(|gate| gate.f_to_kind(Kind::Double)?.f_reshape([1i64])).transpose()?)
}

fn gate_of(args: &[&Tensor], position: usize) -> Result<f64> {
    let gate = args.get(position).map(|gate| gate.f_reshape([0i64; 0])).transpose()?;
    gate_value(gate.as_ref())
}

/// Kernels walk memory: all tensors must have as many elements.
fn same_size(all: &[&Tensor]) -> Result<()> {
    let sizes: Vec<_> = all.iter().map(|x| x.size()).collect();
    if sizes.windows(2).all(|pair| pair.first() == pair.last()) {
        return Ok(());
    }
    Err(Error::Op { op: OP, detail: format!("shapes {sizes:?}, one is needed") })
}

/// `state_start` where [`takes_states`].
pub(crate) fn state_start(x: &Tensor, fraction_bits: u32) -> Result<Made> {
    let fused: cuda::Way<'_> = &|args, _| {
        let args = cuda::rows::dense(args)?;
        let [x] = args.as_slice() else { return Err(arguments(args.len())) };
        let (n, beyond) = (elements(x), zero_count(x)?);
        let state = cuda::empty(&x.size(), Kind::Int, x)?;
        let value = cuda::empty(&x.size(), Kind::BFloat16, x)?;
        let tensors = [x, &state, &value, &beyond].map(Arg::Tensor);
        let unit = unit(fraction_bits);
        let sizes = [Arg::F32(1.0 / unit), Arg::F32(unit), Arg::I64(n)];
        cuda::launch(&START, grid(n)?, &[&tensors[..], &sizes].concat())?;
        Ok(vec![state, value, beyond])
    };
    let reference: cuda::Way<'_> = &|args, like| {
        let (state, beyond) = fixed_quantize(at(args, 0)?, fraction_bits)?;
        let value = read_as(&state, (fraction_bits, Kind::BFloat16), like.kind())?;
        Ok(vec![state, value, counted(beyond, like)?])
    };
    let [state, value, beyond] = take(OP, cuda::either(&START, &[x], x, fused, reference)?)?;
    Ok(Made { state, value, kept: None, beyond: Some(Count::Waiting(beyond)) })
}

fn arguments(found: usize) -> Error {
    Error::Op { op: OP, detail: format!("{found} arguments, another number is expected") }
}

/// `state_value` where [`takes_value`].
pub(crate) fn state_value(state: &Tensor, fraction_bits: u32) -> Result<Tensor> {
    let fused: cuda::Way<'_> = &|args, _| {
        let args = cuda::rows::dense(args)?;
        let [state] = args.as_slice() else { return Err(arguments(args.len())) };
        let n = elements(state);
        let value = cuda::empty(&state.size(), Kind::BFloat16, state)?;
        let sizes = [Arg::F32(unit(fraction_bits)), Arg::I64(n)];
        cuda::launch(
            &VALUE,
            grid(n)?,
            &[&[Arg::Tensor(state), Arg::Tensor(&value)], &sizes[..]].concat(),
        )?;
        Ok(vec![value])
    };
    let reference: cuda::Way<'_> = &|args, like| {
        Ok(vec![read_as(at(args, 0)?, (fraction_bits, Kind::BFloat16), like.kind())?])
    };
    let [value] = take(OP, cuda::either(&VALUE, &[state], &like(state)?, fused, reference)?)?;
    Ok(value)
}

/// `state_step` where [`takes_states`].
pub(crate) fn state_step(
    step: &Step,
    fraction_bits: u32,
    before: &Tensor,
    push: &Push<'_>,
) -> Result<Made> {
    same_size(&[before, push.now, push.y])?;
    let gate = wide(push.gate)?;
    let numbers = StepArgs { step: *step, fraction_bits, kind: Kind::BFloat16 };
    let fused: cuda::Way<'_> = &|args, _| {
        let args = cuda::rows::dense(args)?;
        let [before, now, y, gate @ ..] = args.as_slice() else {
            return Err(arguments(args.len()));
        };
        let (n, room) = (elements(now), Room::step(step, now)?);
        let mut all = [before, now, y].map(Arg::Tensor).to_vec();
        all.push(optional(gate.first()));
        all.extend(room.args());
        all.extend(numbers.of_step()?);
        all.push(Arg::I64(n));
        cuda::launch(&STEP, grid(n)?, &all)?;
        Ok(room.with(Vec::new()))
    };
    let reference: cuda::Way<'_> = &|args, like| {
        let (before, now, y) = (at(args, 0)?, at(args, 1)?, at(args, 2)?);
        numbers.step_reference((before, now), (y, gate_of(args, 3)?), like)
    };
    let mut inputs = vec![before, push.now, push.y];
    inputs.extend(gate.as_ref());
    Made::of(cuda::either(&STEP, &inputs, push.y, fused, reference)?)
}

/// `state_before` where [`takes_states`]: the state and its value.
pub(crate) fn state_before(
    step: &Step,
    fraction_bits: u32,
    next: &Tensor,
    kept: Option<&Tensor>,
    push: &Push<'_>,
) -> Result<(Tensor, Tensor)> {
    same_size(&[next, push.now, push.y])?;
    let numbers = StepArgs { step: *step, fraction_bits, kind: Kind::BFloat16 };
    let kept = numbers.kept_bits(kept, push.now)?;
    let gate = wide(push.gate)?;
    let n_kept = usize::from(kept.is_some());
    let fused: cuda::Way<'_> = &|args, _| {
        let args = cuda::rows::dense(args)?;
        let [next, now, y, rest @ ..] = args.as_slice() else {
            return Err(arguments(args.len()));
        };
        let (n, room) = (elements(now), Room::inverse(now)?);
        let mut all = [next, now, y].map(Arg::Tensor).to_vec();
        all.push(optional(rest.get(n_kept)));
        all.push(optional(rest.first().filter(|_| n_kept > 0)));
        all.extend(room.args());
        all.extend(numbers.of_inverse()?);
        all.push(Arg::I64(n));
        cuda::launch(&INVERSE, grid(n)?, &all)?;
        Ok(room.with(Vec::new()))
    };
    let reference: cuda::Way<'_> = &|args, like| {
        let kept = args.get(3).filter(|_| n_kept > 0).copied();
        let pair = (at(args, 0)?, at(args, 1)?);
        let y = (at(args, 2)?, gate_of(args, 3 + n_kept)?);
        numbers.inverse_reference(pair, kept, y, like)
    };
    let mut inputs = vec![next, push.now, push.y];
    inputs.extend(kept);
    inputs.extend(gate.as_ref());
    let made = Made::of(cuda::either(&INVERSE, &inputs, push.y, fused, reference)?)?;
    Ok((made.state, made.value))
}

/// `state_seed` where [`takes_states`].
pub(crate) fn state_seed(d: &Tensor, weight: f64, gate: Option<&Tensor>) -> Result<Tensor> {
    let gate = wide(gate)?;
    let fused: cuda::Way<'_> = &|args, _| {
        let args = cuda::rows::dense(args)?;
        let [d, gate @ ..] = args.as_slice() else { return Err(arguments(args.len())) };
        let (n, seed) = (elements(d), cuda::empty(&d.size(), Kind::BFloat16, d)?);
        let rest = [Arg::Tensor(&seed), bits_of(weight), Arg::I64(n)];
        let first = [Arg::Tensor(d), optional(gate.first())];
        cuda::launch(&SEED, grid(n)?, &[&first[..], &rest].concat())?;
        Ok(vec![seed])
    };
    let reference: cuda::Way<'_> =
        &|args, _| Ok(vec![at(args, 0)?.f_mul_scalar(weight * gate_of(args, 1)?)?]);
    let mut inputs = vec![d];
    inputs.extend(gate.as_ref());
    let [seed] = take(OP, cuda::either(&SEED, &inputs, d, fused, reference)?)?;
    Ok(seed)
}

/// `state_cotangent` where [`takes_states`]. It makes the seed again rather than read it.
pub(crate) fn state_cotangent(
    parts: &Cotangents<'_>,
    weight: f64,
    gate: Option<&Tensor>,
) -> Result<Tensor> {
    same_size(&[parts.d, parts.through])?;
    let late = parts.late.map(|(late, _)| late);
    same_size(&[parts.d, late.unwrap_or(parts.d)])?;
    let gate = wide(gate)?;
    let n_late = usize::from(late.is_some());
    let late_share = parts.late.map_or(0.0, |(_, share)| share);
    let fused: cuda::Way<'_> = &|args, _| {
        let args = cuda::rows::dense(args)?;
        let [d, through, rest @ ..] = args.as_slice() else {
            return Err(arguments(args.len()));
        };
        let (n, to) = (elements(d), cuda::empty(&d.size(), Kind::BFloat16, d)?);
        let late = rest.first().filter(|_| n_late > 0);
        #[allow(clippy::cast_possible_truncation)] // as libtorch takes a number beside bf16
        let shares = [Arg::F32(late_share as f32), Arg::F32(parts.share as f32)];
        cuda::launch(
            &BACK,
            grid(n)?,
            &[
                &[optional(late), Arg::Tensor(d), Arg::Tensor(through)][..],
                &[optional(rest.get(n_late)), Arg::Tensor(&to)],
                &shares,
                &[bits_of(weight), Arg::I64(n)],
            ]
            .concat(),
        )?;
        Ok(vec![to])
    };
    let reference: cuda::Way<'_> = &|args, _| {
        let late = args.get(2).filter(|_| n_late > 0).map(|late| (*late, late_share));
        let (d, through) = (at(args, 0)?, at(args, 1)?);
        let seed = d.f_mul_scalar(weight * gate_of(args, 2 + n_late)?)?;
        let parts = Cotangents { late, d, share: parts.share, seed: &seed, through };
        Ok(vec![cotangent_composite(&parts)?])
    };
    let mut inputs = vec![parts.d, parts.through];
    inputs.extend(late);
    inputs.extend(gate.as_ref());
    let [to] = take(OP, cuda::either(&BACK, &inputs, parts.d, fused, reference)?)?;
    Ok(to)
}

/// `pack_bools` where [`takes_bits`].
pub(crate) fn pack_bools(x: &Tensor) -> Result<Tensor> {
    let fused: cuda::Way<'_> = &|args, _| {
        let args = cuda::rows::dense(args)?;
        let [x] = args.as_slice() else { return Err(arguments(args.len())) };
        let n = elements(x);
        let packed = cuda::empty(&[ceil(n, 8)], Kind::Uint8, x)?;
        let args = [Arg::Tensor(x), Arg::Tensor(&packed), Arg::I64(n)];
        cuda::launch(&PACK, grid(n)?, &args)?;
        Ok(vec![packed])
    };
    let reference: cuda::Way<'_> = &|args, _| Ok(vec![pack_composite(at(args, 0)?)?]);
    let [packed] = take(OP, cuda::either(&PACK, &[x], &like(x)?, fused, reference)?)?;
    Ok(packed)
}

/// `unpack_bools` where [`takes_bits`].
pub(crate) fn unpack_bools(packed: &Tensor, shape: &[i64]) -> Result<Tensor> {
    let n: i64 = shape.iter().product();
    if elements(packed) != ceil(n, 8) {
        let detail = format!("{} bytes of truth values for {shape:?}", packed.numel());
        return Err(Error::Op { op: OP, detail });
    }
    let fused: cuda::Way<'_> = &|args, _| {
        let args = cuda::rows::dense(args)?;
        let [packed] = args.as_slice() else { return Err(arguments(args.len())) };
        let x = cuda::empty(shape, Kind::Bool, packed)?;
        let args = [Arg::Tensor(packed), Arg::Tensor(&x), Arg::I64(n)];
        cuda::launch(&UNPACK, grid(n)?, &args)?;
        Ok(vec![x])
    };
    let reference: cuda::Way<'_> = &|args, _| Ok(vec![unpack_composite(at(args, 0)?, shape)?]);
    let like = like(packed)?;
    let [x] = take(OP, cuda::either(&UNPACK, &[packed], &like, fused, reference)?)?;
    Ok(x)
}
