//! Places by expert, counts, the largest scores and values at an index on `routing.cu`.

use super::{at, ceil, contiguous, exact, int, take};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::Result;
use crate::ops::routed::expert_order_composite;
use crate::ops::select::{count_composite, take_composite, take_grad_composite, top_composite};
use crate::{Kind, Tensor};

static MODULE: Module = Module { name: "routing.cu", source: lightc_kernels::ROUTING };

const fn kernel(entry: &'static str, threads: u32) -> Kernel {
    let origin = "routing, kernels/routing.cu";
    Kernel { module: &MODULE, entry, origin, threads, shared_bytes: 0 }
}

static ORDER_COUNT: Kernel = kernel("order_count", 1024);
static ORDER_PLACE: Kernel = kernel("order_place", 1024);
static COUNT_TOTAL: Kernel = kernel("count_total", 512);
static TOP: Kernel = kernel("top_positions", 256);
static TAKE: Kernel = kernel("take_rows", 256);
static TAKE_GRAD: Kernel = kernel("take_rows_grad", 128);

/// Places of a block of the order.
const CHUNK: i64 = 1024;
/// Experts, or scores of a row.
const MOST: i64 = 512;
/// Places of an order.
pub(crate) const MOST_PLACES: i64 = 1 << 20;

/// An index on a GPU of 1 to 2^20 places, for 1 to 512 experts.
pub(crate) fn takes_order(ids: &Tensor, experts: i64) -> bool {
    cuda::runs_on(ids.device())
        && ids.kind() == Kind::Int64
        && (1..=MOST_PLACES).contains(&(ids.numel() as i64))
        && (1..=MOST).contains(&experts)
}

/// How many of each 1024 places name each expert, and none: `[blocks, experts + 1]`.
fn counts(op: &'static str, ids: &Tensor, experts: i64) -> Result<(Tensor, u32)> {
    let n = ids.numel() as i64;
    let blocks = ceil(n, CHUNK);
    let counts = cuda::empty(&[blocks, experts + 1], Kind::Int, ids)?;
    let sizes = [Arg::I32(int(op, n)?), Arg::I32(int(op, experts)?)];
    let grid = int(op, blocks)?;
    let tensors = [ids, &counts].map(Arg::Tensor);
    cuda::launch(&ORDER_COUNT, [grid, 1, 1], &[&tensors[..], &sizes].concat())?;
    Ok((counts, grid))
}

/// `expert_order` where [`takes_order`].
pub(crate) fn order(ids: &Tensor, experts: i64) -> Result<(Tensor, Tensor)> {
    const OP: &str = "expert_order";
    let fused: cuda::Way<'_> = &|args, _| {
        let ids = contiguous(at(args, 0)?)?;
        let n = ids.numel() as i64;
        let (counts, grid) = counts(OP, &ids, experts)?;
        let order = cuda::empty(&[n], Kind::Int64, &ids)?;
        let bounds = cuda::empty(&[experts + 1], Kind::Int64, &ids)?;
        let tensors = [&ids, &counts, &order, &bounds].map(Arg::Tensor);
        let sizes = [Arg::I32(int(OP, n)?), Arg::I32(int(OP, experts)?)];
        cuda::launch(&ORDER_PLACE, [grid, 1, 1], &[&tensors[..], &sizes].concat())?;
        Ok(vec![order, bounds])
    };
    let reference: cuda::Way<'_> = &|args, _| {
        let (order, bounds) = expert_order_composite(at(args, 0)?, experts)?;
        Ok(vec![order, bounds])
    };
    let results = cuda::either(&ORDER_PLACE, &[ids], &exact(ids)?, fused, reference)?;
    let [order, bounds] = take(OP, results)?;
    Ok((order, bounds))
}

/// `count` as f32 where [`takes_order`].
pub(crate) fn count(ids: &Tensor, size: i64) -> Result<Tensor> {
    const OP: &str = "count";
    let fused: cuda::Way<'_> = &|args, _| {
        let (counts, blocks) = counts(OP, &contiguous(at(args, 0)?)?, size)?;
        let total = cuda::empty(&[size], Kind::Float, &counts)?;
        let sizes = [Arg::I32(int(OP, i64::from(blocks))?), Arg::I32(int(OP, size)?)];
        let tensors = [&counts, &total].map(Arg::Tensor);
        cuda::launch(&COUNT_TOTAL, [1, 1, 1], &[&tensors[..], &sizes].concat())?;
        Ok(vec![total])
    };
    let reference: cuda::Way<'_> =
        &|args, _| Ok(vec![count_composite(at(args, 0)?, size, Kind::Float)?]);
    let [total] = take(OP, cuda::either(&COUNT_TOTAL, &[ids], &exact(ids)?, fused, reference)?)?;
    Ok(total)
}

/// f32 scores on a GPU, at least one row, rows of up to 512, and 1 to 16 positions of each.
pub(crate) fn takes_top(score: &Tensor, slots: i64) -> bool {
    cuda::runs_on(score.device())
        && score.kind() == Kind::Float
        && score.numel() > 0
        && score.size().last().is_some_and(|e| *e <= MOST)
        && (1..=16).contains(&slots)
}

/// `top` where [`takes_top`].
pub(crate) fn top(score: &Tensor, slots: i64) -> Result<Tensor> {
    const OP: &str = "top";
    let fused: cuda::Way<'_> = &|args, _| {
        let score = contiguous(at(args, 0)?)?;
        let mut shape = score.size();
        let e = shape.pop().unwrap_or(1);
        let rows = score.numel() as i64 / e.max(1);
        shape.push(slots);
        let picks = cuda::empty(&shape, Kind::Int64, &score)?;
        let tensors = [&score, &picks].map(Arg::Tensor);
        let sizes = [Arg::I32(int(OP, rows)?), Arg::I32(int(OP, e)?), Arg::I32(int(OP, slots)?)];
        let grid = [int(OP, ceil(rows, 8))?, 1, 1];
        cuda::launch(&TOP, grid, &[&tensors[..], &sizes].concat())?;
        Ok(vec![picks])
    };
    let reference: cuda::Way<'_> = &|args, _| Ok(vec![top_composite(at(args, 0)?, slots)?]);
    let [picks] = take(OP, cuda::either(&TOP, &[score], &exact(score)?, fused, reference)?)?;
    Ok(picks)
}

/// How an index walks a tensor: `x[batches, rows, width]`, `ids[batches, free]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walk {
    pub(crate) batches: i64,
    pub(crate) rows: i64,
    pub(crate) free: i64,
    pub(crate) width: i64,
}

impl Walk {
    /// f32 on a GPU, something to write, and for a gradient up to 64 indices of each batch.
    pub(crate) fn takes(&self, x: &Tensor, ids: &Tensor, gradient: bool) -> bool {
        let sizes = [self.batches, self.rows, self.free, self.width];
        let elements = self.batches * self.rows.max(self.free) * self.width;
        cuda::runs_on(x.device())
            && ids.device() == x.device()
            && x.kind() == Kind::Float
            && ids.kind() == Kind::Int64
            && sizes.iter().all(|size| *size > 0)
            && elements < 1 << 31
            && (!gradient || self.free <= 64)
    }

    fn sizes(&self, op: &'static str) -> Result<[Arg<'static>; 3]> {
        Ok([
            Arg::I32(int(op, self.rows)?),
            Arg::I32(int(op, self.free)?),
            Arg::I32(int(op, self.width)?),
        ])
    }
}

/// `take` where [`Walk::takes`]; `shape` is that of the result.
pub(crate) fn take_rows(x: &Tensor, ids: &Tensor, walk: Walk, shape: &[i64]) -> Result<Tensor> {
    const OP: &str = "take";
    let fused: cuda::Way<'_> = &|args, _| {
        let (x, ids) = (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?);
        let y = cuda::empty(shape, Kind::Float, &x)?;
        let n = y.numel() as i64;
        let tensors = [&x, &ids, &y].map(Arg::Tensor);
        let sizes = [&[Arg::I64(n)][..], &walk.sizes(OP)?].concat();
        let grid = [int(OP, ceil(n, 256))?, 1, 1];
        cuda::launch(&TAKE, grid, &[&tensors[..], &sizes].concat())?;
        Ok(vec![y])
    };
    let reference: cuda::Way<'_> =
        &|args, _| Ok(vec![take_composite(at(args, 0)?, at(args, 1)?, walk)?.f_reshape(shape)?]);
    let [y] = take(OP, cuda::either(&TAKE, &[x, ids], &exact(x)?, fused, reference)?)?;
    Ok(y)
}

/// `take_grad` where [`Walk::takes`]; `shape` is that of the result.
pub(crate) fn take_rows_grad(
    ids: &Tensor,
    dy: &Tensor,
    walk: Walk,
    shape: &[i64],
) -> Result<Tensor> {
    const OP: &str = "take_grad";
    let fused: cuda::Way<'_> = &|args, _| {
        let (ids, dy) = (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?);
        let dx = cuda::empty(shape, Kind::Float, &dy)?;
        let tensors = [&ids, &dy, &dx].map(Arg::Tensor);
        let grid = [int(OP, walk.batches)?, 1, 1];
        cuda::launch(&TAKE_GRAD, grid, &[&tensors[..], &walk.sizes(OP)?].concat())?;
        Ok(vec![dx])
    };
    let reference: cuda::Way<'_> = &|args, _| {
        Ok(vec![take_grad_composite(at(args, 0)?, at(args, 1)?, walk)?.f_reshape(shape)?])
    };
    let [dx] = take(OP, cuda::either(&TAKE_GRAD, &[ids, dy], &exact(dy)?, fused, reference)?)?;
    Ok(dx)
}
