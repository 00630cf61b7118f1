//! Linear cross entropy on `linear_cross_entropy.cu` between libtorch's products.

use super::{at, ceil, contiguous, int};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::Result;
use crate::{Kind, Tensor};

static MODULE: Module =
    Module { name: "linear_cross_entropy.cu", source: lightc_kernels::LINEAR_CROSS_ENTROPY };
const ORIGIN: &str = "linear_cross_entropy, kernels/linear_cross_entropy.cu";

static COUNT: Kernel =
    Kernel { module: &MODULE, entry: "lce_count", origin: ORIGIN, threads: 1024, shared_bytes: 0 };
pub(super) static ROWS: Kernel = Kernel {
    module: &MODULE,
    entry: "lce_rows",
    origin: ORIGIN,
    threads: 512,
    shared_bytes: 12 * 512 * 16,
};
static TOTAL: Kernel =
    Kernel { module: &MODULE, entry: "lce_total", origin: ORIGIN, threads: 1024, shared_bytes: 0 };

const OP: &str = "linear_cross_entropy";

/// Elements of logits held at once: 1 GiB of bf16, 4096 rows of 131072 classes.
const HELD: i64 = 1 << 29;

/// bf16 on a GPU, at least one row, and a number of classes that 16-byte words divide.
pub(crate) fn takes_cross_entropy(h: &Tensor, w: &Tensor) -> bool {
    cuda::runs_on(h.device())
        && h.kind() == Kind::BFloat16
        && h.numel() > 0
        && w.size().first().is_some_and(|classes| classes % 8 == 0 && *classes > 0)
}

/// What is wanted of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The value.
    Value,
    /// The gradients for `h` and `w`.
    Gradients,
    /// The value and both gradients.
    Both,
}

/// The loss `[]`, `dh` and `dw`, as many of them as are wanted, in this order. `args` are h `[n, d]`, w and
/// targets `[n]`; a fourth one `[]` multiplies the gradients.
fn run(args: &[&Tensor], wanted: Loss, softcap: f64) -> Result<Vec<Tensor>> {
    let (h, w, targets) =
        (contiguous(at(args, 0)?)?, contiguous(at(args, 1)?)?, contiguous(at(args, 2)?)?);
    let ((n, _), (classes, _)) = (h.size2()?, w.size2()?);
    let loss = cuda::empty(&[n], Kind::Float, &h)?;
    let inverse = cuda::empty(&[1], Kind::Float, &h)?;
    let n_arg = Arg::I32(int(OP, n)?);
    cuda::launch(&COUNT, [1, 1, 1], &[Arg::Tensor(&targets), Arg::Tensor(&inverse), n_arg])?;
    let weight = match args.get(3) {
        Some(dloss) => inverse.f_mul(&dloss.f_to_kind(Kind::Float)?)?.f_reshape([1i64])?,
        None => inverse.shallow_clone(),
    };
    let with_gradients = wanted != Loss::Value;
    let n_chunks = ceil(n, (HELD / classes).max(1));
    let rows = ceil(n, n_chunks);
    let logits = cuda::empty(&[rows.min(n), classes], Kind::BFloat16, &h)?;
    let (dh, dw) = if with_gradients {
        (cuda::empty(&h.size(), h.kind(), &h)?, cuda::empty(&w.size(), w.kind(), &h)?)
    } else {
        (h.f_narrow(0, 0, 0)?, w.f_narrow(0, 0, 0)?)
    };
    for start in (0..n).step_by(usize::try_from(rows).unwrap_or(1)) {
        let size = rows.min(n - start);
        let part = h.f_narrow(0, start, size)?;
        let z = logits.f_narrow(0, 0, size)?;
        let _ = part.f_mm_out(&z, &w.f_transpose(0, 1)?)?;
        cuda::launch(
            &ROWS,
            [int(OP, size)?, 1, 1],
            &[
                Arg::Tensor(&z),
                Arg::Tensor(&targets.f_narrow(0, start, size)?),
                Arg::Tensor(&weight),
                Arg::F32(softcap as f32),
                Arg::F32(1.0),
                Arg::Tensor(&loss.f_narrow(0, start, size)?),
                Arg::I32(int(OP, classes)?),
            ],
        )?;
        if with_gradients {
            let _ = z.f_mm_out(&dh.f_narrow(0, start, size)?, &w)?;
            let _ = if start == 0 {
                z.f_transpose(0, 1)?.f_mm_out(&dw, &part)?
            } else {
                dw.f_addmm_out(&dw, &z.f_transpose(0, 1)?, &part)?
            };
        }
    }
    let mut results = Vec::new();
    if wanted != Loss::Gradients {
        let total = cuda::empty(&[1], Kind::Float, &h)?;
        let args = [Arg::Tensor(&loss), Arg::Tensor(&inverse), Arg::Tensor(&total), n_arg];
        cuda::launch(&TOTAL, [1, 1, 1], &args)?;
        results.push(total.f_reshape([0i64; 0])?);
    }
    if with_gradients {
        results.extend([dh, dw]);
    }
    Ok(results)
}

/// Loss and gradients where [`takes_cross_entropy`]; `h` is `[n, d]`, `targets` `[n]`.
pub(crate) fn cross_entropy(
    inputs: &[&Tensor],
    wanted: Loss,
    softcap: f64,
    reference: cuda::Way<'_>,
) -> Result<Vec<Tensor>> {
    let h = at(inputs, 0)?;
    cuda::either(&ROWS, inputs, h, &|args, _| run(args, wanted, softcap), reference)
}
