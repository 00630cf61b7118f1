//! Draws of start values on `draw.cu`.

use lightc_numerics::draw::{Law, key};

use super::{ceil, exact, int, take};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::Result;
use crate::{Error, Kind, Tensor};

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

/// Laws that draw, in f32 or bf16, on a GPU, with at least one element.
pub(crate) fn takes_draw(law: Law, n: i64, kind: Kind, like: &Tensor) -> bool {
    cuda::runs_on(like.device()) && n > 0 && kernel_of(law, kind).is_some()
}

/// The draws of a path by a law and a seed, in f32 or bf16 on the GPU of `like`. `reference` draws them in a kind on the
/// processor.
///
/// # Errors
/// Those of the launch.
pub fn draw(
    path: &str,
    (law, seed): (Law, u64),
    shape: &[i64],
    kind: Kind,
    like: &Tensor,
    reference: &dyn Fn(Kind) -> Result<Tensor>,
) -> Result<Tensor> {
    const OP: &str = "draw";
    let (kernel, a, b) = kernel_of(law, kind).ok_or_else(|| Error::Op {
        op: OP,
        detail: format!("there is no kernel for {law:?} in {kind:?}"),
    })?;
    let fused: cuda::Way<'_> = &|_, like| {
        let y = cuda::empty(shape, kind, like)?;
        let n: i64 = shape.iter().product();
        let mut args = vec![Arg::Tensor(&y), Arg::I64(n)];
        let key = key(seed, path);
        let (words, _) = key.as_chunks::<4>();
        args.extend(words.iter().map(|word| Arg::I32(i32::from_le_bytes(*word))));
        args.extend([a, b].map(|number| Arg::I64(number.to_bits().cast_signed())));
        cuda::launch(kernel, [int(OP, ceil(n, BLOCK))?, 1, 1], &args)?;
        Ok(vec![y])
    };
    let drawn: cuda::Way<'_> = &|_, like| {
        let kind = if like.kind() == Kind::Double { Kind::Double } else { kind };
        Ok(vec![reference(kind)?.f_to_device(like.device())?])
    };
    let [y] = take(OP, cuda::either(kernel, &[], &exact(like)?, fused, drawn)?)?;
    Ok(y)
}
