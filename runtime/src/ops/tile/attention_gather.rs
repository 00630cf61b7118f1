//! Attention that gathers the selected keys of each query, on `gather_attention.cu`.

use std::f32::consts::LOG2_E;

use lightc_numerics::attention::MaskBound;

use super::attention::{Mask, OP, Sizes, no_kernel, pack};
use super::{aligned, at, ceil};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::Result;
use crate::{Error, Kind, Tensor};

/// The kernels for one size of a head.
struct Kernels {
    count: Kernel,
    starts: Kernel,
    fill: Kernel,
    forward: Kernel,
    queries: Kernel,
    keys: Kernel,
}

const fn kernels(module: &'static Module) -> Kernels {
    const fn kernel(
        module: &'static Module,
        entry: &'static str,
        origin: &'static str,
        threads: u32,
    ) -> Kernel {
        Kernel { module, entry, origin, threads, shared_bytes: 0 }
    }
    const ORIGIN: &str = "masked_attention, kernels/gather_attention.cu";
    const STOPS: &str =
        "masked_attention, which stops where a query sees more keys than is claimed";
    Kernels {
        count: kernel(module, "list_count", STOPS, 256),
        starts: kernel(module, "list_starts", ORIGIN, 1024),
        fill: kernel(module, "list_fill", ORIGIN, 256),
        forward: kernel(module, "gathered_forward", ORIGIN, 128),
        queries: kernel(module, "gathered_grad_queries", ORIGIN, 128),
        keys: kernel(module, "gathered_grad_keys", ORIGIN, 128),
    }
}

static MODULE_64: Module =
    Module { name: "gather_attention_64.cu", source: lightc_kernels::GATHER_ATTENTION_64 };
static MODULE_128: Module =
    Module { name: "gather_attention_128.cu", source: lightc_kernels::GATHER_ATTENTION_128 };
static MODULE_256: Module =
    Module { name: "gather_attention_256.cu", source: lightc_kernels::GATHER_ATTENTION_256 };
static KERNELS_64: Kernels = kernels(&MODULE_64);
static KERNELS_128: Kernels = kernels(&MODULE_128);
static KERNELS_256: Kernels = kernels(&MODULE_256);

fn kernels_for(q: &Tensor) -> Result<&'static Kernels> {
    match q.size().last().copied().unwrap_or(0) {
        64 => Ok(&KERNELS_64),
        128 => Ok(&KERNELS_128),
        256 => Ok(&KERNELS_256),
        channels => Err(no_kernel(channels)),
    }
}

/// What stands for the forward in [`crate::cuda::Mode`].
pub(super) fn forward_kernel(q: &Tensor) -> Result<&'static Kernel> {
    Ok(&kernels_for(q)?.forward)
}

/// What stands for the gradient.
pub(super) fn backward_kernel(q: &Tensor) -> Result<&'static Kernel> {
    Ok(&kernels_for(q)?.keys)
}

/// The set columns of each row of a mask, one row after the other.
struct Lists {
    /// `[b, t + 1]`: where each row's begin.
    starts: Tensor,
    /// `[b, capacity]`.
    list: Tensor,
    capacity: i64,
}

impl Lists {
    /// Of bits `[b, rows, words]`, the first `t` rows of which count and have at most `most` bits. There are `capacity`
    /// bits in a sequence at most.
    fn of(
        kernels: &'static Kernels,
        bits: &Tensor,
        most: i64,
        capacity: i64,
        sizes: Sizes,
    ) -> Result<Lists> {
        let Sizes { b, t, .. } = sizes;
        let (_, rows, words) = bits.size3()?;
        let words_of = |shape: &[i64]| cuda::empty(shape, Kind::Int, bits);
        let (counts, starts) = (words_of(&[b, t])?, words_of(&[b, t + 1])?);
        let list = words_of(&[b, capacity])?;
        let grid = sizes.grid(ceil(t, 8), b, 1)?;
        let (t_arg, rows_arg, words_arg) = (sizes.int(t)?, sizes.int(rows)?, sizes.int(words)?);
        cuda::launch(
            &kernels.count,
            grid,
            &[
                Arg::Tensor(bits),
                Arg::Tensor(&counts),
                sizes.int(most)?,
                t_arg,
                rows_arg,
                words_arg,
            ],
        )?;
        cuda::launch(
            &kernels.starts,
            sizes.grid(b, 1, 1)?,
            &[Arg::Tensor(&counts), Arg::Tensor(&starts), t_arg],
        )?;
        cuda::launch(
            &kernels.fill,
            grid,
            &[
                Arg::Tensor(bits),
                Arg::Tensor(&starts),
                Arg::Tensor(&list),
                sizes.int(capacity)?,
                t_arg,
                rows_arg,
                words_arg,
            ],
        )?;
        Ok(Lists { starts, list, capacity })
    }

    /// How each of the three kernels takes them, with the factors of scores and of what it gives, and its sizes.
    fn args(&self, factors: &[f32], sizes: Sizes) -> Result<Vec<Arg<'_>>> {
        let lists = [&self.starts, &self.list].map(Arg::Tensor);
        let factors = factors.iter().copied().map(Arg::F32);
        let sizes = [sizes.int(self.capacity)?, sizes.int(sizes.t)?, sizes.int(sizes.h)?];
        Ok(lists.into_iter().chain(factors).chain(sizes).collect())
    }
}

/// Inputs as the kernels take them, and the mask's bits by query and by key.
struct Inputs {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernels: &'static Kernels,
    sizes: Sizes,
    mask: Mask,
    /// The most keys of a query.
    most: i64,
}

impl Inputs {
    fn of(args: &[&Tensor], bound: MaskBound) -> Result<Inputs> {
        let most = bound.most_keys.ok_or_else(|| Error::Op {
            op: OP,
            detail: "keys cannot be gathered where nothing bounds their number".to_owned(),
        })?;
        let (q, k, v) = (aligned(at(args, 0)?)?, aligned(at(args, 1)?)?, aligned(at(args, 2)?)?);
        let (kernels, sizes) = (kernels_for(&q)?, Sizes::of(&q)?);
        let mask = pack(&q, at(args, 3)?, bound.causal)?;
        Ok(Inputs { kernels, sizes, mask, most: i64::from(most).min(sizes.t), q, k, v })
    }

    /// The most selected pairs of a sequence.
    fn capacity(&self) -> i64 {
        self.sizes.t * self.most
    }

    fn keys_of_queries(&self) -> Result<Lists> {
        Lists::of(self.kernels, &self.mask.bits, self.most, self.capacity(), self.sizes)
    }

    fn queries_of_keys(&self) -> Result<Lists> {
        let bits = &self.mask.transposed;
        Lists::of(self.kernels, bits, self.sizes.t, self.capacity(), self.sizes)
    }

    /// A result like q.
    fn empty(&self) -> Result<Tensor> {
        cuda::empty(&self.q.size(), Kind::BFloat16, &self.q)
    }

    /// Blocks of four queries.
    fn queries_grid(&self) -> Result<[u32; 3]> {
        let Sizes { b, t, h, .. } = self.sizes;
        self.sizes.grid(ceil(t, 4), h, b)
    }
}

/// `masked_attention` of q, k, v and the mask.
pub(super) fn forward(args: &[&Tensor], bound: MaskBound) -> Result<Vec<Tensor>> {
    let inputs = Inputs::of(args, bound)?;
    let Inputs { q, k, v, kernels, sizes, .. } = &inputs;
    let lists = inputs.keys_of_queries()?;
    let o = inputs.empty()?;
    cuda::launch(
        &kernels.forward,
        inputs.queries_grid()?,
        &[&[q, k, v, &o].map(Arg::Tensor)[..], &lists.args(&[LOG2_E], *sizes)?].concat(),
    )?;
    Ok(vec![o])
}

/// `masked_attention_grad` of q, k, v, the mask and the cotangent of o.
pub(super) fn backward(args: &[&Tensor], bound: MaskBound) -> Result<Vec<Tensor>> {
    let inputs = Inputs::of(args, bound)?;
    let dout = aligned(at(args, 4)?)?;
    let Inputs { q, k, v, kernels, sizes, .. } = &inputs;
    let Sizes { b, t, h, .. } = *sizes;
    let (dq, dk, dv) = (inputs.empty()?, inputs.empty()?, inputs.empty()?);
    let sums = cuda::empty(&[b, h, t, 2], Kind::Float, q)?;
    let lists = inputs.keys_of_queries()?;
    cuda::launch(
        &kernels.queries,
        inputs.queries_grid()?,
        &[&[q, k, v, &dout, &dq, &sums].map(Arg::Tensor)[..], &lists.args(&[LOG2_E, 1.0], *sizes)?]
            .concat(),
    )?;
    let lists = inputs.queries_of_keys()?;
    cuda::launch(
        &kernels.keys,
        sizes.grid(t, h, b)?,
        &[
            &[q, k, v, &dout, &sums, &dk, &dv].map(Arg::Tensor)[..],
            &lists.args(&[LOG2_E, 1.0], *sizes)?,
        ]
        .concat(),
    )?;
    Ok(vec![dq, dk, dv])
}
