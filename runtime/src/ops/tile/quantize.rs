//! Weights in 8 bits on `quantize.cu`.

use super::{aligned, at, ceil, contiguous, exact, int, take};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::Result;
use crate::ops::quantized::{dequantize_composite, merged, not_finite, quantize_host};
use crate::{Kind, Tensor};

static MODULE: Module = Module { name: "quantize.cu", source: lightc_kernels::QUANTIZE };

const fn kernel(entry: &'static str, shared_bytes: u32) -> Kernel {
    let origin = "quantize, kernels/quantize.cu";
    Kernel { module: &MODULE, entry, origin, threads: 256, shared_bytes }
}

/// Elements of a row that a merge holds in shared memory.
const MOST_MERGED: i64 = 56 << 10;
const MERGE_SHARED: u32 = 4 * MOST_MERGED as u32;

static FLOAT: Kernel = kernel("quantize_float", 0);
static HALF: Kernel = kernel("quantize_bf16", 0);
static DEQUANTIZE: Kernel = kernel("dequantize_bf16", 0);
static SPLIT: Kernel = kernel("split_rows", 0);
static SPLIT_SCALED: Kernel = kernel("split_scaled", 0);
static MERGE_FLOAT: Kernel = kernel("merge_float", MERGE_SHARED);
static MERGE_HALF: Kernel = kernel("merge_bf16", MERGE_SHARED);

/// Warps of a block.
const WARPS: i64 = 8;

/// Places of a block of `split_scaled`.
const SPLIT_PLACES: i64 = 32;

/// Where no element is at fault.
const NONE: i64 = i64::MAX;

/// f32 or bf16 on a GPU, at least one element, below 2^31 rows and elements of one.
pub(crate) fn takes_quantize(x: &Tensor) -> bool {
    let n = x.size().last().copied().unwrap_or(0);
    cuda::runs_on(x.device())
        && matches!(x.kind(), Kind::Float | Kind::BFloat16)
        && n > 0
        && n < 1 << 31
        && (1..1 << 31).contains(&(x.numel() as i64 / n.max(1)))
}

/// Codes, scales, and the place of the first element that is not finite: results of a kernel.
fn results(shape: &[i64], like: &Tensor) -> Result<[Tensor; 3]> {
    let lead = shape.split_last().map_or(&[][..], |(_, lead)| lead);
    Ok([
        cuda::empty(shape, Kind::Int8, like)?,
        cuda::empty(lead, Kind::Float, like)?,
        Tensor::f_full([1], NONE, (Kind::Int64, like.device()))?,
    ])
}

/// What a reference gives beside its codes: it fails where an element is not finite.
fn fine(codes: Tensor, scale: Tensor) -> Result<Vec<Tensor>> {
    let none = Tensor::f_full([1], NONE, (Kind::Int64, codes.device()))?;
    Ok(vec![codes, scale, none])
}

/// `quantize` into int8 where [`takes_quantize`]. It waits for the device: an element that is not finite
/// is an error.
pub(crate) fn quantize(x: &Tensor) -> Result<(Tensor, Tensor)> {
    const OP: &str = "quantize";
    let kernel = if x.kind() == Kind::Float { &FLOAT } else { &HALF };
    let fused: cuda::Way<'_> = &|args, _| {
        let x = contiguous(at(args, 0)?)?;
        let shape = x.size();
        let n = shape.last().copied().unwrap_or(1);
        let [codes, scale, bad] = results(&shape, &x)?;
        let tensors = [&x, &codes, &scale, &bad].map(Arg::Tensor);
        let grid = [int(OP, x.numel() as i64 / n.max(1))?, 1, 1];
        cuda::launch(kernel, grid, &[&tensors[..], &[Arg::I32(int(OP, n)?)]].concat())?;
        Ok(vec![codes, scale, bad])
    };
    let reference: cuda::Way<'_> = &|args, _| {
        let (codes, scale) = quantize_host(at(args, 0)?)?;
        fine(codes, scale)
    };
    let [codes, scale, bad] = take(OP, cuda::either(kernel, &[x], &exact(x)?, fused, reference)?)?;
    ensure_finite(OP, &bad, &|index| Ok(x.f_reshape([-1i64])?.f_double_value(&[index])?))?;
    Ok((codes, scale))
}

fn ensure_finite(op: &'static str, bad: &Tensor, value: &dyn Fn(i64) -> Result<f64>) -> Result<()> {
    match bad.f_int64_value(&[0])? {
        NONE => Ok(()),
        index => Err(not_finite(op, index, value(index)?)),
    }
}

/// Codes of rows of a multiple of eight on a GPU, to be read as bf16.
pub(crate) fn takes_dequantize(codes: &Tensor, scale: &Tensor, like: &Tensor) -> bool {
    cuda::runs_on(codes.device())
        && scale.device() == codes.device()
        && like.kind() == Kind::BFloat16
        && (1..1 << 34).contains(&(codes.numel() as i64))
        && codes.size().last().is_some_and(|n| n % 8 == 0)
}

/// `dequantize` into bf16 where [`takes_dequantize`].
pub(crate) fn dequantize(codes: &Tensor, scale: &Tensor) -> Result<Tensor> {
    const OP: &str = "dequantize";
    let fused: cuda::Way<'_> = &|args, _| Ok(vec![unpacked(OP, at(args, 0)?, at(args, 1)?)?]);
    let reference: cuda::Way<'_> =
        &|args, like| Ok(vec![dequantize_composite(at(args, 0)?, at(args, 1)?, like.kind())?]);
    let inputs = [codes, scale];
    let [y] = take(OP, cuda::either(&DEQUANTIZE, &inputs, &exact(codes)?, fused, reference)?)?;
    Ok(y)
}

/// Codes as bf16, by the kernel alone: a part of another op.
pub(super) fn unpacked(op: &'static str, codes: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let (codes, scale) = (aligned(codes)?, contiguous(scale)?);
    let y = cuda::empty(&codes.size(), Kind::BFloat16, &codes)?;
    let (total, n) = (codes.numel() as i64, codes.size().last().copied().unwrap_or(0));
    let tensors = [&codes, &scale, &y].map(Arg::Tensor);
    let sizes = [Arg::I64(total), Arg::I32(int(op, n)?)];
    let grid = [int(op, ceil(total, 8192))?, 1, 1];
    cuda::launch(&DEQUANTIZE, grid, &[&tensors[..], &sizes].concat())?;
    Ok(y)
}

/// Planes and units of `rows` rows of `k` elements, and the warps of a row.
struct Split {
    planes: Tensor,
    units: Tensor,
    warps: i64,
}

impl Split {
    fn of(rows: i64, k: i64, like: &Tensor) -> Result<Split> {
        let warps = ceil(k, 512).clamp(1, WARPS).cast_unsigned().next_power_of_two().cast_signed();
        Ok(Split {
            planes: cuda::empty(&[rows, 2, ceil(k, 128) * 128], Kind::Int8, like)?,
            units: cuda::empty(&[rows], Kind::Float, like)?,
            warps,
        })
    }
}

/// Rows `[.., k]` of bf16 as two planes of bytes `[rows, 2, k rounded up to 128]`, and the unit of each row, by the kernel
/// alone: a part of another op.
pub(super) fn split(op: &'static str, x: &Tensor) -> Result<[Tensor; 2]> {
    let x = aligned(x)?;
    let k = x.size().last().copied().unwrap_or(1).max(1);
    let rows = x.numel() as i64 / k;
    let split = Split::of(rows, k, &x)?;
    let tensors = [&x, &split.planes, &split.units].map(Arg::Tensor);
    let sizes = [Arg::I64(rows), Arg::I32(int(op, k)?), Arg::I32(int(op, split.warps)?)];
    let grid = int(op, ceil(rows, WARPS / split.warps))?;
    cuda::launch(&SPLIT, [grid, 1, 1], &[&tensors[..], &sizes].concat())?;
    Ok([split.planes, split.units])
}

/// The same of one or two terms as one row for each place: rows `[.., k]` times the scales `[experts, k]` of the place's expert.
pub(super) fn split_scaled(
    op: &'static str,
    order: &Tensor,
    bounds: &Tensor,
    terms: &[(&Tensor, &Tensor)],
) -> Result<[Tensor; 2]> {
    let x = terms.iter().map(|(x, _)| aligned(x)).collect::<Result<Vec<_>>>()?;
    let scale = terms.iter().map(|(_, scale)| aligned(scale)).collect::<Result<Vec<_>>>()?;
    let [first, ..] = x.as_slice() else {
        return Err(crate::Error::Op { op, detail: "no terms".to_owned() });
    };
    let k = first.size().last().copied().unwrap_or(1).max(1);
    let (places, experts) = (order.numel() as i64, bounds.numel() as i64 - 1);
    let split = Split::of(places, k * x.len() as i64, first)?;
    let mut all: Vec<Arg<'_>> = Vec::new();
    for tensors in [&x, &scale] {
        all.extend([0, 1].map(|index| tensors.get(index).map_or(Arg::I64(0), Arg::Tensor)));
    }
    all.extend([order, bounds, &split.planes, &split.units].map(Arg::Tensor));
    let run = places / (first.numel() as i64 / k).max(1);
    for number in [places, experts, k, run, split.warps] {
        all.push(Arg::I32(int(op, number)?));
    }
    let grid = int(op, ceil(places, SPLIT_PLACES) + experts + 1)?;
    cuda::launch(&SPLIT_SCALED, [grid, 1, 1], &all)?;
    drop(all);
    Ok([split.planes, split.units])
}

/// Codes on a GPU with adapters of one kind, f32 or bf16, and rows that fit in shared memory.
pub(crate) fn takes_merge([codes, scale, left, right]: [&Tensor; 4]) -> bool {
    let n = codes.size().last().copied().unwrap_or(0);
    cuda::runs_on(codes.device())
        && [scale, left, right].iter().all(|x| x.device() == codes.device())
        && scale.kind() == Kind::Float
        && matches!(left.kind(), Kind::Float | Kind::BFloat16)
        && left.kind() == right.kind()
        && (1..=MOST_MERGED).contains(&n)
        && (1..1 << 31).contains(&(codes.numel() as i64 / n.max(1)))
}

/// `merge_adapter` where [`takes_merge`]. It waits for the device, as [`quantize`] does.
pub(crate) fn merge(inputs: [&Tensor; 4]) -> Result<(Tensor, Tensor)> {
    const OP: &str = "merge_adapter";
    let [codes, _, left, _] = inputs;
    let kernel = if left.kind() == Kind::Float { &MERGE_FLOAT } else { &MERGE_HALF };
    let fused: cuda::Way<'_> = &|args, _| {
        let old = [0, 1, 2, 3].map(|position| at(args, position).and_then(contiguous));
        let [old_codes, old_scale, left, right] = old;
        let (old_codes, old_scale, left, right) = (old_codes?, old_scale?, left?, right?);
        let (_, width, n) = old_codes.size3()?;
        let rank = left.size().last().copied().unwrap_or(0);
        let [codes, scale, bad] = results(&old_codes.size(), &old_codes)?;
        let tensors = [&old_codes, &old_scale, &left, &right, &codes, &scale, &bad];
        let sizes = [n, rank, width].map(|size| int(OP, size).map(Arg::I32));
        let [n_arg, rank, width] = sizes;
        let all = [&tensors.map(Arg::Tensor)[..], &[n_arg?, rank?, width?]].concat();
        let grid = [int(OP, scale.numel() as i64)?, 1, 1];
        cuda::launch_with(kernel, grid, int(OP, 4 * n)?, &all)?;
        Ok(vec![codes, scale, bad])
    };
    let reference: cuda::Way<'_> = &|args, _| {
        let inputs = [at(args, 0)?, at(args, 1)?, at(args, 2)?, at(args, 3)?];
        let (codes, scale) = quantize_host(&merged(inputs)?)?;
        fine(codes, scale)
    };
    let results = cuda::either(kernel, &inputs, &exact(codes)?, fused, reference)?;
    let [new, scale, bad] = take(OP, results)?;
    ensure_finite(OP, &bad, &|index| {
        Ok(merged(inputs)?.f_reshape([-1i64])?.f_double_value(&[index])?)
    })?;
    Ok((new, scale))
}
