//! Sums of gathered rows on `gather.cu`.

use super::{at, ceil, contiguous, int, take};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::Result;
use crate::ops::gather::{gather_sum_composite, gather_sum_grad_composite};
use crate::{Kind, Tensor};

static MODULE: Module = Module { name: "gather.cu", source: lightc_kernels::GATHER };

const fn kernel(entry: &'static str) -> Kernel {
    let origin = "gather_sum, kernels/gather.cu";
    Kernel { module: &MODULE, entry, origin, threads: 256, shared_bytes: 0 }
}

static SUM: Kernel = kernel("gather_sum");
static GRAD: Kernel = kernel("gather_sum_grad");

const OP: &str = "gather_sum";
/// Columns of a block.
const COLUMNS: i64 = 1024;

/// f32 rows of a multiple of four on a GPU, at least one row, one position and one slot.
pub(crate) fn takes_gather(rows: &Tensor, index: &Tensor) -> bool {
    cuda::runs_on(rows.device())
        && rows.kind() == Kind::Float
        && rows.numel() > 0
        && index.numel() > 0
        && rows.size().last().is_some_and(|d| d % 4 == 0)
}

/// Rows are f32 whatever the activation kind; this stands for it.
fn like(x: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_empty([0i64], (Kind::BFloat16, x.device()))?)
}

/// `gather_sum` where [`takes_gather`].
pub(crate) fn gather(w: &Tensor, index: &Tensor) -> Result<Tensor> {
    let fused: cuda::Way<'_> = &|args, _| {
        let (w, index) = (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?);
        let (lead, slots) = lead_and_slots(&index);
        let d = w.size().last().copied().unwrap_or(0);
        let y = cuda::empty(&[&lead[..], &[d]].concat(), Kind::Float, &w)?;
        let grid = [int(OP, lead.iter().product::<i64>())?, int(OP, ceil(d, COLUMNS))?, 1];
        let sizes = [Arg::I32(int(OP, slots)?), Arg::I32(int(OP, d)?)];
        let tensors = [Arg::Tensor(&w), Arg::Tensor(&index), Arg::Tensor(&y)];
        cuda::launch(&SUM, grid, &[&tensors[..], &sizes].concat())?;
        Ok(vec![y])
    };
    let reference: cuda::Way<'_> =
        &|args, _| Ok(vec![gather_sum_composite(at(args, 0)?, at(args, 1)?)?]);
    let index = index.f_to_kind(Kind::Int64)?;
    let [y] = take(OP, cuda::either(&SUM, &[w, &index], &like(w)?, fused, reference)?)?;
    Ok(y)
}

/// The gradient of `gather_sum` for a table of `rows` rows where [`takes_gather`].
pub(crate) fn gather_grad(index: &Tensor, dy: &Tensor, rows: i64) -> Result<Tensor> {
    let fused: cuda::Way<'_> = &|args, _| {
        let (index, dy) = (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?);
        let (_, slots) = lead_and_slots(&index);
        let d = dy.size().last().copied().unwrap_or(0);
        let (order, first) = by_row(&index, rows)?;
        let grad = cuda::empty(&[rows, d], Kind::Float, &dy)?;
        let grid = [int(OP, rows)?, int(OP, ceil(d, COLUMNS))?, 1];
        let tensors = [&dy, &order, &first, &grad].map(Arg::Tensor);
        let sizes = [Arg::I32(int(OP, slots)?), Arg::I32(int(OP, d)?)];
        cuda::launch(&GRAD, grid, &[&tensors[..], &sizes].concat())?;
        Ok(vec![grad])
    };
    let reference: cuda::Way<'_> =
        &|args, _| Ok(vec![gather_sum_grad_composite(at(args, 0)?, at(args, 1)?, rows)?]);
    let index = index.f_to_kind(Kind::Int64)?;
    let [grad] = take(OP, cuda::either(&GRAD, &[&index, dy], &like(dy)?, fused, reference)?)?;
    Ok(grad)
}

fn lead_and_slots(index: &Tensor) -> (Vec<i64>, i64) {
    let size = index.size();
    let (slots, lead) = size.split_last().map_or((0, &[][..]), |(slots, lead)| (*slots, lead));
    (lead.to_vec(), slots)
}

/// The places of an index by the row that they name, in their own order for each, and where each row
/// begins. Places that name none come last.
fn by_row(index: &Tensor, rows: i64) -> Result<(Tensor, Tensor)> {
    let flat = index.f_reshape([-1i64])?;
    let named = flat.f_where_self(&flat.f_ge(0)?, &flat.f_full_like(rows)?)?;
    let (sorted, order) = named.f_sort_stable(true, 0, false)?;
    let each = Tensor::f_arange(rows + 1, (Kind::Int64, index.device()))?;
    let first = each.f_searchsorted(&sorted, false, false, "left", None::<Tensor>)?;
    Ok((order, first))
}
