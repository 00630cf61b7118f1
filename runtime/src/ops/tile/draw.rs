//! Draws of start values on `draw.cu`.

use lightc_numerics::draw::{Law, key};

use super::{ceil, int, take};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::Result;
use crate::random::on_host;
use crate::{Device, Kind, Tensor};

static MODULE: Module = Module { name: "draw.cu", source: lightc_kernels::DRAW };

const fn kernel(entry: &'static str) -> Kernel {
    let origin = "start values, kernels/draw.cu";
    Kernel { module: &MODULE, entry, origin, threads: 256, shared_bytes: 0 }
}

static NORMAL: [Kernel; 2] = [kernel("draw_normal_f32"), kernel("draw_normal_bf16")];
static UNIFORM: [Kernel; 2] = [kernel("draw_uniform_f32"), kernel("draw_uniform_bf16")];
static LOG_UNIFORM: [Kernel; 2] = [kernel("draw_log_uniform_f32"), kernel("draw_log_uniform_bf16")];

/// Elements of a block.
const BLOCK: i64 = 1024;

/// The kernel and the two numbers of a law.
fn kernel_of(law: Law, kind: Kind) -> Option<(&'static Kernel, f64, f64)> {
    let (kernels, a, b) = match law {
        Law::Normal { std } => (&NORMAL, std, 0.0),
        Law::Uniform { low, high } => (&UNIFORM, low, high),
        Law::LogUniform { low, high } => (&LOG_UNIFORM, low, high),
        Law::Zeros | Law::Ones | Law::Constant(_) => return None,
    };
    let [float, half] = kernels;
    match kind {
        Kind::Float => Some((float, a, b)),
        Kind::BFloat16 => Some((half, a, b)),
        _ => None,
    }
}

/// The values that a law gives the path of a seed, on a GPU; nothing where there is no kernel: for laws that do not draw, other
/// kinds than f32 and bf16, no elements, and other devices.
pub fn draw(
    law: Law,
    of: (u64, &str),
    shape: &[i64],
    kind: Kind,
    device: Device,
) -> Option<Result<Tensor>> {
    let n: i64 = shape.iter().product();
    let found = kernel_of(law, kind).filter(|_| cuda::runs_on(device) && n > 0)?;
    Some(draw_by(found, law, of, shape, (kind, device)))
}

fn draw_by(
    (kernel, a, b): (&'static Kernel, f64, f64),
    law: Law,
    of: (u64, &str),
    shape: &[i64],
    (kind, device): (Kind, Device),
) -> Result<Tensor> {
    const OP: &str = "draw";
    let fused: cuda::Way<'_> = &|_, like| {
        let y = cuda::empty(shape, kind, like)?;
        let n = y.numel() as i64;
        let mut args = vec![Arg::Tensor(&y), Arg::I64(n)];
        let key = key(of.0, of.1);
        let (words, _) = key.as_chunks::<4>();
        args.extend(words.iter().map(|word| Arg::I32(i32::from_le_bytes(*word))));
        args.extend([a, b].map(|number| Arg::I64(number.to_bits().cast_signed())));
        cuda::launch(kernel, [int(OP, ceil(n, BLOCK))?, 1, 1], &args)?;
        Ok(vec![y])
    };
    let reference: cuda::Way<'_> = &|_, like| {
        let kind = if like.kind() == Kind::Double { Kind::Double } else { kind };
        Ok(vec![on_host(law, of, shape, kind)?.f_to_device(device)?])
    };
    let like = Tensor::f_empty([0i64], (Kind::BFloat16, device))?;
    let [y] = take(OP, cuda::either(kernel, &[], &like, fused, reference)?)?;
    Ok(y)
}
