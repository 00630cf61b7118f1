//! Attention under a causal mask on `masked_attention.cu`.

use std::f32::consts::LOG2_E;

use super::{at, bytes, ceil, contiguous, int, take};
use crate::cuda::{self, Arg, Kernel, Module, tensor_map};
use crate::error::Result;
use crate::ops::attention::{masked_attention_composite, masked_attention_grad_composite};
use crate::{Error, Kind, Tensor};

/// The kernels for one size of a head.
struct Kernels {
    pack: Kernel,
    tiles: Kernel,
    forward: Kernel,
    delta: Kernel,
    keys: Kernel,
    queries: Kernel,
}

/// Of heads of `dim`; the shared memory is that of the `_SMEM` constants in the source.
const fn kernels(module: &'static Module, dim: u32) -> Kernels {
    const ORIGIN: &str = "masked_attention, kernels/masked_attention.cu";
    let tile = 128 * dim;
    Kernels {
        pack: Kernel {
            module,
            entry: "mask_pack",
            origin: "masked_attention, which stops where the mask lets a query see a later key",
            threads: 256,
            shared_bytes: 0,
        },
        tiles: Kernel {
            module,
            entry: "mask_tiles",
            origin: ORIGIN,
            threads: 256,
            shared_bytes: 0,
        },
        forward: Kernel {
            module,
            entry: "attention_forward",
            origin: ORIGIN,
            threads: 384,
            shared_bytes: 6 * tile + 128,
        },
        delta: Kernel {
            module,
            entry: "attention_delta",
            origin: ORIGIN,
            threads: 256,
            shared_bytes: 0,
        },
        keys: Kernel {
            module,
            entry: "attention_backward_keys",
            origin: ORIGIN,
            threads: 384,
            shared_bytes: 6 * tile + 3 * 8192 + 2 * 512 + 128,
        },
        queries: Kernel {
            module,
            entry: "attention_backward_queries",
            origin: ORIGIN,
            threads: 384,
            shared_bytes: 4 * (tile + 2 * 8192) + 128,
        },
    }
}

static MODULE_64: Module =
    Module { name: "masked_attention_64.cu", source: lightc_kernels::MASKED_ATTENTION_64 };
static MODULE_128: Module =
    Module { name: "masked_attention_128.cu", source: lightc_kernels::MASKED_ATTENTION_128 };
static MODULE_256: Module =
    Module { name: "masked_attention_256.cu", source: lightc_kernels::MASKED_ATTENTION_256 };
static KERNELS_64: Kernels = kernels(&MODULE_64, 64);
static KERNELS_128: Kernels = kernels(&MODULE_128, 128);
static KERNELS_256: Kernels = kernels(&MODULE_256, 256);

const OP: &str = "masked_attention";

fn kernels_of(channels: i64) -> Option<&'static Kernels> {
    match channels {
        64 => Some(&KERNELS_64),
        128 => Some(&KERNELS_128),
        256 => Some(&KERNELS_256),
        _ => None,
    }
}

/// bf16 on a GPU, heads of 64, 128 or 256 channels, values as wide as keys, as many keys as queries and at
/// least one. The mask must be causal: it cannot be looked at without waiting for the GPU, so where it
/// lets a query see a later key, `mask_pack` stops the program.
pub(crate) fn takes_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> bool {
    cuda::runs_on(q.device())
        && q.kind() == Kind::BFloat16
        && q.numel() > 0
        && q.size() == k.size()
        && k.size() == v.size()
        && q.size().last().is_some_and(|channels| kernels_of(*channels).is_some())
}

/// Inputs as the kernels take them, the mask as bits, and the result with what the gradient reads.
struct Forward {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernels: &'static Kernels,
    tiles: Tensor,
    transposed: Tensor,
    o: Tensor,
    lse: Tensor,
    sizes: Sizes,
}

#[derive(Clone, Copy)]
struct Sizes {
    b: i64,
    t: i64,
    h: i64,
    /// Tiles of 64 tokens.
    n: i64,
}

impl Sizes {
    fn int(self, value: i64) -> Result<Arg<'static>> {
        Ok(Arg::I32(int(OP, value)?))
    }

    fn grid(self, x: i64, y: i64, z: i64) -> Result<[u32; 3]> {
        Ok([int(OP, x)?, int(OP, y)?, int(OP, z)?])
    }

    fn words(self) -> i64 {
        2 * self.n
    }

    fn tile_words(self) -> i64 {
        ceil(self.n, 32)
    }
}

impl Forward {
    fn run(args: &[&Tensor]) -> Result<Forward> {
        let (q, k, v) =
            (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?, contiguous(at(args, 2)?)?);
        let mask = contiguous(at(args, 3)?)?;
        let (b, t, h, channels) = q.size4()?;
        let kernels = kernels_of(channels).ok_or_else(|| Error::Op {
            op: OP,
            detail: format!("heads of {channels} channels have no kernel"),
        })?;
        let sizes = Sizes { b, t, h, n: ceil(t, 64) };
        let (tiles, transposed, bits) = pack(kernels, &mask, sizes)?;
        let o = cuda::empty(&q.size(), Kind::BFloat16, &q)?;
        let lse = cuda::empty(&[b, h, 64 * sizes.n], Kind::Float, &q)?;
        let (map_q, map_k) = (tensor_map(&q, 128)?, tensor_map(&k, 64)?);
        let (map_v, map_o) = (tensor_map(&v, 64)?, tensor_map(&o, 64)?);
        cuda::launch(
            &kernels.forward,
            sizes.grid(ceil(t, 128), h, b)?,
            &[
                Arg::Map(&map_q),
                Arg::Map(&map_k),
                Arg::Map(&map_v),
                Arg::Map(&map_o),
                Arg::Tensor(&bits),
                Arg::Tensor(&tiles),
                Arg::F32(LOG2_E),
                Arg::Tensor(&lse),
                sizes.int(t)?,
                sizes.int(h)?,
                sizes.int(sizes.words())?,
                sizes.int(sizes.tile_words())?,
            ],
        )?;
        Ok(Forward { q, k, v, kernels, tiles, transposed, o, lse, sizes })
    }

    fn backward(&self, dout: &Tensor) -> Result<Vec<Tensor>> {
        let Forward { q, k, v, kernels, tiles, transposed, o, lse, sizes } = self;
        let Sizes { b, t, h, n } = *sizes;
        let delta = cuda::empty(&[b, h, 64 * n], Kind::Float, q)?;
        cuda::launch(
            &kernels.delta,
            // A warp per token and head, with the rows of padding.
            sizes.grid(64 * n * h / 8, b, 1)?,
            &[Arg::Tensor(o), Arg::Tensor(dout), Arg::Tensor(&delta), sizes.int(t)?, sizes.int(h)?],
        )?;
        let like_q = || cuda::empty(&q.size(), Kind::BFloat16, q);
        let (dq, dk, dv) = (like_q()?, like_q()?, like_q()?);
        let d_scores = bytes(b * h * (n * (n + 1) / 2) * super::PANEL, q)?;
        let map = |x: &Tensor| tensor_map(x, 64);
        let (map_q, map_k, map_v, map_dout) = (map(q)?, map(k)?, map(v)?, map(dout)?);
        let (map_dq, map_dk, map_dv) = (map(&dq)?, map(&dk)?, map(&dv)?);
        cuda::launch(
            &kernels.keys,
            sizes.grid(n, h, b)?,
            &[
                Arg::Map(&map_q),
                Arg::Map(&map_k),
                Arg::Map(&map_v),
                Arg::Map(&map_dout),
                Arg::Map(&map_dk),
                Arg::Map(&map_dv),
                Arg::Tensor(transposed),
                Arg::Tensor(tiles),
                Arg::Tensor(lse),
                Arg::Tensor(&delta),
                Arg::F32(LOG2_E),
                Arg::F32(1.0),
                Arg::Tensor(&d_scores),
                sizes.int(t)?,
                sizes.int(h)?,
                sizes.int(sizes.words())?,
                sizes.int(sizes.tile_words())?,
            ],
        )?;
        cuda::launch(
            &kernels.queries,
            sizes.grid(ceil(n, 2), h, b)?,
            &[
                Arg::Map(&map_k),
                Arg::Map(&map_dq),
                Arg::Tensor(tiles),
                Arg::Tensor(&d_scores),
                Arg::F32(1.0),
                sizes.int(t)?,
                sizes.int(h)?,
                sizes.int(sizes.tile_words())?,
            ],
        )?;
        Ok(vec![dq, dk, dv])
    }
}

/// The mask as bits by query, with which tiles hold one, and as bits by key.
fn pack(
    kernels: &'static Kernels,
    mask: &Tensor,
    sizes: Sizes,
) -> Result<(Tensor, Tensor, Tensor)> {
    let Sizes { b, t, n, .. } = sizes;
    let words = |shape: &[i64]| cuda::empty(shape, Kind::Int, mask);
    let bits = words(&[b, t, sizes.words()])?;
    let tiles = words(&[b, n, sizes.tile_words()])?;
    let transposed = words(&[b, 64 * n, sizes.words()])?;
    let (t_arg, words_arg) = (sizes.int(t)?, sizes.int(sizes.words())?);
    cuda::launch(
        &kernels.pack,
        sizes.grid(t, b, 1)?,
        &[Arg::Tensor(mask), Arg::Tensor(&bits), t_arg, words_arg],
    )?;
    cuda::launch(
        &kernels.tiles,
        sizes.grid(n, sizes.tile_words(), b)?,
        &[
            Arg::Tensor(&bits),
            Arg::Tensor(&tiles),
            Arg::Tensor(&transposed),
            t_arg,
            words_arg,
            sizes.int(sizes.tile_words())?,
        ],
    )?;
    Ok((tiles, transposed, bits))
}

/// The kernel that stands for all of a direction in [`crate::cuda::Mode`].
fn named(q: &Tensor, of: fn(&'static Kernels) -> &'static Kernel) -> Result<&'static Kernel> {
    let channels = q.size().last().copied().unwrap_or(0);
    kernels_of(channels).map(of).ok_or_else(|| Error::Op {
        op: OP,
        detail: format!("heads of {channels} channels have no kernel"),
    })
}

/// `masked_attention` where [`takes_attention`].
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let reference: cuda::Way<'_> = &|args, _| {
        let o = masked_attention_composite(at(args, 0)?, at(args, 1)?, at(args, 2)?, at(args, 3)?)?;
        Ok(vec![o])
    };
    let fused: cuda::Way<'_> = &|args, _| Ok(vec![Forward::run(args)?.o]);
    let kernel = named(q, |kernels| &kernels.forward)?;
    let [o] = take(OP, cuda::either(kernel, &[q, k, v, mask], q, fused, reference)?)?;
    Ok(o)
}

/// `masked_attention_grad` where [`takes_attention`]. The forward runs again for its result and the sums of
/// its rows: a quarter of the time of both directions.
pub(crate) fn attention_grad(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
    dout: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let reference: cuda::Way<'_> = &|args, _| {
        let (dq, dk, dv) = masked_attention_grad_composite(
            at(args, 0)?,
            at(args, 1)?,
            at(args, 2)?,
            at(args, 3)?,
            at(args, 4)?,
        )?;
        Ok(vec![dq, dk, dv])
    };
    let fused: cuda::Way<'_> = &|args, _| Forward::run(args)?.backward(&contiguous(at(args, 4)?)?);
    let kernel = named(q, |kernels| &kernels.keys)?;
    let results = cuda::either(kernel, &[q, k, v, mask, dout], q, fused, reference)?;
    let [dq, dk, dv] = take("masked_attention_grad", results)?;
    Ok((dq, dk, dv))
}
