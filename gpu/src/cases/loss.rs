//! Linear cross entropy.

use lightc_runtime::{Kind, Result, Tensor, ops};

use super::chosen;
use crate::bench::time;
use crate::check::compared;
use crate::{Case, Gpu, Measured, Verdict};

pub(super) struct Loss;

/// Classes, rows, channels, softcap and every how manyth target is left out.
type Size = (i64, i64, i64, f64, i64);

const SIZES: [Size; 7] = [
    (1024, 1, 64, 15.0, 0),
    (4096, 100, 128, 0.0, 7),
    (8192, 333, 256, 60.0, 7),
    (8192, 333, 256, 15.0, 7),
    (4096, 50, 64, 15.0, 1),
    (131_072, 2000, 64, 15.0, 7),
    // Two chunks of logits.
    (131_072, 4100, 64, 15.0, 7),
];

fn inputs(gpu: &Gpu, (classes, rows, channels, _, every): Size) -> Result<[Tensor; 3]> {
    let h = gpu.normal_bf16(&[rows, channels])?;
    let spread = 3.0 / (channels as f64).sqrt();
    let w = gpu.normal(&[classes, channels])?.f_mul_scalar(spread)?.f_to_kind(Kind::BFloat16)?;
    let on = (Kind::Int64, gpu.device());
    let targets = Tensor::f_randint(classes, [rows], on)?;
    if every == 0 {
        return Ok([h, w, targets]);
    }
    let left_out = Tensor::f_arange(rows, on)?.f_remainder(every)?.f_eq(0)?;
    let none = Tensor::f_full([0i64; 0], ops::IGNORE_INDEX, on)?;
    Ok([h, w, none.f_where_self(&left_out, &targets)?])
}

impl Case for Loss {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        for size in chosen(gpu.small, &SIZES, |size| size.1) {
            let (classes, rows, channels, softcap, every) = size;
            let [h, w, targets] = inputs(gpu, size)?;
            let dloss = Tensor::f_full([0i64; 0], 0.37, (Kind::Float, gpu.device()))?;
            let left = if every == 1 { ", no target counts" } else { "" };
            let label = format!(
                "linear cross entropy N={rows} V={classes} D={channels} cap {softcap}{left}"
            );
            verdicts.extend(compared(&label, 1.0, &mut || {
                let _ = ops::linear_cross_entropy(&h, &w, &targets, softcap)?;
                let _ = ops::linear_cross_entropy_grad(&h, &w, &targets, &dloss, softcap)?;
                let _ = ops::linear_cross_entropy_step(&h, &w, &targets, softcap)?;
                Ok(())
            })?);
        }
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let (rows, classes, channels) = (8192, 131_072, 4096);
        let [h, _, targets] = inputs(gpu, (classes, rows, channels, 0.0, 0))?;
        let w = gpu.normal(&[classes, channels])?.f_mul_scalar(0.02)?.f_to_kind(Kind::BFloat16)?;
        let mut measured = Vec::new();
        for softcap in [0.0, 15.0] {
            let spread = time(gpu, 8, &mut || {
                ops::linear_cross_entropy_step(&h, &w, &targets, softcap).map(|_| ())
            })?;
            measured.push(Measured {
                name: "linear cross entropy fwd+bwd".to_owned(),
                shape: format!("N={rows} V={classes} d={channels} cap {softcap}"),
                spread,
                flops: 6.0 * (rows * classes * channels) as f64,
                bytes: 4.0 * ((rows + classes) * channels) as f64,
                peers: &["linear + cross entropy fwd+bwd", "fused linear cross entropy fwd+bwd"],
            });
        }
        Ok(measured)
    }
}
