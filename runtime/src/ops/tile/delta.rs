//! The gated delta rule on `gated_delta_rule.cu`.

use super::{PANEL, at, bytes, ceil, contiguous, int, take};
use crate::cuda::{self, Arg, Kernel, Module, tensor_map};
use crate::error::Result;
use crate::ops::delta::{DeltaGradients, plain, plain_grad};
use crate::{Kind, Tensor};

static MODULE: Module =
    Module { name: "gated_delta_rule.cu", source: lightc_kernels::GATED_DELTA_RULE };

/// An entry point; the shared memory is that of the `_SMEM` constants in the source.
const fn kernel(entry: &'static str, threads: u32, shared_bytes: u32) -> Kernel {
    let origin = "gated_delta_rule, kernels/gated_delta_rule.cu";
    Kernel { module: &MODULE, entry, origin, threads, shared_bytes }
}

const SCAN: u32 = 3 * (7 * 8192 + 1024) + 4 * 8192 + 128;
static PREPARE: Kernel = kernel("gdn_prepare", 128, 4 * 8192);
static FORWARD: Kernel = kernel("gdn_forward", 384, SCAN);
static FORWARD_SAVE: Kernel = kernel("gdn_forward_save", 384, SCAN);
static BACKWARD: Kernel = kernel("gdn_backward", 256, 3 * (8 * 8192 + 1024) + 3 * 8192 + 128);
static BACKWARD_CHUNK: Kernel = kernel("gdn_backward_chunk", 256, 14 * 8192 + 64);

const OP: &str = "gated_delta_rule";

/// bf16 q, k and v on a GPU with heads of 128 keys and 128 values, at least one token.
pub(crate) fn takes_delta_rule(q: &Tensor, v: &Tensor) -> bool {
    let sized = |x: &Tensor| x.size().last() == Some(&128);
    cuda::runs_on(q.device())
        && q.kind() == Kind::BFloat16
        && sized(q)
        && sized(v)
        && q.numel() > 0
        && v.size() == q.size()
}

/// What both directions share: the chunks' operators, made by `gdn_prepare`.
struct Prepared {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vectors: Tensor,
    m: Tensor,
    p: Tensor,
    sizes: Sizes,
}

#[derive(Clone, Copy)]
struct Sizes {
    b: i64,
    t: i64,
    h: i64,
    chunks: i64,
}

impl Sizes {
    fn of(q: &Tensor) -> Result<Sizes> {
        let (b, t, h, _) = q.size4()?;
        Ok(Sizes { b, t, h, chunks: ceil(t, 64) })
    }

    /// Bytes of `n` panels for each chunk of each head.
    fn panels(self, n: i64) -> i64 {
        self.b * self.h * self.chunks * n * PANEL
    }

    fn chunk_grid(self) -> Result<[u32; 3]> {
        Ok([int(OP, self.h)?, int(OP, self.chunks)?, int(OP, self.b)?])
    }

    /// Each half of the values of a head is a block.
    fn scan_grid(self) -> Result<[u32; 3]> {
        Ok([int(OP, 2 * self.h)?, int(OP, self.b)?, 1])
    }

    fn lengths(self) -> Result<[Arg<'static>; 2]> {
        Ok([Arg::I32(int(OP, self.t)?), Arg::I32(int(OP, self.h)?)])
    }
}

impl Prepared {
    fn new(args: &[&Tensor]) -> Result<Prepared> {
        let (q, k, v) =
            (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?, contiguous(at(args, 2)?)?);
        let (g, beta) = (contiguous(at(args, 3)?)?, contiguous(at(args, 4)?)?);
        let sizes = Sizes::of(&q)?;
        let n_chunks = sizes.b * sizes.h * sizes.chunks;
        let vectors = cuda::empty(&[n_chunks * 5 * 64], Kind::Float, &q)?;
        let (m, p) = (bytes(sizes.panels(1), &q)?, bytes(sizes.panels(1), &q)?);
        let (map_q, map_k) = (tensor_map(&q, 64)?, tensor_map(&k, 64)?);
        let [t, h] = sizes.lengths()?;
        cuda::launch(
            &PREPARE,
            sizes.chunk_grid()?,
            &[
                Arg::Map(&map_q),
                Arg::Map(&map_k),
                Arg::Tensor(&g),
                Arg::Tensor(&beta),
                Arg::Tensor(&vectors),
                Arg::Tensor(&m),
                Arg::Tensor(&p),
                t,
                h,
            ],
        )?;
        Ok(Prepared { q, k, v, vectors, m, p, sizes })
    }

    /// Runs the scan; `saved` takes the state before each chunk and the new values.
    fn scan(&self, saved: Option<(&Tensor, &Tensor)>) -> Result<Tensor> {
        let o = cuda::empty(&self.q.size(), Kind::BFloat16, &self.q)?;
        let maps = [tensor_map(&self.q, 64)?, tensor_map(&self.k, 64)?, tensor_map(&self.v, 64)?];
        let [map_q, map_k, map_v] = &maps;
        let (kernel, states, news) = match saved {
            Some((states, news)) => (&FORWARD_SAVE, Arg::Tensor(states), Arg::Tensor(news)),
            None => (&FORWARD, Arg::I64(0), Arg::I64(0)),
        };
        let [t, h] = self.sizes.lengths()?;
        cuda::launch(
            kernel,
            self.sizes.scan_grid()?,
            &[
                Arg::Map(map_q),
                Arg::Map(map_k),
                Arg::Map(map_v),
                Arg::Tensor(&self.vectors),
                Arg::Tensor(&self.m),
                Arg::Tensor(&self.p),
                Arg::Tensor(&o),
                states,
                news,
                t,
                h,
            ],
        )?;
        Ok(o)
    }
}

fn forward(args: &[&Tensor]) -> Result<Vec<Tensor>> {
    Ok(vec![Prepared::new(args)?.scan(None)?])
}

fn backward(args: &[&Tensor]) -> Result<Vec<Tensor>> {
    let prepared = Prepared::new(args)?;
    let Prepared { q, k, v, vectors, m, p, sizes } = &prepared;
    let dout = contiguous(at(args, 5)?)?;
    let (states, news) = (bytes(sizes.panels(4), q)?, bytes(sizes.panels(2), q)?);
    let _ = prepared.scan(Some((&states, &news)))?;
    let (d_states, ys) = (bytes(sizes.panels(4), q)?, bytes(sizes.panels(2), q)?);
    let (map_q, map_k, map_dout) = (tensor_map(q, 64)?, tensor_map(k, 64)?, tensor_map(&dout, 64)?);
    let [t, h] = sizes.lengths()?;
    cuda::launch(
        &BACKWARD,
        sizes.scan_grid()?,
        &[
            Arg::Map(&map_q),
            Arg::Map(&map_k),
            Arg::Map(&map_dout),
            Arg::Tensor(vectors),
            Arg::Tensor(m),
            Arg::Tensor(p),
            Arg::Tensor(&d_states),
            Arg::Tensor(&ys),
            t,
            h,
        ],
    )?;
    let like_q = || cuda::empty(&q.size(), Kind::BFloat16, q);
    let (dq, dk, dv) = (like_q()?, like_q()?, like_q()?);
    let rows = [sizes.b, sizes.t, sizes.h];
    let dg = cuda::empty(&rows, Kind::Float, q)?;
    let dbeta = cuda::empty(&rows, Kind::Float, q)?;
    let (map_dq, map_dk) = (tensor_map(&dq, 64)?, tensor_map(&dk, 64)?);
    cuda::launch(
        &BACKWARD_CHUNK,
        sizes.chunk_grid()?,
        &[
            Arg::Map(&map_q),
            Arg::Map(&map_k),
            Arg::Map(&map_dout),
            Arg::Map(&map_dq),
            Arg::Map(&map_dk),
            Arg::Tensor(v),
            Arg::Tensor(vectors),
            Arg::Tensor(p),
            Arg::Tensor(&states),
            Arg::Tensor(&d_states),
            Arg::Tensor(&news),
            Arg::Tensor(&ys),
            Arg::Tensor(&dv),
            Arg::Tensor(&dg),
            Arg::Tensor(&dbeta),
            t,
            h,
        ],
    )?;
    Ok(vec![dq, dk, dv, dg, dbeta])
}

fn f32(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_kind(Kind::Float)?)
}

/// `gated_delta_rule` where [`takes_delta_rule`].
pub(crate) fn delta_rule(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    g: &Tensor,
    beta: &Tensor,
) -> Result<Tensor> {
    let (g, beta) = (f32(g)?, f32(beta)?);
    let reference: cuda::Way<'_> = &|args, like| {
        let o = plain(at(args, 0)?, at(args, 1)?, at(args, 2)?, at(args, 3)?, at(args, 4)?)?;
        Ok(vec![o.f_to_kind(like.kind())?])
    };
    let inputs = [q, k, v, &g, &beta];
    let [o] = take(OP, cuda::either(&FORWARD, &inputs, q, &|args, _| forward(args), reference)?)?;
    Ok(o)
}

/// `gated_delta_rule_grad` where [`takes_delta_rule`]. The forward runs again for what it does not keep
/// from the first time: a third of the backward's time, for six times the memory of the inputs.
pub(crate) fn delta_rule_grad(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    g: &Tensor,
    beta: &Tensor,
    dout: &Tensor,
) -> Result<DeltaGradients> {
    let (wide_g, wide_beta) = (f32(g)?, f32(beta)?);
    let reference: cuda::Way<'_> = &|args, like| {
        let (dq, dk, dv, dg, dbeta) = plain_grad(
            at(args, 0)?,
            at(args, 1)?,
            at(args, 2)?,
            at(args, 3)?,
            at(args, 4)?,
            at(args, 5)?,
        )?;
        let act = |x: Tensor| x.f_to_kind(like.kind());
        Ok(vec![act(dq)?, act(dk)?, act(dv)?, dg, dbeta])
    };
    let inputs = [q, k, v, &wide_g, &wide_beta, dout];
    let fused: cuda::Way<'_> = &|args, _| backward(args);
    let results = cuda::either(&BACKWARD, &inputs, q, fused, reference)?;
    let [dq, dk, dv, dg, dbeta] = take("gated_delta_rule_grad", results)?;
    Ok((dq, dk, dv, dg.f_to_kind(g.kind())?, dbeta.f_to_kind(beta.kind())?))
}
