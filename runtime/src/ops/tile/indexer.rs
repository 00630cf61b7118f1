//! Scores of an indexer and selection on `select_top.cu`.

use super::{at, ceil, contiguous, int, take};
use crate::cuda::{self, Arg, Kernel, Module, tensor_map};
use crate::error::Result;
use crate::ops::attention::select_top_composite;
use crate::ops::{IndexerNumbers, indexer_composite};
use crate::{Kind, Tensor};

static MODULE: Module = Module { name: "select_top.cu", source: lightc_kernels::SELECT_TOP };

/// Shared memory that the selection declares itself, in bytes.
const STATIC_SHARED: u32 = 11264;
const MOST: u32 = cuda::MOST_SHARED_BYTES - STATIC_SHARED;

static SCORE: Kernel = Kernel {
    module: &MODULE,
    entry: "indexer_score",
    origin: "indexer, kernels/select_top.cu",
    threads: 288,
    shared_bytes: 8 * 128 * 128 + 3 * 2 * 64 * 128 + 128,
};
static INDEXER_SELECT: Kernel = Kernel {
    module: &MODULE,
    entry: "indexer_select",
    origin: "indexer, kernels/select_top.cu",
    threads: 256,
    shared_bytes: MOST,
};
static SELECT_GIVEN: Kernel = Kernel {
    module: &MODULE,
    entry: "select_given",
    origin: "select_top, kernels/select_top.cu",
    threads: 256,
    shared_bytes: MOST,
};

/// A row of scores and its bits, in bytes.
fn row_bytes(t: i64) -> i64 {
    4 * (64 + 2) * ceil(t, 64)
}

/// f32 scores on a GPU, at least one query, and rows that fit in shared memory (53,568 keys).
pub(crate) fn takes_select(score: &Tensor) -> bool {
    cuda::runs_on(score.device())
        && score.kind() == Kind::Float
        && score.numel() > 0
        && score.size().last().is_some_and(|t| row_bytes(*t) <= i64::from(MOST))
}

/// `select_top` where [`takes_select`].
pub(crate) fn select(score: &Tensor, budget: &Tensor, sinks: i64, limit: i64) -> Result<Tensor> {
    const OP: &str = "select_top";
    // The selection is exact, so the activation kind does not matter: this stands for it.
    let like = Tensor::f_empty([0i64], (Kind::BFloat16, score.device()))?;
    let budget = budget.f_to_kind(Kind::Float)?;
    let fused: cuda::Way<'_> = &|args, _| {
        let (score, budget) = (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?);
        let (b, t, _) = score.size3()?;
        let selected = cuda::empty(&[b, t, t], Kind::Bool, &score)?;
        cuda::launch_with(
            &SELECT_GIVEN,
            [int(OP, t)?, int(OP, b)?, 1],
            int(OP, row_bytes(t))?,
            &[
                Arg::Tensor(&score),
                Arg::Tensor(&budget),
                Arg::I32(int(OP, sinks.min(t))?),
                Arg::I32(int(OP, limit.min(t))?),
                Arg::Tensor(&selected),
                Arg::I32(int(OP, t)?),
                Arg::I32(int(OP, 2 * ceil(t, 64))?),
            ],
        )?;
        Ok(vec![selected])
    };
    let reference: cuda::Way<'_> =
        &|args, _| Ok(vec![select_top_composite(at(args, 0)?, at(args, 1)?, sinks, limit)?]);
    let results = cuda::either(&SELECT_GIVEN, &[score, &budget], &like, fused, reference)?;
    let [selected] = take(OP, results)?;
    Ok(selected)
}

/// bf16 queries of 4 heads of 128 channels on a GPU, at least one, and rows that fit in shared memory.
pub(crate) fn takes_index(q: &Tensor) -> bool {
    let size = q.size();
    cuda::runs_on(q.device())
        && q.kind() == Kind::BFloat16
        && q.numel() > 0
        && matches!(size.as_slice(), [_, t, 4, 128] if row_bytes(*t) <= i64::from(MOST))
}

/// `indexer` where [`takes_index`].
pub(crate) fn index(
    [q, k, heed, bias, ema]: [&Tensor; 5],
    numbers: IndexerNumbers,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "indexer";
    let wide = |x: &Tensor| x.f_to_kind(Kind::Float);
    let (heed, bias, ema) = (wide(heed)?, wide(bias)?, wide(ema)?);
    let fused: cuda::Way<'_> = &|args, _| run(args, numbers);
    let reference: cuda::Way<'_> = &|args, _| {
        let inputs = [at(args, 0)?, at(args, 1)?, at(args, 2)?, at(args, 3)?, at(args, 4)?];
        let (selected, variance) = indexer_composite(inputs, numbers)?;
        Ok(vec![selected, variance])
    };
    let inputs = [q, k, &heed, &bias, &ema];
    let [selected, variance] =
        take(OP, cuda::either(&INDEXER_SELECT, &inputs, q, fused, reference)?)?;
    Ok((selected, variance))
}

fn run(args: &[&Tensor], numbers: IndexerNumbers) -> Result<Vec<Tensor>> {
    const OP: &str = "indexer";
    let (q, k) = (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?);
    let (heed, bias) = (contiguous(at(args, 2)?)?, contiguous(at(args, 3)?)?);
    let ema = at(args, 4)?.f_reshape([1i64])?;
    let (b, t, _, channels) = q.size4()?;
    let (n, ld) = (ceil(t, 64), 64 * ceil(t, 64));
    let score = cuda::empty(&[b, t, ld], Kind::Float, &q)?;
    let (map_q, map_k) = (tensor_map(&q, 128)?, tensor_map(&k.f_unsqueeze(2)?, 64)?);
    let size = |value: i64| -> Result<Arg<'static>> { Ok(Arg::I32(int(OP, value)?)) };
    cuda::launch(
        &SCORE,
        [int(OP, ceil(t, 1024))?, int(OP, ceil(t, 128))?, int(OP, b)?],
        &[
            Arg::Map(&map_q),
            Arg::Map(&map_k),
            Arg::Tensor(&heed),
            Arg::Tensor(&bias),
            Arg::F32((1.0 / (channels as f64).sqrt()) as f32),
            Arg::Tensor(&score),
            size(t)?,
            size(ld)?,
        ],
    )?;
    let selected = cuda::empty(&[b, t, t], Kind::Bool, &q)?;
    let variance = cuda::empty(&[b, t], Kind::Float, &q)?;
    let count = cuda::empty(&[b, t], Kind::Int, &q)?;
    cuda::launch_with(
        &INDEXER_SELECT,
        [int(OP, t)?, int(OP, b)?, 1],
        int(OP, row_bytes(t))?,
        &[
            Arg::Tensor(&score),
            Arg::Tensor(&ema),
            Arg::F32(numbers.base as f32),
            Arg::F32(numbers.low as f32),
            Arg::F32(numbers.high as f32),
            size(numbers.sinks.min(t))?,
            size(numbers.limit.min(t))?,
            Arg::I64(0),
            Arg::Tensor(&selected),
            Arg::Tensor(&variance),
            Arg::Tensor(&count),
            size(t)?,
            size(ld)?,
            size(2 * n)?,
        ],
    )?;
    Ok(vec![selected, variance])
}
