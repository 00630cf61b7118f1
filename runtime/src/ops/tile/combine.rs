//! Weighed sums over the choices of each row on `combine.cu`.

use super::{at, ceil, contiguous, int, take};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::Result;
use crate::ops::combine::weigh_composite;
use crate::{Kind, Tensor};

static MODULE: Module = Module { name: "combine.cu", source: lightc_kernels::COMBINE };
static WEIGH: Kernel = Kernel {
    module: &MODULE,
    entry: "weigh_slots",
    origin: "routed_combine, kernels/combine.cu",
    threads: 256,
    shared_bytes: 0,
};

const OP: &str = "routed_combine";
/// Columns of a block.
const COLUMNS: i64 = 2048;

/// bf16 rows of a multiple of eight on a GPU, at least one row and one choice.
pub(crate) fn takes_weigh(each: &Tensor) -> bool {
    cuda::runs_on(each.device())
        && each.kind() == Kind::BFloat16
        && each.numel() > 0
        && each.size().last().is_some_and(|d| d % 8 == 0)
}

/// `weights[.., k]` and `each[.., k, d]` -> `[.., d]` where [`takes_weigh`].
pub(crate) fn weigh(weights: &Tensor, each: &Tensor) -> Result<Tensor> {
    let fused: cuda::Way<'_> = &|args, _| {
        let (weights, each) = (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?);
        let mut size = each.size();
        let (d, slots) = (size.pop().unwrap_or(0), size.pop().unwrap_or(0));
        let y = cuda::empty(&[&size[..], &[d]].concat(), each.kind(), &each)?;
        let grid = [int(OP, size.iter().product::<i64>())?, int(OP, ceil(d, COLUMNS))?, 1];
        let sizes = [Arg::I32(int(OP, slots)?), Arg::I32(int(OP, d)?)];
        let tensors = [&weights, &each, &y].map(Arg::Tensor);
        cuda::launch(&WEIGH, grid, &[&tensors[..], &sizes].concat())?;
        Ok(vec![y])
    };
    let reference: cuda::Way<'_> =
        &|args, _| Ok(vec![weigh_composite(at(args, 0)?, at(args, 1)?)?]);
    let [y] = take(OP, cuda::either(&WEIGH, &[weights, each], each, fused, reference)?)?;
    Ok(y)
}
