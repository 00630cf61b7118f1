//! Attention under a mask: over dense tiles on `masked_attention.cu`, and the mask as bits for both forms.

use std::f32::consts::LOG2_E;

use lightc_numerics::attention::{AttentionForm, AttentionSize, MaskBound, attention_form};

use super::{at, attention_gather, bytes, ceil, contiguous, int, take};
use crate::cuda::{self, Arg, Kernel, Module, tensor_map};
use crate::error::Result;
use crate::ops::attention::{masked_attention_composite, masked_attention_grad_composite};
use crate::{Error, Kind, Tensor};

/// The kernels for one size of a head.
struct Kernels {
    pack: Kernel,
    tiles: Kernel,
    columns: Kernel,
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
            origin: "masked_attention, which stops where a mask that is claimed to be causal is not",
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
        columns: Kernel {
            module,
            entry: "mask_columns",
            origin: ORIGIN,
            threads: 32,
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

pub(super) const OP: &str = "masked_attention";

fn kernels_of(channels: i64) -> Option<&'static Kernels> {
    match channels {
        64 => Some(&KERNELS_64),
        128 => Some(&KERNELS_128),
        256 => Some(&KERNELS_256),
        _ => None,
    }
}

/// bf16 on a GPU, heads of 64, 128 or 256 channels, values as wide as keys, as many keys as queries and at
/// least one; any mask.
pub(crate) fn takes_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> bool {
    cuda::runs_on(q.device())
        && q.kind() == Kind::BFloat16
        && q.numel() > 0
        && q.size() == k.size()
        && k.size() == v.size()
        && q.size().last().is_some_and(|channels| kernels_of(*channels).is_some())
}

/// How attention of queries `[b, t, h, k]` runs where [`takes_attention`]: the rule of [`lightc_numerics::attention`].
pub(crate) fn form_of(q: &Tensor, bound: MaskBound) -> AttentionForm {
    let size = q.size();
    let of = |axis: usize| size.get(axis).map_or(0, |n| n.unsigned_abs());
    attention_form(AttentionSize { tokens: of(1), heads: of(2), channels: of(3) }, bound)
}

/// Inputs as the kernels take them, the mask as bits, and the result with what the gradient reads.
struct Forward {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernels: &'static Kernels,
    mask: Mask,
    o: Tensor,
    lse: Tensor,
    sizes: Sizes,
}

/// A mask as the kernels read it.
pub(super) struct Mask {
    /// By query, `[b, t, words]`.
    pub bits: Tensor,
    /// By key, `[b, 64 n, words]`.
    pub transposed: Tensor,
    /// Which tiles of 64 x 64 hold a bit, `[b, n, tile_words]`, by tile of queries.
    tiles: Tensor,
    /// Claimed to be, and looked at.
    causal: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub b: i64,
    pub t: i64,
    pub h: i64,
    /// Tiles of 64 tokens.
    pub n: i64,
}

impl Sizes {
    pub(super) fn of(q: &Tensor) -> Result<Sizes> {
        let (b, t, h, _) = q.size4()?;
        Ok(Sizes { b, t, h, n: ceil(t, 64) })
    }

    pub(super) fn int(self, value: i64) -> Result<Arg<'static>> {
        Ok(Arg::I32(int(OP, value)?))
    }

    pub(super) fn grid(self, x: i64, y: i64, z: i64) -> Result<[u32; 3]> {
        Ok([int(OP, x)?, int(OP, y)?, int(OP, z)?])
    }

    pub(super) fn words(self) -> i64 {
        2 * self.n
    }

    fn tile_words(self) -> i64 {
        ceil(self.n, 32)
    }
}

impl Forward {
    fn run(args: &[&Tensor], bound: MaskBound) -> Result<Forward> {
        let (q, k, v) =
            (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?, contiguous(at(args, 2)?)?);
        let kernels = kernels_for(&q)?;
        let sizes = Sizes::of(&q)?;
        let Sizes { b, t, h, .. } = sizes;
        let mask = pack(&q, at(args, 3)?, bound.causal)?;
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
                Arg::Tensor(&mask.bits),
                Arg::Tensor(&mask.tiles),
                Arg::F32(LOG2_E),
                Arg::Tensor(&lse),
                sizes.int(t)?,
                sizes.int(h)?,
                sizes.int(sizes.words())?,
                sizes.int(sizes.tile_words())?,
            ],
        )?;
        Ok(Forward { q, k, v, kernels, mask, o, lse, sizes })
    }

    fn backward(&self, dout: &Tensor) -> Result<Vec<Tensor>> {
        let Forward { q, k, v, kernels, mask, o, lse, sizes } = self;
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
        let slots = if mask.causal { n * (n + 1) / 2 } else { n * n };
        let d_scores = bytes(b * h * slots * super::PANEL, q)?;
        let causal = Arg::I32(mask.causal.into());
        let columns = mask.columns(kernels, *sizes)?;
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
                Arg::Tensor(&mask.transposed),
                Arg::Tensor(&columns),
                Arg::Tensor(lse),
                Arg::Tensor(&delta),
                Arg::F32(LOG2_E),
                Arg::F32(1.0),
                Arg::Tensor(&d_scores),
                causal,
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
                Arg::Tensor(&mask.tiles),
                Arg::Tensor(&d_scores),
                Arg::F32(1.0),
                causal,
                sizes.int(t)?,
                sizes.int(h)?,
                sizes.int(sizes.tile_words())?,
            ],
        )?;
        Ok(vec![dq, dk, dv])
    }
}

impl Mask {
    /// Which tiles hold a bit, by tile of keys.
    fn columns(&self, kernels: &'static Kernels, sizes: Sizes) -> Result<Tensor> {
        let Sizes { b, n, .. } = sizes;
        let columns = cuda::empty(&[b, n, sizes.tile_words()], Kind::Int, &self.tiles)?;
        cuda::launch(
            &kernels.columns,
            sizes.grid(sizes.tile_words(), sizes.tile_words(), b)?,
            &[
                Arg::Tensor(&self.tiles),
                Arg::Tensor(&columns),
                sizes.int(n)?,
                sizes.int(sizes.tile_words())?,
            ],
        )?;
        Ok(columns)
    }
}

/// The mask `[b, t, s]` of attention of queries `q` as bits.
pub(super) fn pack(q: &Tensor, mask: &Tensor, causal: bool) -> Result<Mask> {
    let (kernels, sizes) = (kernels_for(q)?, Sizes::of(q)?);
    let mask = contiguous(mask)?;
    let Sizes { b, t, n, .. } = sizes;
    let words = |shape: &[i64]| cuda::empty(shape, Kind::Int, &mask);
    let bits = words(&[b, t, sizes.words()])?;
    let tiles = words(&[b, n, sizes.tile_words()])?;
    let transposed = words(&[b, 64 * n, sizes.words()])?;
    let (t_arg, words_arg) = (sizes.int(t)?, sizes.int(sizes.words())?);
    cuda::launch(
        &kernels.pack,
        sizes.grid(t, b, 1)?,
        &[Arg::Tensor(&mask), Arg::Tensor(&bits), Arg::I32(causal.into()), t_arg, words_arg],
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
    Ok(Mask { bits, transposed, tiles, causal })
}

fn kernels_for(q: &Tensor) -> Result<&'static Kernels> {
    let channels = q.size().last().copied().unwrap_or(0);
    kernels_of(channels).ok_or_else(|| no_kernel(channels))
}

pub(super) fn no_kernel(channels: i64) -> Error {
    Error::Op { op: OP, detail: format!("heads of {channels} channels have no kernel") }
}

/// `masked_attention` where [`takes_attention`], in the form that is asked for.
pub(crate) fn attention(
    form: AttentionForm,
    [q, k, v, mask]: [&Tensor; 4],
    bound: MaskBound,
) -> Result<Tensor> {
    let reference: cuda::Way<'_> = &|args, _| {
        let o = masked_attention_composite(at(args, 0)?, at(args, 1)?, at(args, 2)?, at(args, 3)?)?;
        Ok(vec![o])
    };
    let fused: cuda::Way<'_> = &|args, _| match form {
        AttentionForm::Tiles => Ok(vec![Forward::run(args, bound)?.o]),
        AttentionForm::Gather => attention_gather::forward(args, bound),
    };
    // The kernel that stands for all of a direction in `cuda::Mode`.
    let kernel = match form {
        AttentionForm::Tiles => &kernels_for(q)?.forward,
        AttentionForm::Gather => attention_gather::forward_kernel(q)?,
    };
    let [o] = take(OP, cuda::either(kernel, &[q, k, v, mask], q, fused, reference)?)?;
    Ok(o)
}

/// `masked_attention_grad` where [`takes_attention`], in the form that is asked for. By tiles the forward runs
/// again for its result and the sums of its rows: a quarter of the time of both directions.
pub(crate) fn attention_grad(
    form: AttentionForm,
    inputs: [&Tensor; 5],
    bound: MaskBound,
) -> Result<(Tensor, Tensor, Tensor)> {
    let [q, ..] = inputs;
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
    let fused: cuda::Way<'_> = &|args, _| match form {
        AttentionForm::Tiles => Forward::run(args, bound)?.backward(&contiguous(at(args, 4)?)?),
        AttentionForm::Gather => attention_gather::backward(args, bound),
    };
    let kernel = match form {
        AttentionForm::Tiles => &kernels_for(q)?.keys,
        AttentionForm::Gather => attention_gather::backward_kernel(q)?,
    };
    let results = cuda::either(kernel, &inputs, q, fused, reference)?;
    let [dq, dk, dv] = take("masked_attention_grad", results)?;
    Ok((dq, dk, dv))
}
