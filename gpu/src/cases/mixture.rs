//! Times of routed products, and of whole mixtures composed of them.
//!
//! What stands between the products in a compiled stage without an exchange (weights of the choices times rows, their
//! gradient, and the gradient of silu) are row kernels, which the compiler writes. The ones below do the same
//! reads and writes, and whole mixtures launch what `lightc inspect --emit schedule` lists for a stage's.

use lightc_runtime::cuda::{self, Arg, Kernel, Module};
use lightc_runtime::ops::{self, Term};
use lightc_runtime::{Kind, Result, Tensor};

use super::experts::{Adapter, Mixture, REAL, Size};
use crate::bench::time;
use crate::check::within;
use crate::{Gpu, Measured, Verdict};

static MODULE: Module = Module {
    name: "mixture.cu",
    source: r#"#include "base.cuh"
// y[row] = sum over places of each
extern "C" __global__ void add_places(const bf16* each, bf16* y, int top, int d) {
    const u64 row = blockIdx.x;
    for (int c = threadIdx.x * 8; c < d; c += 2048) {
        float sum[8] = {};
        for (int p = 0; p < top; p++) {
            const uint4 v = load_early(each + (row * top + p) * d + c);
            const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 4; i++) sum[2 * i] += bf16_lo(word[i]), sum[2 * i + 1] += bf16_hi(word[i]);
        }
        *(uint4*)(y + row * d + c) = make_uint4(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]), pack_bf16(sum[4], sum[5]), pack_bf16(sum[6], sum[7]));
    }
}
// y = weight x, of rows of 16
extern "C" __global__ void weigh_low(const bf16* x, const float* weight, bf16* y, long long n) {
    const u64 i = (u64(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (i >= n) return;
    const float w = weight[i / 16];
    const uint4 v = load_early(x + i);
    const u32 word[4] = {v.x, v.y, v.z, v.w};
    u32 out[4];
#pragma unroll
    for (int j = 0; j < 4; j++) out[j] = pack_bf16(w * bf16_lo(word[j]), w * bf16_hi(word[j]));
    *(uint4*)(y + i) = make_uint4(out[0], out[1], out[2], out[3]);
}
// dx = weight z, dweight = sum of z x; a block for a place
extern "C" __global__ void weigh_back(const bf16* z, const bf16* x, const float* weight, bf16* dx, float* dweight, int f) {
    const u64 place = blockIdx.x;
    const float w = weight[place];
    float dot = 0.f;
    for (int c = threadIdx.x * 8; c < f; c += 1024) {
        const uint4 g = load_early(z + place * f + c), h = load_early(x + place * f + c);
        const u32 a[4] = {g.x, g.y, g.z, g.w}, b[4] = {h.x, h.y, h.z, h.w};
        u32 out[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            dot += bf16_lo(a[i]) * bf16_lo(b[i]) + bf16_hi(a[i]) * bf16_hi(b[i]);
            out[i] = pack_bf16(w * bf16_lo(a[i]), w * bf16_hi(a[i]));
        }
        *(uint4*)(dx + place * f + c) = make_uint4(out[0], out[1], out[2], out[3]);
    }
    __shared__ float part[4];
    dot = warp_sum(dot);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = dot;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 4; i++) dot += part[i];
        dweight[place] = dot;
    }
}
// dgated and dlifted of hidden = silu(gated) lifted
extern "C" __global__ void swiglu_back(const bf16* dh, const bf16* gated, const bf16* lifted, bf16* dgated, bf16* dlifted, long long n) {
    const u64 i = (u64(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (i >= n) return;
    const uint4 h = load_early(dh + i), g = load_early(gated + i), u = load_early(lifted + i);
    const u32 a[4] = {h.x, h.y, h.z, h.w}, b[4] = {g.x, g.y, g.z, g.w}, c[4] = {u.x, u.y, u.z, u.w};
    u32 dg[4], du[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float one[2], two[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float dy = k ? bf16_hi(a[j]) : bf16_lo(a[j]), x = k ? bf16_hi(b[j]) : bf16_lo(b[j]), l = k ? bf16_hi(c[j]) : bf16_lo(c[j]);
            const float s = rcp_fast(1.f + exp_fast(-x));
            one[k] = dy * l * s * (1.f + x * (1.f - s)), two[k] = dy * x * s;
        }
        dg[j] = pack_bf16(one[0], one[1]), du[j] = pack_bf16(two[0], two[1]);
    }
    *(uint4*)(dgated + i) = make_uint4(dg[0], dg[1], dg[2], dg[3]);
    *(uint4*)(dlifted + i) = make_uint4(du[0], du[1], du[2], du[3]);
}
"#,
};

const fn kernel(entry: &'static str) -> Kernel {
    Kernel {
        module: &MODULE,
        entry,
        origin: "a time of whole mixtures",
        threads: 256,
        shared_bytes: 0,
    }
}

static ADD_PLACES: Kernel = kernel("add_places");
static WEIGH_LOW: Kernel = kernel("weigh_low");
static WEIGH_BACK: Kernel = Kernel { threads: 128, ..kernel("weigh_back") };
static SWIGLU_BACK: Kernel = kernel("swiglu_back");

fn half(shape: &[i64], like: &Tensor) -> Result<Tensor> {
    cuda::empty(shape, Kind::BFloat16, like)
}

/// The sum over the places of each row.
fn add_places(each: &Tensor) -> Result<Tensor> {
    let (rows, top, d) = each.size3()?;
    let y = half(&[rows, d], each)?;
    let tensors = [each, &y].map(Arg::Tensor);
    let args = [&tensors[..], &[Arg::I32(top as i32), Arg::I32(d as i32)]].concat();
    cuda::launch(&ADD_PLACES, [rows as u32, 1, 1], &args)?;
    Ok(y)
}

/// Rows of an adapter, each times the weight of its place.
fn weigh_low(x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let y = half(&x.size(), x)?;
    let n = x.numel() as i64;
    let tensors = [x, weights, &y].map(Arg::Tensor);
    let grid = [(n as u64).div_ceil(2048) as u32, 1, 1];
    cuda::launch(&WEIGH_LOW, grid, &[&tensors[..], &[Arg::I64(n)]].concat())?;
    Ok(y)
}

/// From the unweighed gradient of the rows of places their own gradient, and that of the weights.
fn weigh_back(z: &Tensor, x: &Tensor, weights: &Tensor) -> Result<[Tensor; 2]> {
    let (rows, top, f) = z.size3()?;
    let dx = half(&[rows, top, f], z)?;
    let dweight = cuda::empty(&[rows, top], Kind::Float, z)?;
    let tensors = [z, x, weights, &dx, &dweight].map(Arg::Tensor);
    let args = [&tensors[..], &[Arg::I32(f as i32)]].concat();
    cuda::launch(&WEIGH_BACK, [(rows * top) as u32, 1, 1], &args)?;
    Ok([dx, dweight])
}

fn swiglu_back(dh: &Tensor, gated: &Tensor, lifted: &Tensor) -> Result<[Tensor; 2]> {
    let both = [half(&dh.size(), dh)?, half(&dh.size(), dh)?];
    let [dg, du] = &both;
    let n = dh.numel() as i64;
    let tensors = [dh, gated, lifted, dg, du].map(Arg::Tensor);
    let grid = [(n as u64).div_ceil(2048) as u32, 1, 1];
    cuda::launch(&SWIGLU_BACK, grid, &[&tensors[..], &[Arg::I64(n)]].concat())?;
    Ok(both)
}

/// What a forward pass keeps for its gradient.
struct Kept {
    turned: Tensor,
    low: [Tensor; 2],
    gated: Tensor,
    lifted: Tensor,
    hidden: Tensor,
    down_low: Tensor,
}

/// A mixture with bf16 weights, forward: order, gate and up, down, sum.
fn plain_forward(m: &Mixture, weights: &Tensor) -> Result<Tensor> {
    let (order, bounds) = ops::expert_order(&m.ids, m.size.experts)?;
    let routing = &ops::Routing { ids: &m.ids, order: &order, bounds: &bounds };
    let (gate, up) = (m.gate.term(&m.x, false), m.up.term(&m.x, false));
    let hidden = ops::routed_swiglu_hidden(routing, &[gate], &[up])?;
    ops::routed_combine(weights, routing, &[m.down.term(&hidden, false)])
}

/// The whole of a mixture of int8 weights with adapters, forward.
fn forward(m: &Mixture, weights: &Tensor) -> Result<(Tensor, Kept)> {
    let (order, bounds) = ops::expert_order(&m.ids, m.size.experts)?;
    let routing = &ops::Routing { ids: &m.ids, order: &order, bounds: &bounds };
    let turned = ops::hadamard(&m.x, 42, false)?;
    let right = [&m.gate_low, &m.up_low].map(|low| Term::plain(&turned, &low.right));
    let (gate_low, up_low) = ops::routed_dot_pair(routing, right[0], right[1])?;
    let gate = [m.gate.term(&turned, true), Term::plain(&gate_low, &m.gate_low.left)];
    let up = [m.up.term(&turned, true), Term::plain(&up_low, &m.up_low.left)];
    let (gated, lifted, hidden) = ops::routed_swiglu(routing, &gate, &up)?;
    let hidden = ops::hadamard(&hidden, 242, false)?;
    let down_low = ops::routed_dot(routing, &[Term::plain(&hidden, &m.down_low.right)])?;
    let down = [m.down.term(&hidden, true), Term::plain(&down_low, &m.down_low.left)];
    let y = ops::routed_combine(weights, routing, &down)?;
    let low = [gate_low, up_low];
    Ok((y, Kept { turned, low, gated, lifted, hidden, down_low }))
}

/// Its gradient for the rows, the weights of the sum, and the six adapters, from that of a row for all its places.
fn backward(m: &Mixture, weights: &Tensor, dy: &Tensor, kept: &Kept) -> Result<[Tensor; 2]> {
    let (routing, e) = (&m.routing(), m.size.experts);
    let weighed_low = weigh_low(&kept.down_low, weights)?;
    let z_low = ops::routed_dot(routing, &[Term::turned(dy, &m.down_low.left)])?;
    let ddown_low = weigh_low(&z_low, weights)?;
    let _ = ops::routed_weight_grad(routing, &weighed_low, dy, e)?;
    let down = [m.down.turned(dy, true), Term::turned(&z_low, &m.down_low.right)];
    let z = ops::routed_dot(routing, &down)?;
    let _ = ops::routed_weight_grad(routing, &kept.hidden, &ddown_low, e)?;
    let [dhidden, dweights] = weigh_back(&z, &kept.hidden, weights)?;
    let dhidden = ops::hadamard(&dhidden, 242, true)?;
    let [dgated, dlifted] = &swiglu_back(&dhidden, &kept.gated, &kept.lifted)?;
    let [gate_low, up_low] = &kept.low;
    let (dgate_low, _) = ops::routed_low_back(routing, dgated, gate_low, &m.gate_low.left, e)?;
    let (dup_low, _) = ops::routed_low_back(routing, dlifted, up_low, &m.up_low.left, e)?;
    let _ = ops::routed_weight_grad_pair(routing, &kept.turned, [&dup_low, &dgate_low], e)?;
    let both = [
        m.gate.turned(dgated, true),
        m.up.turned(dlifted, true),
        Term::turned(&dgate_low, &m.gate_low.right),
        Term::turned(&dup_low, &m.up_low.right),
    ];
    let dx = ops::hadamard(&add_places(&ops::routed_dot(routing, &both)?)?, 42, true)?;
    Ok([dx, dweights])
}

/// The same gradients of the rows and of the weights by libtorch, in f64.
fn exact(m: Mixture, weights: &Tensor, dy: &Tensor) -> Result<[Tensor; 2]> {
    let wide = |x: &Tensor| x.f_to_kind(Kind::Double);
    let adapter = |low: &Adapter| -> Result<Adapter> {
        Ok(Adapter { left: wide(&low.left)?, right: wide(&low.right)? })
    };
    let lows = [adapter(&m.gate_low)?, adapter(&m.up_low)?, adapter(&m.down_low)?];
    let [gate_low, up_low, down_low] = lows;
    let (x, weights) =
        (wide(&m.x)?.set_requires_grad(true), wide(weights)?.set_requires_grad(true));
    let m = Mixture { x: x.shallow_clone(), gate_low, up_low, down_low, ..m };
    let (y, _) = forward(&m, &weights)?;
    y.f_mul(&wide(dy)?)?.f_sum(Kind::Double)?.f_backward()?;
    Ok([x.f_grad()?, weights.f_grad()?])
}

/// Whether what is timed is the gradient.
pub(super) fn check(gpu: &Gpu) -> Result<Vec<Verdict>> {
    let size = Size { rows: 150, top: 3, experts: 7, d: 128, f: 64 };
    let m = Mixture::draw(gpu, size, "some none")?;
    let weights = gpu.uniform(&[size.rows, size.top])?;
    let dy = gpu.normal_bf16(&[size.rows, size.d])?;
    let (_, kept) = forward(&m, &weights)?;
    let found = backward(&m, &weights, &dy, &kept)?;
    let wanted = exact(m, &weights, &dy)?;
    let row = |what: &str, found: &Tensor, wanted: &Tensor| -> Result<Verdict> {
        let gap = found.f_to_kind(Kind::Double)?.f_sub(wanted)?.f_norm()?.f_double_value(&[])?;
        let error = gap / wanted.f_norm()?.f_double_value(&[])?;
        Ok(within("a mixture as it is timed", what, error, 3e-2))
    };
    let [dx, dweights] = &found;
    let [exact_dx, exact_dweights] = &wanted;
    Ok(vec![
        row("gradient of rows off by", dx, exact_dx)?,
        row("gradient of weights off by", dweights, exact_dweights)?,
    ])
}

/// Rows of the table. FLOPs are those of the products; bytes what must come from memory or go there.
struct Table<'a> {
    gpu: &'a Gpu,
    rows: Vec<Measured>,
}

impl Table<'_> {
    fn add<R>(
        &mut self,
        name: &str,
        peers: &'static [&'static str],
        flops: f64,
        bytes: f64,
        work: &mut dyn FnMut() -> Result<R>,
    ) -> Result<()> {
        let spread = time(self.gpu, 11, &mut || work().map(|_| ()))?;
        let Size { rows, top, experts, d, f } = REAL;
        let shape = format!("P={}, {experts} experts, d={d}, f={f}", rows * top);
        self.rows.push(Measured { name: name.to_owned(), shape, spread, flops, bytes, peers });
        Ok(())
    }
}

/// Narrow products and their gradients.
pub(super) fn narrow(gpu: &Gpu) -> Result<Vec<Measured>> {
    let m = &Mixture::draw(gpu, REAL, "even")?;
    let (routing, e) = (&m.routing(), REAL.experts);
    let ([h, _], [low, other]) = (&m.hidden, &m.low);
    let places = (REAL.rows * REAL.top) as f64;
    let (d, f) = (REAL.d as f64, REAL.f as f64);
    let low_one = |width: f64| 2.0 * places * width * 16.0;
    let (x, wide, narrow) = (2.0 * REAL.rows as f64 * d, 2.0 * places * d, 2.0 * places * f);
    let mut t = Table { gpu, rows: Vec::new() };
    let right = (Term::plain(&m.x, &m.gate_low.right), Term::plain(&m.x, &m.up_low.right));
    t.add("narrow x right, gathered", &[], low_one(d), x, &mut || {
        ops::routed_dot(routing, &[right.0])
    })?;
    t.add("narrow x right, gathered, two", &[], 2.0 * low_one(d), x, &mut || {
        ops::routed_dot_pair(routing, right.0, right.1)
    })?;
    t.add("narrow hidden right", &[], low_one(f), narrow, &mut || {
        ops::routed_dot(routing, &[Term::plain(h, &m.down_low.right)])
    })?;
    t.add("narrow dy left, d wide", &[], low_one(d), wide, &mut || {
        ops::routed_dot(routing, &[Term::turned(&m.dy, &m.down_low.left)])
    })?;
    t.add("narrow dg left, f wide", &[], low_one(f), narrow, &mut || {
        ops::routed_dot(routing, &[Term::turned(h, &m.gate_low.left)])
    })?;
    t.add("adapter grad right, gathered", &[], low_one(d), x, &mut || {
        ops::routed_weight_grad(routing, &m.x, low, e)
    })?;
    t.add("adapter grad right, gathered, two", &[], 2.0 * low_one(d), x, &mut || {
        ops::routed_weight_grad_pair(routing, &m.x, [low, other], e)
    })?;
    t.add("adapter grad left, d wide", &[], low_one(d), wide, &mut || {
        ops::routed_weight_grad(routing, low, &m.dy, e)
    })?;
    t.add("adapter grad left, f wide", &[], low_one(f), narrow, &mut || {
        ops::routed_weight_grad(routing, low, h, e)
    })?;
    t.add("narrow and grad of dg, f wide", &[], 2.0 * low_one(f), narrow, &mut || {
        ops::routed_low_back(routing, h, low, &m.gate_low.left, e)
    })?;
    Ok(t.rows)
}

/// Wide products, and whole mixtures.
pub(super) fn wide(gpu: &Gpu) -> Result<Vec<Measured>> {
    let m = &Mixture::draw(gpu, REAL, "even")?;
    let (routing, e) = (&m.routing(), REAL.experts);
    let ([h, u], [low, other]) = (&m.hidden, &m.low);
    let places = (REAL.rows * REAL.top) as f64;
    let (d, f) = (REAL.d as f64, REAL.f as f64);
    let one = 2.0 * places * d * f;
    let low_one = |width: f64| 2.0 * places * width * 16.0;
    // Weights, rows of x, rows of places.
    let weight = e as f64 * d * f;
    let (x, wide, narrow) = (2.0 * REAL.rows as f64 * d, 2.0 * places * d, 2.0 * places * f);
    let mut t = Table { gpu, rows: Vec::new() };
    let (gate, up) = (m.gate.term(&m.x, false), m.up.term(&m.x, false));
    t.add(
        "gate+up fwd bf16",
        &["grouped GEMM gate+up fwd"],
        2.0 * one,
        x + 4.0 * weight + narrow,
        &mut || ops::routed_swiglu_hidden(routing, &[gate], &[up]),
    )?;
    t.add(
        "gate+up fwd bf16, all kept",
        &["grouped GEMM gate+up fwd"],
        2.0 * one,
        x + 4.0 * weight + 3.0 * narrow,
        &mut || ops::routed_swiglu(routing, &[gate], &[up]),
    )?;
    let gate = [m.gate.term(&m.x, true), Term::plain(low, &m.gate_low.left)];
    let up = [m.up.term(&m.x, true), Term::plain(other, &m.up_low.left)];
    let flops = 2.0 * (one + low_one(f));
    let int8: &[&str] = &["int8 base + LoRA gate+up fwd"];
    t.add("gate+up fwd int8 + adapters", int8, flops, x + 2.0 * weight + narrow, &mut || {
        ops::routed_swiglu_hidden(routing, &gate, &up)
    })?;
    t.add(
        "gate+up fwd int8 + adapters, all kept",
        int8,
        flops,
        x + 2.0 * weight + 3.0 * narrow,
        &mut || ops::routed_swiglu(routing, &gate, &up),
    )?;
    // A peer's whole op: both narrow products too, by one kernel as in a compiled stage.
    let right = (Term::plain(&m.x, &m.gate_low.right), Term::plain(&m.x, &m.up_low.right));
    t.add(
        "gate+up fwd int8 + adapters, from x",
        int8,
        flops + 2.0 * low_one(d),
        2.0 * x + 2.0 * weight + narrow,
        &mut || {
            let (gate_low, up_low) = ops::routed_dot_pair(routing, right.0, right.1)?;
            let gate = [m.gate.term(&m.x, true), Term::plain(&gate_low, &m.gate_low.left)];
            let up = [m.up.term(&m.x, true), Term::plain(&up_low, &m.up_low.left)];
            ops::routed_swiglu_hidden(routing, &gate, &up)
        },
    )?;
    for (name, int8) in [("bf16", false), ("int8", true)] {
        let stored = if int8 { weight } else { 2.0 * weight };
        let peers: [&'static [&'static str]; 2] = if int8 {
            [&[], &[]]
        } else {
            [&["grouped GEMM down fwd"], &["grouped GEMM down dgrad"]]
        };
        let [fwd, dgrad] = peers;
        t.add(&format!("down fwd {name}"), fwd, one, stored + wide + narrow, &mut || {
            ops::routed_dot(routing, &[m.down.term(h, int8)])
        })?;
        t.add(&format!("down dgrad {name}"), dgrad, one, stored + wide + narrow, &mut || {
            ops::routed_dot(routing, &[m.down.turned(&m.dy, int8)])
        })?;
        t.add(
            &format!("gate+up dgrad {name}"),
            &[],
            2.0 * one,
            2.0 * stored + wide + 2.0 * narrow,
            &mut || ops::routed_dot(routing, &[m.gate.turned(h, int8), m.up.turned(u, int8)]),
        )?;
        let lows = [Term::turned(low, &m.gate_low.right), Term::turned(other, &m.up_low.right)];
        t.add(
            &format!("gate+up dgrad {name} + adapters"),
            &[],
            2.0 * (one + low_one(d)),
            2.0 * stored + wide + 2.0 * narrow,
            &mut || {
                let both = [m.gate.turned(h, int8), m.up.turned(u, int8)];
                ops::routed_dot(routing, &[both, lows].concat())
            },
        )?;
    }
    t.add(
        "down wgrad",
        &["grouped GEMM down wgrad"],
        one,
        2.0 * weight + wide + narrow,
        &mut || ops::routed_weight_grad(routing, h, &m.dy, e),
    )?;
    t.add("gate wgrad", &[], one, 2.0 * weight + x + narrow, &mut || {
        ops::routed_weight_grad(routing, &m.x, h, e)
    })?;
    let weights = gpu.uniform(&[REAL.rows, REAL.top])?;
    t.add(
        "routed MoE fwd bf16",
        &["whole routed MoE fwd"],
        3.0 * one,
        6.0 * weight + 2.0 * x + 2.0 * (narrow + wide),
        &mut || plain_forward(m, &weights),
    )?;
    let lows = 2.0 * low_one(d) + 2.0 * low_one(f) + low_one(f) + low_one(d);
    t.add(
        "routed MoE fwd int8 + adapters",
        &["whole routed MoE fwd"],
        3.0 * one + lows,
        3.0 * weight + 2.0 * x + 2.0 * (narrow + wide),
        &mut || forward(m, &weights).map(|(y, _)| y),
    )?;
    let dy = gpu.normal_bf16(&[REAL.rows, REAL.d])?;
    // Between products what is wide or narrow is written once and read once: the products of down and the gradients
    // of the places' rows; gated, lifted, hidden and its gradient. The gradient of y is read as the rows that it is.
    t.add(
        "routed MoE fwd+bwd int8 + adapters, frozen base",
        &[],
        6.0 * one + 3.0 * lows,
        6.0 * weight + 4.0 * x + 8.0 * narrow + 4.0 * wide,
        &mut || {
            let (_, kept) = forward(m, &weights)?;
            backward(m, &weights, &dy, &kept)
        },
    )?;
    Ok(t.rows)
}
